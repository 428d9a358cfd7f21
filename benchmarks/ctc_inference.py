"""CTC logits of wav2vec 2.0 against Transformers': batch 1, and batches of 8 clips of mixed lengths.

python -m benchmarks.ctc_inference --size base --threads 2 --seconds 1 2 5 10 20 30
python -m benchmarks.ctc_inference --device cuda --weights bfloat16 --compile reduce-overhead --buckets

Same weights and waveforms, no gradients; logits of valid frames are compared first, in float32. With a mask,
Transformers computes the padding (and a BASE model's answers there depend on it, so that rows are compared where they
are alone); ours does not. A real-time factor is seconds of computing per second of audio, padding not counted.
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_wav2vec_family.length_buckets import LengthBuckets

from .comparing import Action, alternate, options_of, prepare, report
from .wav2vec2_sizes import SIZES, noise, num_frames_of, peer_and_ours

# of a typical utterance of read speech to the longest: quantiles of LibriSpeech's training clips, in seconds
MIXED_SECONDS = (2.5, 5.0, 9.0, 12.0, 13.5, 14.5, 15.2, 16.0)


def mixed_batch(scale: float, device: str) -> dict[str, Tensor]:
    lengths = torch.tensor([int(16_000 * seconds * scale) for seconds in MIXED_SECONDS])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    waveforms = noise(len(lengths), float(lengths.max()) / 16_000)
    return {"input_values": (waveforms * mask).to(device), "attention_mask": mask.to(device)}


def logits_difference(peer: nn.Module, ours: nn.Module, waveforms: Tensor, lengths: list[int]) -> float:
    """The largest difference of the peer's logits of single clips from ours of the batch, relative to the largest."""
    mask = (torch.arange(waveforms.shape[1]) < torch.tensor(lengths)[:, None]).long().to(waveforms.device)
    with torch.no_grad():
        together = ours(waveforms, attention_mask=mask).logits
        differences = []
        for row, length in enumerate(lengths):
            alone = peer(waveforms[row : row + 1, :length]).logits[0]
            found = together[row, : num_frames_of(length)]
            differences.append(float((found - alone).abs().max() / alone.abs().max()))
    return max(differences)


def inference(model: Callable, batch: dict[str, Tensor], options: argparse.Namespace) -> Action:
    batch = {**batch, "input_values": batch["input_values"].to(getattr(torch, options.weights))}
    half = options.dtype == "bfloat16"

    def infer():
        with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16, enabled=half):
            model(**batch)

    return infer


def compiled(model: nn.Module, options: argparse.Namespace) -> Callable:
    """Both sides alike: a graph for each shape."""
    return torch.compile(model, dynamic=False, mode=options.compile) if options.compile else model


def measure(
    sides: dict[str, nn.Module], name: str, batch: dict[str, Tensor], options: argparse.Namespace
) -> list[dict]:
    """Ours against the peer, and in buckets if asked for."""
    # what was compiled for other lengths counts against the limit of graphs
    torch._dynamo.reset()
    mask = batch.get("attention_mask")
    audio = (batch["input_values"].numel() if mask is None else int(mask.sum())) / 16_000
    peer, ours = (compiled(model, options) for model in sides.values())
    title = f"CTC, {options.size}, {name}, {options.dtype}"
    title += ", weights in bfloat16" if options.weights == "bfloat16" else ""
    ways = {title + (f", compiled ({options.compile})" if options.compile else ""): ours}
    if options.buckets:
        ways[f"{title}, ours in buckets"] = LengthBuckets(sides["ours"].model)
    cases = []
    for case, way in ways.items():
        measured = alternate(
            inference(peer, batch, options), inference(way, batch, options), options.rounds, options.device
        )
        factors = {f"{side}_real_time_factor": measured[f"{side}_seconds"] / audio for side in ("peer", "our")}
        cases.append({"case": case, **measured, **factors})
        print(json.dumps(cases[-1]), flush=True)
    return cases


def check(sides: dict[str, nn.Module], name: str, batch: dict[str, Tensor]) -> float:
    """By how much logits of valid frames differ; ValueError if it is too much."""
    mask = batch.get("attention_mask")
    lengths = [batch["input_values"].shape[1]] if mask is None else mask.sum(dim=1).tolist()
    difference = logits_difference(*sides.values(), batch["input_values"], lengths)
    if not difference <= 1e-4:
        raise ValueError(f"logits of {name} differ by {difference:.1e}; accepted is 1e-4.")
    return difference


def main():
    parser = options_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--weights", choices=["float32", "bfloat16"], default="float32", help="of both sides")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, nargs="*", default=[10.0], help="of the clips of batch 1")
    parser.add_argument("--mixed-scale", type=float, default=1.0, help="times the lengths of the mixed batch; 0: none")
    modes = {"nargs": "?", "const": "default", "choices": ["default", "reduce-overhead"]}
    parser.add_argument("--compile", **modes, help="both sides with torch.compile, of fixed shapes")
    parser.add_argument("--buckets", action="store_true", help="ours in buckets as well, CUDA graphs on a GPU")
    options = parser.parse_args()
    prepare(options)
    peer, ours = (model.eval() for model in peer_and_ours(options.size, "ctc", options.device))
    sides = {"peer": peer, "ours": ours}
    batches = {f"1 x {s:g} s": {"input_values": noise(1, s, options.device)} for s in options.seconds}
    if options.mixed_scale:
        batches["8 of mixed lengths"] = mixed_batch(options.mixed_scale, options.device)
    differences = {name: check(sides, name, batch) for name, batch in batches.items()}
    for model in sides.values():
        model.to(getattr(torch, options.weights))
    cases = [
        {**case, "logits_difference": differences[name]}
        for name, batch in batches.items()
        for case in measure(sides, name, batch, options)
    ]
    print("\n| case | peer, real-time factor | ours |\n| --- | --- | --- |")
    for case in cases:
        print(f"| {case['case']} | {case['peer_real_time_factor']:.4g} | {case['our_real_time_factor']:.4g} |")
    report(options, cases)


if __name__ == "__main__":
    main()
