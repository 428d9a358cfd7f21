"""ASG against its published formulation and PyTorch's CTC: time of loss and gradients, and what is kept for them.

python -m benchmarks.asg --threads 1 --rounds 5

The published criterion is written in its two halves: a fully connected graph of all paths, and a forced one of those
that spell the target, each gone through frame by frame in log space, in float64. It is timed utterance by utterance,
as wav2letter builds its graphs, and with all utterances in one tensor; the original is C++, and this is PyTorch with
its own gradients. Loss and gradients are compared before anything is timed. CTC is another loss, timed on the same
shapes. Rounds alternate, and the ratio is the median of the rounds' ratios.
"""

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_wav2vec_family.asg import asg_loss

from .comparing import begin, compare, differences, report

NOWHERE = -1e30


def full_connect(emissions: Tensor, pairs: Tensor) -> Tensor:
    """[B], the summed scores of all paths through emissions [B, T, V] and `pairs[to, from]`, as a logarithm."""
    reached = emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        reached = torch.logsumexp(pairs + reached.unsqueeze(1), dim=-1) + emissions[:, t]
    return reached.logsumexp(dim=-1)


def force_align(emissions: Tensor, pairs: Tensor, targets: Tensor) -> Tensor:
    """[B], those of the paths that spell the targets [B, L]: at each frame they stay, or go on to the next symbol."""
    stay, move = pairs[targets, targets], pairs[targets[:, 1:], targets[:, :-1]]
    emitted = emissions.gather(2, targets[:, None].expand(-1, emissions.shape[1], -1))  # [B, T, L]
    reached = F.pad(emitted[:, 0, :1], (0, stay.shape[1] - 1), value=NOWHERE)
    for t in range(1, emissions.shape[1]):
        moved = F.pad(reached[:, :-1] + move, (1, 0), value=NOWHERE)
        reached = torch.logaddexp(reached + stay, moved) + emitted[:, t]
    return reached[:, -1]


@dataclass
class Case:
    """Random emissions and targets of one size; all rows are as long as they can be."""

    emissions: Tensor
    transitions: Tensor
    targets: Tensor
    num_frames: Tensor
    num_symbols: Tensor

    def asg(self) -> Tensor:
        return asg_loss(
            self.emissions, self.transitions, self.targets, self.num_frames, self.num_symbols, reduction="sum"
        )

    def ctc(self) -> Tensor:
        log_probs = F.log_softmax(self.emissions, dim=-1).transpose(0, 1)
        return F.ctc_loss(log_probs, self.targets, self.num_frames, self.num_symbols, reduction="sum")

    def published(self, rows: int) -> Tensor:
        """The published criterion on so many `rows` of the batch at a time."""
        emissions, pairs = self.emissions.double(), self.transitions.double()
        losses = [
            full_connect(some, pairs) - force_align(some, pairs, targets)
            for some, targets in zip(emissions.split(rows), self.targets.split(rows), strict=True)
        ]
        return torch.cat(losses).sum()


def make_case(batch_size: int, num_frames: int, vocabulary: int, num_symbols: int) -> Case:
    # Steps of 1 to V - 2 around the symbols but 0, CTC's blank, so that no symbol follows itself
    steps = torch.randint(1, vocabulary - 1, (batch_size, num_symbols))
    return Case(
        emissions=torch.randn(batch_size, num_frames, vocabulary, requires_grad=True),
        transitions=torch.randn(vocabulary, vocabulary, requires_grad=True),
        targets=1 + steps.cumsum(dim=1) % (vocabulary - 1),
        num_frames=torch.full((batch_size,), num_frames),
        num_symbols=torch.full((batch_size,), num_symbols),
    )


def main():
    options, cases = begin(__doc__), []
    batch_size, num_frames, vocabulary = 16, 1500, 31
    for num_symbols in (50, 200):
        case = make_case(batch_size, num_frames, vocabulary, num_symbols)
        size = f"{num_symbols} symbols in {batch_size} x {num_frames} frames, {vocabulary} letters"
        inputs = (case.emissions, case.transitions)
        for way, rows in (("its graphs one by one", 1), ("its graphs all at once", batch_size)):

            def peer(case=case, rows=rows) -> Tensor:
                return case.published(rows)

            equality = differences(peer, case.asg, inputs, tolerance=1e-5)
            measured = compare(peer, case.asg, options.rounds)
            cases.append({"case": f"asg against {way}, {size}", **measured, **equality})
            print(json.dumps(cases[-1]), flush=True)
        cases.append({"case": f"asg against ctc, {size}", **compare(case.ctc, case.asg, options.rounds)})
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
