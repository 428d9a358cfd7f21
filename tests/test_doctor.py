"""What goes wrong while a run trains is said while it trains, and what was good is not lost."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from interruptions import forget_accelerator
from safetensors.torch import load_file

import training.data
import training.stalls
from hf_wav2vec_family.quantizers import code_counts
from training import doctor, pretrain
from training.curves import as_series
from training.doctor_report import draw
from training.findings import Facts
from training.recipe import load_recipe
from training.reference import Reference, measured_reference
from training.vitals import Vitals

RATE = 16_000
ROOT = Path(__file__).parents[1]
RECIPE = """
model: {{conv_dim: [8, 8, 8, 8, 8, 8, 8], hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
  intermediate_size: 32, num_conv_pos_embeddings: 8, num_conv_pos_embedding_groups: 2, num_codevectors_per_group: 4,
  codevector_dim: 8, proj_codevector_dim: 8, num_negatives: 5, mask_time_length: 4}}
data: {{train: {corpus}, batch_seconds: 1.0, min_seconds: 0.1, max_seconds: 0.5, num_workers: 0}}
optimization: {{learning_rate: 1.0e-3, num_steps: 12, schedule: {{kind: constant}}}}
run: {{output_dir: {folder}, trackers: [], log_every_steps: 1, checkpoint_every_steps: 100}}
"""

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def write_corpus(folder: Path, *, level=0.1, offset=0.0, num_clips=12, num_corrupt=0) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(num_clips):
        soundfile.write(folder / f"{number}.wav", offset + level * rng.standard_normal(8_000).clip(-3, 3), RATE)
        if number >= num_clips - num_corrupt:
            (folder / f"{number}.wav").write_bytes(b"torn off")
        records.append({"file_name": f"{number}.wav", "duration": 0.5})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture
def make_recipe(tmp_path):
    """make_recipe(overrides, ...) on a corpus of noise; `name` is the folder of the run, `corpus` how it sounds."""

    def make(*overrides: str, name: str = "run", **corpus):
        speech = tmp_path / f"corpus of {name}"
        write_corpus(speech, **corpus)
        path = tmp_path / f"{name}.yaml"
        path.write_text(RECIPE.format(corpus=f'"{speech}"', folder=tmp_path / name))
        return load_recipe(path, overrides)

    return make


def run(recipe) -> dict:
    forget_accelerator()
    return pretrain.main(recipe)


def log_of(recipe) -> list[dict]:
    return doctor.read_lines(Path(recipe.run.output_dir))


def checkpoints(recipe) -> list[str]:
    return sorted(path.name for path in (Path(recipe.run.output_dir) / "checkpoints").glob("*"))


def weights(recipe, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.run.output_dir) / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def inject(monkeypatch, fault, *, first: int, last: int = 1_000):
    """Of the batches `first` to `last` of training, counted from 1, `fault(model, output)` is what comes out."""
    compute, calls = pretrain.compute, []

    def faulty(model, batch):
        output = compute(model, batch)
        if model.training:
            calls.append(None)
            if first <= len(calls) <= last:
                return fault(model, output)
        return output

    monkeypatch.setattr(pretrain, "compute", faulty)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_gradient_that_is_no_number_stops_the_run_in_the_state_before_it(make_recipe, monkeypatch, optimizer):
    seldom = ["run.log_every_steps=6", f"optimization.optimizer={optimizer}", "optimization.learning_rate=0.01"]
    whole = make_recipe(*seldom, "run.checkpoint_every_steps=4", "run.keep_checkpoints=9", name="whole")
    run(whole)
    broken = make_recipe(*seldom, name="broken")
    # one batch, and nobody looks before step 6
    with monkeypatch.context() as patch:
        inject(patch, lambda model, output: replace(output, loss=output.loss * math.nan), first=5, last=5)
        with pytest.raises(FloatingPointError, match=r"gradient is no number at step 5.*step-00000004.*learning_rate"):
            run(broken)
    assert checkpoints(broken) == ["step-00000004"]
    assert same(weights(broken, 4), weights(whole, 4))
    assert math.isnan(log_of(broken)[-1]["loss"])

    run(broken)
    assert same(weights(broken, 12), weights(whole, 12))
    assert [line["step"] for line in log_of(broken)] == [line["step"] for line in log_of(whole)]


def test_weights_that_are_no_numbers_are_not_saved(make_recipe, monkeypatch):
    def poison(model, output):
        # as an error of the memory would, without autograd noticing
        model.project_q.weight.data[0, 0] = math.nan
        return replace(output, loss=output.loss * math.nan)

    inject(monkeypatch, poison, first=5)
    recipe = make_recipe("run.checkpoint_every_steps=3", "run.log_every_steps=6")
    with pytest.raises(
        FloatingPointError, match=r"gradient, and so is a weight, is no number at step 5.*step-00000003"
    ):
        run(recipe)
    assert checkpoints(recipe) == ["step-00000003"]
    assert all(value.isfinite().all() for value in weights(recipe, 3).values())


def test_a_run_that_breaks_ends_with_an_error_and_the_cause_last(make_recipe, tmp_path):
    recipe = make_recipe()
    overrides = ["optimization.learning_rate=1e30", f"data.train={recipe.data.train}", "run.checkpoint_every_steps=1"]
    process = subprocess.run(
        [sys.executable, "-m", "training.pretrain", str(tmp_path / "run.yaml"), *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("FloatingPointError:")
    assert "Likely cause: a learning rate that is too high" in last
    for name in checkpoints(recipe):
        assert all(value.isfinite().all() for value in weights(recipe, int(name[-8:])).values())


def choose_one_code(model, output):
    """All frames on one code from here on, whatever they are."""
    projection = model.quantizer.weight_proj
    projection.weight.data.zero_()
    projection.bias.data.zero_()
    projection.bias.data[:: model.config.num_codevectors_per_group] = 100.0
    return output


FAULTS = {
    "dead codebook": choose_one_code,
    "loss spike": lambda model, output: replace(output, loss=output.loss * 10),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_model_is_warned_of_while_the_run_trains(make_recipe, monkeypatch, caplog, name):
    inject(monkeypatch, FAULTS[name], first=8)
    recipe = make_recipe()
    assert run(recipe)["steps"] == 12
    warnings = [record.message for record in caplog.records if record.message.startswith(f"{name}:")]
    # once, not with every line
    assert len(warnings) == 1
    assert "Likely cause" in warnings[0]


@pytest.mark.parametrize(
    ("name", "corpus", "overrides"),
    [
        ("silent audio", {"level": 0.0}, []),
        ("constant offset", {"offset": 0.3}, []),
        ("input level", {"level": 1e-4}, []),
        ("gradient always clipped", {}, ["optimization.max_grad_norm=1e-6"]),
        ("updates too large", {}, ["optimization.learning_rate=1.0"]),
        ("mask coverage", {}, ["model.mask_time_prob=0.1", "model.mask_time_length=1"]),
        ("broken rows", {"num_corrupt": 3}, ["data.max_bad_fraction=0.5"]),
    ],
)
def test_a_fault_of_data_or_recipe_is_warned_of_while_the_run_trains(make_recipe, caplog, name, corpus, overrides):
    recipe = make_recipe(*overrides, **corpus)
    run(recipe)
    assert any(record.message.startswith(f"{name}:") for record in caplog.records)
    # the same is found in the log afterwards
    assert name in {episode.finding.name for episode in doctor.judge(log_of(recipe), doctor.facts_of(recipe))}


def test_a_loader_that_starves_the_device_is_warned_of(make_recipe, monkeypatch, caplog):
    read = training.data.read_audio

    def slowly(*arguments):
        time.sleep(0.1)
        return read(*arguments)

    monkeypatch.setattr(training.data, "read_audio", slowly)
    run(make_recipe("optimization.num_steps=4"))
    assert any("raise data.num_workers" in record.message for record in caplog.records)


def test_a_clock_that_stands_still_is_named_and_costs_no_step(make_recipe, monkeypatch, caplog):
    recipe = make_recipe("optimization.num_steps=4", "run.checkpoint_every_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: 1.0)
        assert run(recipe)["steps"] == 4
    assert any(record.message.startswith("the clock stood still: 0 s") for record in caplog.records)
    assert checkpoints(recipe) == ["step-00000002", "step-00000004"]


def test_a_step_that_does_not_end_is_told_of_once_with_the_line_that_it_stands_in(make_recipe, monkeypatch, caplog):
    read, calls = training.data.read_audio, []

    def stalls(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            time.sleep(3.0)
        return read(*arguments)

    monkeypatch.setattr(training.data, "read_audio", stalls)
    monkeypatch.setattr(training.stalls, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(training.stalls, "PATIENCE_STEPS", 0)
    assert run(make_recipe("optimization.num_steps=5"))["steps"] == 5
    told = [record.message for record in caplog.records if record.message.startswith("standing still")]
    assert any(" stalls < " in message and "Likely cause" in message for message in told)
    assert len(told) <= 5


def test_a_healthy_run_is_not_warned_of(make_recipe, caplog):
    recipe = make_recipe("optimization.learning_rate=1e-4")
    run(recipe)
    # a device as slow as this one may wait for anything
    found = {episode.finding.name for episode in doctor.judge(log_of(recipe), doctor.facts_of(recipe))}
    assert found <= {"waiting for data", "slowed down"}
    assert not [record for record in caplog.records if "Lever:" in record.message and "wait" not in record.message]


def test_more_corrupt_rows_than_allowed_stop_the_run_and_lose_no_checkpoint(make_recipe):
    recipe = make_recipe(
        "data.max_bad_fraction=0.1",
        "run.checkpoint_every_steps=5",
        "optimization.num_steps=200",
        num_clips=150,
        num_corrupt=30,
    )
    with pytest.raises(ValueError, match=r"rows \(\d+\.\d%\) have no usable audio; max_bad_fraction is 10\.0%"):
        run(recipe)
    assert checkpoints(recipe)
    assert all(value.isfinite().all() for value in weights(recipe, int(checkpoints(recipe)[-1][-8:])).values())
    assert "broken rows" in {e.finding.name for e in doctor.judge(log_of(recipe), doctor.facts_of(recipe))}


def test_the_log_tells_how_far_a_step_moves_the_weights_and_how_often_gradients_are_scaled_down(make_recipe):
    recipe = make_recipe(
        "optimization.optimizer=sgd", "optimization.max_grad_norm=1e-3", "optimization.learning_rate=0.5"
    )
    recipe = replace(recipe, run=replace(recipe.run, checkpoint_every_steps=1, keep_checkpoints=9))
    recipe = replace(recipe, optimization=replace(recipe.optimization, num_steps=3, weight_decay=0.0))
    run(recipe)
    before, after = weights(recipe, 1), weights(recipe, 2)
    moved = math.sqrt(sum((after[name] - before[name]).double().square().sum() for name in before))
    length = math.sqrt(sum(value.double().square().sum() for value in before.values()))
    line = log_of(recipe)[1]
    assert moved == pytest.approx(0.5 * 1e-3, rel=1e-3)
    assert line["update_ratio"] == pytest.approx(moved / length, rel=1e-3)
    assert line["clipped_share"] == 1.0


def test_the_share_of_padding_is_that_of_all_places_between_two_lines():
    vitals = Vitals(Accelerator(cpu=True), max_norm=0.0)
    vitals.add_batch({"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])})
    vitals.add_batch({"attention_mask": torch.tensor([[1, 0]])})
    vitals.add_batch({"input_values": torch.zeros(2, 10)})
    assert vitals.read() == {"padding_share": pytest.approx(2 / 10)}
    assert vitals.read() == {}


def test_codes_chosen_between_two_lines_are_counted_once_each_and_padding_not_at_all():
    vitals = Vitals(Accelerator(cpu=True), max_norm=0.0)
    codes = torch.tensor([[[0, 1], [0, 1], [3, 3]]])
    valid = torch.tensor([[True, True, False]])
    vitals.add_counts({"codes": code_counts(codes, 4, valid)})
    vitals.add_counts({"codes": code_counts(codes[:, :1] + 1, 4)})
    assert vitals.read() == {"used_codes": 4, "used_codes_share": 0.5}
    assert vitals.read() == {}


def test_how_often_a_log_is_written_changes_nothing_of_what_is_learned(make_recipe):
    often, seldom = make_recipe(name="often"), make_recipe("run.log_every_steps=12", name="seldom")
    run(often)
    run(seldom)
    assert same(weights(often, 12), weights(seldom, 12))


def write_log(folder: Path, lines: list[dict], recipe: str = "") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "lo')
    if recipe:
        (folder / "recipe.yaml").write_text(recipe)
    return folder


def test_an_episode_begins_and_ends_where_it_was_seen():
    waits = [0.0] * 4 + [0.9] * 5 + [0.0] * 4
    lines = [{"step": i + 1, "loss": 3.0, "data_wait_share": share} for i, share in enumerate(waits)]
    (episode,) = doctor.judge(lines, Facts())
    # the median of three lines rises and falls one line late
    assert (episode.first_step, episode.last_step, episode.lasts) == (6, 10, False)
    (episode,) = doctor.judge(lines[:9], Facts())
    assert (episode.last_step, episode.lasts) == (9, True)


def test_a_running_log_is_judged_and_drawn_beside_a_reference_in_one_page_of_its_own(tmp_path, capsys):
    ill = [
        {"step": s, "loss": 1.0, "contrastive_loss": 1.0, "accuracy": 0.1, "silent_share": 1.0} for s in range(1, 9)
    ]
    well = [{"step": s, "loss": 5.0 - s, "contrastive_loss": 1.0, "accuracy": 0.4 + s / 100} for s in range(1, 9)]
    ill, well = write_log(tmp_path / "<ill>", ill), write_log(tmp_path / "well", well)
    assert doctor.main([str(ill), "--reference", str(well), "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "steps 1 to the end: silent audio: 100% of the clips" in said
    assert "behind the reference: an accuracy of 10.0%" in said
    page = (tmp_path / "doctor.html").read_text()
    assert "silent audio" in page
    assert "&lt;ill&gt;" in page
    assert "<svg" in page
    assert not any(word in page for word in ("<ill>", "<script", "src=", "<link"))
    assert (tmp_path / "doctor.png").read_bytes().startswith(b"\x89PNG")

    assert doctor.main([str(well), "--pictures", str(tmp_path / "doctor.png")]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    assert 'src="data:image/png;base64,' in (well / "doctor.html").read_text()


def test_the_picture_shows_what_is_healthy_and_where_something_came_up(tmp_path):
    lines = [{"step": s, "loss": 9.0 - s / 10, "data_wait_share": 0.5 if s > 20 else 0.01} for s in range(1, 41)]
    reference = Reference("well", as_series(lines), 40)
    report = doctor.examine_run(write_log(tmp_path / "run", lines), tmp_path, reference)
    figure = draw(report)
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.axison}
    assert set(panels) == {"loss", "time waiting for data, %"}
    loss, waiting = panels.values()
    # in per cent, and the whole of what is healthy is to be seen
    assert waiting.get_ylim()[0] == 0
    assert waiting.get_ylim()[1] >= 50
    assert [text.get_text() for text in loss.texts if text.get_text().isdigit()] == ["1"]
    assert len(loss.collections) == 1, "the range of the reference"
    assert len(waiting.patches) == 1, "the limit of the symptom"
    assert "Wrong at the end of the log: waiting for data" in figure.get_suptitle()
    assert "within the limits of the symptoms, or of well" in figure.legends[0].get_texts()[2].get_text()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("CPC", "cpc/small_clean5"), ("VQWav2Vec", "vq_wav2vec/small_clean5"), ("Wav2Letter", None)],
)
def test_the_reference_is_the_measured_run_of_the_same_architecture(tmp_path, architecture, name):
    line = {"step": 1, "loss": 1.0, "codevector_perplexity": 9.0, "code_perplexity": 9.0, "accuracy": 0.1}
    folder = write_log(tmp_path / "run", [line], recipe=f"architecture: {architecture}\n")
    found = measured_reference(folder, as_series([line]))
    assert (found and found.name) == name


def test_the_range_of_a_reference_is_what_it_showed_around_the_same_part_of_its_run():
    lines = [{"step": 10 * i, "loss": float(i % 2) + i} for i in range(1, 11)]
    steps, low, high = Reference("r", as_series(lines), 100).band("loss", 1_000)
    assert steps == [100.0 * i for i in range(1, 11)]
    values = [line["loss"] for line in lines]
    assert (low[4], high[4]) == (min(values[3:6]), max(values[3:6]))


def test_a_folder_without_a_log_is_refused_with_another_code_than_a_sick_run(tmp_path, capsys):
    odd = write_log(tmp_path / "odd", [{"loss": 1.0}])
    for folder, message in ((tmp_path, "holds no log.jsonl"), (write_log(tmp_path / "new", []), "no whole line")):
        with pytest.raises(SystemExit) as ended:
            doctor.main([str(folder)])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        doctor.main([str(odd)])
    assert "line 1: expected an object with a step" in capsys.readouterr().err
