"""TIMIT (LDC93S1) and WSJ (LDC93S6A, LDC94S13A or B) as rows, read where the LDC's discs were copied to.

`{path: /corpora/timit, name: timit, split: train}`; `name` chooses the reader and the phones:

| name | text of a row | splits |
|---|---|---|
| `timit`, `timit48`, `timit61` | phones between blanks, folded to 39 or 48, or as transcribed | train, dev, test |
| `wsj` | the words that were spoken | si284 (or train), nov93dev (dev), nov92 (test), si84 |

File names may be in either case, and the discs of a corpus lie in one folder or in many.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_wav2vec_family.phones import fold_timit_phone

from .rows import Row

logger = logging.getLogger(__name__)

TIMIT_SAMPLING_RATE = 16_000
NUM_PHONES = {"timit": 39, "timit48": 48, "timit61": 61}
# The sentences SA1 and SA2 are read by everyone and left out: 462 speakers, 50 and 24 of 8 sentences each
NUM_TIMIT_ROWS = {"train": 3696, "dev": 400, "test": 192}
# A development set of test speakers, that of Kaldi's recipe, and the core test set of the corpus' documentation
_DEV_SPEAKERS = """
    faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0
    mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0
    fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1
"""
_CORE_TEST_SPEAKERS = """
    mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0
    mnjm0 fdhc0 mjln0 mpam0 fmld0
"""
TIMIT_SPEAKERS = {"dev": frozenset(_DEV_SPEAKERS.split()), "test": frozenset(_CORE_TEST_SPEAKERS.split())}
AUDIO_SUFFIXES = (".wav", ".flac")

WSJ_INDICES = {
    "si84": ["wsj0/doc/indices/train/tr_s_wv1.ndx"],
    "si284": ["wsj0/doc/indices/train/tr_s_wv1.ndx", "wsj1/doc/indices/si_tr_s.ndx"],
    "nov93dev": ["wsj1/doc/indices/h1_p0.ndx"],
    "nov92": ["wsj0/doc/indices/test/nvp/si_et_20.ndx"],
}
WSJ_ALIASES = {"train": "si284", "dev": "nov93dev", "test": "nov92"}
NUM_WSJ_ROWS = {"si84": 7138, "si284": 37416, "nov93dev": 503, "nov92": 333}
# Kaldi's recipe and wav2letter's leave this speaker out, and the count above is without
WSJ_LEFT_OUT = "wsj0/si_tr_s/401/"


@dataclass(frozen=True)
class Sentence:
    """A sentence of TIMIT and its two files."""

    id: str
    speaker: str
    phones: Path
    audio: Path


def read_ldc(root: Path, name: str, split: str):
    """A function that streams the rows of corpus `name` (a key of `READERS`) at `root`.

    Raises:
        ValueError: no such split, or nothing of the corpus is there, or files of the split are missing.
    """
    return READERS[name](root, name, split)


def _read_timit(root: Path, name: str, split: str):
    if split not in NUM_TIMIT_ROWS:
        raise ValueError(f"source.split: {name} has {', '.join(NUM_TIMIT_ROWS)}, got {split!r}.")
    files = {
        _folded(path): path for path in sorted(root.rglob("*")) if path.suffix.lower() in (".phn", *AUDIO_SUFFIXES)
    }
    part, speakers = ("train", None) if split == "train" else ("test", TIMIT_SPEAKERS[split])
    found = []
    for place, path in sorted(files.items()):
        *_, folder, _, speaker, file_name = ("", "", "", *place.parts)
        chosen = folder == part and (speakers is None or speaker in speakers)
        if chosen and place.suffix == ".phn" and not file_name.startswith("sa"):
            audio = next((files[a] for a in map(place.with_suffix, AUDIO_SUFFIXES) if a in files), None)
            if audio is None:
                raise ValueError(f"source.path: {path} has no audio beside it.")
            found.append(Sentence(f"{speaker}_{place.stem}", speaker, phones=path, audio=audio))
    if not found:
        raise ValueError(
            f"source.path: no {name} at {root}; expected {part.upper()}/DR1/<speaker>/<sentence>.PHN and .WAV beneath."
        )
    if missing := sorted((speakers or set()) - {sentence.speaker for sentence in found}):
        raise ValueError(f"source.path: speakers {', '.join(missing)} of split {split} are not at {root}.")
    _warn_of_count(name, split, len(found), NUM_TIMIT_ROWS[split])
    return lambda: (_timit_row(sentence, NUM_PHONES[name]) for sentence in found)


def _timit_row(sentence: Sentence, num_phones: int) -> Row:
    """The row of a sentence; its `extra` has each phone's begin and end for probes on frames."""
    extra: dict = {"speaker_id": sentence.speaker, "phones": [], "phone_start_s": [], "phone_end_s": []}
    for number, line in enumerate(sentence.phones.read_text().splitlines(), start=1):
        if not re.fullmatch(r"\d+ \d+ \S+", line.strip()):
            raise ValueError(
                f"{sentence.phones}, line {number}: expected first sample, last sample and phone, got {line!r}."
            )
        begin, end, phone = line.split()
        if (folded := fold_timit_phone(phone, num_phones)) is not None:
            extra["phones"].append(folded)
            extra["phone_start_s"].append(int(begin) / TIMIT_SAMPLING_RATE)
            extra["phone_end_s"].append(int(end) / TIMIT_SAMPLING_RATE)
    return Row(sentence.id, str(sentence.audio), " ".join(extra["phones"]), extra=extra)


