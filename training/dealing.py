"""Which batches are whose, and what is left of them when a run goes on with another number of processes.

All batches of a run form one sequence, whatever the processes: batch `index` is batch `index // num_streams` of stream
`index % num_streams`. Processes take them in turn.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count

from .ordering import Cursor


@dataclass(frozen=True)
class Position:
    """Where a stream goes on: batch `batch` of window number `window`, which begins at `cursors`.

    `turn` batches of the stream came before. The start of a run has no cursors.
    """

    cursors: tuple[Cursor, ...] = ()
    window: int = 0
    batch: int = 0
    turn: int = 0

    @classmethod
    def from_dict(cls, values: dict) -> "Position":
        return cls(**{**values, "cursors": tuple(Cursor(**cursor) for cursor in values["cursors"])})


@dataclass(frozen=True)
class Deal:
    """The batches from `start` on, but those in `done`, go to `world_size` processes in turn."""

    world_size: int
    start: int = 0
    done: tuple[int, ...] = ()

    def owner(self, index: int) -> int | None:
        """The rank that batch `index` is for; None if it was handed out before."""
        place = bisect_left(self.done, index)
        if index < self.start or self.done[place : place + 1] == (index,):
            return None
        return (index - self.start - place) % self.world_size

    def indices(self, rank: int, begin: int) -> Iterator[int]:
        """The batches of `rank` from `begin` on."""
        return (index for index in count(max(begin, self.start)) if self.owner(index) == rank)


@dataclass(frozen=True)
class RankState:
    """How far one rank is: all of its batches before `following` were handed out.

    `positions` are those of the streams that it took batches from, behind the last one.
    """

    deal: Deal
    num_streams: int = 1
    following: int = 0
    positions: dict[int, Position] = field(default_factory=dict)

    def after(self, index: int, position: Position) -> "RankState":
        """The state when batch `index` was handed out and its stream goes on at `position`."""
        positions = {**self.positions, index % self.num_streams: position}
        return replace(self, following=index + 1, positions=positions)

    def position(self, stream: int) -> Position:
        return self.positions.get(stream, Position())

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "RankState":
        """The state that `as_dict` made, also after JSON has turned its keys to strings and tuples to lists."""
        deal = Deal(**{**values["deal"], "done": tuple(values["deal"]["done"])})
        positions = {int(stream): Position.from_dict(p) for stream, p in values["positions"].items()}
        return cls(**{**values, "deal": deal, "positions": positions})


def dealt_anew(states: Sequence[RankState], world_size: int) -> RankState:
    """The state from which any of `world_size` ranks goes on, when `states` is how far those of before were.

    Ranks may have been at different places, because a batch with nothing usable is passed over: what one of them had
    not taken yet comes first, and what another had taken already does not come again.
    """
    deal, num_streams = states[0].deal, states[0].num_streams
    start = min(state.following for state in states)
    end = max(*(state.following for state in states), *(index + 1 for index in deal.done), start)

    def is_done(index: int) -> bool:
        owner = deal.owner(index)
        return owner is None or index < states[owner].following

    positions = {}
    for stream in range(num_streams):
        first = next(i for i in count(start) if i % num_streams == stream and not (i < end and is_done(i)))
        known = [state.position(stream) for state in states]
        positions[stream] = max((p for p in known if p.turn <= first // num_streams), key=lambda p: p.turn)
    done = tuple(index for index in range(start, end) if is_done(index))
    return RankState(Deal(world_size, start, done), num_streams, start, positions)
