"""Augmentation of waveforms in the loader: noise, reverb, pitch, speed, a band or a moment left out.

Everything is drawn from the generator that is handed in, which the loader seeds by (seed, epoch, number of the row):
so a row is changed alike in every run, process and worker, and in no other way than before when a run resumes.

S samples of a waveform, full scale 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
import torch
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from hf_wav2vec_family.audio_reading import read_audio

from .rows import SUFFIXES

# of the phase vocoder: 32 ms at 16 kHz, a quarter of it from one to the next
WINDOW_SAMPLES, HOP_SAMPLES = 512, 128
Range = float | Sequence[float]


def audio_files(option: str, folder: str | None) -> tuple[str, ...]:
    """All audio beneath a folder, sorted; none where no folder is asked for."""
    if folder is None:
        return ()
    files = sorted(str(path) for path in Path(folder).rglob("*") if path.name.lower().endswith(SUFFIXES["audio"]))
    if not files:
        raise ValueError(f"{option}: expected a folder with audio, found none beneath {folder!r}.")
    return tuple(files)


@dataclass(frozen=True)
class Kind:
    """What can be done to a waveform.

    Args:
        prob: probability that it is done to a row at all.
    """

    # option -> the lowest and highest value that it may have; each is a number, or [lowest, highest] to draw between
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {}
    NAME: ClassVar[str]
    KEEPS_LENGTH: ClassVar[bool] = True

    prob: float = 1.0

    def __post_init__(self):
        if not 0 <= self.prob <= 1:
            raise ValueError(f"{self.NAME}.prob must be between 0 and 1, got {self.prob}.")
        for option, (lowest, highest) in self.RANGES.items():
            value = getattr(self, option)
            ends = tuple(value) if isinstance(value, Sequence) else (value, value)
            if len(ends) != 2 or not lowest <= ends[0] <= ends[1] <= highest:
                raise ValueError(
                    f"{self.NAME}.{option} must be a number, or [lowest, highest], between {lowest} and {highest}, got"
                    f" {value!r}."
                )

    def draw(self, option: str, generator: np.random.Generator) -> float:
        value = getattr(self, option)
        return float(generator.uniform(*value)) if isinstance(value, Sequence) else float(value)

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Waveform [S] at `sampling_rate` Hz -> [S], float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class Noise(Kind):
    """Adds noise so loud that the clip as a whole is `snr_db` decibels above it; silence stays silent.

    Args:
        folder: with recordings of noise, of which a random piece of a random one is taken, repeated where it is too
            short; white noise if None.
    """

    NAME, RANGES = "noise", {"snr_db": (-20.0, 100.0)}

    snr_db: Range = (5.0, 20.0)
    folder: str | None = None

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "files", audio_files("noise.folder", self.folder))

    def __call__(self, waveform, sampling_rate, generator):
        ratio = 10 ** (self.draw("snr_db", generator) / 20)
        if self.files:
            recording = read_audio(self.files[generator.integers(len(self.files))], sampling_rate)
            begin = generator.integers(max(len(recording) - len(waveform), 0) + 1)
            noise = np.resize(recording[begin:], len(waveform))
        else:
            noise = generator.standard_normal(len(waveform), dtype=np.float32)
        return waveform + noise * (rms(waveform) / max(ratio * rms(noise), 1e-12))


@dataclass(frozen=True)
class Reverb(Kind):
    """Convolves with the answer of a room to an impulse; the level stays, and the first sound comes when it came.

    Without a folder a room is the direct sound and noise that decays exponentially (the statistical model of Polack).

    Args:
        decay_seconds: until what is reflected has decayed by 60 dB.
        direct_db: how far the direct sound is above all that is reflected.
        folder: with impulse responses to take instead.
    """

    NAME, RANGES = "reverb", {"decay_seconds": (0.01, 10.0), "direct_db": (-30.0, 60.0)}

    decay_seconds: Range = (0.1, 0.6)
    direct_db: Range = (0.0, 12.0)
    folder: str | None = None

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "files", audio_files("reverb.folder", self.folder))

    def __call__(self, waveform, sampling_rate, generator):
        if self.files:
            response = read_audio(self.files[generator.integers(len(self.files))], sampling_rate)
            response = response[np.abs(response).argmax() :]
        else:
            response = self.room(sampling_rate, generator)
        # a power of two is what a Fourier transform is fastest at
        size = 2 ** math.ceil(math.log2(len(waveform) + len(response)))
        wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
        return (wet * (rms(waveform) / max(rms(wet), 1e-12))).astype(np.float32)

    def room(self, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        decay_seconds, direct_db = self.draw("decay_seconds", generator), self.draw("direct_db", generator)
        time = np.arange(1, round(decay_seconds * sampling_rate)) / sampling_rate
        reflected = generator.standard_normal(len(time)) * 10 ** (-3 * time / decay_seconds)
        reflected *= 10 ** (-direct_db / 20) / np.linalg.norm(reflected)
        return np.concatenate([[1.0], reflected])


@dataclass(frozen=True)
class Pitch(Kind):
    """Moves every frequency by `cents`, hundredths of a semitone: f becomes f * 2^(cents / 1200). The length stays."""

    NAME, RANGES = "pitch", {"cents": (-2400.0, 2400.0)}

    cents: Range = (-300.0, 300.0)

    def __call__(self, waveform, sampling_rate, generator):
        factor = 2 ** (self.draw("cents", generator) / 1200)
        longer = stretch(waveform, factor)
        moved = soxr.resample(longer, sampling_rate * factor, sampling_rate)[: len(waveform)]
        return np.pad(moved, (0, len(waveform) - len(moved)))


@dataclass(frozen=True)
class Speed(Kind):
    """Plays a clip `factor` times as fast, pitch included: S samples become S / factor.

    Batches are planned with the lengths as recorded, and hold that much more or less.
    """

    NAME, RANGES, KEEPS_LENGTH = "speed", {"factor": (0.25, 4.0)}, False

    factor: Range = (0.9, 1.1)

    def __call__(self, waveform, sampling_rate, generator):
        return soxr.resample(waveform, sampling_rate * self.draw("factor", generator), sampling_rate)


@dataclass(frozen=True)
class BandReject(Kind):
    """Leaves out the frequencies of one band, whose place is drawn evenly on the mel scale.

    Args:
        width: of the band, as a share of the mel scale up to half the sampling rate.
    """

    NAME, RANGES = "band_reject", {"width": (0.0, 1.0)}

    width: Range = (0.0, 0.15)

    def __call__(self, waveform, sampling_rate, generator):
        width = self.draw("width", generator)
        begin = generator.uniform(0, 1 - width)
        low, high = mel_to_hertz(np.array([begin, begin + width]) * hertz_to_mel(sampling_rate / 2))
        # zeros behind the clip, or what rings on after its end would be heard at its beginning
        size = 2 ** math.ceil(math.log2(2 * len(waveform)))
        spectrum = np.fft.rfft(waveform, size)
        frequencies = np.fft.rfftfreq(size, 1 / sampling_rate)
        spectrum[(frequencies >= low) & (frequencies < high)] = 0
        return np.fft.irfft(spectrum, size)[: len(waveform)].astype(np.float32)


@dataclass(frozen=True)
class TimeDropout(Kind):
    """Silences one moment of a clip, which lasts `seconds`."""

    NAME, RANGES = "time_dropout", {"seconds": (0.0, 10.0)}

    seconds: Range = (0.0, 0.1)

    def __call__(self, waveform, sampling_rate, generator):
        length = min(round(self.draw("seconds", generator) * sampling_rate), len(waveform))
        begin = generator.integers(len(waveform) - length + 1)
        silenced = waveform.copy()
        silenced[begin : begin + length] = 0
        return silenced


KINDS = {kind.NAME: kind for kind in (Noise, Reverb, Pitch, Speed, BandReject, TimeDropout)}


@dataclass(frozen=True)
class Augmentation:
    """Several kinds one after another.

    Args:
        past_only: for CPC: the context is computed from what comes out, the frames to be predicted and the negatives
            from the clip as it was (Kharitonov et al., 2020, arXiv:2007.00991).
    """

    kinds: tuple[Kind, ...]
    past_only: bool = False

    def __post_init__(self):
        changing = [kind.NAME for kind in self.kinds if not kind.KEEPS_LENGTH]
        if self.past_only and changing:
            raise ValueError(
                f"data.augment_past_only needs clips whose length stays, but data.augmentation has {changing[0]}."
            )

    def __call__(self, waveform: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """Waveform [S] at `sampling_rate` Hz -> float32 [S], or [S / factor] with speed."""
        for kind in self.kinds:
            if generator.random() < kind.prob:
                waveform = kind(waveform, sampling_rate, generator)
        return waveform


def make_augmentation(asked: Mapping[str, Any] | None, *, past_only: bool = False) -> Augmentation | None:
    """The augmentation of a recipe: a kind and its options by the name of each, done in this order.

    Raises:
        ValueError: for a kind or an option that does not exist, or a value that makes no sense.
    """
    if not asked:
        if past_only:
            raise ValueError("data.augment_past_only has no effect without data.augmentation.")
        return None
    kinds = []
    for name, options in asked.items():
        if name not in KINDS:
            raise ValueError(f"data.augmentation takes {', '.join(KINDS)}, got {name!r}.")
        accepted = [field.name for field in dataclasses.fields(KINDS[name])]
        options = {} if options is None else options
        if not isinstance(options, Mapping) or not set(options) <= set(accepted):
            raise ValueError(f"data.augmentation.{name} takes {', '.join(accepted)}, got {options!r}.")
        try:
            kinds.append(KINDS[name](**options))
        except ValueError as error:
            raise ValueError(f"data.augmentation.{error}") from error
    return Augmentation(tuple(kinds), past_only)


def rms(waveform: np.ndarray) -> float:
    """Root mean square, summed in double precision."""
    return math.sqrt(np.square(waveform, dtype=np.float64).mean())


def stretch(waveform: np.ndarray, factor: float) -> np.ndarray:
    """A waveform [S] made `factor` times as long, its frequencies unchanged, by a phase vocoder.

    Every frame of the result is read between two frames of the short-time spectrum; its phase goes on from the frame
    before by as much as it does from one of the two to the other.
    """
    window = torch.hann_window(WINDOW_SAMPLES)
    spectrum = torch.stft(
        torch.from_numpy(np.pad(waveform, (0, WINDOW_SAMPLES))),
        WINDOW_SAMPLES,
        HOP_SAMPLES,
        window=window,
        pad_mode="constant",
        return_complex=True,
    )
    place = torch.arange(0, spectrum.shape[1] - 1, 1 / factor, dtype=torch.float64)
    left = place.long().clamp(max=spectrum.shape[1] - 2)
    before, after = spectrum[:, left], spectrum[:, left + 1]
    magnitude = torch.lerp(before.abs(), after.abs(), (place - left).float())
    advance = (after * before.conj()).angle().double()
    phase = torch.cumsum(torch.cat([before[:, :1].angle().double(), advance[:, :-1]], dim=1), dim=1)
    # only the angle within one turn is a matter of single precision
    stretched = torch.polar(magnitude, torch.remainder(phase, 2 * math.pi).float())
    length = round(len(waveform) * factor)
    return torch.istft(stretched, WINDOW_SAMPLES, HOP_SAMPLES, window=window, length=length).numpy()