def _read_wsj(root: Path, name: str, split: str):
    split = WSJ_ALIASES.get(split, split)
    if split not in WSJ_INDICES:
        raise ValueError(f"source.split: {name} has {', '.join([*WSJ_INDICES, *WSJ_ALIASES])}, got {split!r}.")
    files, transcripts = {}, defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".ndx", ".wv1", *AUDIO_SUFFIXES):
            files[_below_corpus(path)] = path
        elif path.suffix.lower() == ".dot":
            transcripts[path.name.lower()].append(path)
    rows = []
    for index in WSJ_INDICES[split]:
        if index not in files:
            raise ValueError(f"source.path: no {index} at {root}, which lists the utterances of {split}.")
        rows += _wsj_rows(files[index], files, transcripts)
    if not rows:
        raise ValueError(f"source.path: {WSJ_INDICES[split]} at {root} list no utterances.")
    rows.sort(key=lambda row: row.id)
    _refuse_shorten(rows[0].audio)
    _warn_of_count(name, split, len(rows), NUM_WSJ_ROWS[split])
    return lambda: iter(rows)


def _wsj_rows(index: Path, files: dict[str, Path], transcripts: dict[str, list[Path]]) -> Iterator[Row]:
    known: dict[Path, dict[str, str]] = {}
    for place in _index_entries(index):
        copies = (place + suffix for suffix in (*AUDIO_SUFFIXES, ".wv1"))
        audio = next((files[copy] for copy in copies if copy in files), None)
        if audio is None:
            raise ValueError(f"source.path: {place}.wv1 of {index} is not there.")
        _, *_, subset, _, row_id = ("", "", *place.split("/"))
        # One file of transcripts has a session of a speaker, the first six letters of an utterance's name
        sessions = transcripts.get(f"{row_id[:6]}00.dot", [])
        own = [path for path in sessions if subset in map(str.lower, path.parts)] or sessions
        for path in own:
            if path not in known:
                known[path] = dict(_dot_lines(path))
        text = next((known[path][row_id] for path in own if row_id in known[path]), None)
        if text is None:
            raise ValueError(f"source.path: no .dot file has the transcript of {row_id} ({audio}).")
        yield Row(row_id, str(audio), text, extra={"speaker_id": row_id[:3]})


def _index_entries(index: Path) -> Iterator[str]:
    """`wsj0/si_tr_s/01t/01to030v` of lines such as `11_2_1:wsj0/si_tr_s/01t/01to030v.wv1`; `;` begins a comment."""
    for line in map(str.strip, index.read_text().splitlines()):
        if line and not line.startswith(";"):
            place = line.partition(":")[2].strip(" /").lower().removesuffix(".wv1")
            if not place.startswith(("wsj0/", "wsj1/")):
                raise ValueError(f"{index}: expected lines disc:wsj0/..., got {line!r}.")
            if not place.startswith(WSJ_LEFT_OUT):
                yield place


def _dot_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Utterance and words of each line of a file of detailed orthographic transcripts, `the words (utterance)`."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if found := re.fullmatch(r"\s*(.*?)\s*\((\w+)\)\s*", line):
            yield found[2].lower(), spoken_words(found[1])


def spoken_words(transcript: str) -> str:
    """The words of a detailed orthographic transcript, without anything but letters, digits, apostrophes and periods.

    Noises `[door_slam]`, pauses `.` and cut ends `~` go; so do the marks of words that were mispronounced `*word*`,
    misread `<word>`, emphasised `!word` or only begun `re(port)`. Of punctuation read aloud stays the name: `,COMMA`.
    """
    words = []
    for word in transcript.replace("\\", "").replace("`", "'").split():
        if re.fullmatch(r"\[\S+\]|\.|~+", word):
            continue
        word = re.sub(r"\([^()]*\)", "", word)
        word = re.sub(r"^(\.|'(?=[A-Z]+-QUOTE))(?=[A-Z]{2})", "", word)
        words.append(re.sub(r"[^\w'.]", "", word))
    return " ".join(filter(None, words))


def _refuse_shorten(audio: str):
    with open(audio, "rb") as file:
        header = file.read(1024)
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        raise ValueError(
            f"source.path: {audio} is compressed with shorten, which libsndfile can't read. Convert the corpus once"
            " (sph2pipe -f wav) and leave each .wav or .flac beside its .wv1 or in its place."
        )


def _warn_of_count(name: str, split: str, found: int, published: int):
    if found != published:
        logger.warning(
            "%s, split %s: %d utterances are there; the whole corpus has %d.", name, split, found, published
        )


def _folded(path: Path) -> Path:
    return Path(str(path).lower())


def _below_corpus(path: Path) -> str:
    """`wsj0/...` of a file of any disc, in lower case; the last folder of that name counts."""
    parts = [part.lower() for part in path.parts]
    begin = max((i for i, part in enumerate(parts) if part in ("wsj0", "wsj1")), default=len(parts) - 1)
    return "/".join(parts[begin:])


READERS = {**dict.fromkeys(NUM_PHONES, _read_timit), "wsj": _read_wsj}
