"""Utterances cut into pieces of a few seconds at their pauses, for corpora whose phone times are known.

python -m training.pieces /my/corpus --split train --lexicon cmudict.dict --max-seconds 5 --output pieces

CTC and ASG find out by themselves which frame says what, and the longer an utterance is, the longer they take: a small
model that stays with "blank everywhere" for a thousand steps of 15 s leaves it within a few hundred of 4 s. Needs the
columns of training.alignments, and a pronunciation dictionary in the layout of CMUdict, which says where a word of the
text begins among the phones.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hf_wav2vec_family.audio_reading import read_audio

from .durations import rows_in_budget
from .rows import Row
from .sources import Source, open_source

SAMPLING_RATE = 16_000
SILENCE = "SIL"
# of one word
MAX_PHONES = 24


@dataclass(frozen=True)
class Gap:
    """Between two words, or before the first or after the last: where it is in seconds, and how many words before."""

    start: float
    end: float
    num_words: int

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def read_lexicon(path: str | Path) -> dict[str, list[tuple[str, ...]]]:
    """The pronunciations of each word, in capitals and without stress, of a file in the layout of CMUdict."""
    lexicon = defaultdict(list)
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        word, *phones = line.partition(" #")[0].split()
        if not phones or word.startswith(";;;"):
            continue
        lexicon[re.sub(r"\(\d+\)$", "", word).upper()].append(tuple(phone.rstrip("012") for phone in phones))
    if not lexicon:
        raise ValueError(f"lexicon: no line of {path} has a word and its phones.")
    return dict(lexicon)


def gaps_of(row: Row, lexicon: Mapping[str, list[tuple[str, ...]]], num_seconds: float) -> list[Gap]:
    """The gaps before, between and after the words of `row.text`; none, if its words do not fit its phones.

    As many words as possible have a pronunciation of the lexicon; the others take the phones that are left.
    """
    phones, starts = row.extra["phones"], [*row.extra["phone_start_s"], num_seconds]
    words = [lexicon.get(word.upper(), []) for word in row.text.split()]

    def after_gap(phone: int) -> int:
        return phone + (phones[phone : phone + 1] == [SILENCE])

    # ends[n] has every phone at which n words can end, with the fewest unknown words until there and where n - 1 ended
    ends: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for spoken in words:
        reached: dict[int, tuple[int, int]] = {}
        for previous, (num_unknown, _) in ends[-1].items():
            begin = after_gap(previous)
            for length, cost in _lengths(phones[begin : begin + MAX_PHONES], spoken):
                end, path = begin + length, (num_unknown + cost, previous)
                reached[end] = min(reached.get(end, path), path)
        ends.append(reached)
    position = next((phone for phone in ends[-1] if after_gap(phone) == len(phones)), None)
    if position is None:
        return []
    gaps = []
    for num_words, reached in reversed([*enumerate(ends)]):
        gaps.append(Gap(starts[position], starts[after_gap(position)], num_words))
        position = reached[position][1]
    return gaps[::-1]


def _lengths(following: list[str], spoken: list[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """How many of the `following` phones a word may take, and what that costs: nothing as it is in the lexicon."""
    yield from ((len(known), 0) for known in spoken if following[: len(known)] == [*known])
    until_silence = following.index(SILENCE) if SILENCE in following else len(following)
    yield from ((length, 1) for length in range(1, until_silence + 1))


def cuts_of(gaps: list[Gap], max_seconds: float) -> list[Gap]:
    """Where to cut: at the longest pause of what is too long, again and again; the first and the last gap are ends.

    Between words without a pause, at the one nearest to the middle. One word stays whole however long it is.
    """
    first, *inner, last = gaps
    if last.middle - first.middle <= max_seconds or not inner:
        return [first, last]
    middle = (first.middle + last.middle) / 2
    cut = max(inner, key=lambda gap: (gap.end - gap.start, -abs(gap.middle - middle)))
    at = gaps.index(cut)
    return [*cuts_of(gaps[: at + 1], max_seconds), *cuts_of(gaps[at:], max_seconds)[1:]]


def pieces_of(row: Row, cuts: list[Gap]) -> Iterator[dict]:
    """The metadata of the pieces between neighbouring `cuts`, with `begin_s` of each in its utterance."""
    words = row.text.split()
    extra = row.extra
    for number, (left, right) in enumerate(pairwise(cuts)):
        begin, end = left.middle, right.middle
        inside = [
            (phone, max(start, begin) - begin)
            for phone, start, until in zip(
                extra["phones"], extra["phone_start_s"], [*extra["phone_start_s"][1:], end], strict=True
            )
            if start < end and until > begin
        ]
        yield {
            "id": f"{row.id}-{number:02d}",
            "text": " ".join(words[left.num_words : right.num_words]),
            "begin_s": begin,
            "duration": end - begin,
            "speaker_id": extra.get("speaker_id"),
            "phones": [phone for phone, _ in inside],
            "phone_start_s": [round(start, 4) for _, start in inside],
        }


def write_pieces(rows: Iterable[Row], lexicon: Mapping, folder: Path, *, max_seconds: float) -> dict[str, float]:
    """Writes flac files and `metadata.jsonl`; returns how many utterances and pieces, and how many were left out."""
    import soundfile

    (folder / "audio").mkdir(parents=True, exist_ok=True)
    counts = {"utterances": 0, "unaligned": 0, "pieces": 0, "seconds": 0.0}
    with (folder / "metadata.jsonl").open("w") as metadata:
        for row in tqdm(rows, desc="cutting", unit="utterance"):
            waveform = read_audio(row.audio, SAMPLING_RATE)
            num_seconds = len(waveform) / SAMPLING_RATE
            gaps = gaps_of(row, lexicon, num_seconds) if row.extra.get("alignment_ok", True) else []
            counts["utterances"] += 1
            if not gaps:
                counts["unaligned"] += 1
                continue
            # what is before the first word and after the last stays
            gaps[0], gaps[-1] = Gap(0.0, 0.0, 0), Gap(num_seconds, num_seconds, gaps[-1].num_words)
            for piece in pieces_of(row, cuts_of(gaps, max_seconds)):
                begin = round(piece.pop("begin_s") * SAMPLING_RATE)
                samples = waveform[begin : begin + round(piece["duration"] * SAMPLING_RATE)]
                file_name = f"audio/{piece['id']}.flac"
                soundfile.write(folder / file_name, np.clip(samples, -1, 1), SAMPLING_RATE, subtype="PCM_16")
                metadata.write(json.dumps({"file_name": file_name, **piece}) + "\n")
                counts["pieces"] += 1
                counts["seconds"] += len(samples) / SAMPLING_RATE
    return counts


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--name", help="configuration of a Hub data set, or a corpus of the LDC")
    parser.add_argument("--split", default="train")
    parser.add_argument("--lexicon", type=Path, required=True, help="pronunciations, as cmudict.dict has them")
    parser.add_argument("--max-seconds", type=float, default=5.0, help="a word that lasts longer is longer")
    parser.add_argument("--budget-seconds", type=float, help="of utterances, taken as a label budget takes them")
    parser.add_argument("--output", type=Path, required=True, help="folder for SPLIT/metadata.jsonl and its audio")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    options = parse_arguments(arguments)
    lexicon = read_lexicon(options.lexicon)
    source = open_source(Source(options.corpus, options.name, options.split))
    rows = source.rows()
    if options.budget_seconds:
        kept = rows_in_budget(source.rows(), options.budget_seconds, budget_seed=0)
        rows = (row for number, row in enumerate(rows) if number in kept)
    counts = write_pieces(rows, lexicon, options.output / options.split, max_seconds=options.max_seconds)
    if not counts["pieces"]:
        raise ValueError(f"lexicon: the words of no utterance of {options.corpus} fit its phones.")
    print(json.dumps(counts, indent=2))
    return counts


if __name__ == "__main__":
    main()
