"""The scripts that print ratios, at tiny sizes: they run to the end, and what they print is of what they say."""

import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import comparing, gpu, loss_curves, pretraining_step, wav2vec2_sizes
from benchmarks.loss_curves import averaged, name_of, verdict

TINY = {
    "conv_dim": (16,) * 7,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "num_codevectors_per_group": 8,
}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Runs a benchmark's `main` with models of a few channels, in this process, and returns its JSON."""
    monkeypatch.setattr("os.execve", lambda *_: None)  # for the allocator's sake
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for size in ("base", "large"):
        monkeypatch.setitem(wav2vec2_sizes.SIZES, size, TINY)

    def run(main, *arguments: str) -> dict:
        output = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", "--rounds", "1", "--output", str(output), *arguments])
        main()
        return json.loads(output.read_text())

    return run


def test_every_way_of_every_shape_is_timed_however_many_graphs_there_are(tiny, monkeypatch):
    compiled = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self, fullgraph, dynamic, mode: compiled(self, backend="eager", fullgraph=fullgraph, dynamic=dynamic),
    )
    arguments = ["--device", "cpu", "--seconds", "0.5", "0.6", "--audio-seconds", "1.2", "--batches", "1", "2"]
    rows = tiny(gpu.main, *arguments)["rows"]
    # two lengths of training and two batches of inference
    assert len(rows) == 2 * (2 + 2) * len(gpu.WAYS)
    assert {row["case"].rpartition(" s, ")[2] for row in rows} == set(gpu.WAYS)
    assert all(row["seconds"] > 0 for row in rows)


def test_the_two_sides_of_a_gpu_run_are_refused_where_their_losses_differ(monkeypatch):
    monkeypatch.setitem(wav2vec2_sizes.SIZES, "base", TINY)
    gpu.check_equality("base", "cpu")
    sides = gpu.peer_and_ours

    def changed(size, task, device):
        peer, ours = sides(size, task, device)
        with torch.no_grad():
            ours.model.wav2vec2.feature_projection.projection.weight.mul_(1.01)
        return peer, ours

    monkeypatch.setattr(gpu, "peer_and_ours", changed)
    with pytest.raises(ValueError, match="differs by"):
        gpu.check_equality("base", "cpu")


def test_the_peak_of_a_step_is_that_of_one_whose_optimizer_has_its_moments(tiny, monkeypatch):
    steps, peaks = [], []

    def step_of(side, *_):
        return lambda: steps.append(side)

    def peak_bytes(action, device):
        peaks.append(list(steps))
        return 2**20

    monkeypatch.setattr(pretraining_step, "step_of", step_of)
    monkeypatch.setattr(pretraining_step, "peak_bytes", peak_bytes)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--peak-of", "ours", "--seconds", "0.5"])
    pretraining_step.main()
    assert peaks == [["ours"]]


def test_prepared_benchmarks_compute_float32_in_float32(monkeypatch):
    monkeypatch.setattr("os.execve", lambda *_: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    comparing.prepare(comparing.options_of("").parse_args([]))
    assert not torch.backends.cudnn.allow_tf32


def test_loss_curves_that_are_there_are_not_made_again(tiny, monkeypatch):
    arguments = [
        "--device",
        "cpu",
        "--no-compile",
        "--steps",
        "4",
        "--window",
        "2",
        "--batch-size",
        "2",
        "--seconds",
        "0.8",
    ]
    found = tiny(loss_curves.main, *arguments)
    assert {name: len(losses) for name, losses in found["curves"].items()} == {
        name_of(half, seed): 4 for half in (False, True) for seed in (0, 1)
    }
    monkeypatch.setattr(loss_curves, "curve", None)
    assert tiny(loss_curves.main, *arguments)["curves"] == found["curves"]


def curves(*, ways: float, seeds: float, last: float) -> dict[str, list[float]]:
    return {
        name_of(half, seed): [4.0, 4.0, last + half * ways + seed * seeds, last + half * ways + seed * seeds]
        for half in (False, True)
        for seed in (0, 1)
    }


@pytest.mark.parametrize(
    ("given", "agree"),
    [
        ({"ways": 0.1, "seeds": 0.2, "last": 2.0}, True),
        ({"ways": 0.2, "seeds": 0.1, "last": 2.0}, False),
        ({"ways": 0.1, "seeds": 0.2, "last": 4.0}, False),
    ],
    ids=["as far apart as seeds", "further apart", "nothing learned"],
)
def test_curves_agree_if_ways_are_no_further_apart_than_seeds_and_the_loss_has_fallen(given, agree):
    found = verdict(curves(**given), window=2)
    assert found["agree"] == agree
    assert found["between_ways"] == pytest.approx(given["ways"] / 2)
    assert found["between_seeds"] == pytest.approx(given["seeds"] / 2)


def test_a_curve_is_averaged_over_windows():
    assert averaged([1.0, 3.0, 5.0], 2) == [2.0, 5.0]
