"""How far a model's forced alignment is from a corpus' phone times: boundaries of phones and words, in milliseconds.

python -m training.boundaries runs/phones/model /my/corpus --split dev --lexicon cmudict.dict

The corpus has the columns that the probe reads, `phones` and `phone_start_s`. A model of phones is given these phones
(without silences that its vocabulary lacks), a model of letters the text. The boundary of two phones, be it of two
words as well, is half way between the end of one and the start of the next, since CTC leaves a gap there; boundaries
at a silence count where the vocabulary has it. Words of letters begin and end as their timestamps say. Which phones
are a word's is found by a pronunciation lexicon, as training.pieces does it.
"""

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_wav2vec_family.audio_reading import read_audio
from hf_wav2vec_family.decoding.alignment import Aligner
from hf_wav2vec_family.decoding.spelling import CASES, letter_case, writes_phones

from .collators import normalized_text
from .pieces import gaps_of, read_lexicon
from .rows import Row
from .sources import Source, open_source

Lexicon = Mapping[str, list[tuple[str, ...]]]
SILENCES = {"SIL", "sil", "SPN", "spn", ""}


@dataclass
class Boundaries:
    """Ours minus the corpus', in seconds: of phones, and of the starts and ends of words."""

    phones: list[float] = field(default_factory=list)
    word_starts: list[float] = field(default_factory=list)
    word_ends: list[float] = field(default_factory=list)
    num_utterances: int = 0
    num_without_words: int = 0

    def summary(self) -> dict:
        """Numbers of boundaries and how far off they are, in milliseconds; `bias` is below 0 if ours come early."""
        measured = {"phone_boundaries": self.phones, "word_starts": self.word_starts, "word_ends": self.word_ends}
        summary: dict = {"num_utterances": self.num_utterances, "num_without_words": self.num_without_words}
        for name, differences in measured.items():
            if differences:
                off = 1000 * np.array(differences)
                summary[name] = {
                    "number": len(off),
                    "median_error_ms": round(float(np.median(abs(off))), 2),
                    "mean_error_ms": round(float(abs(off).mean()), 2),
                    "bias_ms": round(float(np.median(off)), 2),
                    "within_20_ms": round(float((abs(off) <= 20).mean()), 4),
                }
        return summary


def compare(row: Row, aligner: Aligner, lexicon: Lexicon | None, text_case: str | None, found: Boundaries):
    """Aligns an utterance and adds its differences to `found`."""
    tokenizer, sampling_rate = aligner.processor.tokenizer, aligner.processor.feature_extractor.sampling_rate
    waveform = read_audio(row.audio, sampling_rate)
    phones, starts = row.extra["phones"], row.extra["phone_start_s"]
    gaps = gaps_of(row, lexicon, len(waveform) / sampling_rate) if lexicon and row.text else []
    words = [(before.end, behind.start) for before, behind in pairwise(gaps)]
    if writes_phones(tokenizer):
        kept = [i for i, phone in enumerate(phones) if phone in tokenizer.get_vocab() or phone not in SILENCES]
        symbols = aligner(waveform, " ".join(phones[i] for i in kept)).symbols
        if len(symbols) != len(kept):
            raise ValueError(f"model: it makes one of equal phones, as in {row.id}, and has no boundary between them.")
        begin = {place: symbol.start for place, symbol in zip(kept, symbols, strict=True)}
        finish = {place: symbol.end for place, symbol in zip(kept, symbols, strict=True)}
        for place, behind in pairwise(kept):
            if behind == place + 1:
                finish[place] = begin[behind] = (finish[place] + begin[behind]) / 2
                found.phones.append(begin[behind] - starts[behind])
        # a word begins with the phone that begins there, and ends with the last one that begins before its end
        ours = [(begin[starts.index(start)], finish[bisect_left(starts, end) - 1]) for start, end in words]
    else:
        aligned = aligner(waveform, normalized_text(row.text or "", text_case)).words
        ours = [(word.start, word.end) for word in aligned] if words else []
    found.num_utterances += 1
    found.num_without_words += not words
    for (our_start, our_end), (start, end) in zip(ours, words, strict=True):
        found.word_starts.append(our_start - start)
        found.word_ends.append(our_end - end)


def measure(
    rows: Iterable[Row], aligner: Aligner, *, lexicon: Lexicon | None = None, text_case: str | None = None
) -> Boundaries:
    """The differences of all rows that are aligned."""
    found = Boundaries()
    for row in tqdm(rows, unit="utterance"):
        if row.extra.get("alignment_ok", True):
            compare(row, aligner, lexicon, text_case, found)
    if not found.num_utterances:
        raise ValueError("corpus: no utterance has an alignment to compare with.")
    return found


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a model trained with CTC or ASG, with its processor")
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id with phones and phone_start_s")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--lexicon", type=Path, help="pronunciations, to know the phones of a word")
    parser.add_argument("--text-case", choices=CASES, help="of texts; that of the model's letters unless told")
    parser.add_argument("--output", type=Path, help="folder for boundaries.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    aligner = Aligner.from_pretrained(options.model, device=options.device)
    found = measure(
        open_source(Source(options.corpus, options.name, options.split)).rows(),
        aligner,
        lexicon=None if options.lexicon is None else read_lexicon(options.lexicon),
        text_case=options.text_case or letter_case(aligner.processor.tokenizer),
    )
    summary = found.summary()
    print(json.dumps(summary, indent=2))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "boundaries.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


if __name__ == "__main__":
    main()
