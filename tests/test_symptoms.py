"""Every symptom is found in a log that has it, said in words, and not found in a healthy one."""

import json
from pathlib import Path

import pytest

from training.data_symptoms import is_stall
from training.findings import NOTE, NUM_LINES, STOP, WARNING, Facts, Window
from training.symptoms import SYMPTOMS, examine

FACTS = Facts(num_groups=2, num_candidates=101, max_bad_fraction=0.01, num_steps=2_000)
HEALTHY = {
    "loss": 3.0,
    "contrastive_loss": 2.9,
    "accuracy": 0.3,
    "code_perplexity": 200.0,
    "used_codes_share": 0.6,
    "gradient_norm": 1.0,
    "clipped_share": 0.1,
    "update_ratio": 3e-3,
    "mask_share": 0.49,
    "input_rms": 0.06,
    "input_offset": 0.01,
    "silent_share": 0.0,
    "bad_row_share": 0.0,
    "data_wait_share": 0.02,
    "audio_seconds_per_second": 400.0,
}


def log(*changes: dict, **always) -> list[dict]:
    """Lines of a healthy log, `always` changed throughout and the last ones by `changes`, one each."""
    lines = [{**HEALTHY, **always, "step": 100 * i} for i in range(1, NUM_LINES + 1)]
    for line, change in zip(lines[NUM_LINES - len(changes) :], changes, strict=True):
        line.update(change)
    return lines


CER_OF_ONE = [{"step": step, "evaluation/cer": 1.0} for step in (1, 2, 3)]
# lines, evaluations, name, severity, and words that a person needs to hear
CASES = [
    (log({"loss": float("nan")}), (), "not a number", STOP, "optimization.learning_rate"),
    (log({"gradient_norm": float("inf")}), (), "not a number", STOP, "gradient_norm"),
    (log(*[{"contrastive_loss": 0.0, "code_perplexity": 2.0}] * 3), (), "collapse", STOP, "diversity_loss_weight"),
    (log(*[{"code_perplexity": 2.02}] * 3), (), "dead codebook", WARNING, "restart_every_steps"),
    (log(*[{"used_codes_share": 0.02}] * 3), (), "dead codebook", WARNING, "2.0% of the entries"),
    (log(*[{"used_codes_share": 0.2}] * 3), (), "dying codes", NOTE, "60.0%"),
    (log(accuracy=0.0101), (), "no better than chance", WARNING, "101 candidates"),
    (log({"loss": 6.0}), (), "loss spike", WARNING, "6 where 3 was usual"),
    (log(*[{"loss": 4.2}] * 8), (), "divergence", WARNING, "learning rate that is too high"),
    (log(clipped_share=1.0), (), "gradient always clipped", NOTE, "optimization.max_grad_norm"),
    (log({"gradient_norm": 80.0}), (), "exploding gradient", WARNING, "80 where 1 was usual"),
    (log(gradient_norm=0.0), (), "no gradient", WARNING, "frozen"),
    (log(update_ratio=0.3), (), "updates too large", WARNING, "30%"),
    (log({"silent_share": 0.3}), (), "silent audio", WARNING, "30% of the clips"),
    (log({"silent_share": 1.0}), (), "silent audio", STOP, "empty channel"),
    (log(input_offset=0.7), (), "constant offset", WARNING, "high-pass"),
    (log(input_rms=3000.0), (), "input level", WARNING, "integers"),
    (log(input_rms=1e-4), (), "input level", WARNING, "too quiet"),
    (log(mask_share=0.95), (), "mask coverage", WARNING, "mask_time_prob"),
    (log(data_wait_share=0.6), (), "waiting for data", WARNING, "data.num_workers"),
    (log(*[{"audio_seconds_per_second": 50.0}] * 3), (), "slowed down", NOTE, "50 s of audio"),
    (log({"stall_seconds": 0.0}), (), "the clock stood still", NOTE, "rates of this line"),
    (log({"bad_row_share": 0.008}), (), "broken rows", WARNING, "max_bad_fraction = 1.00%"),
    (log(), CER_OF_ONE, "nothing but blanks", WARNING, "plateau"),
]


@pytest.mark.parametrize(("lines", "evaluation", "name", "severity", "words"), CASES)
def test_a_symptom_is_named_with_what_was_seen_and_the_lever(lines, evaluation, name, severity, words):
    found = {finding.name: finding for finding in examine(Window(lines, evaluation, FACTS))}
    assert name in found, found
    assert found[name].severity == severity
    assert words in str(found[name])
    assert "Likely cause:" in str(found[name])
    assert "Lever:" in str(found[name])


def test_every_symptom_of_the_table_has_its_case():
    seen = {finding.name for lines, evaluation, *_ in CASES for finding in examine(Window(lines, evaluation, FACTS))}
    assert len(seen) == len(SYMPTOMS)


@pytest.mark.parametrize(("seconds", "stall"), [(8.0, False), (0.0, True), (-1.0, True), (59.0, False), (900.0, True)])
def test_time_between_lines_that_no_healthy_clock_shows_is_a_stall(seconds, stall):
    assert is_stall(seconds, [8.0] * 5) == stall
    assert is_stall(900.0, [8.0] * 4) is False  # nothing is usual yet


def test_a_healthy_log_has_no_symptom():
    assert examine(Window(log(), (), FACTS)) == []
    assert examine(Window([], (), FACTS)) == []


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.__name__)
def test_a_log_without_what_a_symptom_reads_has_none(symptom):
    assert symptom(Window([{"step": 1, "loss": 3.0}])) is None


def test_the_gravest_finding_comes_first():
    found = examine(Window(log(*[{"used_codes_share": 0.2, "silent_share": 1.0, "data_wait_share": 0.9}] * 3)))
    assert [finding.severity for finding in found] == [STOP, WARNING, NOTE]


def test_overflowing_gradients_are_usual_in_half_precision_and_a_loss_that_is_no_number_is_not():
    facts = Facts(overflows=True)
    assert examine(Window(log({"gradient_norm": float("inf")}), (), facts)) == []
    assert [f.severity for f in examine(Window(log({"loss": float("nan")}), (), facts))] == [STOP]


RESULTS = Path(__file__).parents[1] / "training" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_runs_that_went_well_were_never_warned_of(path):
    for name, run in json.loads(path.read_text())["runs"].items():
        lines = [line for line in run["series"] if "loss" in line]
        for end in range(1, len(lines) + 1):
            found = examine(Window(lines[max(end - NUM_LINES, 0) : end], (), Facts(num_groups=2)))
            assert found == [], (name, lines[end - 1]["step"])
