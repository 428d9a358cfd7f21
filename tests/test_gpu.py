"""What a GPU computes is what the CPU does, in eager steps and in one graph, and a run in half precision resumes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interruptions import killed_in_batch
from omegaconf import OmegaConf
from test_asg import slow_loss
from test_training import checkpoint_weights, corpus, run_stage, tiny, values  # noqa: F401  (two are fixtures)
from test_wav2vec2 import VARIANTS, config, masks_and_negatives_of_transformers, pretraining_model, ragged_batch

import hf_wav2vec_family as family
from hf_wav2vec_family.asg import asg_loss
from hf_wav2vec_family.length_buckets import LengthBuckets
from training import finetune, pretrain

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("fresh_accelerator"),
]


@pytest.fixture(autouse=True)
def whole_float32():
    """Convolutions would otherwise round what they multiply to 10 bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def loss_and_gradients(model, batch: dict, device: str, *, compiled: bool = False) -> dict[str, torch.Tensor]:
    model = model.to(device)
    model.zero_grad()
    forward = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    loss = forward(**{name: values.to(device) for name, values in batch.items()}).loss
    loss.backward()
    # copies: a model that moves takes its gradients along
    gradients = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().cpu(), **gradients}


def assert_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float):
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        # of biases that every score of a query has alike nothing but rounding is left
        difference = float((found[name] - value).norm()) / max(float(value.norm()), 1e-4 * largest)
        assert difference < tolerance, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_wav2vec2_learns_on_a_gpu_what_it_learns_on_a_cpu(variant, padded, compiled):
    model = pretraining_model(variant).eval()
    waveforms, attention_mask = ragged_batch(20_000, 15_000 if padded else 20_000)
    mask, negatives = masks_and_negatives_of_transformers(model, attention_mask)
    batch = {"input_values": waveforms, "mask_time_indices": mask, "sampled_negative_indices": negatives}
    if padded:
        batch["attention_mask"] = attention_mask
    expected = loss_and_gradients(model, batch, "cpu")
    assert_alike(loss_and_gradients(model, batch, "cuda", compiled=compiled), expected, 1e-4)


@pytest.mark.parametrize("kernels", [64, 128])
def test_wide_positional_convolutions_are_the_same_on_a_gpu(kernels):
    model = pretraining_model(num_conv_pos_embeddings=kernels).wav2vec2.encoder.pos_conv_embed
    for total in (3, 49, 200):
        frames = torch.randn(2, total, 32)
        expected = model.cpu()(frames)
        torch.testing.assert_close(model.cuda()(frames.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_buckets_on_a_gpu_answer_as_the_plain_model_on_a_cpu(variant):
    torch.manual_seed(0)
    model = family.Wav2Vec2ForCTC(config(variant)).eval()
    batches = [ragged_batch(*lengths) for lengths in ((16_000, 9_876), (11_000, 7_000), (5_000,))]
    with torch.no_grad():
        expected = [model(*batch).logits for batch in batches]
    buckets = LengthBuckets(model.cuda(), lengths=[8_000, 16_000], batch_sizes=[1, 2])
    found = [buckets(*(values.cuda() for values in batch)) for _ in range(3) for batch in batches]
    for logits, plain, (_, mask) in zip(found, 3 * expected, 3 * batches, strict=True):
        valid = model.frame_mask(mask, plain.shape[1])
        torch.testing.assert_close(logits.cpu()[valid], plain[valid], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: family.CPCForPreTraining(family.CPCConfig(conv_dim=(16,) * 5, hidden_size=16)),
        lambda: family.Wav2VecForPreTraining(family.Wav2VecConfig()),
        lambda: family.VQWav2VecForPreTraining(family.VQWav2VecConfig()),
    ],
    ids=["cpc", "wav2vec", "vq-wav2vec"],
)
def test_steps_of_the_causal_models_lower_their_loss_on_a_gpu(make):
    torch.manual_seed(0)
    model, waveforms = make().cuda().train(), torch.randn(4, 24_000, device="cuda")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = model(waveforms).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    assert torch.stack(losses[-5:]).mean() < torch.stack(losses[:5]).mean()


def test_asg_on_a_gpu_at_real_sizes_equals_a_slow_loop_in_float64():
    torch.manual_seed(0)
    emissions, transitions = 3 * torch.randn(16, 1500, 31), torch.randn(31, 31)
    targets = torch.randint(1, 31, (16, 180)).cumsum(1) % 31
    frames, lengths = torch.randint(1200, 1501, (16,)), torch.randint(90, 181, (16,))
    on_gpu = emissions.cuda().requires_grad_()
    losses = asg_loss(on_gpu, transitions.cuda(), targets.cuda(), frames.cuda(), lengths.cuda(), reduction="none")
    (gradient,) = torch.autograd.grad(losses[7], on_gpu)
    one = emissions[7, : frames[7]].double().requires_grad_()
    expected = slow_loss(one, transitions.double(), targets[7, : lengths[7]])
    expected.backward()
    assert losses[7].item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient[7, : frames[7]].cpu(), one.grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", [pretrain, finetune], ids=["pretraining", "finetuning"])
def test_a_run_in_half_precision_goes_on_where_it_was_killed(tiny, monkeypatch, stage, precision):  # noqa: F811
    changes = {
        "optimization": {"num_steps": 6, "mixed_precision": precision, "learning_rate": 1e-3},
        "run": {"checkpoint_every_steps": 2},
    }
    whole, killed = tiny("whole", **changes), tiny("killed", **changes)
    run_stage(stage, whole)
    with killed_in_batch(5, stage, monkeypatch):
        run_stage(stage, killed)
    run_stage(stage, killed)
    assert values(killed, "loss") == pytest.approx(values(whole, "loss"), rel=1e-3)
    for name, weight in checkpoint_weights(whole, 6).items():
        # kernels that add in any order round differently every time
        torch.testing.assert_close(checkpoint_weights(killed, 6)[name], weight, rtol=1e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_that_fsdp_splits_learn_what_whole_ones_do(tiny, tmp_path, precision):  # noqa: F811
    changes = {
        "model": {"layerdrop": 0.0},
        "optimization": {"num_steps": 4, "mixed_precision": precision, "learning_rate": 1e-3},
        "run": {"checkpoint_every_steps": 2},
    }
    plain, split = tiny("plain", **changes), tiny("split", **changes)
    run_stage(pretrain, plain)
    for num_steps in (2, 4):  # the second time it resumes
        begun = replace(split, optimization=replace(split.optimization, num_steps=num_steps))
        OmegaConf.save(OmegaConf.structured(begun), tmp_path / "split.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"]
        command += ["--config_file=training/accelerate/fsdp2.yaml", "-m", "training.pretrain"]
        process = subprocess.run(
            [*command, str(tmp_path / "split.yaml")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
    assert values(split, "loss") == pytest.approx(values(plain, "loss"), rel=1e-4 if precision == "no" else 2e-2)
