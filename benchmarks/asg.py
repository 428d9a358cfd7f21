"""ASG against PyTorch's CTC on the same shapes: time of loss and gradients, and what is kept between the two.

python -m benchmarks.asg --threads 1 --rounds 5

The two losses are different numbers, so what is compared before anything is timed is ASG with itself: loss and
gradients against logsumexp in float64, frame by frame. Rounds alternate, and the ratio is the median of the rounds'
ratios.
"""

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_wav2vec_family.asg import asg_loss

from .comparing import begin, compare, differences, report


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

    def slow_asg(self) -> Tensor:
        emissions, pairs = self.emissions.double(), self.transitions.double()
        stay, move = pairs[self.targets, self.targets], pairs[self.targets[:, 1:], self.targets[:, :-1]]
        full, emitted = emissions[:, 0], emissions.gather(2, self.targets[:, None].expand(-1, emissions.shape[1], -1))
        aligned = F.pad(emitted[:, 0, :1], (0, stay.shape[1] - 1), value=-1e30)
        for t in range(1, emissions.shape[1]):
            full = torch.logsumexp(pairs + full.unsqueeze(1), dim=-1) + emissions[:, t]
            moved = F.pad(aligned[:, :-1] + move, (1, 0), value=-1e30)
            aligned = torch.logaddexp(aligned + stay, moved) + emitted[:, t]
        return (full.logsumexp(dim=-1) - aligned[:, -1]).sum()


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
    for num_symbols in (50, 200):
        case = make_case(16, 1500, 31, num_symbols)
        equality = differences(case.slow_asg, case.asg, (case.emissions, case.transitions), tolerance=1e-5)
        name = f"asg against ctc, {num_symbols} symbols in 16 x 1500 frames, 31 letters"
        cases.append({"case": name, **compare(case.ctc, case.asg, options.rounds), **equality})
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
