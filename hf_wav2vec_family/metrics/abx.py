"""ABX: does a phone sound more like another take of itself than like another phone between the same neighbours?

Schatz et al., 2013, "Evaluating speech features with the Minimal-Pair ABX task" (Interspeech), as CPC_audio and
Libri-Light measure it. Takes x and a of phone A, and b of phone B, share the phones before and behind them; a and b
are of one speaker, x of the same (within) or of another (across). An error is a distance from x to a above the one to
b; a tie is half an error.

Shapes: n, m frames of a take, D channels, P pairs of takes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# How many numbers the distances of a block of pairs may have: 32 MiB
BLOCK = 2**23


@dataclass(frozen=True)
class Item:
    """A take of a phone: where it is, in seconds, and the phones before and behind it as `context`."""

    file: str
    onset: float
    offset: float
    phone: str
    context: str
    speaker: str


@dataclass(frozen=True)
class Take:
    """The frames [n, D] of an item, and what of it decides what it is compared with."""

    frames: Tensor
    phone: str
    context: str
    speaker: str


class Cell(NamedTuple):
    """The error of one comparison. `speaker_x` is `speaker` within speakers."""

    phone_a: str
    phone_b: str
    context: str
    speaker: str
    speaker_x: str
    error: float


@dataclass(frozen=True)
class ABXErrors:
    """Shares of errors, None where there is nothing to compare, and the cells they are means of."""

    within: float | None
    across: float | None
    within_cells: list[Cell]
    across_cells: list[Cell]


def read_items(path: str | Path) -> list[Item]:
    """The items of a file as ZeroSpeech and Libri-Light have them: a header, then seven columns between blanks.

    Raises:
        ValueError: a line of another form, named by its number.
    """
    items = []
    for number, line in enumerate(Path(path).read_text().splitlines()[1:], start=2):
        if not line.strip():
            continue
        try:
            file, onset, offset, phone, before, behind, speaker = line.split()
            items.append(Item(file, float(onset), float(offset), phone, f"{before}+{behind}", speaker))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: expected file, onset, offset, phone, the one before, the one behind and"
                f" speaker, got {line!r}."
            ) from error
    return items


def frames_of_item(
    item: Item, num_frames: int, *, frame_rate: float = 100.0, first_seconds: float | None = None
) -> slice:
    """Which of a recording's frames are an item's: those centred behind its onset and, but for the last, before its
    offset, as CPC_audio has it. Empty where there are none.

    Args:
        frame_rate: frames per second. first_seconds: the centre of the first one; half a frame if not given.
    """
    first = 0.5 if first_seconds is None else first_seconds * frame_rate
    begin = max(0, math.ceil(item.onset * frame_rate - first))
    end = min(num_frames, math.floor(item.offset * frame_rate - first))
    return slice(begin, max(begin, end))


def abx_errors(
    takes: Iterable[Take], *, max_group_size: int = 10, max_other_speakers: int = 5, seed: int = 0
) -> ABXErrors:
    """The errors within and across speakers.

    A cell (phones A and B, context, speaker of a and b, speaker of x) has the mean error over all its triples. Within
    speakers cells are averaged over contexts, then speakers, then ordered pairs of phones; across speakers over
    contexts and speakers of x together, then speakers, then pairs.

    Args:
        max_group_size: takes of one speaker, phone and context that count; more are drawn from at random.
        max_other_speakers: speakers of x per cell that count, likewise.
    """
    generator = np.random.default_rng(seed)
    of_context: dict[str, list[Take]] = defaultdict(list)
    for take in takes:
        if len(take.frames):
            of_context[take.context].append(take)
    within, across = [], []
    for context in sorted(of_context):
        groups: dict[tuple[str, str], list[Take]] = defaultdict(list)
        for take in of_context[context]:
            groups[take.speaker, take.phone].append(take)
        if len({phone for _, phone in groups}) < 2:
            continue
        chosen = {key: _at_most(max_group_size, groups[key], generator) for key in sorted(groups)}
        found = _cells_of_context(context, chosen, max_other_speakers, generator)
        within += [cell for cell in found if cell.speaker == cell.speaker_x]
        across += [cell for cell in found if cell.speaker != cell.speaker_x]
    return ABXErrors(_average(within), _average(across), within, across)


def _cells_of_context(
    context: str, groups: dict[tuple[str, str], list[Take]], max_other_speakers: int, generator: np.random.Generator
) -> list[Cell]:
    """All cells of one context. `groups` are the takes of each (speaker, phone)."""
    takes = [take for group in groups.values() for take in group]
    distances = pairwise_distances([take.frames for take in takes])
    ends = np.cumsum([len(group) for group in groups.values()])
    places = {key: slice(end - len(groups[key]), end) for key, end in zip(groups, ends.tolist(), strict=True)}
    cells = []
    for speaker, phone_a in groups:
        own = places[speaker, phone_a]
        others = [s for s, phone in groups if phone == phone_a and s != speaker]
        for phone_b in [phone for s, phone in groups if s == speaker and phone != phone_a]:
            to_b = places[speaker, phone_b]
            if len(groups[speaker, phone_a]) > 1:
                error = _error(distances[own, own], distances[own, to_b], same=True)
                cells.append(Cell(phone_a, phone_b, context, speaker, speaker, error))
            for speaker_x in _at_most(max_other_speakers, others, generator):
                x = places[speaker_x, phone_a]
                error = _error(distances[x, own], distances[x, to_b], same=False)
                cells.append(Cell(phone_a, phone_b, context, speaker, speaker_x, error))
    return cells


def _at_most(number: int, values: Sequence, generator: np.random.Generator) -> Sequence:
    if len(values) <= number:
        return values
    return [values[i] for i in sorted(generator.choice(len(values), size=number, replace=False))]


def _error(to_a: Tensor, to_b: Tensor, *, same: bool) -> float:
    """Distances of the x to the a [X, A] and to the b [X, B] -> share of errors. If the x are the a (`same`), no take
    is compared with itself."""
    farther = to_a.unsqueeze(2) - to_b.unsqueeze(1)  # [X, A, B]
    wrong = (farther > 0).double() + 0.5 * (farther == 0).double()
    if same:
        wrong = wrong[~torch.eye(len(wrong), dtype=torch.bool)]
    return float(wrong.mean())


def _average(cells: list[Cell]) -> float | None:
    """The mean over pairs of phones of the mean over speakers of the mean over cells."""

    def mean_of_groups(cells: list[Cell], *names: str) -> float:
        if not names:
            return float(np.mean([cell.error for cell in cells]))

        def key(cell: Cell):
            return getattr(cell, names[0])

        return float(np.mean([mean_of_groups(list(g), *names[1:]) for _, g in groupby(sorted(cells, key=key), key)]))

    by_pair = defaultdict(list)
    for cell in cells:
        by_pair[cell.phone_a, cell.phone_b].append(cell)
    return float(np.mean([mean_of_groups(pair, "speaker") for pair in by_pair.values()])) if cells else None


def pairwise_distances(takes: Sequence[Tensor]) -> Tensor:
    """[P, P] float32 of P takes [n, D]: the mean angle between their frames along the best warping path."""
    longest = max(map(len, takes))
    lengths = torch.tensor([len(take) for take in takes])
    padded = torch.nn.utils.rnn.pad_sequence([take.double() for take in takes], batch_first=True)
    norms = torch.linalg.vector_norm(padded, dim=-1, keepdim=True)
    padded = padded / torch.where(norms > 0, norms, 1.0)
    one, other = torch.triu_indices(len(takes), len(takes), offset=1)
    result = torch.zeros(len(takes), len(takes))
    for chosen in torch.arange(len(one)).split(max(1, BLOCK // longest**2)):
        x, y = one[chosen], other[chosen]
        distances = angular_distances(padded[x], padded[y])
        result[x, y] = result[y, x] = warped_mean(distances, lengths[x], lengths[y]).float()
    return result


def angular_distances(x: Tensor, y: Tensor) -> Tensor:
    """Frames [P, n, D] and [P, m, D] of length 1 or 0 -> [P, n, m], arccos of their product over pi.

    A frame of zeros has no angle: it is 0 from another one and 1 from all else.
    """
    silent = (x == 0).all(dim=-1).unsqueeze(2), (y == 0).all(dim=-1).unsqueeze(1)
    angles = (x @ y.transpose(1, 2)).clamp(-1, 1).arccos() / math.pi
    angles = angles.masked_fill(silent[0] | silent[1], 1.0)
    return angles.masked_fill(silent[0] & silent[1], 0.0)


def warped_mean(distances: Tensor, num_rows: Tensor, num_columns: Tensor) -> Tensor:
    """Dynamic time warping: the mean of the distances on the path of the lowest sum, [P].

    Args:
        distances: [P, n, m]; of pair p the first `num_rows[p]` rows and `num_columns[p]` columns count.

    A path goes from the first cell to the last by a step to the next row, column or both. Where steps cost the same it
    came by both, else from the column before.
    """
    num_pairs, rows, columns = distances.shape
    last, place = num_rows + num_columns - 2, (num_rows - 1).unsqueeze(1)
    shape = (num_pairs, rows + 1)  # in front of the first row stands one that no path goes through
    cost = [distances.new_full(shape, math.inf) for _ in range(2)]
    length = [distances.new_zeros(shape) for _ in range(2)]
    cost[0][:, 0] = 0.0
    result = distances.new_zeros(num_pairs)
    row = torch.arange(rows)
    # one diagonal after another, since its cells do not depend on each other
    for diagonal in range(rows + columns - 1):
        column = diagonal - row
        here = distances[:, row, column.clamp(0, columns - 1)]
        here = here.masked_fill((column < 0) | (column >= columns), math.inf)
        both, left, up = cost[0][:, :-1], cost[1][:, 1:], cost[1][:, :-1]
        by_both = (both <= left) & (both <= up)
        by_left = ~by_both & (left <= up)
        before = torch.where(by_both, both, torch.where(by_left, left, up))
        steps = torch.where(by_both, length[0][:, :-1], torch.where(by_left, length[1][:, 1:], length[1][:, :-1])) + 1
        cost = [cost[1], torch.nn.functional.pad(before + here, (1, 0), value=math.inf)]
        length = [length[1], torch.nn.functional.pad(steps, (1, 0))]
        mean = (cost[1][:, 1:] / steps).gather(1, place).squeeze(1)
        result = torch.where(last == diagonal, mean, result)
    return result
