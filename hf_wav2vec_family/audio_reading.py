"""Audio files to waveforms: decoding by libsndfile (soundfile), resampling by libsoxr (soxr).

Shapes: S samples of a waveform. A waveform is float32, mono, with a full scale of 1.

The file travels with the speech recognition pipeline. Neither library is needed before it is used; Transformers asks a
folder's code for all that it imports, except where an import may fail.
"""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# that are decoded at once
PIECE_SAMPLES = 2**20


class AudioError(ValueError):
    """A source that holds no usable audio; the message names the source and the cause."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header says: `num_samples` per channel at the file's own `sampling_rate` (Hz)."""

    sampling_rate: int
    num_samples: int

    @property
    def duration_seconds(self) -> float:
        return self.num_samples / self.sampling_rate


def read_audio(source: str | Path | bytes | Mapping, sampling_rate: int = 16_000) -> np.ndarray:
    """The whole of `source` as one float32 channel [S] at `sampling_rate` Hz, channels averaged.

    Args:
        source: a file name, the bytes of a file, or a record of `datasets`: `{"bytes", "path"}` (bytes win) or
            `{"array" [S], "sampling_rate"}`. flac, wav, mp3, ogg (Vorbis, Opus) and whatever else libsndfile reads.
        sampling_rate: of the result, in Hz.

    Full scale is 1. Nothing is clipped, so that resampling or a lossy codec may overshoot it a little.

    Raises:
        AudioError: missing, not audio, corrupt, cut short, empty, or with NaN or infinite samples. An mp3 of variable
            bit rate whose header doesn't tell its length counts as cut short: libsndfile only guesses the length.
    """
    return np.concatenate([*read_pieces(source, sampling_rate)])


def read_pieces(source: str | Path | bytes | Mapping, sampling_rate: int = 16_000) -> Iterator[np.ndarray]:
    """The waveform of `read_audio` piece by piece, as it is decoded; what is wrong is said when it is met."""
    num_samples, num_given, resampler, orig_sampling_rate = 0, 0, None, sampling_rate
    for piece, orig_sampling_rate in _decode(source):
        if not np.isfinite(piece).all():
            raise AudioError(f"{_name(source)}: NaN or infinite samples.")
        num_samples += len(piece)
        if orig_sampling_rate != sampling_rate:
            resampler = resampler or _resampler(orig_sampling_rate, sampling_rate)
            piece = resampler.resample_chunk(np.ascontiguousarray(piece))
        num_given += len(piece)
        yield piece
    if not num_samples:
        raise AudioError(f"{_name(source)}: no samples.")
    if resampler is not None:
        last = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        if not num_given + len(last):
            raise AudioError(
                f"{_name(source)}: {num_samples} samples at {orig_sampling_rate} Hz are less than one at"
                f" {sampling_rate} Hz."
            )
        yield last


class Recording:
    """
    A source of any length as a waveform [S] that is never in memory as a whole:

        recording = Recording("lecture.flac")
        recording[:480_000], recording[320_000:800_000]

    All of it is decoded when this is made, for its length, `mean` and `variance`, and to refuse what `read_audio`
    refuses. Then pieces are decoded as they are asked for, from the start again if one begins before the last one did.

    Args:
        source, sampling_rate: as in `read_audio`.
    """

    def __init__(self, source: str | Path | bytes | Mapping, sampling_rate: int = 16_000):
        self.source, self.sampling_rate = source, sampling_rate
        num_samples, total, power = 0, 0.0, 0.0
        for piece in read_pieces(source, sampling_rate):
            num_samples += len(piece)
            total += piece.sum(dtype=np.float64)
            power += np.square(piece, dtype=np.float64).sum()
        self.shape = (num_samples,)
        self.mean = total / num_samples
        self.variance = max(power / num_samples - self.mean**2, 0.0)
        self._rewind()

    def _rewind(self) -> None:
        self._pieces = read_pieces(self.source, self.sampling_rate)
        # what is held of the waveform, and where it begins
        self._held, self._begin = np.zeros(0, dtype=np.float32), 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: slice) -> np.ndarray:
        begin, end, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"place: a recording is read sample by sample, got a step of {step}.")
        end = max(begin, end)
        if begin < self._begin:
            self._rewind()
        while True:
            num_behind = min(begin - self._begin, len(self._held))
            self._held, self._begin = self._held[num_behind:], self._begin + num_behind
            if end <= self._begin + len(self._held):
                return self._held[: end - begin]
            self._held = np.concatenate([self._held, next(self._pieces)])


