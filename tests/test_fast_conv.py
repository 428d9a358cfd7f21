"""Encoders whose convolutions are products of rows learn what they learn by PyTorch's convolutions."""

import pytest
import torch
from tiny_models import TINY_MODELS

import hf_wav2vec_family as family
from hf_wav2vec_family import causal_conv, modeling_cpc

CASES = {
    "CPC": ("CPC", {}, modeling_cpc),
    "CPC, norms over channels": ("CPC", {"feat_extract_norm": "channel"}, modeling_cpc),
    "wav2vec": ("Wav2Vec", {}, causal_conv),
    "wav2vec, norms of each frame": ("Wav2Vec", {"conv_norm": "layer"}, causal_conv),
    "wav2vec, residual": ("Wav2Vec", {"feat_skip_connections": True, "log_compression": True}, causal_conv),
    "vq-wav2vec": ("VQWav2Vec", {}, causal_conv),
}


def loss_and_gradients(model, waveforms, attention_mask) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # the same negatives, and the same noise of a quantizer
    model.zero_grad()
    loss = model(waveforms, attention_mask=attention_mask).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_rows_give_the_loss_and_every_gradient_of_convolutions(case, padded, monkeypatch):
    architecture, changes, module = CASES[case]
    torch.manual_seed(0)
    config = getattr(family, f"{architecture}Config")(**TINY_MODELS[architecture] | changes)
    model = getattr(family, f"{architecture}ForPreTraining")(config).train()
    lengths = [9_000, 7_000] if padded else [9_000, 9_000]
    attention_mask = (torch.arange(9_000) < torch.tensor(lengths)[:, None]).int() if padded else None
    waveforms = torch.randn(2, 9_000)
    counted = []

    def counting(convolve):
        def convolved(conv, hidden_states):
            counted.append(conv)
            return convolve(conv, hidden_states)

        return convolved

    with monkeypatch.context() as patch:
        patch.setattr(module, "convolve", counting(module.convolve))
        found = loss_and_gradients(model, waveforms, attention_mask)
    # every layer of CPC's, of wav2vec's that of the longest stride but the first
    assert len(counted) == (5 if architecture == "CPC" else 1)
    monkeypatch.setattr(module, "convolve", lambda conv, hidden_states: conv(hidden_states))
    expected = loss_and_gradients(model, waveforms, attention_mask)
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        difference = float((found[name] - value).norm()) / max(float(value.norm()), 1e-3 * largest)
        assert difference < 1e-4, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_without_a_backward_pass_pytorchs_own_convolutions_are_taken(case, monkeypatch):
    architecture, changes, module = CASES[case]
    config = getattr(family, f"{architecture}Config")(**TINY_MODELS[architecture] | changes)
    model = getattr(family, f"{architecture}Model")(config).eval()
    norm_reads_channels = changes.get("feat_extract_norm") == "channel"

    def refuse(conv, hidden_states):
        raise AssertionError("a convolution went through rows")

    monkeypatch.setattr(module, "convolve", module.convolve if norm_reads_channels else refuse)
    with torch.no_grad():
        assert model(torch.randn(1, 9_000)).last_hidden_state.isfinite().all()
