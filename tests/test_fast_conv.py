"""Convolutions as products of rows: the same loss and gradients, taken where a call means a convolution alone."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from tiny_models import TINY_MODELS
from torch import nn
from torch.nn.utils import prune

import hf_wav2vec_family as family
from hf_wav2vec_family import causal_conv, fast_conv, modeling_cpc, modeling_wav2vec2
from hf_wav2vec_family.fast_conv import convolve, convolve_channels_last, rows_pay

# architecture, fields, the module that convolves, and how many of its layers do so by rows in training
CASES = {
    "CPC": ("CPC", {}, modeling_cpc, 5),
    "CPC, norms over channels": ("CPC", {"feat_extract_norm": "channel"}, modeling_cpc, 5),
    "CPC, norms over time": ("CPC", {"feat_extract_norm": "instance"}, modeling_cpc, 1),
    "wav2vec": ("Wav2Vec", {}, causal_conv, 1),
    "wav2vec, norms of each frame": ("Wav2Vec", {"conv_norm": "layer"}, causal_conv, 1),
    "wav2vec, residual": ("Wav2Vec", {"feat_skip_connections": True, "log_compression": True}, causal_conv, 1),
    "vq-wav2vec": ("VQWav2Vec", {}, causal_conv, 1),
    "wav2vec 2.0, wide positions": (
        "Wav2Vec2",
        {"num_conv_pos_embeddings": 64, "layerdrop": 0.0},
        modeling_wav2vec2,
        6,
    ),
    "wav2vec 2.0": ("Wav2Vec2", {"conv_bias": True, "layerdrop": 0.0}, modeling_wav2vec2, 7),
}


def pretraining_model(case: str):
    architecture, changes, *_ = CASES[case]
    torch.manual_seed(0)
    config = getattr(family, f"{architecture}Config")(**TINY_MODELS[architecture] | changes)
    return getattr(family, f"{architecture}ForPreTraining")(config).train()


def loss_and_gradients(model, waveforms, attention_mask) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # the same negatives, dropout, masks, and noise of a quantizer
    model.zero_grad()
    loss = model(waveforms, attention_mask=attention_mask).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.fixture
def by_rows(monkeypatch) -> list:
    """The convolutions that went through rows."""
    counted, through_rows = [], fast_conv.convolve_channels_last
    monkeypatch.setattr(
        fast_conv, "convolve_channels_last", lambda conv, frames: counted.append(conv) or through_rows(conv, frames)
    )
    return counted


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_rows_give_the_loss_and_every_gradient_of_convolutions(case, padded, by_rows, monkeypatch):
    model, (*_, module, num_layers) = pretraining_model(case), CASES[case]
    lengths = [9_000, 7_000] if padded else [9_000, 9_000]
    attention_mask = (torch.arange(9_000) < torch.tensor(lengths)[:, None]).int() if padded else None
    waveforms = torch.randn(2, 9_000)
    found = loss_and_gradients(model, waveforms, attention_mask)
    assert len(by_rows) == num_layers
    monkeypatch.setattr(module, "convolve", lambda conv, hidden_states, norm_over: conv(hidden_states.contiguous()))
    expected = loss_and_gradients(model, waveforms, attention_mask)
    assert len(by_rows) == num_layers
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        difference = float((found[name] - value).norm()) / max(float(value.norm()), 1e-3 * largest)
        assert difference < 1e-4, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("case", [case for case in CASES if "over channels" not in case])
def test_without_a_backward_pass_pytorchs_own_convolutions_are_taken(case, by_rows):
    model = pretraining_model(case).eval()
    with torch.no_grad():
        model(torch.randn(1, 9_000))
    assert by_rows == []
    model.base_model.freeze_feature_encoder()
    model(torch.randn(1, 9_000))
    assert by_rows == []


@pytest.mark.parametrize("case", ["CPC", "wav2vec", "wav2vec 2.0", "wav2vec 2.0, wide positions"])
def test_models_run_without_weights_of_their_own(case):
    """On the meta device, and with weights that come only when a layer is called."""
    model = pretraining_model(case).base_model.eval()
    waveforms = torch.randn(1, 30_000)
    with torch.no_grad():
        expected = model(waveforms).last_hidden_state
        assert copy.deepcopy(model).to("meta")(waveforms.to("meta")).last_hidden_state.shape == expected.shape
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    torch.testing.assert_close(offloaded(waveforms).last_hidden_state, expected)
    with torch.no_grad():
        for _ in range(2):  # the second finds what the first has cached
            torch.testing.assert_close(offloaded(waveforms).last_hidden_state, expected)


class Adapted(nn.Module):
    """A layer around another, as low-rank adapters are, that says of itself what the other is."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.conv, self.stride, self.padding, self.weight = conv, conv.stride, conv.padding, conv.weight
        self.kernel_size, self.in_channels = conv.kernel_size, conv.in_channels

    def forward(self, frames):
        return 2 * self.conv(frames)


