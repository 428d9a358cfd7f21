"""Where a training step of each architecture spends its time, by kinds of operations.

python -m benchmarks.profiles --threads 2 --output profiles.json

A step is forward and backward pass, clipping and fused AdamW in float32, dropout on, at the sizes of the papers' base
models; masks, negatives and noise are drawn in it. Every operation's own time, without that of those it calls, counts
once: what the optimizer calls is the optimizer's, what ASG's recursions call is a loss's, all else goes by its name.
Convolutions that are computed as products or by their spectra, as those of wav2vec 2.0 are, count as those. The rest
is what no kind has a name for; its largest operation is named. On a GPU times are those of the kernels that operations
launch, and Python takes none of it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

import hf_wav2vec_family as family
from training.masked_lm import RobertaForMaskedLM
from training.pretrain_bert import compute

from .comparing import circumstances, now, options_of, prepare
from .wav2vec2_sizes import CLIP_NORM, noise

OPTIMIZER, LOSSES, PYTHON, REST = "optimizer", "softmax and losses", "Python and autograd", "rest"
# How names begin, without "aten::" and underscores in front; the first kind that knows one has it. A name is given an
# underscore behind, so that "log_" is `log`, `log_` and `log_softmax`, and not `logical_and`
BEGINNINGS = {
    "matrix products": """
        mm_ addmm bmm_ baddbmm addbmm mv_ addmv dot_ matmul linear_ einsum mkldnn_linear mkldnn_rnn lstm gru
        cudnn_rnn thnn_fused scaled_dot_product flash_attention efficient_attention cudnn_attention fused_sdp""",
    "convolutions": "conv mkldnn_conv cudnn_conv slow_conv thnn_conv im2col col2im",
    "FFTs": "fft stft",
    "random numbers": "bernoulli exponential rand uniform normal multinomial dropout native_dropout fused_dropout",
    "norms and activations": """
        layer_norm group_norm batch_norm rms_norm native_layer native_group native_batch cudnn_batch fused_rms
        weight_norm linalg_vector_norm norm_ rsqrt sqrt_ var_ std_ relu prelu gelu glu silu elu_ threshold
        sigmoid tanh""",
    LOSSES: """
        softmax log_ log1p logsumexp logaddexp exp_ softplus nll_loss cross_entropy binary_cross mse_loss
        ctc_loss cudnn_ctc cosine_""",
    "copies and additions": """
        copy clone contiguous to_ type_as lift cat_ stack add_ addcmul addcdiv sub_ rsub mul_ div_ neg_
        reciprocal abs_ pow_ square sign_ floor ceil round remainder clamp maximum minimum sum_ mean_ cumsum
        max_ min_ amax amin arg sort searchsorted topk any_ all_ eq_ ne_ lt_ le_ gt_ ge_ and_ or_ xor_ logical
        bitwise where masked_ nonzero item local_scalar is_ fill zero ones empty full new_ arange eye_ resize
        set_ pad_ constant_pad replication_pad embedding index gather scatter take slice select split chunk
        narrow unbind expand repeat roll flip view unsafe_ reshape permute transpose movedim t_ as_strided
        squeeze unsqueeze flatten unflatten unfold alias detach complex_ real_ imag_ conj resolve result_type""",
}
KINDS = (*BEGINNINGS, OPTIMIZER, PYTHON, REST)
KIND_OF_BEGINNING = {beginning: kind for kind, names in BEGINNINGS.items() for beginning in names.split()}
# `autograd.Function`s of this package whose operations are all those of a loss
LOSS_FUNCTIONS = ("FullScore", "OrdinaryFullScore", "AlignedScore")
WARM_UP_STEPS = 3  # for which glibc's heap grows, of BERT


class Step(NamedTuple):
    """One architecture on one batch: its model and what makes a loss of it."""

    model: nn.Module
    loss: Callable[[], Tensor]
    batch: str


class Share(NamedTuple):
    """`seconds` of each kind, their sum is the step's; `largest` is the largest operation of the rest."""

    seconds: dict[str, float]
    largest: str


def pretraining(model: nn.Module, batch_size: int, seconds: float, device: str) -> Step:
    model, waveforms = model.to(device), noise(batch_size, seconds, device)
    return Step(model, lambda: model(waveforms).loss, f"{batch_size} x {seconds:g} s")


def vq_wav2vec(quantizer_type: str, device: str) -> Step:
    model = family.VQWav2VecForPreTraining(family.VQWav2VecConfig(quantizer_type=quantizer_type))
    return pretraining(model, 2, 2.5, device)


def masked_lm(device: str) -> Step:
    """The step of `training.pretrain_bert`, half of the places masked."""
    config = transformers.RobertaConfig(vocab_size=23_672, max_position_embeddings=514)
    model = RobertaForMaskedLM(config).to(device)
    labels = torch.randint(5, config.vocab_size, (2, 512))
    labels[torch.rand(labels.shape) < 0.5] = -100
    batch = {
        "input_ids": labels.clamp(min=4),
        "attention_mask": torch.ones_like(labels),
        "labels": labels,
        "places": (labels.flatten() != -100).nonzero().squeeze(1),
    }
    batch = {name: values.to(device) for name, values in batch.items()}
    return Step(model, lambda: compute(model, batch).loss, "2 x 512 codes")


