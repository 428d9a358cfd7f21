"""Tables of the papers: every cell can be run, stages are shared, runs go on, and orders are judged."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
import transformers

import hf_wav2vec_family
from training import evaluate, extract_codes, hold_out, pieces, probe, reproduce
from training.hold_out import held_out
from training.paper_tables import COMMANDS, Changes, Claim, Run, load_table, table_names
from training.pretrain import make_feature_extractor
from training.recipe import configuration, family_class, load_recipe, refuse_unknown_fields
from training.sources import as_sources, open_source
from training.table_report import HOLDS, MISSES, NOT_MEASURED, UNDECIDED, Spread, judge, markdown

PLACES = {name: f"/data/{name}" for name in ("corpus", "lexicon", "aligned", "timit", "wsj", "decoder")}
PLACES |= {name: f"/data/{name}" for name in ("libri_light", *(f"libri_light_{n}" for n in ("10m", "1h", "10h")))}
PARSERS = {m.__name__.removeprefix("training."): m for m in (probe, evaluate, extract_codes, pieces, hold_out)}
TABLE = """
title: two models
source: nobody, table 0
numbers: {per: PER}
cells:
  small: {title: small, paper: {per: 20}, set: {pretrain: {optimization.num_steps: 1}}}
  large: {title: large, paper: {per: [10, 0.5]}, set: {pretrain: {optimization.num_steps: 2}}}
  features: {title: features}
claims:
  - {text: large is ahead, order: [large, small]}
scales:
  tiny:
    seeds: 2
    columns: {per: {title: "PER, %", stage: test, value: per, better: lower, paper: per}}
    cells: {features: {set: {acoustic: {encoder: null}}}}
    stages:
      pretrain: {run: pretrain, recipe: cpc/small_clean5.yaml, seed: 1, set: {data.train: "{corpus}"}}
      acoustic:
        run: finetune
        recipe: wav2letter/small_clean5.yaml
        set: {data.train: "{corpus}", encoder: "{pretrain}/model"}
      test: {run: evaluate, inputs: ["{acoustic}/model", "{corpus}"], set: {split: dev}}
