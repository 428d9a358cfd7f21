"""A table of a paper by one command: trains what it needs, measures it, sets it beside the paper, judges the order.

python -m training.reproduce cpc.table1 --scale tiny --data /my/corpus
python -m training.reproduce wav2vec.timit --scale full --data timit=/data/TIMIT --dry-run

The tables are files of training/tables/, and paper_tables.py says what is in them. Every stage is one of the commands
of this folder, in a folder of its own in OUTPUT/stages that is named after all that it depends on, so that cells and
tables share what they have in common. A command that was stopped goes on: finished stages and cells are there, and a
stage that was stopped resumes by itself. A cell that fails is named at the end, and the others are made.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from .checkpoints import replace_file
from .paper_tables import SCALES, Run, Step, Table, load_table, table_names
from .table_report import Found, Spread, draw, markdown, verdicts

DONE = "stage.json"
HERE = Path(__file__).parent


class StageFailed(Exception):
    """A command ended with another code than 0."""


def main(arguments: list[str] | None = None) -> Found | None:
    options = parse_arguments(arguments)
    table = load_table(options.table)
    runs = list(runs_of(table, options))
    if options.dry_run:
        steps = dict.fromkeys(step for run in runs for step in run.steps())
        print("\n".join(shlex.join(step.command(options.launcher)) for step in steps))
        return None
    folder = options.output / f"{options.table}.{options.scale}"
    failed = run_all(runs, folder / "cells", options.launcher)
    found, scale = found_in(folder / "cells", list(runs_of(table, options, every=True))), table.scales[options.scale]
    text = markdown(table, scale, found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    write_json(folder / "results.json", results(options.table, options.scale, found, folder))
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
        values = {column: read_value(step, value, run.seed) for column, (step, value) in run.measured.items()}
        cell = {"cell": run.cell, "seed": run.seed, "values": values, "seconds": seconds}
        write_json(path, {**cell, "fingerprint": run.fingerprint(), **machine()})
    return failed


def run_step(step: Step, launcher: tuple[str, ...], failures: dict[Path, str]) -> float:
    """Runs a stage unless it is done; returns the seconds that it took. A stage that failed is not tried twice."""
    done = step.folder / DONE
    if done.is_file():
        return json.loads(done.read_text())["seconds"]
    if step.folder in failures:
        raise StageFailed(failures[step.folder])
    step.folder.mkdir(parents=True, exist_ok=True)
    command = step.command(launcher)
    print(f"  {shlex.join(command)}", flush=True)
    began = time.perf_counter()
    log = step.folder / "output.log"
    with log.open("a") as output:
        ended = subprocess.run(command, cwd=HERE.parent, stdout=output, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        failures[step.folder] = f"training.{step.run} ended with {ended.returncode}: {last} ({log})"
        raise StageFailed(failures[step.folder])
    seconds = round(time.perf_counter() - began, 1)
    write_json(done, {"command": command, "seconds": seconds})
    return seconds


def read_value(step: Step, value: str, seed: int) -> float:
    """A number that a finished stage left, in percent."""
    if step.run == "probe":
        rows = json.loads((step.folder / "probe.json").read_text())["results"]
        found = {row["features"]: row["accuracy"] for row in rows if row["seed"] == seed}
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


def found_in(folder: Path, runs: list[Run]) -> Found:
    """Column -> cell -> spread over the seeds that are there."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for column, value in (read_cell(cell_path(folder, run), run) or {"values": {}})["values"].items():
            values.setdefault(column, {}).setdefault(run.cell, []).append(value)
    return {column: {cell: Spread.of(seeds) for cell, seeds in cells.items()} for column, cells in values.items()}


def results(name: str, scale: str, found: Found, folder: Path) -> dict:
    """What is worth keeping of a table: no paths."""
    table = load_table(name)
    cells = [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))]
    kept = ("cell", "seed", "values", "seconds", "processor", "torch", "commit")
    return {
        "table": name,
        "scale": scale,
        "title": table.title,
        "source": table.source,
        "summary": {column: {cell: vars(spread) for cell, spread in cells.items()} for column, cells in found.items()},
        "verdicts": [vars(verdict) for verdict in verdicts(table, table.scales[scale], found)],
        "cells": [{key: cell[key] for key in kept} for cell in cells],
    }


def machine() -> dict[str, str | None]:
    """Where a number was made and with what."""
    known = Path("/proc/cpuinfo")
    names = [line for line in known.read_text().splitlines() if "model name" in line] if known.is_file() else []
    processor = names[0].partition(":")[2].strip() if names else platform.processor()
    commit = subprocess.run(
        ["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": f"{processor}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads",
        "torch": version("torch"),
        "commit": commit.stdout.strip() or None,
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
