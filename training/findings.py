"""What is known of a run when it is judged, and what is found: the records that symptoms read and make."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# so many lines of training are judged together
NUM_LINES = 20
STOP, WARNING, NOTE = "stop", "warning", "note"
SEVERITIES = (STOP, WARNING, NOTE)
# Where a number has limits that hold for every run: what is healthy lies between them, beyond is a symptom.
HEALTHY = {
    "update_ratio": (0.0, 0.1),
    "mask_share": (0.2, 0.75),
    "input_rms": (1e-3, 1.0),
    "input_offset": (0.0, 0.2),
    "silent_share": (0.0, 0.05),
    "data_wait_share": (0.0, 0.2),
}


@dataclass(frozen=True)
class Facts:
    """What a recipe says that a log does not; None where there is no recipe or it has no such thing.

    Args:
        num_groups: G, groups of the codebook.
        num_candidates: among which the contrastive objective tells the true one, 1 + N.
        max_bad_fraction: of rows that cannot be read, above which the run stops.
        num_steps: of the whole run.
        overflows: gradients overflow now and then as a matter of course, as in fp16.
    """

    num_groups: int | None = None
    num_candidates: int | None = None
    max_bad_fraction: float | None = None
    num_steps: int | None = None
    overflows: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what was `seen`, its likely `cause`, and the `lever` to pull.

    `severity` is "stop" (what is trained from here on is worth nothing), "warning" or "note".
    """

    name: str
    severity: str
    seen: str
    cause: str
    lever: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen} Likely cause: {self.cause} Lever: {self.lever}"


@dataclass(frozen=True)
class Window:
    """The last lines of a log, oldest first: `training` at most `NUM_LINES`, `evaluation` all so far."""

    training: Sequence[dict]
    evaluation: Sequence[dict] = ()
    facts: Facts = Facts()

    def values(self, name: str) -> list[float]:
        """A number of the training lines, where they have it."""
        return [line[name] for line in self.training if line.get(name) is not None]

    def last(self, name: str, count: int = 3) -> float | None:
        """The median of a number in the last `count` lines, None if there are fewer."""
        values = self.values(name)
        return median(values[-count:]) if len(values) >= count else None

    def above_healthy(self, name: str, count: int = 3) -> float | None:
        """The same where it reaches the upper limit of `HEALTHY`, else None."""
        value = self.last(name, count)
        return value if value is not None and value >= HEALTHY[name][1] else None

    @property
    def step(self) -> int:
        return self.training[-1]["step"] if self.training else 0

    @property
    def contrastive_loss(self) -> float | None:
        return self.last("contrastive_loss")


@dataclass
class Episode:
    """A finding and the steps of the log between which it was there; `lasts` until the end."""

    finding: Finding
    first_step: int
    last_step: int
    lasts: bool

    @property
    def steps(self) -> str:
        return f"{self.first_step} to {'the end' if self.lasts else self.last_step}"