def wav2letter(criterion: str, device: str) -> Step:
    """The network for TIMIT; 36 phones in 3 s, none twice in a row."""
    model = family.Wav2LetterForCTC(family.Wav2LetterConfig(criterion=criterion)).to(device)
    waveforms = noise(4, 3.0, device)
    labels = (torch.randint(1, 39, (4, 36)).cumsum(dim=1) % 39).to(device)
    return Step(model, lambda: model(waveforms, labels=labels).loss, "4 x 3 s")


STEPS: dict[str, Callable[[str], Step]] = {
    "CPC": lambda device: pretraining(family.CPCForPreTraining(family.CPCConfig()), 8, 1.28, device),
    "wav2vec": lambda device: pretraining(family.Wav2VecForPreTraining(family.Wav2VecConfig()), 2, 4.6875, device),
    "vq-wav2vec, Gumbel": partial(vq_wav2vec, "gumbel"),
    "vq-wav2vec, k-means": partial(vq_wav2vec, "kmeans"),
    "BERT on codes": masked_lm,
    "wav2letter, ASG": partial(wav2letter, "asg"),
    "wav2letter, CTC": partial(wav2letter, "ctc"),
    # none of its layers is skipped, which would be a draw of how much there is to do
    "wav2vec 2.0": lambda device: pretraining(
        family.Wav2Vec2ForPreTraining(family.Wav2Vec2Config(layerdrop=0.0)), 1, 10.0, device
    ),
}


def kind_of(name: str, callers: Iterable[str] = ()) -> str:
    """The kind of an operation by its name and by the names of those that called it."""
    for caller in (name, *callers):
        if caller == OPTIMIZER:
            return OPTIMIZER
        if caller.removeprefix("autograd::engine::evaluate_function: ").removesuffix("Backward") in LOSS_FUNCTIONS:
            return LOSSES
    if "::" not in name or name.startswith(("autograd::", "torch::autograd::")):
        return PYTHON
    bare = name.rpartition("::")[2].lstrip("_").removeprefix("foreach_") + "_"
    return next((kind for beginning, kind in KIND_OF_BEGINNING.items() if bare.startswith(beginning)), REST)


def shares_of(events: Iterable, device: str) -> Share:
    """Own times of the profiler's `events`, each under one kind."""
    seconds, rest = dict.fromkeys(KINDS, 0.0), Counter()
    for event in events:
        own = own_seconds(event, device)
        kind = kind_of(event.name, callers_of(event))
        seconds[kind] += own
        if kind == REST and own > 0.0:
            rest[event.name] += own
    return Share(seconds, rest.most_common(1)[0][0] if rest else "")


def own_seconds(event, device: str) -> float:
    """What an event took but for those within it: of kernels that it launched on a GPU, of itself on a CPU."""
    if event.device_type != torch.autograd.DeviceType.CPU:
        return 0.0  # a kernel by itself, which counts where it was launched
    return (event.self_cpu_time_total if device == "cpu" else event.self_device_time_total) / 1e6


def callers_of(event) -> Iterable[str]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


def measure(step: Step, rounds: int, device: str) -> Share:
    """Mean over `rounds` steps, behind some that make what later ones find made, the pages of memory among it."""
    step.model.train()
    optimizer = torch.optim.AdamW(step.model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)

    def train():
        with record_function("step"):
            step.loss().backward()
            with record_function(OPTIMIZER):
                nn.utils.clip_grad_norm_(step.model.parameters(), CLIP_NORM, foreach=True)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM_UP_STEPS):
        train()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(rounds):
            train()
        now(device)
    found = shares_of(profiler.events(), device)
    return found._replace(seconds={kind: value / rounds for kind, value in found.seconds.items()})


def table(measured: dict[str, Share]) -> str:
    """A Markdown column for each architecture: shares in %, seconds of a step, what is largest of the rest."""
    totals = {name: sum(share.seconds.values()) for name, share in measured.items()}
    lines = [["", *measured], ["---"] * (1 + len(measured))]
    for kind in KINDS:
        lines.append([kind, *(f"{100 * measured[name].seconds[kind] / totals[name]:.1f}" for name in measured)])
    lines.append(["largest of the rest", *(share.largest for share in measured.values())])
    lines.append(["seconds a step", *(f"{total:.3g}" for total in totals.values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main():
    parser = options_of(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--architectures", nargs="*", choices=STEPS, default=list(STEPS))
    options = parser.parse_args()
    prepare(options)
    measured, cases = {}, []
    for name in options.architectures:
        step = STEPS[name](options.device)
        share = measured[f"{name}, {step.batch}"] = measure(step, options.rounds, options.device)
        cases.append({"case": name, "batch": step.batch, **share._asdict()})
        print(json.dumps(cases[-1]), flush=True)
    print("\n" + table(measured))
    if options.output:
        found = {**circumstances(options), "device": options.device, "cases": cases}
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
