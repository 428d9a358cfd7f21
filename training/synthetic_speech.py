"""A small spoken corpus, made on the spot by espeak-ng: what the quick start trains on, with nothing to download.

Needs the wheel `espeakng_loader` (the shared library of espeak-ng and its data; extra `demo`).
The sentences are those of quickstart_text.txt. Good for seeing every stage run and learn, not for measuring a method:
formant synthesis is far easier than speech.
"""

import ctypes
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

SAMPLING_RATE = 16_000
TEXT_FILE = Path(__file__).with_name("quickstart_text.txt")

# Three, so that a letter keeps its sound often enough to be learnt in minutes.
ACCENTS = ("en-gb-scotland", "en-gb-x-rp", "en-us")
# The plain-speaking ones of the data's `voices/!v`: no whisper, no croak, no robots, none that clips.
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Alex", "Andrea", "Annie", "Denis", "Mike", "adam", "aunty", "benjamin", "edward2", "grandma", "grandpa"),
    *("john", "linda", "max", "michel", "quincy", "rob", "robert", "steph", "victor"),
)

# Every split but the first gets this share of the sentences, the speakers and the utterances, the first the rest.
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Voice:
    """How one speaker talks: an espeak-ng voice and two of its parameters."""

    accent: str
    variant: str
    pitch: int = 50  # 0 to 99
    words_per_minute: int = 160

    @property
    def name(self) -> str:
        """What espeak-ng calls it, unique within a corpus: `en-us+f2`."""
        return f"{self.accent}+{self.variant}"


