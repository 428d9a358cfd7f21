"""A table of a paper by one command: trains what it needs, measures it, sets it beside the paper, judges the order.

python -m training.reproduce cpc.table1 --scale tiny --data /my/corpus
python -m training.reproduce wav2vec.timit --scale full --data timit=/data/TIMIT --dry-run

The tables are files of training/tables/, and paper_tables.py says what is in them. Every stage is one of the commands
of this folder, in a folder of its own in OUTPUT/stages that is named after all that it depends on, so that cells and
tables share what they have in common. A command that was stopped goes on: finished stages and cells are there, and a
stage that was stopped resumes by itself. A cell that fails is named at the end, and the others are made.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from .checkpoints import replace_file
from .machine import commit_hash, processor_name
from .paper_tables import SCALES, PlaceMissing, Run, Scale, Step, Table, load_table, table_names
from .table_report import Found, Spread, draw, markdown, verdicts

DONE = "stage.json"
HERE = Path(__file__).parent


class StageFailed(Exception):
    """A command ended with another code than 0."""


def main(arguments: list[str] | None = None) -> Found | None:
    options = parse_arguments(arguments)
    table = load_table(options.table)
    runs = list(runs_of(table, options))
    # of all runs before the first of them: a place that is not given is said now and not hours later
    steps = dict.fromkeys(step for run in runs for step in run.steps())
    if options.dry_run:
        print("\n".join(shlex.join(step.command(options.launcher)) for step in steps))
        return None
    folder = options.output / f"{options.table}.{options.scale}"
    failed = run_all(runs, folder / "cells", options.launcher)
    cells = known_cells(runs_of(table, options, every=True), folder / "cells")
    found, scale = spreads_of(cells), table.scales[options.scale]
    text = markdown(table, scale, found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    named = {"table": options.table, "scale": options.scale}
    write_json(folder / "results.json", {**named, **results(table, scale, found, cells)})
    draw(table, scale, found, folder / "plot.png")
    print(f"{table.title} ({table.source})\n\n{text}\nIn {folder}: table.md, results.json, plot.png")
    if failed:
        raise SystemExit("\n".join(["not made:", *failed]))
    return found


def runs_of(table: Table, options: argparse.Namespace, *, every: bool = False) -> Iterator[Run]:
    """The runs that are asked for, seed by seed so that all cells are there early; `every`: those of all cells."""
    scale = table.scales[options.scale]
    cells = [cell for cell in table.cells if cell not in scale.not_made]
    unknown = sorted(set(options.only or ()) - set(cells))
    if unknown:
        raise ValueError(f"--only must be of {', '.join(cells)}, got {', '.join(unknown)}.")
    for seed in range(1, (options.seeds or scale.seeds) + 1):
        for cell in cells:
            if every or not options.only or cell in options.only:
                yield Run(table, scale, cell, seed, options.data, options.output / "stages")


def run_all(runs: list[Run], folder: Path, launcher: tuple[str, ...]) -> list[str]:
    """Makes the cells that are not there yet; returns what failed and why, a line each."""
    failures: dict[Path, str] = {}
    failed = []
    for run in runs:
        path = cell_path(folder, run)
        if read_cell(path, run) is not None:
            continue
        print(f"{run.cell}, seed {run.seed}", flush=True)
        try:
            seconds = {step.stage: run_step(step, launcher, failures) for step in run.steps()}
        except StageFailed as failure:
            failed.append(f"{run.cell}, seed {run.seed}: {failure}")
            continue
        values = {column: read_value(step, value) for column, (step, value) in run.measured.items()}
        cell = {"cell": run.cell, "seed": run.seed, "values": values, "seconds": seconds}
        write_json(path, {**cell, "fingerprint": run.fingerprint(), **machine()})
    return failed


def run_step(step: Step, launcher: tuple[str, ...], failures: dict[Path, str]) -> float:
    """Runs a stage unless it is done; returns the seconds that it took. A stage that failed is not tried twice.

    One that another command is at, for another table or other cells in the same OUTPUT, is waited for.
    """
    if step.folder in failures:
        raise StageFailed(failures[step.folder])
    step.folder.mkdir(parents=True, exist_ok=True)
    with alone_at(step.folder) as log:
        done = step.folder / DONE
        return json.loads(done.read_text())["seconds"] if done.is_file() else make_stage(step, launcher, failures, log)


@contextmanager
def alone_at(folder: Path) -> Iterator[TextIO]:
    """The log of a stage, open; nobody else is in the body for `folder`.

    What is locked is the open log, which a stage has for its output, so that one whose command was killed holds it
    until it ends itself. A lock of the command would be gone with it, and the next one start the stage a second time.
    """
    with (folder / "output.log").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"  another command, or a stage that one left, is at {folder}; waiting for its end", flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        yield log


def make_stage(step: Step, launcher: tuple[str, ...], failures: dict[Path, str], log: TextIO) -> float:
    """Runs the command of a stage and marks it as done; returns the seconds that it took."""
    command = step.command(launcher)
    print(f"  {shlex.join(command)}", flush=True)
    began = time.perf_counter()
    if code := call(command, log):
        last = (Path(log.name).read_text().strip().splitlines() or ["no output"])[-1]
        failures[step.folder] = f"training.{step.run} ended with {code}: {last} ({log.name})"
        raise StageFailed(failures[step.folder])
    seconds = round(time.perf_counter() - began, 1)
    write_json(step.folder / DONE, {"command": command, "seconds": seconds})
    return seconds


def call(command: list[str], log: TextIO) -> int:
    """The exit code of a command, whose output goes to `log`.

    A signal to end goes on to the command, which saves its state, and ends this process after it: two commands in one
    folder would be in each other's way.
    """
    received: list[int] = []
    processes: list[subprocess.Popen] = []

    def pass_on(number: int, _):
        received.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # in a session of its own, or it would have what a terminal sends twice
        options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        processes.append(subprocess.Popen(command, cwd=HERE.parent, **options))
        code = processes[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    return code


def read_value(step: Step, value: str) -> float:
    """A number that a finished stage left, in percent."""
    if step.run == "probe":
        rows = json.loads((step.folder / "probe.json").read_text())["results"]
        found = {row["features"]: row["accuracy"] for row in rows}
    else:
        found = json.loads((step.folder / "scores.json").read_text())
    if value not in found:
        raise ValueError(f"columns.value must be of {', '.join(found)} for the stage {step.stage}, got {value!r}.")
    return 100 * found[value]


def cell_path(folder: Path, run: Run) -> Path:
    return folder / f"{run.cell}-{run.seed}.json"


def read_cell(path: Path, run: Run) -> dict | None:
    """What is known of a cell, if it was made as the table has it now."""
    cell = json.loads(path.read_text()) if path.is_file() else {}
    return cell if cell.get("fingerprint") == run.fingerprint() else None


def known_cells(runs: Iterable[Run], folder: Path) -> list[dict]:
    """What is known of the cells of `runs`; of a cell whose places were not given this time, nothing."""
    cells = []
    for run in runs:
        try:
            cell = read_cell(cell_path(folder, run), run)
        except PlaceMissing:
            continue
        cells += [cell] if cell else []
    return cells


def spreads_of(cells: list[dict]) -> Found:
    """Column -> cell -> spread over its seeds."""
    values: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        for column, value in cell["values"].items():
            values.setdefault(column, {}).setdefault(cell["cell"], []).append(value)
    return {column: {cell: Spread.of(seeds) for cell, seeds in rows.items()} for column, rows in values.items()}


def results(table: Table, scale: Scale, found: Found, cells: list[dict]) -> dict:
    """What is worth keeping of a table: no paths."""
    kept = ("cell", "seed", "values", "seconds", "processor", "torch", "commit")
    return {
        "title": table.title,
        "source": table.source,
        "summary": {column: {cell: vars(spread) for cell, spread in rows.items()} for column, rows in found.items()},
        "verdicts": [vars(verdict) for verdict in verdicts(table, scale, found)],
        "cells": [{key: cell[key] for key in kept} for cell in cells],
    }


def machine() -> dict[str, str | None]:
    """Where a number was made and with what."""
    return {
        "processor": f"{processor_name()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads",
        "torch": version("torch"),
        "commit": commit_hash(),
    }


def write_json(path: Path, content: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda unfinished: unfinished.write_text(text))


def places_of(arguments: list[str]) -> dict[str, str]:
    """`NAME=PATH` by its name; a path alone is the `corpus`."""
    found = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        path = path if equals else argument
        # stages run in another folder than this command; what is not here is on the Hub
        found[name if equals else "corpus"] = os.path.abspath(path) if os.path.exists(path) else path
    return found


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=table_names(), metavar="TABLE", help=", ".join(table_names()))
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH", help="the corpus, or NAME=PATH of several")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells of the table")
    parser.add_argument("--seeds", type=int, help="how many, if not as many as the table says")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--launcher", default="", help='such as "accelerate launch --num_processes 8"')
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    options = parser.parse_args(arguments)
    options.data, options.output = places_of(options.data), options.output.absolute()
    options.launcher = tuple(shlex.split(options.launcher))
    return options


if __name__ == "__main__":
    main()
