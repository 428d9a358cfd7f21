"""Tables of the papers as files: cells, the paper's numbers, its claims, and the commands that make each cell.

A file of training/tables/ says a table once and how to make it at each scale:

| part | what |
|---|---|
| `title`, `source` | what it shows; paper, arXiv number and table |
| `numbers` | key -> heading of each column of the paper |
| `cells` | key -> `title`, `paper` (key of a number -> value, or [mean, deviation]), `x` of a curve, and `set` |
| `claims` | `text`, and the cells of an `order` from best to worst, or two pairs `narrower`, of which the second |
| | differs less than the first; `columns` of the paper that it is said of, or all |
| `scales` | `tiny`, `full`, `gpu`: `seeds`, `note`, `columns`, `stages`, and per cell in `cells` what it changes |

A stage is a command of this folder (`run`) with a `recipe` or `inputs`, and options that it is to `set`; a cell may
set others. `{corpus}`, `{lexicon}` and the like in them are the places that --data names, `{seed}` the number of the
seed, and `{other_stage}` the folder that another stage leaves: what a column measures is run, and what that needs,
nothing else. Cells whose stages come out the same share them: a stage's folder is named after all that matters.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HERE = Path(__file__).parent
TABLES = HERE / "tables"
SCALES = ("tiny", "gpu", "full")


class PlaceMissing(ValueError):
    """A name in braces is neither a stage nor among the places that were given."""


@dataclass(frozen=True)
class Command:
    """How a stage is started: with a recipe and `key=value`, or with options; what names its seed.

    `launched` are those that run on several processes.
    """

    with_recipe: bool
    launched: bool = False
    seed: tuple[str, ...] = ()


COMMANDS = {
    "pretrain": Command(with_recipe=True, launched=True),
    "pretrain_bert": Command(with_recipe=True, launched=True),
    "finetune": Command(with_recipe=True, launched=True),
    "extract_codes": Command(with_recipe=False, launched=True),
    "pieces": Command(with_recipe=False),
    "hold_out": Command(with_recipe=False),
    "probe": Command(with_recipe=False, seed=("--seeds", "1", "--first-seed")),
    "evaluate": Command(with_recipe=False),
}


@dataclass
class Column:
    """A number that is measured: `value` of what `stage` leaves, which is a share and shown in percent.

    Of a probe, `value` is the row of its report; of an evaluation, a rate such as `per`. `better` is "higher" or
    "lower"; `paper` the key of the paper's number that stands beside it.
    """

    title: str = MISSING
    stage: str = MISSING
    value: str = MISSING
    better: str = MISSING
    paper: str | None = None


@dataclass
class StageSpec:
    """`seed` instead of that of the cell, for what all seeds are to share."""

    run: str = MISSING
    recipe: str | None = None
    inputs: list[str] = field(default_factory=list)
    set: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


@dataclass
class Changes:
    """What a cell has otherwise at one scale.

    Args:
        use: name -> the stage that is meant by it, in columns and in braces.
        set: stage, or such a name -> options. value: column -> what it reads.
    """

    use: dict[str, str] = field(default_factory=dict)
    set: dict[str, dict[str, Any]] = field(default_factory=dict)
    value: dict[str, str] = field(default_factory=dict)


@dataclass
class Cell:
    title: str = MISSING
    paper: dict[str, Any] = field(default_factory=dict)
    x: float | None = None
    set: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Claim:
    text: str = MISSING
    order: list[str] = field(default_factory=list)
    narrower: list[list[str]] = field(default_factory=list)
    columns: list[str] | None = None


@dataclass
class Scale:
    """`not_made` are cells of which the paper's numbers alone are shown, such as other people's systems."""

    columns: dict[str, Column] = field(default_factory=dict)
    stages: dict[str, StageSpec] = field(default_factory=dict)
    cells: dict[str, Changes] = field(default_factory=dict)
    seeds: int = 1
    note: str = ""
    not_made: list[str] = field(default_factory=list)


@dataclass
class Table:
    title: str = MISSING
    source: str = MISSING
    numbers: dict[str, str] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    x_title: str = ""
    scales: dict[str, Scale] = field(default_factory=dict)


def table_names() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load_table(name: str, folder: Path = TABLES) -> Table:
    """Reads `<name>.yaml`; ValueError for a name that is not there, an unknown key, or a name that means nothing."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"table must be one of {', '.join(table_names())}, got {name!r}.")
    try:
        table = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
    check_table(table, name)
    return table


def check_table(table: Table, name: str):
    """Every name in a table is one of something that is there."""

    def known(where: str, given, accepted):
        unknown = [str(key) for key in given if key not in accepted]
        if unknown:
            raise ValueError(f"{name}: {where} must be of {', '.join(accepted)}, got {', '.join(unknown)}.")

    known("scales", table.scales, SCALES)
    for key, cell in table.cells.items():
        known(f"cells.{key}.paper", cell.paper, table.numbers)
    for claim in table.claims:
        known("claims.order", claim.order, table.cells)
        known("claims.narrower", [cell for pair in claim.narrower for cell in pair], table.cells)
        known("claims.columns", claim.columns or (), table.numbers)
        if bool(claim.order) == bool(claim.narrower) or any(len(pair) != 2 for pair in claim.narrower):
            raise ValueError(f"{name}: a claim has an order or two narrower pairs, which {claim.text!r} has not.")
    for key, scale in table.scales.items():
        known(f"{key}.cells", [*scale.cells, *scale.not_made], table.cells)
        known(f"{key}.stages.run", [stage.run for stage in scale.stages.values()], COMMANDS)
        known(f"{key}.columns.better", [c.better for c in scale.columns.values()], ("higher", "lower"))
        known(f"{key}.columns.paper", [c.paper for c in scale.columns.values() if c.paper], table.numbers)
        changes = scale.cells.values()
        used = {name: stage for change in changes for name, stage in change.use.items()}
        named = {*scale.stages, *used}
        known(f"{key}.cells.use", [stage for change in changes for stage in change.use.values()], scale.stages)
        known(f"{key}.cells.value", [column for change in changes for column in change.value], scale.columns)
        known(f"{key}.columns.stage", [column.stage for column in scale.columns.values()], named)
        # options of a stage that a scale has not would be passed over in silence
        set_by_cells = [stage for cell in (*table.cells.values(), *changes) for stage in cell.set]
        known(f"{key}: what cells set", set_by_cells, named)