class SpeechSynthesizer:
    """espeak-ng in this process, fresh: the same calls in the same order give the same samples, in any process.

    Raises:
        RuntimeError: `espeakng_loader` is not installed, or its library does not start.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise RuntimeError("Speaking needs espeak-ng: pip install espeakng_loader") from error
        # Flutter and breath continue from static variables of the library, so each synthesizer loads a copy of its
        # own. Windows keeps a loaded file open: the copy then stays behind in the temporary folder.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        synchronous, default_buffer, dont_exit = 2, 0, 1 << 15  # espeak_AUDIO_OUTPUT and options of speak_lib.h
        self._data_path = Path(espeakng_loader.get_data_path())
        self.sampling_rate = self._library.espeak_Initialize(
            synchronous, default_buffer, str(self._data_path).encode(), dont_exit
        )
        if self.sampling_rate <= 0:
            raise RuntimeError(f"espeak-ng did not start with the data in {self._data_path}.")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))

        self._pieces: list[np.ndarray] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._receive)  # kept, or ctypes would free it under the library's feet
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples: int, _events) -> int:
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """`text` as `voice` says it: float32 [S] within -1 and 1, at `self.sampling_rate`, hardly any silence around.

        Raises:
            ValueError: the data of espeak-ng has no such voice, or there is nothing to be said in `text`.
        """
        # The library itself takes an unknown variant for none.
        has_variant = (self._data_path / "voices" / "!v" / voice.variant).is_file()
        if not has_variant or self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"voice={voice.name!r} is not in the data of the installed espeak-ng.")
        rate, volume, pitch = 1, 2, 3  # espeak_PARAMETER
        # Half the usual volume: at full volume the louder voices clip.
        for parameter, value in ((rate, voice.words_per_minute), (volume, 50), (pitch, voice.pitch)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        encoded, utf8 = text.encode() + b"\0", 1
        status = self._library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, utf8, None, None)
        if status != 0 or not any(piece.any() for piece in self._pieces):
            raise ValueError(f"espeak-ng said nothing (status {status}) for text={text!r}.")
        return np.concatenate(self._pieces).astype(np.float32) / 32768


def transcript(sentence: str) -> str:
    """The sentence as a recogniser spells it: upper-case A to Z, apostrophes and single spaces.

    Raises:
        ValueError: other than letters, apostrophes, spaces and the marks . , ? ! came; digits must be written out.
    """
    text = " ".join("".join(" " if mark in ".,?!" else mark for mark in sentence.upper()).split())
    foreign = sorted(set(text) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' "))
    if foreign or not text:
        raise ValueError(
            f"sentence={sentence!r} cannot be spelt in A-Z and apostrophes: {foreign or 'nothing in it'}."
        )
    return text


def sample_voices(num_voices: int, rng: np.random.Generator) -> list[Voice]:
    """`num_voices` different speakers; no two share a variant before every variant has been used."""
    if not 1 <= num_voices <= len(ACCENTS) * len(VARIANTS):
        raise ValueError(f"num_voices={num_voices}, accepted are 1 to {len(ACCENTS) * len(VARIANTS)}.")
    variants, accents = rng.permutation(VARIANTS).tolist(), rng.permutation(ACCENTS).tolist()
    return [
        Voice(accents[accent], variants[variant], int(rng.integers(35, 66)), int(rng.integers(130, 176)))
        for variant, accent in _distinct_pairs(num_voices, len(variants), len(accents))
    ]


def write_corpus(
    folder: str | Path,
    *,
    num_utterances: int,
    num_voices: int,
    seed: int,
    splits: Sequence[str] = ("train", "dev", "test"),
) -> Path:
    """Speak a corpus into `folder`, which appears whole or not at all, and return its path.

    The layout is audiofolder's: `<split>/metadata.jsonl` with `file_name`, `text`, `speaker_id` and `duration`
    (seconds) beside 16 kHz mono FLAC files of about 1.5 to 4 s. No speaker and no sentence is in two splits, and no
    speaker says a sentence twice. The bytes depend on the arguments and on the versions of espeak-ng, soxr, NumPy
    and libsndfile only.

    Args:
        folder: must not exist yet, or be empty.
        num_utterances: of all splits together; every split but the first gets a tenth.
        num_voices: of all splits together, shared out likewise, so at least one for each split.
        seed: of voices, order, pauses, gain and noise.
        splits: their names, the largest first.

    Raises:
        ValueError: the folder is not empty, or there are too few voices or sentences for what is asked.
        RuntimeError: `espeakng_loader` is not installed.
    """
    import soundfile

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder={str(folder)!r} is there already and not empty.")
    rng = np.random.default_rng(seed)
    sentences = rng.permutation(TEXT_FILE.read_text(encoding="utf-8").splitlines()).tolist()
    sentences_of = _share_out(sentences, splits, "sentences")
    voices_of = _share_out(sample_voices(num_voices, rng), splits, "num_voices")
    utterances_of = _share_out(range(num_utterances), splits, "num_utterances")
    for split in splits:
        num_pairs = len(sentences_of[split]) * len(voices_of[split])
        if len(utterances_of[split]) > num_pairs:
            raise ValueError(
                f"num_utterances={num_utterances} puts {len(utterances_of[split])} in {split!r}, whose"
                f" {len(voices_of[split])} of num_voices={num_voices} voices and {len(sentences_of[split])} sentences"
                f" give {num_pairs} different ones."
            )

    synthesizer = SpeechSynthesizer()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished,
        tqdm(total=num_utterances, desc="speaking", unit="clip") as progress,
    ):
        corpus = Path(unfinished, "corpus")
        for split in splits:
            (corpus / split).mkdir(parents=True)
            pairs = _distinct_pairs(len(utterances_of[split]), len(sentences_of[split]), len(voices_of[split]))
            with open(corpus / split / "metadata.jsonl", "w", encoding="utf-8", newline="\n") as metadata:
                for number, (sentence_index, voice_index) in enumerate(pairs):
                    sentence, voice = sentences_of[split][sentence_index], voices_of[split][voice_index]
                    clip = _record(synthesizer.speak(sentence, voice), synthesizer.sampling_rate, rng)
                    row = {
                        "file_name": f"{split}-{number:05d}.flac",
                        "text": transcript(sentence),
                        "speaker_id": voice.name,
                        "duration": len(clip) / SAMPLING_RATE,
                    }
                    soundfile.write(corpus / split / row["file_name"], clip, SAMPLING_RATE, subtype="PCM_16")
                    metadata.write(json.dumps(row) + "\n")
                    progress.update()
        if folder.exists():
            folder.rmdir()
        corpus.rename(folder)
    return folder


def _record(speech: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Speech [S] at 16 kHz as a microphone might give it: 0.15 to 0.4 s of pause around it, any gain, some noise."""
    import soxr

    speech = soxr.resample(speech, sampling_rate, SAMPLING_RATE)
    peak, loudness = np.abs(speech).max(), np.sqrt(np.mean(speech**2))
    noise_level = loudness * 10 ** (-rng.uniform(20, 45) / 20)
    speech = np.pad(speech, rng.integers(int(0.15 * SAMPLING_RATE), int(0.4 * SAMPLING_RATE), size=2))
    noisy = speech + noise_level * rng.standard_normal(len(speech))
    return (noisy * 10 ** (-rng.uniform(3, 18) / 20) / peak).astype(np.float32)


def _share_out(items: Sequence, splits: Sequence[str], name: str) -> dict[str, Sequence]:
    """Consecutive, disjoint slices of `items`, the first split's the largest; `name` is that of the argument."""
    num_held_out = max(1, round(HELD_OUT_SHARE * len(items)))
    num_first = len(items) - num_held_out * (len(splits) - 1)
    if num_first < 1:
        raise ValueError(f"{name} are {len(items)}, too few to give each of the splits {tuple(splits)} its own.")
    ends = [num_first + num_held_out * index for index in range(len(splits))]
    starts = [0, *ends[:-1]]
    return {split: items[start:end] for split, start, end in zip(splits, starts, ends, strict=True)}


def _distinct_pairs(num_pairs: int, num_rows: int, num_columns: int) -> Iterator[tuple[int, int]]:
    """`num_pairs` <= rows x columns pairs (row, column), none twice, rows and columns all used as evenly as can be."""
    for index in range(num_pairs):
        row, round_number = index % num_rows, index // num_rows
        yield row, (row + round_number) % num_columns
