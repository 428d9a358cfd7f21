"""What the papers' recipes cost: arithmetic, hours and money per kind of GPU, and what processes have to exchange.

python -m benchmarks.on_paper --share 0.45

Counted from the shapes of the models and nothing else: 2 floating-point operations per multiply-add of every
convolution, linear layer and attention product; a backward pass costs twice the forward pass, but for the first
convolution, whose input needs no gradient. What a GPU does per second is what one printed for a large product of
matrices, where somebody measured it, or else its data sheet; `--share` of it is what a training step is taken to
reach. Prices are arguments, because they are nobody's to state.
"""

import argparse
from dataclasses import dataclass

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
LARGE = {**BASE, "hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}


@dataclass(frozen=True)
class GPU:
    """`teraflops`: bf16 (fp16 for V100) products of matrices, `source` of the number; `link`: GB/s to other GPUs."""

    teraflops: float
    source: str
    link: float


GPUS = {
    "H200": GPU(790, "measured, a product of 8192-cubes", 450),
    "H100": GPU(790, "taken to be that of H200, whose cores are the same", 450),
    "A100": GPU(312, "data sheet", 300),
    "V100": GPU(125, "data sheet, fp16", 150),
}


@dataclass(frozen=True)
class Recipe:
    """`updates` of `hours` of audio each at most, in crops of `seconds`."""

    fields: dict
    updates: int
    hours: float
    seconds: float
    num_parameters: float
    paper: str


RECIPES = {
    "BASE, LS-960": Recipe(BASE, 400_000, 1.6, 15.6, 95.0e6, "64 V100, 1.6 days"),
    "LARGE, LS-960": Recipe(LARGE, 250_000, 2.7, 20.0, 317.4e6, "128 V100, 2.3 days"),
    "LARGE, LV-60k": Recipe(LARGE, 600_000, 2.7, 20.0, 317.4e6, "128 V100, 5.2 days"),
}


@dataclass(frozen=True)
class ForwardFlop:
    """Floating-point operations of one clip's forward pass."""

    first_convolution: float
    convolutions: float
    positions: float
    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.convolutions + self.positions + self.linear + self.attention


def forward_flop(fields: dict, seconds: float) -> ForwardFlop:
    """Of a wav2vec 2.0 with these `fields` of its configuration on a clip at 16 kHz."""
    frames, channels, convolutions, first = int(16_000 * seconds), 1, 0.0, 0.0
    for kernel_size, stride in zip(KERNELS, STRIDES, strict=True):
        frames = (frames - kernel_size) // stride + 1
        convolutions += 2 * frames * kernel_size * channels * 512
        first, channels = first or convolutions, 512
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    group = width // fields["num_conv_pos_embedding_groups"]
    per_layer = 2 * frames * (4 * width * width + 2 * width * inner)
    return ForwardFlop(
        first_convolution=first,
        convolutions=convolutions,
        positions=2.0 * frames * width * group * fields["num_conv_pos_embeddings"],
        linear=2 * frames * 512 * width + fields["num_hidden_layers"] * per_layer,
        attention=fields["num_hidden_layers"] * 4.0 * frames * frames * width,
    )


def training_flop_per_second(fields: dict, seconds: float) -> float:
    """Of a second of audio, forward and backward, in crops of `seconds`."""
    forward = forward_flop(fields, seconds)
    return (3 * forward.total - forward.first_convolution) / seconds


def gpu_hours(recipe: Recipe, gpu: GPU, share: float) -> float:
    flop = training_flop_per_second(recipe.fields, recipe.seconds) * recipe.updates * recipe.hours * 3600
    return flop / (gpu.teraflops * 1e12 * share) / 3600


def exchanged_bytes(num_parameters: float, processes: int, *, bytes_each: int = 2, sharded: bool = False) -> float:
    """What each process sends in a step: a ring adds up gradients and hands the sums out, 2 (n - 1) / n of their size.

    FSDP2 with `sharded` weights gathers them for the forward and for the backward pass and scatters the gradients: 3
    times (n - 1) / n.
    """
    return (3 if sharded else 2) * (processes - 1) / processes * num_parameters * bytes_each


def print_costs(share: float, prices: dict[str, float]):
    print("| recipe | GFLOP per s of audio | whole run, FLOP | " + " | ".join(GPUS) + " | paper |")
    print("|" + " --- |" * (4 + len(GPUS)))
    for name, recipe in RECIPES.items():
        per_second = training_flop_per_second(recipe.fields, recipe.seconds)
        total = per_second * recipe.updates * recipe.hours * 3600
        cells = []
        for kind, gpu in GPUS.items():
            hours = gpu_hours(recipe, gpu, share)
            price = f", {hours * prices[kind]:,.0f}" if kind in prices else ""
            cells.append(f"{hours:,.0f} h{price}")
        print(f"| {name} | {per_second / 1e9:.1f} | {total:.2e} | {' | '.join(cells)} | {recipe.paper} |")
    print("\nhours of one GPU; teraflops per second: ", end="")
    print("; ".join(f"{kind} {gpu.teraflops} ({gpu.source})" for kind, gpu in GPUS.items()), f"; share {share:.0%}")


def print_exchange(share: float):
    """Per step of a process, at the batch of the recipe: what it sends, how long that takes, how long it computes."""
    print("\n| recipe | processes | step, ms | DDP, MB | ms | FSDP2, MB | ms |")
    print("|" + " --- |" * 7)
    gpu = GPUS["H200"]
    for name, recipe in RECIPES.items():
        for processes in (8, 64):
            flop = training_flop_per_second(recipe.fields, recipe.seconds) * recipe.hours * 3600 / processes
            cells = []
            for sharded in (False, True):
                sent = exchanged_bytes(recipe.num_parameters, processes, sharded=sharded)
                cells.append(f"{sent / 1e6:,.0f} | {sent / (gpu.link * 1e9) * 1e3:.1f}")
            print(f"| {name} | {processes} | {flop / (gpu.teraflops * 1e9 * share):,.0f} | {' | '.join(cells)} |")
    print(
        "\nbf16 gradients over the links of one node; across nodes divide by the slower network, often a ninth of it."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.45, help="of a GPU's matrix rate that a step reaches")
    parser.add_argument("--price", nargs="*", default=[], metavar="GPU=PER_HOUR", help="such as H200=3.5")
    options = parser.parse_args()
    prices = {kind: float(price) for kind, price in (item.split("=") for item in options.price)}
    if unknown := set(prices) - set(GPUS):
        raise ValueError(f"--price knows {', '.join(GPUS)}, got {', '.join(sorted(unknown))}.")
    print_costs(options.share, prices)
    print_exchange(options.share)


if __name__ == "__main__":
    main()
