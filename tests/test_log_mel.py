"""Log-mel and MFCC: equal to slow references, untouched by padding, centred where they say."""

import math

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram

from hf_wav2vec_family.conv import frame_centers
from hf_wav2vec_family.log_mel import MFCC, LogMel

FRONT_ENDS = {"log-mel": LogMel, "mfcc": MFCC}


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transformers_log_mel(waveform, num_mel_bands, sampling_rate=16_000):
    """The same by Transformers' NumPy code, frame by frame in float64."""
    window = sampling_rate // 40
    fft = 2 ** math.ceil(math.log2(window))
    return spectrogram(
        waveform.numpy().astype(np.float64),
        np.hanning(window),
        frame_length=window,
        hop_length=sampling_rate // 100,
        fft_length=fft,
        power=2.0,
        center=False,
        mel_filters=mel_filter_bank(fft // 2 + 1, num_mel_bands, 0.0, sampling_rate / 2, sampling_rate),
        mel_floor=1e-10,
        log_mel="log",
        dtype=np.float64,
    ).T


def slow_cosine_transform(bands):
    """Orthonormal DCT-II of each row of [T, M], written as its sums."""
    total, count = bands.shape
    result = np.zeros((total, count))
    for n in range(count):
        for m in range(count):
            result[:, n] += bands[:, m] * math.cos(math.pi * n * (2 * m + 1) / (2 * count))
        result[:, n] *= math.sqrt((1 if n == 0 else 2) / count)
    return result


def slow_deltas(frames):
    """Slope of the line that least squares draws through five frames, the first and last repeated at the edges."""
    padded = np.concatenate([frames[:1], frames[:1], frames, frames[-1:], frames[-1:]])
    return np.stack([np.polyfit(range(-2, 3), padded[t : t + 5], 1)[0] for t in range(len(frames))])


@pytest.mark.parametrize("sampling_rate", [16_000, 8_000])
def test_log_mel_is_that_of_transformers(sampling_rate):
    waveform = noise(8_000)
    ours = LogMel(40, sampling_rate=sampling_rate)(waveform[None])[0]
    expected = transformers_log_mel(waveform, 40, sampling_rate)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-3)


def test_the_default_is_80_bands_of_25_ms_every_10_ms():
    frames = LogMel()(noise(2, 16_000))
    assert frames.shape == (2, 98, 80)
    assert LogMel().num_frames(16_000) == 98


def test_mfcc_is_the_cosine_transform_of_log_mel_with_its_slopes_and_theirs():
    waveform = noise(4_000)
    cepstra = slow_cosine_transform(transformers_log_mel(waveform, 40))[:, :13]
    slopes = slow_deltas(cepstra)
    expected = np.concatenate([cepstra, slopes, slow_deltas(slopes)], axis=1)
    np.testing.assert_allclose(MFCC()(waveform[None])[0].numpy(), expected, atol=5e-3)


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_padding_changes_nothing_even_if_it_is_nan(front_end):
    lengths, module = [5_000, 400, 879, 3_333], front_end()
    batch = torch.full((len(lengths), 5_000), float("nan"))
    mask = torch.zeros(batch.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, :length], mask[row, :length] = noise(length, seed=row), 1
    together = module(batch, mask)
    for row, length in enumerate(lengths):
        alone = module(batch[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert len(alone) == module.num_frames(length)
        assert (together[row, len(alone) :] == 0).all()


def test_a_click_is_loudest_in_the_frame_that_is_centred_nearest_to_it():
    centers = frame_centers(50, [400], [160])
    for click in (1_000, 1_719, 4_003):
        waveform = torch.zeros(1, 8_159)
        waveform[0, click] = 1.0
        energy = LogMel()(waveform)[0].sum(dim=-1)
        assert energy.argmax() == (centers - click).abs().argmin()


def test_a_tone_is_loudest_in_the_band_around_it():
    time = torch.arange(4_000) / 16_000
    bands = mel_filter_bank(257, 40, 0.0, 8_000, 16_000)
    for hertz in (500, 1_000, 3_000):
        loudest = LogMel(40)(torch.sin(2 * math.pi * hertz * time)[None])[0].mean(dim=0).argmax()
        assert loudest == bands[round(hertz / 8_000 * 256)].argmax()


def test_silence_is_the_logarithm_of_the_floor():
    torch.testing.assert_close(LogMel(floor=1e-6)(torch.zeros(1, 800)), torch.full((1, 3, 80), math.log(1e-6)))


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_nothing_is_stored_and_half_precision_around_it_changes_nothing(front_end):
    module = front_end()
    expected = module(noise(1, 2_000))
    assert not module.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module.to(torch.bfloat16)(noise(1, 2_000)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogMel(floor=0.0), "floor.*got 0.0"),
        (lambda: LogMel(sampling_rate=50), "sampling_rate.*got 50"),
        (lambda: LogMel(0), "num_mel_bands.*got 0"),
        (lambda: MFCC(41), "num_cepstra.*1 to 40.*got 41"),
        (lambda: MFCC(delta_frames=0), "delta_frames.*got 0"),
        (lambda: LogMel()(noise(1, 399)), "at least 400 samples"),
        (lambda: MFCC()(noise(2, 800), torch.ones(2, 700)), r"attention_mask must be \(2, 800\)"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
