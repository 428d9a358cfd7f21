"""CTC logits of wav2vec 2.0 against Transformers': batch 1, and batches of 8 clips of mixed lengths.

python -m benchmarks.ctc_inference --size base --dtype float32 --threads 2

Same weights and waveforms, no gradients; logits of valid frames are compared first. With a mask, Transformers computes
the padding (and a BASE model's answers there depend on it, so that rows are compared where they are alone); ours does
not. `real_time_factor` is seconds of computing per second of audio, padding not counted.
"""

import argparse
import json

import torch
from torch import Tensor, nn

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


def inference(model: nn.Module, batch: dict[str, Tensor], options: argparse.Namespace) -> Action:
    half = options.dtype == "bfloat16"

    def infer():
        with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16, enabled=half):
            model(**batch)

    return infer


def main():
    parser = options_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, nargs="*", default=[10.0], help="of the clips of batch 1")
    parser.add_argument("--mixed-scale", type=float, default=1.0, help="times the lengths of the mixed batch; 0: none")
    parser.add_argument("--compile", action="store_true", help="both sides, with torch.compile")
    options = parser.parse_args()
    prepare(options)
    peer, ours = (model.eval() for model in peer_and_ours(options.size, "ctc", options.device))
    batches = {f"1 x {s:g} s": {"input_values": noise(1, s, options.device)} for s in options.seconds}
    if options.mixed_scale:
        batches["8 of mixed lengths"] = mixed_batch(options.mixed_scale, options.device)
    timed = [torch.compile(model) for model in (peer, ours)] if options.compile else (peer, ours)
    cases = []
    for name, batch in batches.items():
        mask = batch.get("attention_mask")
        lengths = [batch["input_values"].shape[1]] if mask is None else mask.sum(dim=1).tolist()
        difference = logits_difference(peer, ours, batch["input_values"], lengths)
        if difference > 1e-4:
            raise ValueError(f"logits of {name} differ by {difference:.1e}; accepted is 1e-4.")
        sides = [inference(model, batch, options) for model in timed]
        measured = alternate(*sides, options.rounds, options.device)
        audio = sum(lengths) / 16_000
        case = {
            "case": f"CTC, {options.size}, {name}, {options.dtype}",
            **measured,
            "logits_difference": difference,
            "peer_real_time_factor": measured["peer_seconds"] / audio,
            "our_real_time_factor": measured["our_seconds"] / audio,
        }
        print(json.dumps(case), flush=True)
        cases.append(case)
    report(options, cases)


if __name__ == "__main__":
    main()
