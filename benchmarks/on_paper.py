"""What the papers' recipes cost: arithmetic, hours and money per kind of GPU, and what processes have to exchange.

python -m benchmarks.on_paper --price H200=3.5

Recipes are the files of training/recipes; what a batch of them takes is counted by benchmarks/flop.py. Then

    hours of one GPU = FLOP of the run / (rate of products of matrices * share reached) / 3600

The rate is what a GPU printed for a large product of matrices, where somebody measured it, or else its data sheet's.
The share was measured for one step on one GPU (`results/gpu.json`), 10 x 15.6 s of wav2vec 2.0 BASE, compiled; beside
it stands the 45 % that is aimed at. For every other model and GPU it is an assumption: recurrent layers, small
batches and losses that read more than they multiply reach less. Prices are arguments, because they are nobody's to
state.

A process of a run computes C seconds a step, in `a` accumulated batches, and a pass backward is two thirds of a batch,
B = 2 C / 3 a. Weights stay in float32 under autocast and no hook packs gradients, so that P weights are 4 P bytes.
DDP sends 2 (n - 1) / n of them, as a ring of n processes does, once a step and in k buckets of 25 MiB, while the
backward pass of the last batch makes the next bucket: a pipeline of two stages, of which stays exposed

    max(E - B (1 - 1 / k), E / k),   E = 2 (n - 1) / n * 4 P / rate of the link

FSDP2, in k layers, gathers the weights for each pass forward and backward of each batch, (n - 1) / n each, and
scatters the gradients with the last one: the same formula for every pass, with what is exchanged during it. Buckets
and layers are taken to be alike and to come evenly, and the start of a message, the memory that it takes from what
computes and processes that wait for one with longer clips cost nothing: a lower bound.

Links, one direction, from data sheets: NVLink 4 (H200, H100) has 18 links of 25 GB/s, NVLink 3 (A100) 12, NVLink 2
(V100) 6. Between nodes of 8 each GPU has an adapter of 400 Gbit/s, 50 GB/s (DGX H200 and H100), or of 200 (DGX A100);
8 V100 share 4 of 100 (DGX-1). A ring crosses the border of a node once, so that all adapters of a node carry what one
GPU sends.
"""

import argparse
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import transformers

from hf_wav2vec_family.configuration_discrete_bert import ORIGINAL_ROBERTA
from training.masked_lm import RobertaForMaskedLM
from training.recipe import Recipe, family_class, load_recipe

from .flop import Flop, bert_flop, cpc_flop, wav2vec2_flop, wav2vec_flop

ROOT = Path(__file__).parents[1]
RECIPES_FOLDER = ROOT / "training" / "recipes"
TARGET_SHARE = 0.45
BYTES_EACH = 4
BUCKET_BYTES = 25 * 2**20  # DDP's `bucket_cap_mb`, which Accelerate leaves as it is
GPUS_PER_NODE = 8
CODES_PER_SECOND = 100
CODE_WORDS = 23_672  # of vq-wav2vec's Gumbel codes on LibriSpeech, with marks


@dataclass(frozen=True)
class GPU:
    """`teraflops`: bf16 (fp16 for V100) products of matrices, `source` of the number.

    `link`: GB/s of one GPU to those of its node, one direction. `network`: GB/s of a node of 8 to others.
    """

    teraflops: float
    source: str
    link: float
    network: float


@cache
def measured() -> dict:
    """What was measured on the one GPU."""
    return json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())