class Doubled(nn.Conv1d):
    def forward(self, frames):
        return 2 * super().forward(frames)


@pytest.mark.parametrize("norm_over", [None, "time", "channels"])
def test_what_was_added_to_a_convolution_is_not_passed_over(norm_over, by_rows):
    frames = torch.randn(2, 4, 41, requires_grad=True)
    conv = nn.Conv1d(4, 6, 8, 4)
    expected = conv(frames)
    torch.testing.assert_close(convolve(conv, frames, norm_over=norm_over), expected)
    assert by_rows == [conv]
    torch.testing.assert_close(convolve(Adapted(conv), frames, norm_over=norm_over), 2 * expected)
    doubled = Doubled(4, 6, 8, 4)
    doubled.load_state_dict(conv.state_dict())
    torch.testing.assert_close(convolve(doubled, frames, norm_over=norm_over), 2 * expected)
    compiled = torch.compile(convolve, backend="eager")
    torch.testing.assert_close(compiled(Adapted(conv), frames, norm_over=norm_over), 2 * expected)
    handle = conv.register_forward_hook(lambda module, given, output: 3 * output)
    torch.testing.assert_close(convolve(conv, frames, norm_over=norm_over), 3 * expected)
    handle.remove()
    pruned = prune.l1_unstructured(copy.deepcopy(conv), "weight", 0.5)
    for _ in range(2):  # its weight is made anew by each call
        convolve(pruned, frames, norm_over=norm_over).sum().backward()
    assert by_rows == [conv]


@pytest.mark.parametrize("norm_over", [None, "time", "channels"])
def test_fewer_samples_than_taps_are_the_error_of_the_convolution(norm_over):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        convolve(nn.Conv1d(4, 6, 8, 4), torch.randn(2, 4, 7), norm_over=norm_over)


def test_a_norm_over_time_has_rows_in_float32_alone():
    conv, frames = nn.Conv1d(4, 6, 8, 4), torch.randn(2, 4, 41)
    assert rows_pay(conv, frames, norm_over="time")
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows_pay(conv, frames, norm_over="time")
    assert not rows_pay(nn.Conv1d(4, 6, 4, 2), frames, norm_over="time")


def test_gradients_in_half_precision_are_as_right_for_many_clips_as_for_few():
    conv = nn.Conv1d(16, 16, 8, 4, bias=False)
    frames = torch.randn(128, 16, 81)

    def gradient(convolution, dtype) -> torch.Tensor:
        weighted = copy.deepcopy(conv).to(dtype)
        output = convolution(weighted, frames.to(dtype))
        output.backward(torch.ones_like(output) + 0.5 * torch.sin(torch.arange(output.numel())).view(output.shape))
        return weighted.weight.grad.double()

    expected = gradient(lambda conv, frames: conv(frames), torch.float64)
    own = (gradient(lambda conv, frames: conv(frames), torch.bfloat16) - expected).norm()
    assert (gradient(convolve_channels_last, torch.bfloat16) - expected).norm() < 1.5 * own


def test_gradients_of_gradients_are_those_of_the_convolution():
    conv = nn.Conv1d(3, 5, 3, 2)
    frames = torch.randn(2, 3, 21, requires_grad=True)

    def penalty(convolution) -> list[torch.Tensor]:
        (gradient,) = torch.autograd.grad(convolution(conv, frames).square().sum(), frames, create_graph=True)
        return list(torch.autograd.grad(gradient.norm(), [frames, *conv.parameters()]))

    for found, expected in zip(penalty(convolve_channels_last), penalty(lambda c, x: c(x)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_transforms_of_functions_take_pytorchs_own_forms():
    model = pretraining_model("wav2vec").base_model
    weights = dict(model.named_parameters())

    def mean(weights, waveform):
        return torch.func.functional_call(model, weights, (waveform[None],)).last_hidden_state.square().mean()

    per_clip = torch.func.vmap(torch.func.grad(mean), in_dims=(None, 0), randomness="different")
    found = per_clip(weights, torch.randn(3, 9_000))
    assert all(gradient.shape == (3, *weights[name].shape) for name, gradient in found.items())
