"""Norms over time: heard window by window, a recording has the statistics of the whole."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import hf_wav2vec_family as family
from hf_wav2vec_family import conv
from hf_wav2vec_family.conv import MaskedGroupNorm
from hf_wav2vec_family.decoding.emissions import emissions_of
from hf_wav2vec_family.frame_places import FramePlaces
from hf_wav2vec_family.norm_statistics import check_norm_statistics, fixed_norms, measure_norms, norms_over_time
from hf_wav2vec_family.windows import NormalizedWaveform, Window, windows_of

RATE = 16_000


def speechlike(seconds: float) -> np.ndarray:
    """Loud and low in its first half, quiet and hissing in its second: no part has the statistics of the whole."""
    generator = np.random.default_rng(0)
    total = int(seconds * RATE)
    noise = generator.standard_normal(total).astype(np.float32)
    humming = np.convolve(noise, np.ones(16) / 4, mode="same").astype(np.float32)
    return np.where(np.arange(total) < total // 2, 0.5 + humming, 0.05 * noise).astype(np.float32)


def base(**options):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    conv = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return family.Wav2Vec2ForCTC(family.Wav2Vec2Config(vocab_size=5, **small, **conv, **options))


def wav2vec():
    dims = {"conv_dim": [8] * 5, "context_dim": [8] * 3, "context_kernel": [3] * 3}
    return family.Wav2VecForCTC(family.Wav2VecConfig(vocab_size=5, **dims))


def cpc():
    sizes = {"conv_dim": [8] * 5, "hidden_size": 8}
    return family.CPCForCTC(family.CPCConfig(vocab_size=5, feat_extract_norm="instance", **sizes))


def log_mel():
    sizes = {"conv_dim": [8, 8], "conv_kernel": [5, 3], "feature_norm": "utterance"}
    return family.Wav2LetterForCTC(family.Wav2LetterConfig(vocab_size=5, criterion="ctc", pad_token_id=0, **sizes))


MODELS = [base, wav2vec, cpc, log_mel]


def made(make) -> transformers.PreTrainedModel:
    transformers.set_seed(0)
    model = make().eval()
    for norm in model.modules():
        if isinstance(norm, MaskedGroupNorm) and norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.uniform_(norm.bias, -1.0, 1.0)
    return model


def heard_in_windows(model, waveform: np.ndarray, *, left: int, right: int, length: int):
    """What each norm would take of the whole, and what was measured window by window."""
    places = FramePlaces.of(model)
    total = int(model._get_feat_extract_output_lengths(len(waveform)))
    windows = windows_of(places, total, length=length, left=left, right=right)
    assert len(windows) > 2
    found = measure_norms(model, model, NormalizedWaveform(waveform, False), windows, places)
    given = {}
    norms = [module for module in model.modules() if isinstance(module, MaskedGroupNorm)]
    handles = [norm.register_forward_pre_hook(lambda norm, inputs: given.update({norm: inputs[0]})) for norm in norms]
    # numbers of the whole stand for themselves, and a norm with numbers is no part of a faster form
    with torch.no_grad(), fixed_norms(model, found):
        model(torch.from_numpy(waveform)[None])
    for handle in handles:
        handle.remove()
    expected = []
    for norm in norms:
        variance, mean = torch.var_mean(given[norm].double().reshape(norm.num_groups, -1), dim=-1, correction=0)
        expected.append(torch.stack([mean, (variance + norm.eps).rsqrt()], dim=-1))
    return torch.cat(expected).float()[None], found


def adapted():
    return base(add_adapter=True, num_adapter_layers=2)


@pytest.mark.parametrize(
    ("make", "left", "right", "length"),
    [*((make, 60, 60, 180) for make in MODELS), (base, 0, 0, 90), (adapted, 1, 0, 9)],
)
def test_statistics_of_windows_are_those_of_the_recording(make, left, right, length):
    model = made(make)
    expected, found = heard_in_windows(model, speechlike(6.0)[:-77], left=left, right=right, length=length)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
    # not those of what every norm has that nobody heard
    assert (found[..., 1] - 1).abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_samples", [0, 1, 79, 319])
def test_the_first_convolution_is_heard_in_windows_as_it_is_at_once(dtype, num_samples):
    model, waveform = made(base).to(dtype), speechlike(4.0)[: 4 * RATE - num_samples]
    heard = model.wav2vec2.feature_extractor.conv_layers[0]
    outputs = []
    handle = heard.register_forward_hook(lambda _, inputs, output: outputs.append(output.float()))
    try:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
        emissions_of(model, extractor, waveform, chunk_seconds=None)
        whole = outputs.pop()
        emissions_of(model, extractor, waveform, chunk_seconds=1.0, context_seconds=0.2)
    finally:
        handle.remove()
    # the first two are of silence, and passes that measure end before the layer does
    _, _, first, *_, last = outputs
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(last, whole[..., -last.shape[-1] :], **tolerance)
    torch.testing.assert_close(first, whole[..., : first.shape[-1]], **tolerance)


@pytest.mark.parametrize("make", [wav2vec, cpc, log_mel])
def test_models_without_attention_are_heard_in_chunks_as_at_once(make):
    model, waveform = made(make), speechlike(5.0)[:-33]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    whole = emissions_of(model, extractor, waveform, chunk_seconds=None).scores
    options = {"chunk_seconds": 2.0, "context_seconds": 0.6}
    found = emissions_of(model, extractor, waveform, norm_statistics="recording", **options).scores
    apart = emissions_of(model, extractor, waveform, norm_statistics="chunk", **options).scores
    assert (found - whole).abs().max() < 0.02 * (apart - whole).abs().max()


def test_statistics_count_unless_told_where_a_model_has_one_norm_over_time():
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    options = {"chunk_seconds": 1.0, "context_seconds": 0.2}
    for make, choice in ((base, "recording"), (wav2vec, "chunk")):
        model, waveform = made(make), speechlike(3.0)
        expected = emissions_of(model, extractor, waveform, norm_statistics=choice, **options)
        torch.testing.assert_close(emissions_of(model, extractor, waveform, **options).scores, expected.scores)
    with pytest.raises(ValueError, match=r'norm_statistics must be "recording", "chunk" or None, got \'whole\''):
        emissions_of(model, extractor, waveform, norm_statistics="whole")


def test_norms_of_code_that_came_with_a_model_are_found():
    copied = types.ModuleType("hf_wav2vec_family.copied_conv")
    exec(compile(Path(conv.__file__).read_text(), conv.__file__, "exec"), copied.__dict__)
    model = nn.Sequential(copied.MaskedGroupNorm(2, 4), nn.GroupNorm(2, 4))
    assert not isinstance(model[0], MaskedGroupNorm)
    assert norms_over_time(model) == [model[0]]


def test_norms_that_take_no_statistics_are_no_silent_exception():
    sizes = {"conv_dim": [8] * 7, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(vocab_size=5, intermediate_size=16, **sizes))
    assert check_norm_statistics(None, theirs) == "chunk"
    with pytest.raises(ValueError, match=r"recording.*Wav2Vec2ForCTC whose norms are PyTorch's own"):
        check_norm_statistics("recording", theirs)


def test_a_norm_is_as_before_behind_a_recording_even_if_it_fails():
    norm = MaskedGroupNorm(2, 4)
    frames = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    before = norm(frames)
    with fixed_norms(norm, torch.ones(1, 2, 2)):
        assert not torch.equal(norm(frames), before)
        with pytest.raises(RuntimeError, match="size of tensor"):
            norm(frames[:, :3])
    assert torch.equal(norm(frames), before)


def test_a_recording_of_one_window_is_heard_once():
    model, heard = made(base), []
    model.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].shape[1]))
    places, waveform = FramePlaces.of(model), speechlike(0.5)
    windows = windows_of(places, 24, length=30, left=2, right=2)
    statistics = measure_norms(model, model, NormalizedWaveform(waveform, False), windows, places)
    assert heard == []
    with torch.no_grad(), fixed_norms(model, statistics):
        found = model(torch.from_numpy(waveform)[None]).logits
    torch.testing.assert_close(found, model(torch.from_numpy(waveform)[None]).logits)


def test_padding_is_silent_beside_frames_with_statistics_of_a_recording():
    norm = MaskedGroupNorm(2, 4)
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(1))
    frames = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)) * 3 + 1
    frames[1, :, 5:] = torch.nan
    groups = frames[0].reshape(2, -1)
    statistics = torch.stack([groups.mean(-1), (groups.var(-1, correction=0) + norm.eps).rsqrt()], dim=-1)[None]
    with fixed_norms(norm, statistics):
        found = norm(frames, torch.tensor([9, 5]))
        alone = norm(frames[1:, :, :5])
    torch.testing.assert_close(found[:1], norm(frames[:1]))
    torch.testing.assert_close(found[1:, :, :5], alone)
    assert (found[1, :, 5:] == 0).all()


@pytest.mark.parametrize(
    ("total", "length", "left", "right"), [(100, 10, 2, 3), (7, 10, 2, 3), (10, 10, 0, 0), (11, 4, 3, 0)]
)
def test_windows_give_every_frame_once(total, length, left, right):
    windows = windows_of(FramePlaces(17.0, hop=20, needed=35), total, length=length, left=left, right=right)
    frames = [w.start // 20 + frame for w in windows for frame in range(w.begin, w.end)]
    assert frames == list(range(total))
    for window in windows[:-1]:
        assert window.num_frames == length
        assert (window.stop - window.start - 35) // 20 + 1 == length
        assert window.num_frames - window.end == right
    assert windows[-1].stop is None
    assert all(window.begin == left for window in windows[1:])
    assert isinstance(windows[0], Window)
