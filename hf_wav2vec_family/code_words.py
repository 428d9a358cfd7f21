"""The G codes of a frame as one word, `12-305`, as one number, and from the number to the id of a token.

The number is what its codes spell in base V. Ids are found by bisection in the sorted numbers of a vocabulary, so that
no string is made for a frame and the table is as long as the vocabulary rather than V^G.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodeTable:
    """The way from numbers to ids.

    Args:
        numbers: [rows] int64, ascending; rows that stand for nothing come first, as -1.
        ids: [rows] int64, the id of each.
    """

    numbers: Tensor
    ids: Tensor

    @classmethod
    def of(cls, numbers: Tensor, ids: Tensor, rows: int) -> "CodeTable":
        """The table of words with these `numbers` and `ids` [words], padded to a number of rows."""
        order = numbers.argsort()
        empty = numbers.new_full((rows - len(numbers),), -1)
        return cls(torch.cat([empty, numbers[order]]), torch.cat([empty, ids[order]]))

    def look_up(self, numbers: Tensor, unknown: int) -> Tensor:
        """Numbers of any shape -> ids of that shape, `unknown` for what the table does not hold."""
        rows = torch.searchsorted(self.numbers, numbers).clamp(max=len(self.numbers) - 1)
        return torch.where((self.numbers[rows] == numbers) & (numbers >= 0), self.ids[rows], unknown)


def code_numbers(codes: Tensor, num_codevectors: int) -> Tensor:
    """[..., G] codes below V -> [...] int64, the number that they spell in base V; -1 where a code is out of range."""
    number = torch.zeros_like(codes[..., 0], dtype=torch.long)
    for group in codes.unbind(dim=-1):
        number = number * num_codevectors + group
    return torch.where(((codes >= 0) & (codes < num_codevectors)).all(dim=-1), number, -1)


def words_of(codes: Tensor) -> list[str]:
    """[T, G] codes -> T words."""
    return ["-".join(map(str, frame)) for frame in codes.tolist()]
