"""Training steps never make the host wait for the device: they run where there are no values to wait for.

Tensors on PyTorch's meta device have shapes and no values: whatever would have to read one on the host, to branch on
it, to count it or to size a tensor by it, fails there. On a GPU the same steps are run with waits turned into errors.
"""

from contextlib import nullcontext

import pytest
import torch
from test_wav2vec2 import QUIET, TINY, VARIANTS

import hf_wav2vec_family as family

CONVOLUTIONS = {"conv_dim": (8,) * 5}
STEPS = {
    **{
        f"wav2vec2 {variant}": lambda variant=variant: family.Wav2Vec2ForPreTraining(
            family.Wav2Vec2Config(**{**TINY, **QUIET, **VARIANTS[variant], "hidden_dropout": 0.1})
        )
        for variant in ("group-post", "layer-pre")
    },
    "cpc": lambda: family.CPCForPreTraining(family.CPCConfig(**CONVOLUTIONS, hidden_size=8)),
    "wav2vec": lambda: family.Wav2VecForPreTraining(family.Wav2VecConfig()),
    "vq-wav2vec": lambda: family.VQWav2VecForPreTraining(family.VQWav2VecConfig()),
}


def step(model, device: str, *, padded: bool):
    model = model.to(device).train()
    waveforms = torch.zeros(2, 32_000, device=device)
    mask = None
    if padded:
        mask = (torch.arange(32_000) < torch.tensor([[32_000], [20_000]])).long().to(device)
    model(waveforms, attention_mask=mask).loss.backward()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_reads_no_value_on_the_host(name, padded, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    with torch.device("meta"):
        model = STEPS[name]()
    step(model, "meta", padded=padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
def test_a_training_step_never_waits_for_the_gpu(name, padded):
    model = STEPS[name]()
    step(model, "cuda", padded=padded)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = torch.zeros(2, 32_000, device="cuda")
        mask = torch.ones_like(batch) if padded else None
        model(batch, attention_mask=mask).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_found_out():
    values = torch.zeros(3, device="meta")
    for wait in (lambda: values.nonzero(), lambda: values.sum().item(), lambda: bool(values.any()), values.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
