"""What can go wrong with a run, as pure functions of the last lines of its log.

A symptom is a function of a `Window` that returns a `Finding` or None; it stands in `SYMPTOMS`, and that is all there
is to adding one. It stays silent where a log lacks what it reads.
"""

import math
from collections.abc import Callable
from statistics import median

from .data_symptoms import bad_rows, input_level, offset, silent_audio, slowed_down, stalled, starved
from .findings import HEALTHY, NOTE, SEVERITIES, STOP, WARNING, Finding, Window


def not_a_number(window: Window) -> Finding | None:
    line = window.training[-1]
    judged = ("loss",) if window.facts.overflows else ("loss", "gradient_norm")
    broken = [name for name in judged if not math.isfinite(line.get(name, 0.0))]
    if not broken:
        return None
    return Finding(
        "not a number",
        STOP,
        f"{' and '.join(broken)}, at step {line['step']} or a little before, is no number.",
        "a learning rate that is too high, a loss that overflows in half precision, or one broken row.",
        "resume from the last good checkpoint with a lower optimization.learning_rate or a longer warmup_steps;"
        " optimization.mixed_precision=bf16 instead of fp16; look at the rows of that step.",
    )


def collapse(window: Window) -> Finding | None:
    loss, perplexity = window.contrastive_loss, window.last("code_perplexity")
    if loss is None or perplexity is None or loss > 0.1 or perplexity > _perplexity_of_a_dead_codebook(window):
        return None
    return Finding(
        "collapse",
        STOP,
        f"a contrastive loss of {loss:.3g} with a perplexity of {perplexity:.2f}: all frames have one code, and the"
        " task is solved without listening.",
        "the quantizer gave up before the context could predict anything: too much learning rate or too little"
        " pressure to use the codebook.",
        "start anew with a lower optimization.learning_rate or longer warm-up, a higher model.diversity_loss_weight,"
        " a slower optimization.gumbel_temperature, and look at silence and level of the audio.",
    )


def dead_codebook(window: Window) -> Finding | None:
    perplexity, share = window.last("code_perplexity"), window.last("used_codes_share")
    floor = _perplexity_of_a_dead_codebook(window)
    if perplexity is None or (perplexity > floor and (share is None or share > 0.03)):
        return None
    used = "" if share is None else f", {share:.1%} of the entries in use"
    return Finding(
        "dead codebook",
        WARNING,
        f"a perplexity of {perplexity:.2f}{used}: nearly all frames choose the same code.",
        "entries that nothing chooses get no gradient and stay where they are; often a learning rate that is too high"
        " in the first steps.",
        "Gumbel: a higher model.diversity_loss_weight, a slower optimization.gumbel_temperature. k-means:"
        " optimization.codebook={initialize: true, restart_every_steps: 100}. Both: a lower learning rate.",
    )


def dying_codes(window: Window) -> Finding | None:
    shares = window.values("used_codes_share")
    if len(shares) < 5 or not 0.03 < shares[-1] < 0.5 * max(shares[:-3]):
        return None
    return Finding(
        "dying codes",
        NOTE,
        f"{shares[-1]:.1%} of the codes in use, {max(shares):.1%} a few lines ago.",
        "a codebook that shrinks; some of it is usual early in training, all of it is collapse.",
        "if it goes on: a higher model.diversity_loss_weight (Gumbel), optimization.codebook with restarts (k-means).",
    )


def at_chance(window: Window) -> Finding | None:
    candidates, accuracy = window.facts.num_candidates, window.last("accuracy", 5)
    begun = window.step >= max(0.1 * (window.facts.num_steps or 0), 200)
    if candidates is None or accuracy is None or not begun or accuracy > 1.3 / candidates:
        return None
    return Finding(
        "no better than chance",
        WARNING,
        f"an accuracy of {accuracy:.1%} among {candidates} candidates after {window.step} steps.",
        "nothing is learned: features that do not vary in time, a waveform of the wrong scale, or a learning rate that"
        " is too low or too high.",
        "look at input_rms (CPC has model.normalize_input, wav2vec 2.0 model.feat_extract_norm=layer); try"
        " optimization.learning_rate three times lower and higher for some hundred steps.",
    )


def loss_spike(window: Window) -> Finding | None:
    losses = window.values("loss")
    if len(losses) < 6:
        return None
    *before, last = losses
    usual = median(before)
    spread = median(abs(loss - usual) for loss in before)
    if not last > usual + max(8 * spread, 0.3 * abs(usual)):
        return None
    return Finding(
        "loss spike",
        WARNING,
        f"a loss of {last:.4g} where {usual:.4g} was usual.",
        "an update that was too large, or a batch unlike the others (silence, noise, another language, broken text).",
        "optimization.max_grad_norm, a lower optimization.learning_rate; if it comes back in every epoch at the same"
        " place, look at the rows there.",
    )