"""


def runs_of(table, scale: str, root=Path("/out"), seed=1, places=PLACES) -> list[Run]:
    cells = [cell for cell in table.cells if cell not in table.scales[scale].not_made]
    return [Run(table, table.scales[scale], cell, seed, places, root) for cell in cells]


def check_recipe_stage(run: str, arguments: tuple[str, ...]):
    """What a stage would find wrong before it reads data."""
    recipe = load_recipe(Path(reproduce.HERE.parent, arguments[0]), arguments[1:])
    if run == "pretrain":
        config = configuration(family_class(recipe, "Config"), recipe.model)
        make_feature_extractor(recipe, config)
    elif run == "pretrain_bert":
        configuration(transformers.RobertaConfig, recipe.model)
    elif recipe.encoder is None and recipe.pretrained is None:
        configuration(family_class(recipe, "Config"), recipe.model)
    else:
        refuse_unknown_fields(family_class(recipe, "Config"), recipe.model)
        assert recipe.encoder is None or hasattr(hf_wav2vec_family.Wav2LetterForCTC, "from_encoder")


@pytest.mark.parametrize("name", table_names())
def test_every_cell_of_every_table_has_recipes_and_options_that_its_commands_take(name):
    table, checked = load_table(name), set()
    for scale in table.scales:
        for run in runs_of(table, scale):
            for step in run.steps():
                if step in checked:
                    continue
                checked.add(step)
                if COMMANDS[step.run].with_recipe:
                    check_recipe_stage(step.run, step.arguments)
                else:
                    PARSERS[step.run].parse_arguments(list(step.arguments))
    assert checked


@pytest.mark.parametrize("name", table_names())
def test_every_table_has_both_scales_and_its_file_no_path_of_this_machine(name):
    table = load_table(name)
    assert {"tiny", "full"} <= set(table.scales)
    text = Path(reproduce.HERE, "tables", f"{name}.yaml").read_text()
    assert f"python -m training.reproduce {name} --scale tiny --data" in text
    assert not {word for word in text.split() if word.startswith(("/", "~"))}


@pytest.mark.parametrize("name", table_names())
def test_cells_of_a_table_come_from_different_stages_or_read_different_rows(name):
    table = load_table(name)
    for scale in table.scales:
        runs = runs_of(table, scale)
        assert len({run.fingerprint() for run in runs}) == len(runs)
        with_another_seed = runs_of(table, scale, seed=2)
        assert not {run.fingerprint() for run in runs} & {run.fingerprint() for run in with_another_seed}


@pytest.mark.parametrize("name", table_names())
def test_what_a_table_says_the_paper_claims_is_so_in_the_papers_own_numbers(name):
    table = load_table(name)
    for column in {c.paper: c for scale in table.scales.values() for c in scale.columns.values() if c.paper}.values():
        of_paper = {
            key: Spread(Spread.of_paper(cell.paper[column.paper]).mean)
            for key, cell in table.cells.items()
            if column.paper in cell.paper
        }
        # a column of a small scale may be better the other way round than the paper's
        direction = "higher" if name.startswith("cpc") else "lower"
        for claim in table.claims:
            if claim.columns is None or column.paper in claim.columns:
                titles = {key: cell.title for key, cell in table.cells.items()}
                verdict = judge(claim, column.paper, of_paper, direction, titles)
                assert verdict.result in (HOLDS, NOT_MEASURED), (claim.text, column.paper, verdict)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "two.yaml").write_text(TABLE)
    return load_table("two", tmp_path)


def test_cells_share_the_stages_that_come_out_the_same_and_only_those(table):
    small, large, features = runs_of(table, "tiny")
    folders = {run.cell: {step.stage: step.folder for step in run.steps()} for run in (small, large, features)}
    assert list(folders["small"]) == ["pretrain", "acoustic", "test"]
    assert folders["small"]["pretrain"] != folders["large"]["pretrain"]
    assert list(folders["features"]) == ["acoustic", "test"]
    again = {step.stage: step.folder for step in runs_of(table, "tiny", seed=2)[0].steps()}
    # the stage has a seed of its own
    assert again["pretrain"] == folders["small"]["pretrain"]
    assert again["acoustic"] != folders["small"]["acoustic"]


def test_moving_the_folder_of_all_stages_changes_no_name_but_another_corpus_does(table):
    here, there = runs_of(table, "tiny")[0], runs_of(table, "tiny", root=Path("/elsewhere"))[0]
    assert here.fingerprint() == there.fingerprint()
    other = runs_of(table, "tiny", places={**PLACES, "corpus": "/other"})[0]
    assert here.fingerprint() != other.fingerprint()


def test_several_processes_start_what_can_take_part_and_python_the_rest(table):
    pretrain, acoustic, test = runs_of(table, "tiny")[0].steps()
    launcher = ("accelerate", "launch")
    assert pretrain.command(launcher)[:4] == ["accelerate", "launch", "-m", "training.pretrain"]
    assert acoustic.command(launcher)[:2] == ["accelerate", "launch"]
    assert test.command(launcher)[1:3] == ["-m", "training.evaluate"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("order: [large, small]", "order: [large, tall]", "claims.order must be of small, large, features, got tall"),
        ("run: evaluate", "run: guess", "tiny.stages.run must be of .*got guess"),
        ("better: lower", "better: lowest", "got lowest"),
        ("stage: test", "stage: exam", "tiny.columns.stage must be of .*got exam"),
        ("set: {acoustic: {encoder: null}}", "set: {encoder: {encoder: null}}", "what cells set must be of"),
        ("seeds: 2", "seed: 2", "seed"),
        ("paper: {per: 20}", "paper: {wer: 20}", "cells.small.paper must be of per, got wer"),
        ("order: [large, small]", "narrower: [[large, small]], order: [small]", "an order or two narrower pairs"),
    ],
)
def test_a_name_that_means_nothing_is_refused(tmp_path, old, new, message):
    assert old in TABLE
    (tmp_path / "two.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_table("two", tmp_path)


def test_a_table_that_is_not_there_and_a_place_that_is_not_given_are_named(table):
    with pytest.raises(ValueError, match=r"cpc\.table1.*got 'cpc\.table9'"):
        load_table("cpc.table9")
    with pytest.raises(ValueError, match="as corpus=PATH"):
        runs_of(table, "tiny", places={})[0].steps()


def test_stages_in_a_circle_are_refused(table):
    table.scales["tiny"].stages["pretrain"].set["data.evaluation"] = "{acoustic}"
    with pytest.raises(ValueError, match="test needs acoustic needs pretrain needs acoustic"):
        runs_of(table, "tiny")[0].steps()


class Stages:
    """Stands for the commands: writes what an evaluation leaves, and fails where it is told to."""

    def __init__(self, monkeypatch, per: dict[str, float]):
        self.commands, self.fails, self.per = [], set(), per
        monkeypatch.setattr(reproduce, "call", self)

    def __call__(self, command, log):
        self.commands.append(command)
        stage = command[2].removeprefix("training.")
        if stage in self.fails:
            print("ValueError: the disk is full.", file=log, flush=True)
            return 1
        if stage == "evaluate":
            Path(command[-1], "scores.json").write_text(json.dumps({"per": self.per[len(self.commands) % 2]}))
        return 0


@pytest.fixture
def command(table, tmp_path, monkeypatch):
    """Runs the table as the command line does."""
    monkeypatch.setattr(reproduce, "load_table", lambda name: table)
    monkeypatch.setattr(reproduce, "table_names", lambda: ["two"])

    def run(*more: str):
        return reproduce.main(["two", "--data", str(tmp_path), "--output", str(tmp_path / "out"), *more])

    return run


def test_a_finished_table_is_printed_again_without_running_anything(command, tmp_path, monkeypatch, capsys):
    stages = Stages(monkeypatch, {0: 0.2, 1: 0.3})
    found = command()
    # two pre-trainings, three acoustic models and tests of two seeds each
    assert len(stages.commands) == 2 + 2 * (3 + 3)
    assert {spread.num_seeds for spread in found["per"].values()} == {2}
    folder = tmp_path / "out" / "two.tiny"
    assert (folder / "plot.png").is_file()
    kept = json.loads((folder / "results.json").read_text())
    assert str(tmp_path) not in json.dumps(kept)
    assert [(cell["cell"], cell["seed"]) for cell in kept["cells"]] == [
        (name, seed) for seed in (1, 2) for name in ("small", "large", "features")
    ]
    assert command() == found
    assert len(stages.commands) == 14
    assert (folder / "table.md").read_text() in capsys.readouterr().out


def test_a_cell_that_fails_is_named_with_its_cause_and_made_by_the_next_command(command, monkeypatch):
    stages = Stages(monkeypatch, {0: 0.2, 1: 0.2})
    stages.fails = {"pretrain"}
    with pytest.raises(SystemExit, match=r"small, seed 1: training.pretrain ended with 1: .*the disk is full"):
        command()
    # a stage that failed is not tried twice, and the cell that does not need it is made
    assert [c[2] for c in stages.commands].count("training.pretrain") == 2
    assert [c[2] for c in stages.commands].count("training.evaluate") == 2
    stages.fails = set()
    assert set(command()["per"]) == {"small", "large", "features"}


def test_one_cell_can_be_made_alone_and_the_others_keep_their_numbers(command, monkeypatch):
    stages = Stages(monkeypatch, {0: 0.2, 1: 0.2})
    assert set(command("--only", "features", "--seeds", "1")["per"]) == {"features"}
    assert len(stages.commands) == 2
    assert set(command("--only", "small", "--seeds", "1")["per"]) == {"features", "small"}
    with pytest.raises(ValueError, match="--only must be of small, large, features, got tall"):
        command("--only", "tall")


def test_a_cell_is_made_anew_when_the_table_says_something_else(command, table, monkeypatch):
    stages = Stages(monkeypatch, {0: 0.2, 1: 0.2})
    command("--only", "features", "--seeds", "1")
    table.scales["tiny"].cells["features"] = Changes(set={"acoustic": {"encoder": None, "data.batch_seconds": 8}})
    command("--only", "features", "--seeds", "1")
    assert len(stages.commands) == 4


def test_a_place_that_only_other_cells_need_may_be_left_out(command, table, monkeypatch):
    Stages(monkeypatch, {0: 0.2, 1: 0.2})
    table.scales["tiny"].stages["pretrain"].set["data.evaluation"] = "{elsewhere}"
    assert set(command("--only", "features", "--seeds", "1")["per"]) == {"features"}
    with pytest.raises(ValueError, match="as elsewhere=PATH"):
        command("--seeds", "1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stage_first_which_has_time_to_save(tmp_path, number):
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    code = f"""
import pathlib, signal, sys, time
def save(number, _):
    time.sleep(0.5)
    pathlib.Path({str(saved)!r}).write_text(str(number))
    sys.exit(128 + number)
