"""Convolutions: lengths are PyTorch's, norms leave padding out, gradients are scaled as asked."""

import pytest
import torch
from torch import nn

from hf_wav2vec_family.conv import (
    ChannelsLayerNorm,
    MaskedGroupNorm,
    frame_centers,
    mean_over_valid,
    num_frames,
    receptive_field,
    sample_lengths,
    scale_gradient,
    valid_frames,
)

WAV2VEC2 = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
CPC = ((10, 8, 4, 4, 4), (5, 4, 2, 2, 2))
GEOMETRIES = {"wav2vec2": WAV2VEC2, "cpc": CPC, "overlapping": ((7,), (1,)), "gaps": ((2, 3), (5, 4))}
CHANNELS = 6


def frames_of_convolutions(num_samples, kernel_sizes, strides):
    """What `nn.Conv1d` makes of a waveform, layer by layer; it refuses what is shorter than its kernel."""
    frames = torch.empty(1, 1, num_samples, device="meta")
    for kernel_size, stride in zip(kernel_sizes, strides, strict=True):
        if frames.shape[-1] < kernel_size:
            return 0
        frames = nn.Conv1d(1, 1, kernel_size, stride, device="meta")(frames)
    return frames.shape[-1]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_number_of_frames_is_what_convolutions_really_give(geometry):
    lengths = [*range(0, 60), *range(380, 480), *range(700, 800, 3), 15_999, 16_000, 16_080, 249_600]
    expected = [frames_of_convolutions(length, *geometry) for length in lengths]
    assert [num_frames(length, *geometry) for length in lengths] == expected
    assert num_frames(torch.tensor(lengths), *geometry).tolist() == expected


def test_kernels_and_strides_of_different_counts_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        num_frames(16_000, (10, 8), (5,))
    with pytest.raises(ValueError, match="shorter"):
        receptive_field((10, 8), (5,))


def test_a_frame_of_wav2vec2_sees_400_samples_and_one_of_cpc_465():
    assert receptive_field(*WAV2VEC2) == 400
    assert receptive_field(*CPC) == 465


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_receptive_field_is_the_shortest_input_with_a_frame(geometry):
    samples = receptive_field(*geometry)
    assert num_frames(samples, *geometry) == 1
    assert num_frames(samples - 1, *geometry) == 0


def test_a_frame_is_centred_in_the_middle_of_the_samples_that_reach_it():
    kernel_sizes, strides, paddings = (10, 8, 4), (5, 4, 2), (3, 2, 1)
    layers = zip(kernel_sizes, strides, paddings, strict=True)
    network = nn.Sequential(*(nn.Conv1d(1, 1, *layer, bias=False) for layer in layers)).double()
    for layer in network:
        nn.init.ones_(layer.weight)
    waveform = torch.zeros(1, 1, 800, dtype=torch.float64, requires_grad=True)
    centers = frame_centers(20, kernel_sizes, strides, paddings)
    for t in (2, 3, 11):  # away from the edges, or padding hides samples
        network(waveform)[0, 0, t].backward()
        seen = waveform.grad.flatten().nonzero()
        assert centers[t] == (seen[0] + seen[-1]).item() / 2
        waveform.grad = None


def test_centres_are_those_of_the_published_geometries():
    assert frame_centers(3, *WAV2VEC2).tolist() == [199.5, 519.5, 839.5]
    assert frame_centers(2, *CPC, (3, 2, 1, 1, 1)).tolist() == [79.0, 239.0]  # 160 t - 153 to 160 t + 311
    assert frame_centers(2, [3], [2]).tolist() == [1.0, 3.0]


def test_valid_frames_are_the_first_ones_of_each_row():
    assert valid_frames(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_mean_over_valid_is_the_mean_of_the_frames_joined():
    values = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    joined = torch.cat([values[0], values[1, :2]])
    mean = mean_over_valid(values, valid_frames(torch.tensor([5, 2, 0]), 5))
    torch.testing.assert_close(mean, joined.mean())
    torch.testing.assert_close(mean_over_valid(values, None), values.mean())


def test_mean_over_no_frame_is_zero():
    assert mean_over_valid(torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)) == 0


def make_norms(num_groups, **options):
    """Our norm and PyTorch's with the same weights, drawn so that neither is trivial."""
    ours, reference = (kind(num_groups, CHANNELS, **options) for kind in (MaskedGroupNorm, nn.GroupNorm))
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def make_ragged(lengths=(11, 4, 2, 7), offset=0.0):
    frames = torch.randn(len(lengths), CHANNELS, max(lengths), generator=torch.Generator().manual_seed(0)) + offset
    return frames, torch.tensor(lengths)


