"""What benchmarks/profiles.py counts: every moment of a step once, under one kind."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.profiles import KINDS, OPTIMIZER, PYTHON, REST, Share, Step, kind_of, measure, shares_of, table


def event(name: str, microseconds: float, caller=None):
    return SimpleNamespace(name=name, self_cpu_time_total=microseconds, cpu_parent=caller, device_type=DeviceType.CPU)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::_fft_r2c", "FFTs"),
        ("aten::native_layer_norm_backward", "norms and activations"),
        ("aten::_log_softmax", "softmax and losses"),
        ("aten::normal_", "random numbers"),
        ("aten::norm", "norms and activations"),
        ("aten::log_", "softmax and losses"),
        ("aten::logical_and", "copies and additions"),
        ("aten::exp", "softmax and losses"),
        ("aten::expand", "copies and additions"),
        ("aten::_unsafe_view", "copies and additions"),
        ("autograd::engine::evaluate_function: MulBackward0", PYTHON),
        ("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", PYTHON),
        ("torch::autograd::AccumulateGrad", PYTHON),
        ("MulBackward0", PYTHON),
        ("aten::erfinv", REST),
        ("other::mul", "copies and additions"),
    ],
)
def test_an_operation_goes_by_its_name(name, kind):
    assert kind_of(name) == kind


def test_what_the_optimizer_calls_is_its_own_and_what_asg_calls_is_a_loss():
    step, update = event("step", 0.0), event(OPTIMIZER, 1.0)
    update.cpu_parent = step
    backward = event("autograd::engine::evaluate_function: AlignedScoreBackward", 2.0)
    called = [event("aten::mul", 3.0, update), event("aten::mul", 5.0, event("AlignedScoreBackward", 0.0, backward))]
    seconds = shares_of([step, update, backward, *called], "cpu").seconds
    assert {kind: round(1e6 * value) for kind, value in seconds.items() if value} == {
        OPTIMIZER: 4,
        "softmax and losses": 7,
    }


def test_operations_that_no_kind_knows_are_the_rest_and_its_largest_is_named():
    found = shares_of([event("aten::erfinv", 1.0), event("aten::digamma", 2.0), event("aten::mul", 9.0)], "cpu")
    assert found.seconds[REST] == pytest.approx(3e-6)
    assert found.largest == "aten::digamma"


def test_kinds_of_a_step_sum_to_the_whole_of_it():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.profiler.record_function("step"):
        layer(torch.randn(4, 8)).sum().backward()
    whole = next(event for event in profiler.events() if event.name == "step").cpu_time_total / 1e6
    found = shares_of(profiler.events(), "cpu")
    assert sum(found.seconds.values()) == pytest.approx(whole, rel=1e-6)
    assert found.seconds["matrix products"] > 0.0
    assert found.seconds[REST] == 0.0


def test_a_column_of_the_table_sums_to_a_hundred_percent():
    layer = torch.nn.Linear(8, 8)
    share = measure(Step(layer, lambda: layer(torch.randn(4, 8)).exp().sum(), "4"), 2, "cpu")
    rows = table({"a": share, "b": Share(dict.fromkeys(KINDS, 1.0), "")}).splitlines()[2 : 2 + len(KINDS)]
    for column in (2, 3):
        assert sum(float(row.split("|")[column]) for row in rows) == pytest.approx(100, abs=0.05 * len(KINDS))
    assert share.seconds[OPTIMIZER] > 0.0