MEASURED_RATE = round(measured()["bf16_products_teraflops"])
GPUS = {
    "H200": GPU(MEASURED_RATE, "measured, a product of 8192-cubes", 450, 400),
    "H100": GPU(MEASURED_RATE, "taken to be that of H200, whose cores are the same", 450, 400),
    "A100": GPU(312, "data sheet", 300, 200),
    "V100": GPU(125, "data sheet, fp16", 150, 50),
}
# of the compiled step, in ms, with the parts of `Flop` that they make; benchmarks/README.md, "On a GPU"
KERNELS = {
    "products of the Transformer and positions": (("linear layers", "positions", "projection"), 7.1),
    "attention": (("attention",), 4.8),
    "convolutions but the first": (("convolutions",), 3.3),
    "everything else: norms, dropout, GELU, optimizer": ((), 10.6),
    "between kernels": ((), 4.8),
}


@dataclass(frozen=True)
class PaperRecipe:
    """A file of training/recipes as its header says it is run.

    Args:
        processes: of the paper's batch, each with the file's batch and accumulation.
        seconds: of a clip, if it is not the longest that the file allows.
        paper: what the paper took. not_stated: what of the batch or the length of clips the paper leaves open.
    """

    file: str
    processes: int
    paper: str
    not_stated: str
    seconds: float | None = None


RECIPES = {
    "CPC": PaperRecipe("cpc/train_clean_100.yaml", 8, "8 GPUs", "number of negatives, 128 (CPC_audio's)"),
    "wav2vec base": PaperRecipe("wav2vec/base_ls960.yaml", 8, "8 V100", "batch of a GPU, 75 s (the code's)"),
    "wav2vec large": PaperRecipe("wav2vec/large_ls960.yaml", 8, "", "batch of a GPU, 75 s (the code's)"),
    "vq-wav2vec, Gumbel": PaperRecipe("vq_wav2vec/gumbel_ls960.yaml", 8, "8 GPUs", ""),
    "Discrete BERT, base": PaperRecipe(
        "discrete_bert/bert_base_ls960.yaml", 8, "128 GPUs", "length of a sequence, 2,048 codes (the checkpoint's)"
    ),
    "wav2vec 2.0 BASE": PaperRecipe("wav2vec2/base_ls960.yaml", 64, "64 V100, 1.6 days", ""),
    "wav2vec 2.0 LARGE": PaperRecipe("wav2vec2/large_ls960.yaml", 128, "128 V100, 2.3 days", ""),
    "wav2vec 2.0 LARGE, LV-60k": PaperRecipe("wav2vec2/large_lv60k.yaml", 128, "128 V100, 5.2 days", ""),
    # 100.6 h of 28,539 clips
    "BASE fine-tuned on 100 h": PaperRecipe(
        "wav2vec2/finetune_base_100h.yaml", 2, "8 V100", "80,000 updates (the code's; paper: 50,000)", seconds=12.7
    ),
}


@dataclass(frozen=True)
class Counted:
    """A recipe in numbers.

    Args:
        updates: steps. seconds: of audio in one.
        clip: seconds of a clip. batch: seconds in one batch of one process, at most.
        flop: of one clip.
        weights: those that learn. layers: parts that FSDP2 gathers one by one, and the rest; 0 for what is not split.
    """

    updates: int
    seconds: float
    clip: float
    batch: float
    flop: Flop
    weights: int
    layers: int

    @property
    def flop_per_second(self) -> float:
        """Of audio, forward and backward pass."""
        return self.flop.training / self.clip

    @property
    def total(self) -> float:
        return self.flop_per_second * self.seconds * self.updates

    def batches(self, processes: int) -> int:
        """That each of so many processes accumulates for a step."""
        return max(math.ceil(self.seconds / processes / self.batch - 1e-6), 1)