signal.signal({number:d}, save)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""

    def send():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with (tmp_path / "log").open("a") as log, pytest.raises(SystemExit) as ended:
        reproduce.call([sys.executable, "-c", code], log)
    assert ended.value.code == 128 + number
    assert saved.read_text() == str(int(number))


def test_a_stage_that_another_command_is_at_is_waited_for(tmp_path):
    came = []

    def other():
        with reproduce.alone_at(tmp_path):
            came.append("other")

    with reproduce.alone_at(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        came.append("first")
    thread.join(60)
    assert came == ["first", "other"]


def test_a_stage_whose_command_was_killed_is_waited_for(tmp_path, capfd):
    ready, free, ended = tmp_path / "ready", tmp_path / "free", tmp_path / "ended"
    stage = f"""
import pathlib, time
pathlib.Path({str(ready)!r}).touch()
while not pathlib.Path({str(free)!r}).exists():
    time.sleep(0.05)
pathlib.Path({str(ended)!r}).touch()
"""
    code = f"""
import pathlib, sys
from training import reproduce
with reproduce.alone_at(pathlib.Path({str(tmp_path)!r})) as log:
    reproduce.call([sys.executable, "-c", {stage!r}], log)
"""
    command = subprocess.Popen([sys.executable, "-c", code], cwd=reproduce.HERE.parent)
    try:
        while not ready.exists():
            assert command.poll() is None
            time.sleep(0.05)
        command.kill()
        command.wait()
        came = []

        def next_command():
            with reproduce.alone_at(tmp_path):
                came.append(ended.exists())

        thread = threading.Thread(target=next_command)
        thread.start()
        thread.join(0.3)
        assert came == []
    finally:
        free.touch()
    thread.join(60)
    assert came == [True]
    assert f"a stage that one left, is at {tmp_path}; waiting" in capfd.readouterr().out


def test_dry_run_prints_each_command_once_and_runs_none(command, monkeypatch, capsys):
    stages = Stages(monkeypatch, {})
    assert command("--dry-run", "--seeds", "1") is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 2 + 3 + 3
    assert stages.commands == []


@pytest.mark.parametrize(
    ("better", "worse", "direction", "result"),
    [
        (Spread(50, 1.0, 3), Spread(40, 1.0, 3), "higher", HOLDS),
        (Spread(50, 1.0, 3), Spread(40, 1.0, 3), "lower", MISSES),
        (Spread(50, 1.0, 3), Spread(49, 1.0, 3), "higher", UNDECIDED),
        (Spread(49, 1.0, 3), Spread(50, 1.0, 3), "higher", UNDECIDED),
        (Spread(50), Spread(49), "higher", HOLDS),
        (Spread(49), Spread(50), "higher", MISSES),
        (Spread(50), Spread(50), "higher", MISSES),
    ],
)
def test_an_order_holds_if_it_is_clearer_than_the_deviation_and_misses_likewise(better, worse, direction, result):
    found, titles = {"a": better, "b": worse}, {"a": "A", "b": "B", "c": "C"}
    assert judge(Claim("x", order=["a", "b"]), "y", found, direction, titles).result == result
    lacking = judge(Claim("x", order=["a", "c"]), "y", found, direction, titles)
    assert (lacking.result, lacking.numbers) == (NOT_MEASURED, "without C")


def test_one_pair_the_wrong_way_round_is_enough_to_miss():
    found = {"a": Spread(3), "b": Spread(1), "c": Spread(2)}
    assert judge(Claim("x", order=["a", "b", "c"]), "y", found, "higher", dict(a="A", b="B", c="C")).result == MISSES


def test_a_difference_becomes_narrower_whatever_its_sign():
    found = {"a": Spread(10), "b": Spread(14), "c": Spread(9), "d": Spread(8)}
    titles = {key: key for key in found}
    claim = Claim("x", narrower=[["a", "b"], ["c", "d"]])
    assert judge(claim, "y", found, "lower", titles).result == HOLDS
    assert judge(Claim("x", narrower=claim.narrower[::-1]), "y", found, "lower", titles).result == MISSES


def test_the_table_has_the_papers_numbers_beside_ours_and_no_number_where_there_is_none(table):
    found = {"per": {"small": Spread(61.5, 2.0, 2)}}
    lines = markdown(table, table.scales["tiny"], found).splitlines()
    assert lines[0] == "|  | PER, % | paper: PER |"
    assert lines[2:5] == ["| small | 61.50 ± 2.00 | 20 |", "| large |  | 10 ± 0.5 |", "| features |  |  |"]
    assert "- large is ahead (PER, %): **not measured**; without large." in lines


def test_every_so_many_utterances_of_each_speaker_are_held_out_and_can_be_read(tmp_path):
    rows = [{"file_name": f"a/{i}.wav", "speaker_id": "xy"[i % 2], "text": "A"} for i in range(12)]
    assert held_out(rows, 3) == [i in (4, 5, 10, 11) for i in range(12)]
    (tmp_path / "corpus" / "train" / "a").mkdir(parents=True)
    for row in rows:
        soundfile.write(tmp_path / "corpus" / "train" / row["file_name"], [0.0] * 160, 16_000)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "corpus" / "train" / "metadata.jsonl").write_text(text)
    for _ in range(2):
        hold_out.main([str(tmp_path / "corpus"), "--every", "3", "--output", str(tmp_path / "held")])
    found = {}
    for split in ("train", "dev"):
        opened = open_source(as_sources(str(tmp_path / "held"), split=split)[0])
        found[split] = [Path(row.audio) for row in opened.rows()]
        assert all(path.is_file() for path in found[split])
    assert (len(found["train"]), len(found["dev"])) == (8, 4)
    with pytest.raises(ValueError, match="speaker_id, which a has not"):
        held_out([{"file_name": "a"}], 2)
