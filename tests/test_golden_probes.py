"""The recorded probes of the original CPC code: our pieces give its losses, accuracies and error rates."""

import json

import numpy as np
import pytest
import torch
from golden import GOLDEN
from safetensors.torch import load_file
from torch import nn

from hf_wav2vec_family.heads import ctc_loss
from hf_wav2vec_family.labels import merge_runs
from hf_wav2vec_family.metrics.per import PhoneErrorRate
from training.probe import LabelledFrames, accuracy_of

FOLDER = GOLDEN / "cpc" / "probes"


@pytest.fixture(scope="module")
def tensors():
    if not FOLDER.exists():
        pytest.skip(f"needs the recorded outputs in {FOLDER}, which are not part of the repository")
    return load_file(FOLDER / "probes.safetensors")


@pytest.fixture(scope="module")
def expected(tensors):
    return json.loads((FOLDER / "expected.json").read_text())


def linear(tensors, name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def labelled(features, places, labels) -> LabelledFrames:
    return LabelledFrames(features.flatten(0, 1), places, np.array(labels.flatten().tolist(), dtype=str))


@torch.no_grad()
def loss_of(probe: nn.Linear, frames: LabelledFrames, targets) -> float:
    return nn.functional.cross_entropy(probe(frames.values[frames.nearest]), targets).item()


def test_a_phone_probe_asks_every_frame(tensors):
    targets = tensors["frame_labels"].flatten()
    frames = labelled(tensors["features_c"], torch.arange(len(targets)), targets)
    probe = linear(tensors, "phone.PhoneCriterionClassifier")
    assert loss_of(probe, frames, targets) == pytest.approx(tensors["phone_loss"].item(), abs=1e-5)
    assert accuracy_of(probe, frames, targets) == pytest.approx(tensors["phone_accuracy"].item())


def test_its_speaker_probe_asks_the_last_frame_of_each_window(tensors):
    targets, (num_clips, num_frames, _) = tensors["speaker_labels"], tensors["features_c"].shape
    last = torch.arange(1, num_clips + 1) * num_frames - 1
    frames = labelled(tensors["features_c"], last, targets)
    probe = linear(tensors, "speaker.linearSpeakerClassifier")
    assert loss_of(probe, frames, targets) == pytest.approx(tensors["speaker_loss"].item(), abs=1e-5)
    assert accuracy_of(probe, frames, targets) == pytest.approx(tensors["speaker_accuracy"].item())


def test_ctc_on_frame_labels_merges_their_runs(tensors, expected):
    for case in expected["collapse"]:
        merged = merge_runs(torch.tensor(case["labels"]))
        rows = zip(merged.tolist(), case["collapsed"], case["lengths"], strict=True)
        for row, collapsed, length in rows:
            assert [label for label in row if label >= 0] == collapsed[:length]
    probe = linear(tensors, "ctc.PhoneCriterionClassifier")
    logits = probe(tensors["features_c"])
    loss = ctc_loss(
        logits,
        torch.full((len(logits),), logits.shape[1]),
        merge_runs(tensors["frame_labels"]),
        blank=logits.shape[-1] - 1,
        reduction="mean",
        zero_infinity=True,
    )
    assert loss.item() == pytest.approx(tensors["ctc_loss"].item(), rel=1e-5)


def test_ctc_of_the_strided_probe_counts_the_frames_of_each_clip(tensors):
    scores, sizes = tensors["cv_scores"], tensors["cv_samples"] // 160 // 4
    labels = tensors["cv_labels"].clone()
    labels[torch.arange(labels.shape[1]) >= tensors["cv_label_sizes"][:, None]] = -100
    loss = ctc_loss(
        scores,
        sizes.clamp(max=scores.shape[1]),
        labels,
        blank=scores.shape[-1] - 1,
        reduction="mean",
        zero_infinity=True,
    )
    assert loss.item() == pytest.approx(tensors["cv_loss"].item(), rel=1e-5)


def test_phone_error_rates_are_those_of_the_original_code(expected):
    metric = PhoneErrorRate()
    for case in expected["per"]:
        prediction, reference = (" ".join(map(str, case[side])) for side in ("hypothesis", "reference"))
        found = metric.compute(predictions=[prediction], references=[reference])
        assert found["per"] == pytest.approx(case["per"])