@cache
def counted(name: str) -> Counted:
    """Of one of `RECIPES`."""
    paper = RECIPES[name]
    recipe = load_recipe(RECIPES_FOLDER / paper.file, ["data.train=nothing", "run.output_dir=nothing"])
    optimization, is_bert = recipe.optimization, recipe.architecture == "DiscreteBert"
    batch = recipe.codes.batch_tokens / CODES_PER_SECOND if is_bert else recipe.data.batch_seconds
    clip = recipe.codes.tokens_per_sample / CODES_PER_SECOND if is_bert else paper.seconds or recipe.data.max_seconds
    model = model_of(recipe)
    split = set(model._no_split_modules or ())
    return Counted(
        updates=optimization.num_steps,
        seconds=paper.processes * batch * optimization.gradient_accumulation_steps,
        clip=clip,
        batch=batch,
        flop=flop_of(recipe, model.config, clip),
        weights=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        # of BERT the embedding is the output layer, too
        layers=0 if is_bert else 1 + sum(type(module).__name__ in split for module in model.modules()),
    )


def model_of(recipe: Recipe) -> transformers.PreTrainedModel:
    """The model that a recipe trains, without numbers in its weights."""
    with torch.device("meta"):
        if recipe.architecture == "DiscreteBert":
            fields = {**ORIGINAL_ROBERTA, **recipe.model, "vocab_size": CODE_WORDS}
            return RobertaForMaskedLM(transformers.RobertaConfig(**fields))
        suffix = "ForPreTraining" if recipe.pretrained is None else "ForCTC"
        model = family_class(recipe, suffix)(family_class(recipe, "Config")(**recipe.model))
    if getattr(model.config, "feature_gradient_scale", None) == 0:
        model.freeze_feature_encoder()  # as fine-tuning does
    return model


def flop_of(recipe: Recipe, config: transformers.PreTrainedConfig, clip: float) -> Flop:
    if recipe.architecture == "DiscreteBert":
        masking = recipe.masking
        # a place stays if none of the spans that could reach it starts
        masked = 1 - (1 - masking.mask_prob / masking.mask_length) ** masking.mask_length
        return bert_flop(config, recipe.codes.tokens_per_sample, masked)
    counts = {"CPC": cpc_flop, "Wav2Vec": wav2vec_flop, "VQWav2Vec": wav2vec_flop, "Wav2Vec2": wav2vec2_flop}
    return counts[recipe.architecture](config, clip)


def measured_steps() -> dict[str, float]:
    """Seconds of a step of wav2vec 2.0 BASE on 10 x 15.6 s on one H200, by the way it ran, the fastest last."""
    steps = measured()["steps, base, 10 x 15.6 s"]
    # the others were timed while the machine did something else
    return {step["way"]: step["median_ms"] / 1e3 for step in steps if not step["busy"]}


def measured_step_flop() -> Flop:
    recipe = load_recipe(RECIPES_FOLDER / RECIPES["wav2vec 2.0 BASE"].file, ["data.train=x", "run.output_dir=x"])
    return wav2vec2_flop(family_class(recipe, "Config")(**recipe.model), 15.6, num_clips=10)


def measured_share() -> float:
    """Of the matrix rate, that a step compiled to one graph reached."""
    return (
        measured_step_flop().training
        / measured_steps()["ours, compiled"]
        / (measured()["bf16_products_teraflops"] * 1e12)
    )


def gpu_hours(flop: float, gpu: GPU, share: float) -> float:
    return flop / (gpu.teraflops * 1e12 * share) / 3600


def link_rate(gpu: GPU, processes: int, network: float | None = None) -> float:
    """Bytes per second that a process can send in a ring; `network`: GB/s of a node, if not that of the GPU's."""
    if processes <= GPUS_PER_NODE:
        return gpu.link * 1e9
    return min(gpu.link, gpu.network if network is None else network) * 1e9


def exposed_seconds(exchange: float, compute: float, parts: int) -> float:
    """What an exchange in as many `parts` as the computation beside it adds to it, where one part waits for another.

    Two stages of equal parts take compute / k + (k - 1) / k * max(compute, exchange) + exchange / k together.
    """
    return max(exchange - compute * (1 - 1 / parts), exchange / parts)


