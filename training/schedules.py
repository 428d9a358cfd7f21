"""Learning rates and temperatures as pure functions of the step: nothing to save, nothing to resume."""

import inspect
import math
from collections.abc import Callable, Mapping


def polynomial(step: int, *, num_steps: int, peak: float, warmup_steps: int = 0, end: float = 0.0, power: float = 1.0):
    """Linear from 0 to `peak` over `warmup_steps`, then down to `end`, a straight line for `power` 1.

    wav2vec 2.0 pre-training (Baevski et al., 2020, section 4.2).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    remaining = 1 - (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return end + (peak - end) * max(remaining, 0.0) ** power


def cosine(step: int, *, num_steps: int, peak: float, warmup_steps: int = 0, start: float = 0.0, end: float = 0.0):
    """Linear from `start` to `peak` over `warmup_steps`, then half a cosine down to `end`.

    wav2vec and vq-wav2vec (Schneider et al., 2019, section 4.2).
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    done = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    return end + (peak - end) * (1 + math.cos(math.pi * done)) / 2


def tri_stage(
    step: int,
    *,
    num_steps: int,
    peak: float,
    warmup: float = 0.1,
    hold: float = 0.4,
    start_scale: float = 0.01,
    end_scale: float = 0.05,
):
    """Up for the first tenth, constant for four tenths, exponential decay for the rest.

    wav2vec 2.0 fine-tuning (Baevski et al., 2020, section 4.3); the shares are of `num_steps`, the scales of `peak`.
    """
    warmup_steps, hold_steps = warmup * num_steps, hold * num_steps
    if step < warmup_steps:
        return peak * (start_scale + (1 - start_scale) * step / warmup_steps)
    if step < warmup_steps + hold_steps:
        return peak
    done = (step - warmup_steps - hold_steps) / max(num_steps - warmup_steps - hold_steps, 1)
    return peak * end_scale ** min(done, 1.0)


def constant(step: int, *, num_steps: int, peak: float, warmup_steps: int = 0):
    """Linear from 0 to `peak` over `warmup_steps`, then `peak`."""
    return peak * min((step + 1) / warmup_steps, 1.0) if warmup_steps else peak


def exponential_temperature(step: int, *, start: float = 2.0, end: float = 0.5, decay: float = 0.999995):
    """start * decay^step, not below `end` (wav2vec 2.0, section 4.2)."""
    return max(start * decay**step, end)


def linear_temperature(step: int, *, num_steps: int, start: float = 2.0, end: float = 0.5, share: float = 0.7):
    """A straight line from `start` to `end` over the first `share` of the steps (vq-wav2vec, section 4.2)."""
    return start + (end - start) * min(step / (share * num_steps), 1.0)


LEARNING_RATES = {f.__name__: f for f in (polynomial, cosine, tri_stage, constant)}
TEMPERATURES = {"exponential": exponential_temperature, "linear": linear_temperature}


def learning_rate_schedule(
    kind: str, *, num_steps: int, peak: float, options: Mapping[str, float]
) -> Callable[[int], float]:
    """The named schedule as a function of the step; an option it does not have is an error."""
    return _bind("optimization.schedule", LEARNING_RATES, kind, options, {"num_steps": num_steps, "peak": peak})


def temperature_schedule(kind: str, *, num_steps: int, options: Mapping[str, float]) -> Callable[[int], float]:
    """The named schedule of the quantizer's temperature as a function of the step."""
    return _bind("optimization.gumbel_temperature", TEMPERATURES, kind, options, {"num_steps": num_steps})


def _bind(key: str, table: Mapping[str, Callable], kind: str, options: Mapping, given: Mapping) -> Callable:
    if kind not in table:
        raise ValueError(f"{key}.kind must be one of {', '.join(table)}, got {kind!r}.")
    schedule = table[kind]
    accepted = list(inspect.signature(schedule).parameters)[1:]
    unknown = sorted(set(options) - set(accepted) | set(options) & set(given))
    if unknown:
        free = [name for name in accepted if name not in given]
        raise ValueError(f"{key} of kind {kind} takes {', '.join(free)}, got {', '.join(unknown)}.")
    given = {name: value for name, value in given.items() if name in accepted}
    return lambda step: schedule(step, **given, **options)