def audio_info(source: str | Path | bytes | Mapping) -> AudioInfo:
    """Sampling rate and length of `source` without decoding it; takes what `read_audio` takes.

    Raises:
        AudioError: missing, not audio, or with a header that promises no samples or an unknown number of them.
    """
    if isinstance(source, Mapping) and source.get("array") is not None:
        return AudioInfo(source["sampling_rate"], len(source["array"]))
    with _open(source) as file:
        return AudioInfo(file.samplerate, file.frames)


def resample(waveform: np.ndarray, *, orig_sampling_rate: int, sampling_rate: int) -> np.ndarray:
    """`waveform` [S] as float32 at `sampling_rate` Hz (soxr's "HQ" band-limited interpolation)."""
    waveform = waveform.astype(np.float32, copy=False)
    if orig_sampling_rate == sampling_rate:
        return waveform
    resampled = _resampler(orig_sampling_rate, sampling_rate).resample_chunk(np.ascontiguousarray(waveform), last=True)
    if not len(resampled):
        raise AudioError(
            f"waveform: {len(waveform)} samples at {orig_sampling_rate} Hz are less than one at {sampling_rate} Hz."
        )
    return resampled


def _resampler(orig_sampling_rate: int, sampling_rate: int):
    try:
        import soxr
    except ImportError as error:
        raise ImportError("resampling needs soxr: pip install soxr") from error
    return soxr.ResampleStream(orig_sampling_rate, sampling_rate, 1, dtype="float32", quality="HQ")


def _decode(source) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of `source` as one float32 channel at its own sampling rate, and that."""
    if isinstance(source, Mapping) and source.get("array") is not None:
        waveform = np.asarray(source["array"])
        if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
            raise AudioError(f"{_name(source)}: expected floats [S], got {waveform.dtype} {list(waveform.shape)}.")
        yield waveform.astype(np.float32, copy=False), source["sampling_rate"]
        return
    with _open(source) as file:
        num_samples = 0
        # A header may lie about the length, so nothing is made ready for it.
        while len(block := file.read(PIECE_SAMPLES, dtype="float32", always_2d=True)):
            num_samples += len(block)
            yield block.mean(axis=1) if file.channels > 1 else block[:, 0], file.samplerate
        if num_samples < file.frames:
            raise AudioError(f"{_name(source)}: cut short, {num_samples} of {file.frames} samples are there.")
        if remark := _remark_on_missing_data(file.extra_info):
            raise AudioError(f"{_name(source)}: cut short, libsndfile remarks {remark!r}.")


def _remark_on_missing_data(log: str) -> str | None:
    """The line of libsndfile's `log` that says a file ends early.

    libsndfile corrects the length of a truncated wav or ogg silently, and only its log tells.
    """
    for line in log.splitlines():
        if sizes := re.search(r"data.*: (\d+) \(should be (\d+)\)", line, re.IGNORECASE):
            # Programs that write to a pipe can't know the size and put the largest one there.
            if int(sizes[2]) < int(sizes[1]) < 0x7FFFF000:
                return line.strip()
        elif re.search(r"end-of-stream|junk after the last page|not equal to frame count|not match value", line, re.I):
            return line.strip()
    return None


@contextmanager
def _open(source):
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("reading audio files needs soundfile: pip install soundfile") from error
    name = _name(source)
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if not isinstance(source, str | Path | bytes):
        raise AudioError(f"source: expected a path, bytes or a record with either, got {name}.")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise AudioError(f"{name}: no such file.")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            if not file.frames:
                raise AudioError(f"{name}: no samples.")
            if file.frames == 2**63 - 1:
                raise AudioError(f"{name}: the header doesn't tell the number of samples.")
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: not readable as audio: {error.error_string}") from error


def _name(source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes):
        return f"{len(source)} bytes of audio"
    if isinstance(source, Mapping):
        return str(source.get("path") or f"a record of {', '.join(map(str, source)) or 'nothing'}")
    return f"a {type(source).__name__}"