def ddp_exposed(weights: int, compute: float, batches: int, processes: int, rate: float) -> float:
    """Seconds a step of DDP waits for gradients, `compute` being those that it computes."""
    sent = 2 * (processes - 1) / processes * weights * BYTES_EACH
    buckets = math.ceil(weights * BYTES_EACH / BUCKET_BYTES)
    return exposed_seconds(sent / rate, 2 * compute / (3 * batches), buckets)


def fsdp_exposed(weights: int, layers: int, compute: float, batches: int, processes: int, rate: float) -> float:
    """Seconds a step of FSDP2 waits for weights and gradients."""
    part = (processes - 1) / processes * weights * BYTES_EACH / rate
    forward = exposed_seconds(part, compute / (3 * batches), layers)
    backward, last = (exposed_seconds(times * part, 2 * compute / (3 * batches), layers) for times in (1, 2))
    return batches * forward + (batches - 1) * backward + last


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def recipe_table() -> str:
    rows = []
    for name, paper in RECIPES.items():
        recipe = counted(name)
        numbers = [f"{recipe.updates:,}", f"{recipe.seconds:,.0f}", f"{recipe.clip:g}", f"{recipe.weights / 1e6:,.1f}"]
        counts = [f"{recipe.flop_per_second / 1e9:,.1f}", f"{recipe.total:.2e}"]
        rows.append([name, f"`{paper.file}`", *numbers, *counts, paper.not_stated])
    head = ["recipe", "file", "updates", "audio in one, s", "clip, s", "weights, millions"]
    return table([*head, "GFLOP per s of audio", "FLOP of the run", "not stated by the paper"], rows)


def cost_table(shares: list[float], prices: dict[str, float]) -> str:
    """Hours of one GPU at each share, and what they cost where there is a price."""
    rows = []
    for name, paper in RECIPES.items():
        cells = []
        for kind, gpu in GPUS.items():
            hours = [gpu_hours(counted(name).total, gpu, share) for share in shares]
            cost = " / ".join(f"{prices[kind] * x:,.0f}" for x in hours) if kind in prices else ""
            cells.append(" / ".join(f"{x:,.3g}" if x < 100 else f"{x:,.0f}" for x in hours) + (cost and f"; {cost}"))
        rows.append([name, *cells, paper.paper])
    return table(["recipe", *GPUS, "paper"], rows)


def exchange_table(shares: list[float], kind: str) -> str:
    """Per step on GPUs of a `kind` at each share, the batch of the recipe dealt among the processes."""
    rows, gpu = [], GPUS[kind]
    for name in RECIPES:
        recipe = counted(name)
        # 64 where there is half a batch for each
        networks = (gpu.network, gpu.network / GPUS_PER_NODE) if recipe.seconds / 64 >= recipe.batch / 2 else ()
        for processes, network in ((GPUS_PER_NODE, None), *((64, network) for network in networks)):
            where = f"{processes}" if network is None else f"{processes}, {network:g} GB/s a node"
            rows.append([name, where, *exchange_cells(recipe, gpu, shares, processes, network)])
    head = ["recipe", kind, "batches", "computes, ms"]
    for way in ("DDP", "FSDP2"):
        head += [f"{way} sends, MB", f"{way} exposed, ms", f"{way} efficiency"]
    return table([*head, "DDP, days"], rows)


