"""Span masks for a masked language model on codes (Baevski et al., 2019, arXiv:1910.05453, section 4).

Single codes of 10 ms are told from their neighbours, so that spans are masked; of what is masked, BERT replaces most
by `<mask>`, some by random words, and leaves some as it is.
"""

from dataclasses import dataclass

import numpy as np

NOT_A_TARGET = -100


@dataclass
class MaskedSequence:
    """What is read and what is asked.

    Args:
        input_ids: [L] int64 with masked places replaced.
        labels: [L] int64, the original ids at masked places, -100 elsewhere.
    """

    input_ids: np.ndarray
    labels: np.ndarray


@dataclass
class SpanMasking:
    """Which places are masked and what stands there then. The defaults are the paper's spans and BERT's replacements.

    Starts are drawn without replacement from all L places, `<s>` and `</s>` included, as in the original code:
    mask_prob * L / mask_length of them, rounded up or down at random. Spans may overlap, and what hangs over the end
    is cut off.

    Args:
        mask_prob: share that would be masked if no spans overlapped: p * M in the paper's terms, p = 5 % of starts.
        mask_length: M, places in a span; their mean, where lengths are drawn.
        mask_length_std: above 0, every span has its own length from a normal distribution, rounded, at least 0.
        random_token_prob: share of the masked places that are given a random word.
        leave_unmasked_prob: share of the masked places that stay as they are.
    """

    mask_prob: float = 0.5
    mask_length: int = 10
    mask_length_std: float = 0.0
    random_token_prob: float = 0.1
    leave_unmasked_prob: float = 0.1

    def __post_init__(self):
        if self.mask_length < 1 or not 0 <= self.mask_prob <= self.mask_length:
            raise ValueError(
                "masking: mask_length must be at least 1 and mask_prob between 0 and mask_length, got"
                f" {self.mask_length} and {self.mask_prob}."
            )
        if self.mask_length_std < 0:
            raise ValueError(f"masking.mask_length_std must not be negative, got {self.mask_length_std}.")
        shares = (self.random_token_prob, self.leave_unmasked_prob)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                "masking: random_token_prob and leave_unmasked_prob must not be negative, nor above 1 together, got"
                f" {shares[0]} and {shares[1]}."
            )

    def places(self, total: int, generator: np.random.Generator) -> np.ndarray:
        """[total] bool, True where masked."""
        num_spans = int(self.mask_prob * total / self.mask_length + generator.random())
        starts = generator.choice(total, num_spans, replace=False)
        lengths = np.full(num_spans, self.mask_length)
        if self.mask_length_std > 0:
            drawn = generator.normal(self.mask_length, self.mask_length_std, size=num_spans)
            lengths = np.maximum(np.rint(drawn), 0).astype(int)
        # spans that began so far less those that ended
        depth = np.bincount(starts, minlength=total + 1)
        depth -= np.bincount(np.minimum(starts + lengths, total), minlength=total + 1)
        return depth.cumsum()[:total] > 0

    def __call__(
        self, ids: np.ndarray, *, mask_id: int, words: np.ndarray, generator: np.random.Generator
    ) -> MaskedSequence:
        """Masks a sequence of `ids` [L] int64.

        Args:
            words: [W] the ids that random words are drawn from, each alike.
            generator: where every draw comes from.
        """
        masked = self.places(len(ids), generator)
        replaced_otherwise = self.random_token_prob + self.leave_unmasked_prob
        otherwise = masked & (generator.random(len(ids)) < replaced_otherwise)
        left = otherwise & (generator.random(len(ids)) * replaced_otherwise < self.leave_unmasked_prob)
        at_random = otherwise & ~left
        input_ids = np.where(masked & ~left, mask_id, ids)
        input_ids[at_random] = generator.choice(words, at_random.sum())
        return MaskedSequence(input_ids, np.where(masked, ids, NOT_A_TARGET))