def row_by_row(norm, frames, lengths):
    """Each row cut to its length and normed alone, zeros after it."""
    rows = [norm(row[None, :, :length]) for row, length in zip(frames, lengths.tolist(), strict=True)]
    return torch.cat([nn.functional.pad(row, (0, frames.shape[-1] - row.shape[-1])) for row in rows])


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=["affine", "plain", "large eps"])
@pytest.mark.parametrize("num_groups", [1, 2, CHANNELS])
def test_a_ragged_batch_is_normed_as_its_rows_alone(num_groups, options):
    ours, reference = make_norms(num_groups, **options)
    frames, lengths = make_ragged()
    torch.testing.assert_close(ours(frames, lengths), row_by_row(reference, frames, lengths))


@pytest.mark.parametrize("num_groups", [1, CHANNELS])
def test_without_lengths_it_is_group_norm(num_groups):
    ours, reference = make_norms(num_groups)
    frames, _ = make_ragged()
    torch.testing.assert_close(ours(frames), reference(frames), rtol=0, atol=0)


@pytest.mark.parametrize("num_groups", [1, CHANNELS])
def test_the_gradients_of_a_ragged_batch_are_those_of_its_rows_alone(num_groups):
    ours, reference = make_norms(num_groups)
    frames, lengths = make_ragged(lengths=(11, 4, 7))
    direction = torch.randn(frames.shape, generator=torch.Generator().manual_seed(2))
    mine, theirs = frames.clone().requires_grad_(), frames.clone().requires_grad_()
    (ours(mine, lengths) * direction).sum().backward()
    (row_by_row(reference, theirs, lengths) * direction).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.bias.grad, reference.bias.grad)


@pytest.mark.parametrize("num_groups", [1, CHANNELS])
def test_nan_in_the_padding_reaches_neither_output_nor_gradient(num_groups):
    ours, _ = make_norms(num_groups)
    frames, lengths = make_ragged(lengths=(11, 4, 7))
    padding = ~valid_frames(lengths, frames.shape[-1])[:, None]
    spoilt = frames.masked_fill(padding, float("nan")).requires_grad_()
    normed = ours(spoilt, lengths)
    torch.testing.assert_close(normed, ours(frames, lengths), rtol=0, atol=0)
    assert (normed.masked_select(padding) == 0).all()
    normed.square().sum().backward()
    assert all(gradient.isfinite().all() for gradient in (spoilt.grad, ours.weight.grad, ours.bias.grad))
    assert (spoilt.grad.masked_select(padding) == 0).all()


def test_a_row_without_frames_comes_back_as_zeros():
    ours, _ = make_norms(1)
    frames, _ = make_ragged(lengths=(5, 5))
    normed = ours(frames, torch.tensor([5, 0]))
    assert (normed[1] == 0).all()
    torch.testing.assert_close(normed[:1], ours(frames[:1]))


def test_frames_far_from_zero_lose_no_variance():
    ours, reference = make_norms(1)
    frames, lengths = make_ragged(lengths=(900, 700), offset=1000.0)
    expected = row_by_row(reference.double(), frames.double(), lengths).float()
    torch.testing.assert_close(ours(frames, lengths), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_statistics_of_half_precision_frames_are_taken_in_float32(parameters, with_lengths):
    ours, _ = make_norms(1)
    frames, lengths = make_ragged(lengths=(3000, 2000), offset=8.0)
    frames, lengths = frames.bfloat16(), lengths if with_lengths else None
    ours = ours.to(parameters)
    normed = ours(frames, lengths)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed, ours.float()(frames.float(), lengths).bfloat16(), rtol=0, atol=0)


def test_channels_layer_norm_is_layer_norm_of_each_frame():
    ours, reference = ChannelsLayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    reference.load_state_dict(ours.state_dict())
    frames, _ = make_ragged()
    torch.testing.assert_close(ours(frames), reference(frames.transpose(1, 2)).transpose(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_channels_layer_norm_of_half_precision_frames_is_taken_in_float32(parameters):
    norm = ChannelsLayerNorm(CHANNELS).to(parameters)
    frames = make_ragged(offset=8.0)[0].bfloat16()
    normed = norm(frames)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed, norm.float()(frames.float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_scale_gradient_changes_the_gradient_and_nothing_else(scale):
    values = torch.randn(4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scaled = scale_gradient(values, scale)
    assert torch.equal(scaled, values)
    scaled.square().sum().backward()
    torch.testing.assert_close(values.grad, scale * 2 * values.detach())


def test_a_mask_on_the_host_that_marks_every_sample_is_none_but_not_for_what_is_traced():
    waveforms = torch.zeros(2, 500)
    mask = torch.ones(2, 500, dtype=torch.long)
    assert sample_lengths(waveforms, mask, 400) is None
    assert torch.jit.trace(lambda values, marks: sample_lengths(values, marks, 400), (waveforms, mask))(
        waveforms, mask
    ).tolist() == [500, 500]
    mask[1, 450:] = 0
    assert sample_lengths(waveforms, mask, 400).tolist() == [500, 450]
