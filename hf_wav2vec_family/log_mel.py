"""Front ends without anything learned: log-mel filter banks and cepstra, what learned features are compared with.

Shapes: B clips, S samples of a waveform, T frames, F bins of a spectrum, M mel bands, N cepstra; see conv.py.

Frame i sees `window_samples` samples from number i * `hop_samples` on and nothing is padded, so that it is centred at
sample i * `hop_samples` + (`window_samples` - 1) / 2: 160 i + 199.5 at 16 kHz. That is the rule of one convolution
with this kernel and stride, and lengths are computed as for one.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from .conv import num_frames, sample_lengths, valid_frames
from .precision import without_autocast


# a constant for torch.compile, and no inference tensor, or a first call in inference mode would spoil later ones
@torch.compiler.assume_constant_result
@torch.inference_mode(False)
@lru_cache(maxsize=16)
def _filters(num_bins: int, num_mel_bands: int, sampling_rate: int, device: torch.device) -> Tensor:
    """[F, M] triangles, evenly spaced from 0 Hz to half the sampling rate on the mel scale of HTK."""
    filters = mel_filter_bank(num_bins, num_mel_bands, 0.0, sampling_rate / 2, sampling_rate, dtype=np.float32)
    return torch.from_numpy(filters).to(device)


@torch.compiler.assume_constant_result
@torch.inference_mode(False)
@lru_cache(maxsize=16)
def _cosines(num_mel_bands: int, num_cepstra: int, device: torch.device) -> Tensor:
    """[M, N] the first columns of the orthonormal DCT-II:

    sqrt(2 / M) cos(pi n (m + 1/2) / M), and sqrt(1 / M) for n = 0.
    """
    band, order = np.arange(num_mel_bands)[:, None], np.arange(num_cepstra)
    cosines = np.sqrt(2 / num_mel_bands) * np.cos(np.pi * order * (band + 0.5) / num_mel_bands)
    cosines[:, 0] = np.sqrt(1 / num_mel_bands)
    return torch.from_numpy(cosines.astype(np.float32)).to(device)


class LogMel(nn.Module):
    """Logarithm of the energy in mel bands: windows of 25 ms every 10 ms, Hann, power spectrum.

    Nothing is stored: constants are made where they are needed, in float32 whatever the model around this is cast to.

    Args:
        num_mel_bands: M.
        sampling_rate: of the waveforms, in Hz.
        floor: energies below it count as this much. A waveform has a full scale of 1.
    """

    def __init__(self, num_mel_bands: int = 80, *, sampling_rate: int = 16_000, floor: float = 1e-10):
        super().__init__()
        self.window_samples, self.hop_samples = sampling_rate // 40, sampling_rate // 100
        if self.hop_samples < 1:
            raise ValueError(f"sampling_rate must be at least 100 Hz, one sample per frame, got {sampling_rate}.")
        if floor <= 0:
            raise ValueError(f"floor must be above 0, whose logarithm is taken, got {floor}.")
        if num_mel_bands < 1:
            raise ValueError(f"num_mel_bands must be at least 1, got {num_mel_bands}.")
        self.num_mel_bands, self.sampling_rate, self.floor = num_mel_bands, sampling_rate, floor
        # the next power of two: finer bins than the window has, or low bands would fall between them
        self.fft_samples = 1 << (self.window_samples - 1).bit_length()

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of a number of samples (or a tensor of them)."""
        return num_frames(num_samples, [self.window_samples], [self.hop_samples])

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Waveform [B, S], mask [B, S] with 1 for samples and 0 for padding on the right -> [B, T, M] float32.

        A padded row gives what it would give alone, and 0 after its last frame.

        Raises:
            ValueError: a waveform shorter than a window, or a mask of another shape.
        """
        lengths = sample_lengths(input_values, attention_mask, self.window_samples)
        waveform = input_values.float()
        if lengths is not None:
            # where, not a product: what stands in the padding may be NaN
            waveform = torch.where(valid_frames(lengths, waveform.shape[-1]), waveform, 0.0)
        with without_autocast(waveform.device):
            filters = _filters(self.fft_samples // 2 + 1, self.num_mel_bands, self.sampling_rate, waveform.device)
            log_energies = (self.power_spectrum(waveform) @ filters).clamp(min=self.floor).log()
        if lengths is None:
            return log_energies
        valid = valid_frames(self.num_frames(lengths), log_energies.shape[1])
        return torch.where(valid.unsqueeze(-1), log_energies, 0.0)

    def power_spectrum(self, waveform: Tensor) -> Tensor:
        """[B, S] -> [B, T, F], squared magnitudes of the windowed Fourier transform."""
        # symmetric, so that its middle is that of the samples it covers
        window = torch.hann_window(self.window_samples, periodic=False, device=waveform.device)
        # stft puts the window in the middle of fft_samples: these samples make room for it and are multiplied by 0
        room = self.fft_samples - self.window_samples
        padded = F.pad(waveform, (room // 2, room - room // 2))
        spectrum = torch.stft(
            padded,
            self.fft_samples,
            self.hop_samples,
            win_length=self.window_samples,
            window=window,
            center=False,
            return_complex=True,
        )
        return spectrum.abs().square().transpose(1, 2)


class MFCC(nn.Module):
    """Mel-frequency cepstra with their first and second differences in time, 39 numbers per frame.

    Args:
        num_cepstra: N, with the one of order 0.
        log_mel: where they come from; 40 bands by default.
        delta_frames: how many frames to either side a difference looks at.
    """

    def __init__(self, num_cepstra: int = 13, *, log_mel: LogMel | None = None, delta_frames: int = 2):
        super().__init__()
        self.log_mel = log_mel or LogMel(40)
        if not 1 <= num_cepstra <= self.log_mel.num_mel_bands:
            raise ValueError(
                f"num_cepstra must be from 1 to {self.log_mel.num_mel_bands}, the number of mel bands, got"
                f" {num_cepstra}."
            )
        if delta_frames < 1:
            raise ValueError(f"delta_frames must be at least 1, got {delta_frames}.")
        self.num_cepstra, self.delta_frames = num_cepstra, delta_frames

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of a number of samples (or a tensor of them)."""
        return self.log_mel.num_frames(num_samples)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Waveform [B, S] and its mask [B, S] or None -> [B, T, 3 N] float32: cepstra, differences, theirs.

        A padded row gives what it would give alone, and 0 after its last frame. Raises ValueError as `LogMel` does.
        """
        log_energies = self.log_mel(input_values, attention_mask)
        batch_size, total, num_mel_bands = log_energies.shape
        lengths = torch.full((batch_size,), total, device=log_energies.device)
        if attention_mask is not None:
            lengths = self.num_frames((attention_mask != 0).sum(dim=-1))
        with without_autocast(log_energies.device):
            cepstra = log_energies @ _cosines(num_mel_bands, self.num_cepstra, log_energies.device)
        first = deltas(cepstra, lengths, self.delta_frames)
        joined = torch.cat([cepstra, first, deltas(first, lengths, self.delta_frames)], dim=-1)
        return torch.where(valid_frames(lengths, total).unsqueeze(-1), joined, 0.0)


def deltas(frames: Tensor, lengths: Tensor, reach: int) -> Tensor:
    """Slope of the regression line through the `reach` frames to either side, [B, T, D] -> [B, T, D]:

        sum_n n (x[t + n] - x[t - n]) / (2 sum_n n^2),   n = 1 .. reach

    Before the first and after the last of the `lengths` [B] valid frames stands that frame again.
    """
    place, last = torch.arange(frames.shape[1], device=frames.device), (lengths - 1).clamp(min=0)[:, None]

    def shifted(by: int) -> Tensor:
        index = torch.minimum((place + by).clamp(min=0), last)  # [B, T]
        return frames.gather(1, index.unsqueeze(-1).expand_as(frames))

    slopes = sum(n * (shifted(n) - shifted(-n)) for n in range(1, reach + 1))
    return slopes / (2 * sum(n * n for n in range(1, reach + 1)))
