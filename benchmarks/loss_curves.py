"""Does bfloat16 in one compiled graph learn what float32 learns step by step? Loss curves of both, of two seeds each.

python -m benchmarks.loss_curves --device cuda --size base --steps 500

The same weights, batches, masks and distractors step by step, in float32 eagerly and in bfloat16 compiled; dropout and
Gumbel noise are drawn by each. Curves are averaged over windows of steps. The two ways agree if curves of one seed lie
no further apart than those of two seeds do, and all of them have fallen. Clips are chains of random sounds of 80 ms in
noise: there is something to predict. `--output` is written after each curve; a curve that it has is not made again.
"""

import argparse
import json
import statistics

import torch
from tqdm import trange

from hf_wav2vec_family import Wav2Vec2Config, Wav2Vec2ForPreTraining

from .comparing import circumstances, options_of, prepare
from .wav2vec2_sizes import CLIP_NORM, SIZES, masks_and_distractors

NUM_SOUNDS, SOUND_SAMPLES = 40, 1280
WAYS, SEEDS = ("float32", "bfloat16"), (0, 1)
FALLEN = 0.9  # of the loss at the start


def clips(step: int, batch_size: int, seconds: float, seed: int) -> torch.Tensor:
    """[B, S] of unit variance, the same for the same step and seed."""
    sounds = torch.randn(NUM_SOUNDS, SOUND_SAMPLES, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(10_000 * seed + step)
    order = torch.randint(NUM_SOUNDS, (batch_size, int(16_000 * seconds) // SOUND_SAMPLES), generator=generator)
    waveforms = sounds[order].flatten(1)
    noise = torch.randn(waveforms.shape, generator=generator)
    return (waveforms + 0.3 * noise) / 1.09**0.5


def curve(options, *, half: bool, seed: int) -> list[float]:
    """The contrastive loss of every step."""
    torch.manual_seed(seed)
    fields = {**SIZES[options.size], "layerdrop": 0.0, "attn_implementation": "sdpa"}
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**fields)).to(options.device).train()
    if half and options.compile:
        model.compile(fullgraph=True, dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01, fused=True)
    losses = []
    for step in trange(options.steps, desc=name_of(half, seed)):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / (options.steps / 5))
        waveforms = clips(step, options.batch_size, options.seconds, seed)
        drawn = masks_and_distractors(*waveforms.shape, seed=1000 * seed + step)
        batch = {name: x.to(options.device) for name, x in {"input_values": waveforms, **drawn}.items()}
        torch.manual_seed(step)
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            output = model(**batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(output.contrastive_loss.detach())
    return torch.stack(losses).tolist()


def name_of(half: bool, seed: int) -> str:
    return f"{WAYS[half]}, seed {seed}"


def averaged(losses: list[float], window: int) -> list[float]:
    return [statistics.mean(losses[i : i + window]) for i in range(0, len(losses), window)]


def distance(a: list[float], b: list[float]) -> float:
    return statistics.mean(abs(x - y) for x, y in zip(a, b, strict=True))


def verdict(curves: dict[str, list[float]], window: int) -> dict:
    """How far apart the windows of curves are, on average, and what that says."""
    means = {name: averaged(losses, window) for name, losses in curves.items()}
    of = {(half, seed): means[name_of(half, seed)] for half in (False, True) for seed in SEEDS}
    ways = [distance(of[False, seed], of[True, seed]) for seed in SEEDS]
    seeds = [distance(of[half, SEEDS[0]], of[half, SEEDS[1]]) for half in (False, True)]
    found = {"between_ways": statistics.mean(ways), "between_seeds": statistics.mean(seeds)}
    found["fallen"] = all(losses[-1] < FALLEN * losses[0] for losses in means.values())
    found["agree"] = found["between_ways"] <= found["between_seeds"] and found["fallen"]
    return {**found, "last_windows": {name: losses[-1] for name, losses in means.items()}}


def curves_of(options: argparse.Namespace) -> dict[str, list[float]]:
    curves = {}
    if options.output and options.output.exists():
        curves = json.loads(options.output.read_text())["curves"]
    for seed in SEEDS:
        for half in (False, True):
            name = name_of(half, seed)
            if len(curves.get(name, ())) != options.steps:
                curves[name] = curve(options, half=half, seed=seed)
            if options.output:
                options.output.write_text(json.dumps({**circumstances(options), "curves": curves}) + "\n")
    return curves


def main():
    parser = options_of(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    prepare(options)
    curves = curves_of(options)
    found = verdict(curves, options.window)
    print(json.dumps(found))
    if options.output:
        sizes = {name: getattr(options, name) for name in ("size", "batch_size", "seconds", "learning_rate")}
        written = {**circumstances(options), **sizes, **found, "curves": curves}
        options.output.write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
