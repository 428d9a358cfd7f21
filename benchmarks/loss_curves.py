"""Does bfloat16 in one compiled graph learn what float32 learns step by step? Loss curves of both, and of two seeds.

python -m benchmarks.loss_curves --device cuda --size base --steps 500

The same weights, batches, masks and distractors step by step, once in float32 eagerly, once in bfloat16 compiled, and
once in float32 from another seed. Curves are averaged over windows of steps; the two ways agree if they lie no further
apart than the two seeds do. Clips are chains of random sounds of 80 ms in noise: there is something to predict.
"""

import json
import statistics

import torch

from hf_wav2vec_family import Wav2Vec2Config, Wav2Vec2ForPreTraining

from .comparing import options_of, prepare
from .wav2vec2_sizes import CLIP_NORM, SIZES, masks_and_distractors

NUM_SOUNDS, SOUND_SAMPLES = 40, 1280


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
    for step in range(options.steps):
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


def distance(a: list[float], b: list[float], window: int) -> float:
    """Mean difference of the two curves, each averaged over windows."""
    means = [[statistics.mean(c[i : i + window]) for i in range(0, len(c), window)] for c in (a, b)]
    return statistics.mean(abs(x - y) for x, y in zip(*means, strict=True))


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
    curves = {
        "float32": curve(options, half=False, seed=0),
        "bfloat16": curve(options, half=True, seed=0),
        "float32, another seed": curve(options, half=False, seed=1),
    }
    ways = distance(curves["float32"], curves["bfloat16"], options.window)
    seeds = distance(curves["float32"], curves["float32, another seed"], options.window)
    verdict = {"between_ways": ways, "between_seeds": seeds, "agree": ways <= seeds}
    print(json.dumps({**verdict, "last_losses": {name: values[-1] for name, values in curves.items()}}))
    if options.output:
        options.output.write_text(json.dumps({**verdict, "curves": curves}) + "\n")


if __name__ == "__main__":
    main()