def exchange_cells(recipe: Counted, gpu: GPU, shares: list[float], processes: int, network: float | None) -> list[str]:
    """Of a row of `exchange_table`, each number at each share."""
    batches, rate = recipe.batches(processes), link_rate(gpu, processes, network)
    hours = [gpu_hours(recipe.total, gpu, share) / processes for share in shares]
    computes = [x * 3600 / recipe.updates for x in hours]
    ddp = [ddp_exposed(recipe.weights, compute, batches, processes, rate) for compute in computes]
    cells, ways = [str(batches), " / ".join(f"{x * 1e3:,.1f}" for x in computes)], [(2, ddp)]
    if recipe.layers:
        part = (recipe.weights, recipe.layers)
        ways.append((2 * batches + 1, [fsdp_exposed(*part, x, batches, processes, rate) for x in computes]))
    for times, exposed in ways:
        sent = times * (processes - 1) / processes * recipe.weights * BYTES_EACH
        efficiencies = [x / (x + waits) for x, waits in zip(computes, exposed, strict=True)]
        cells.append(f"{sent / 1e6:,.0f}")
        cells.append(" / ".join(f"{waits * 1e3:.2f}" for waits in exposed))
        cells.append(" / ".join(f"{efficiency:.1%}" for efficiency in efficiencies))
    cells += [""] * (8 - len(cells))
    days = [(x + waits) * recipe.updates / 86_400 for x, waits in zip(computes, ddp, strict=True)]
    return [*cells, " / ".join(f"{x:.2g}" for x in days)]


def check_table(shares: list[float]) -> str:
    """A step of BASE on 10 x 15.6 s on the H200: what was measured, and what the formula says."""
    flop, rate = measured_step_flop().training, measured()["bf16_products_teraflops"] * 1e12
    rows = [
        [f"measured, {way}", f"{seconds * 1e3:.1f}", f"{flop / seconds / rate:.0%}"]
        for way, seconds in measured_steps().items()
    ]
    for share in (*shares, 1.0):
        rows.append(["formula", f"{flop / rate / share * 1e3:.1f}", f"{share:.0%}"])
    return table(["step of BASE, 10 x 15.6 s, one H200", "ms", "share of the matrix rate"], rows)


def kernels_table() -> str:
    """What kernels of that step took, and the share of the matrix rate that they reach by what is counted here."""
    flop, rate = measured_step_flop(), measured()["bf16_products_teraflops"] * 1e12
    rows = []
    for kernels, (parts, milliseconds) in KERNELS.items():
        operations = 3 * sum(flop.parts[part] for part in parts)
        operations -= 3 * flop.no_input_gradient if "convolutions" in parts else 0
        share = f"{operations / milliseconds / 1e-3 / rate:.0%}" if parts else ""
        rows.append([kernels, f"{operations / 1e12:.2f}" if parts else "", f"{milliseconds:.1f}", share])
    return table(["kernels of the step, compiled", "TFLOP counted", "ms measured", "share"], rows)


def tables(shares: list[float], prices: dict[str, float], kind: str = "H200") -> dict[str, str]:
    """Each table by what is in it; `kind` of GPU of the one about many."""
    shown = " / ".join(f"{share:.0%}" for share in shares)
    return {
        "The recipes": recipe_table(),
        f"Hours of one GPU at {shown} of its matrix rate" + ("; what they cost" if prices else ""): cost_table(
            shares, prices
        ),
        f"A step on {kind} at {shown}": exchange_table(shares, kind),
        "The formula against what was measured": check_table(shares),
        "Where the time goes": kernels_table(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, help="of a GPU's matrix rate that a step reaches; as measured if not")
    parser.add_argument("--price", nargs="*", default=[], metavar="GPU=PER_HOUR", help="such as H200=3.5")
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="of the table about many GPUs")
    options = parser.parse_args()
    prices = {kind: float(price) for kind, price in (item.split("=") for item in options.price)}
    if unknown := set(prices) - set(GPUS):
        raise ValueError(f"--price knows {', '.join(GPUS)}, got {', '.join(sorted(unknown))}.")
    share = measured_share() if options.share is None else options.share
    if not 0 < share <= 1:
        raise ValueError(f"--share must be above 0 and at most 1, got {share}.")
    for title, text in tables([share, TARGET_SHARE], prices, options.gpu).items():
        print(f"\n{title}\n\n{text}")
    print("\nTFLOP/s: " + "; ".join(f"{kind} {gpu.teraflops} ({gpu.source})" for kind, gpu in GPUS.items()))


if __name__ == "__main__":
    main()
