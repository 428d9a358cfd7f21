"""Training steps never make the host wait for the device: they run where there are no values to wait for.

Tensors on PyTorch's meta device have shapes and no values: whatever would have to read one on the host, to branch on
it, to count it or to size a tensor by it, fails there. On a GPU the same steps are run with waits turned into errors.

Two waits are not ours to mend. `F.ctc_loss` copies both lengths to the host before it does anything on the device, and
has no kernel for meta tensors: fine-tuning with CTC runs here with another loss in its place, with ASG, our own, as it
is. And Transformers asks of a mask [B, L] whether all of it is True, once in each pass through a RoBERTa, because
attention without a mask is faster: BERT runs here with a mask [B, 1, 1, L] that says the same, Discrete BERT not at
all.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
import transformers
from test_wav2letter import config as wav2letter_config
from test_wav2vec2 import QUIET, TINY, VARIANTS

import hf_wav2vec_family as family
from training.masked_lm import RobertaForMaskedLM
from training.pretrain_bert import NOT_A_TARGET, compute

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
    "vq-wav2vec k-means": lambda: family.VQWav2VecForPreTraining(family.VQWav2VecConfig(quantizer_type="kmeans")),
    "wav2vec2 CTC": lambda: family.Wav2Vec2ForCTC(family.Wav2Vec2Config(**{**TINY, "vocab_size": 8})),
    "cpc CTC": lambda: family.CPCForCTC(family.CPCConfig(**CONVOLUTIONS, hidden_size=8, vocab_size=8)),
    "wav2letter CTC": lambda: family.Wav2LetterForCTC(wav2letter_config(criterion="ctc")),
    "wav2letter ASG": lambda: family.Wav2LetterForCTC(wav2letter_config(criterion="asg")),
    "wav2letter ASG on cpc": lambda: family.Wav2LetterForCTC(wav2letter_config("cpc", criterion="asg")),
    "BERT": lambda: RobertaForMaskedLM(
        transformers.RobertaConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        )
    ),
}


@pytest.fixture(autouse=True)
def loss_that_reads_no_lengths(monkeypatch):
    monkeypatch.setattr(F, "ctc_loss", lambda log_probs, targets, num_frames, num_labels, **_: -log_probs.mean())


def masked_codes(device: str, *, padded: bool) -> dict[str, torch.Tensor]:
    """A batch of `training.pretrain_bert`, made on the host as there."""
    input_ids = torch.randint(4, 9, (2, 64))
    mask = torch.arange(64) < torch.tensor([[64], [40 if padded else 64]])
    labels = torch.where(mask & (torch.arange(64) % 2 == 0), input_ids, NOT_A_TARGET)
    places = (labels.flatten() != NOT_A_TARGET).nonzero().squeeze(1)
    batch = {"input_ids": input_ids, "attention_mask": mask[:, None, None], "labels": labels, "places": places}
    return {name: values.to(device) for name, values in batch.items()}


def clips(device: str, *, padded: bool, labelled: bool) -> dict[str, torch.Tensor]:
    batch = {"input_values": torch.zeros(2, 32_000)}
    if padded:
        batch["attention_mask"] = (torch.arange(32_000) < torch.tensor([[32_000], [20_000]])).long()
    if labelled:
        batch["labels"] = torch.tensor([[1, 2, 3, 4], [5, 0, -100, -100]])
    return {name: values.to(device) for name, values in batch.items()}


def batch_of(name: str, device: str, *, padded: bool) -> dict[str, torch.Tensor]:
    if name == "BERT":
        return masked_codes(device, padded=padded)
    return clips(device, padded=padded, labelled="CTC" in name or "ASG" in name)


def step(model, batch: dict[str, torch.Tensor]):
    (compute(model, batch) if "places" in batch else model(**batch)).loss.backward()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_reads_no_value_on_the_host(name, padded, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    with torch.device("meta"):
        model = STEPS[name]()
    step(model.train(), batch_of(name, "meta", padded=padded))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to wait for")
def test_a_training_step_never_waits_for_the_gpu(name, padded):
    model = STEPS[name]().to("cuda").train()
    batch = batch_of(name, "cuda", padded=padded)
    step(model, batch)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_found_out():
    values = torch.zeros(3, device="meta")
    for wait in (lambda: values.nonzero(), lambda: values.sum().item(), lambda: bool(values.any()), values.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