@dataclass(frozen=True)
class Step:
    """A stage of a cell, ready to run.

    Args:
        stage: its name in the table. run: a key of `COMMANDS`.
        arguments: of the command; `folder`: where it leaves what it makes.
        needs: the steps to be run before it.
    """

    stage: str
    run: str
    arguments: tuple[str, ...]
    folder: Path
    needs: tuple["Step", ...]

    def command(self, launcher: tuple[str, ...]) -> list[str]:
        """Started by Python, or by `launcher` where several processes can take part."""
        start = launcher if launcher and COMMANDS[self.run].launched else (sys.executable,)
        return [*start, "-m", f"training.{self.run}", *self.arguments]

    def with_needs(self) -> list["Step"]:
        """All that has to be run, in order, each once."""
        steps = [step for need in self.needs for step in need.with_needs()]
        return list(dict.fromkeys([*steps, self]))


@dataclass(frozen=True)
class Run:
    """One cell with one seed: what is measured by which step.

    Args:
        places: name -> path, what --data gave. root: the folder above those of all stages.
    """

    table: Table
    scale: Scale
    cell: str
    seed: int
    places: Mapping[str, str]
    root: Path

    @property
    def changes(self) -> Changes:
        return self.scale.cells.get(self.cell, Changes())

    @cached_property
    def measured(self) -> dict[str, tuple[Step, str]]:
        """Column -> the step that measures it, and which of its numbers."""
        return {
            key: (self.step(column.stage), self.changes.value.get(key, column.value))
            for key, column in self.scale.columns.items()
        }

    def steps(self) -> list[Step]:
        """Everything to be run for the cell, in order."""
        return list(dict.fromkeys(step for last, _ in self.measured.values() for step in last.with_needs()))

    def fingerprint(self) -> str:
        """Changes when anything does that the numbers of the cell depend on."""
        return digest({key: [step.folder.name, value] for key, (step, value) in self.measured.items()})

    def step(self, name: str, before: tuple[str, ...] = ()) -> Step:
        """The stage that `name` means in this cell, with those that it needs; `before` are those that asked for it."""
        stage = self.changes.use.get(name, name)
        if stage in before:
            raise ValueError(f"stages: {' needs '.join([*before, stage])}.")
        if stage not in self.scale.stages:
            raise PlaceMissing(f"{self.cell}: {name} is no stage; --data must say where it is, as {name}=PATH.")
        spec = self.scale.stages[stage]
        seed = self.seed if spec.seed is None else spec.seed
        needs: dict[str, Step] = {}

        def by_name(named: str) -> str:
            """A place, or the name of the folder of another stage, so that all of those can be moved together."""
            if named in self.places or named == "seed":
                return self.places.get(named, str(seed))
            if named not in needs:
                needs[named] = self.step(named, (*before, stage))
            return needs[named].folder.name

        def by_path(named: str) -> str:
            return str(needs[named].folder) if named in needs else by_name(named)

        options = dict(spec.set)
        for changes in (self.table.cells[self.cell], self.changes):
            options |= changes.set.get(name, {}) | changes.set.get(stage, {})
        identity = [spec.run, recipe_content(spec.recipe), arguments_of(spec, options, seed, by_name)]
        folder = self.root / f"{stage}-{digest(identity)}"
        arguments = arguments_of(spec, options, seed, by_path)
        if COMMANDS[spec.run].with_recipe:
            arguments = [str(recipe_path(spec)), *arguments, f"run.output_dir={folder}"]
        else:
            arguments += ["--output", str(folder)]
        return Step(stage, spec.run, tuple(arguments), folder, tuple(needs.values()))


def filled(value: Any, value_of: Callable[[str], str]) -> Any:
    """`value` with every `{name}` in its strings replaced."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: value_of(match[1]), value)
    if isinstance(value, Mapping):
        return {key: filled(item, value_of) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, value_of) for item in value]
    return value


def arguments_of(spec: StageSpec, options: Mapping[str, Any], seed: int, value_of: Callable[[str], str]) -> list[str]:
    """`key=value` for a recipe, `--key value` for other commands, with the seed where there is one."""
    command, options = COMMANDS[spec.run], filled(options, value_of)
    if command.with_recipe:
        return [f"{key}={as_text(value)}" for key, value in {"run.seed": seed, **options}.items()]
    arguments = [*filled(spec.inputs, value_of), *((*command.seed, str(seed)) if command.seed else ())]
    for key, value in options.items():
        if value is True:
            arguments.append(f"--{key}")
        elif value is not None and value is not False:
            arguments += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def as_text(value: Any) -> str:
    """As an override is written."""
    return value if isinstance(value, str) else json.dumps(value)


def recipe_path(spec: StageSpec) -> Path:
    return (HERE / "recipes" / spec.recipe).relative_to(HERE.parent)


@cache
def recipe_content(recipe: str | None) -> Any:
    """What a recipe says without its comments."""
    return recipe and OmegaConf.to_container(OmegaConf.load(HERE / "recipes" / recipe))


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