def divergence(window: Window) -> Finding | None:
    losses = window.values("loss")
    if len(losses) < 15:
        return None
    best = min(median(losses[i : i + 5]) for i in range(len(losses) - 9))
    now = median(losses[-5:])
    if not now > best + 0.25 * abs(best):
        return None
    return Finding(
        "divergence",
        WARNING,
        f"the loss has risen from {best:.4g} to {now:.4g} and stays there.",
        "a learning rate that is too high for this place of its schedule.",
        "resume from an earlier checkpoint with a lower optimization.learning_rate or optimization.max_grad_norm.",
    )


def always_clipped(window: Window) -> Finding | None:
    shares = window.values("clipped_share")
    if len(shares) < 10 or median(shares[-10:]) < 0.99:
        return None
    return Finding(
        "gradient always clipped",
        NOTE,
        f"{shares[-1]:.0%} of the steps have a gradient above optimization.max_grad_norm"
        f" (the last: {window.values('gradient_norm')[-1]:.3g}).",
        "the limit is far below the usual norm, so that every step has one length whatever the gradient says.",
        "raise optimization.max_grad_norm above the usual gradient_norm, or lower the learning rate.",
    )


def exploding_gradient(window: Window) -> Finding | None:
    norms = window.values("gradient_norm")
    if len(norms) < 6 or not math.inf > norms[-1] > 50 * median(norms[:-1]) > 0:
        return None
    return Finding(
        "exploding gradient",
        WARNING,
        f"a gradient of norm {norms[-1]:.3g} where {median(norms[:-1]):.3g} was usual.",
        "a batch unlike the others, or weights that grow.",
        "optimization.max_grad_norm a few times above the usual norm; a lower optimization.learning_rate.",
    )


def no_gradient(window: Window) -> Finding | None:
    norm = window.last("gradient_norm")
    if norm is None or norm > 1e-7:
        return None
    return Finding(
        "no gradient",
        WARNING,
        f"a gradient of norm {norm:.1g}: nothing is learned.",
        "a loss of 0 (collapse, silence), everything frozen, or scores that no longer change.",
        "look at the loss, at optimization.frozen_encoder_steps and at the input.",
    )


def too_large_updates(window: Window) -> Finding | None:
    ratio = window.above_healthy("update_ratio")
    if ratio is None:
        return None
    return Finding(
        "updates too large",
        WARNING,
        f"a step moves the weights by {ratio:.0%} of their own norm; 0.01 % to 3 % is usual.",
        "a learning rate that is too high.",
        "lower optimization.learning_rate, lengthen warmup_steps of optimization.schedule.",
    )


def mask_coverage(window: Window) -> Finding | None:
    share = window.last("mask_share")
    low, high = HEALTHY["mask_share"]
    if share is None or low <= share <= high:
        return None
    return Finding(
        "mask coverage",
        WARNING,
        f"{share:.0%} of the frames are masked; the paper's settings mask about 49 %.",
        "spans that are too long or too short for the clips.",
        "model.mask_time_prob, model.mask_time_length, data.min_seconds.",
    )


def blanks_only(window: Window) -> Finding | None:
    rates = [line["evaluation/cer"] for line in window.evaluation if "evaluation/cer" in line]
    if len(rates) < 3 or min(rates[-3:]) < 0.99:
        return None
    return Finding(
        "nothing but blanks",
        WARNING,
        f"three evaluations in a row with a CER of {min(rates[-3:]):.0%} and more.",
        "CTC's plateau: every frame is a blank. It lasts some hundred steps of most runs, and for good where the"
        " learning rate is too high or the encoder knows nothing.",
        "wait; then a lower optimization.learning_rate, more optimization.frozen_encoder_steps, a better encoder; look"
        " whether labels are longer than their frames.",
    )


def _perplexity_of_a_dead_codebook(window: Window) -> float:
    """One code per group has a perplexity of G; without a recipe, of the usual 2."""
    return 1.25 * (window.facts.num_groups or 2)


SYMPTOMS: tuple[Callable[[Window], Finding | None], ...] = (
    not_a_number,
    collapse,
    dead_codebook,
    dying_codes,
    at_chance,
    loss_spike,
    divergence,
    always_clipped,
    exploding_gradient,
    no_gradient,
    too_large_updates,
    silent_audio,
    offset,
    input_level,
    mask_coverage,
    starved,
    slowed_down,
    stalled,
    bad_rows,
    blanks_only,
)


def examine(window: Window) -> list[Finding]:
    """Every symptom that a window shows, the gravest first; nothing of an empty window."""
    if not window.training:
        return []
    found = [finding for symptom in SYMPTOMS if (finding := symptom(window)) is not None]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
