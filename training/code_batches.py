"""Batches of masked codes, from rows with a column `codes` as training.extract_codes leaves them.

The same plans, positions and loader as those of audio: rows -> pieces that fit the model -> plans -> masked, padded
batch. A mask is a function of (seed, epoch, number of the piece).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hf_wav2vec_family import SpeechCodesTokenizer
from hf_wav2vec_family.configuration_discrete_bert import NUM_MARKS
from hf_wav2vec_family.tokenization_vq_wav2vec import FILLER

from .data import BatchLoader, SpeechBatches
from .planning import PlannedRow
from .rows import Row, Shard
from .sources import RowSource
from .span_masking import NOT_A_TARGET, SpanMasking


@dataclass
class MaskedCodesCollator:
    """Codes to ids between `<s>` and `</s>`, masked by `masking`, padded."""

    tokenizer: SpeechCodesTokenizer
    masking: SpanMasking
    seed: int

    @cached_property
    def words(self) -> np.ndarray:
        """The ids of codes: neither special tokens nor fillers."""
        words = [word for word in self.tokenizer.word_counts if not FILLER.fullmatch(word)]
        return np.array(self.tokenizer.convert_tokens_to_ids(words))

    def prepare(self, planned: PlannedRow, epoch: int) -> dict:
        """`input_ids` [L] and `labels` [L] of a piece in an epoch."""
        try:
            ids = self.tokenizer.convert_codes_to_ids(torch.from_numpy(planned.row.extra["codes"]))
        except ValueError as error:
            raise ValueError(f"{planned.row.id}: {error}") from error
        masked = self.masking(
            np.array(self.tokenizer.build_inputs_with_special_tokens(ids.tolist())),
            mask_id=self.tokenizer.mask_token_id,
            words=self.words,
            generator=np.random.default_rng([self.seed, epoch, planned.number]),
        )
        return {"input_ids": torch.from_numpy(masked.input_ids), "labels": torch.from_numpy(masked.labels)}

    def collate(self, examples: list[dict]) -> dict:
        """`input_ids`, `attention_mask` and `labels`, [B, L] each; `places` [M] of targets among the B * L."""

        def padded(name: str, value: int) -> torch.Tensor:
            return pad_sequence([example[name] for example in examples], batch_first=True, padding_value=value)

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        labels = padded("labels", NOT_A_TARGET)
        return {
            "input_ids": padded("input_ids", self.tokenizer.pad_token_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": labels,
            # found here, where no device has to be waited for
            "places": (labels.flatten() != NOT_A_TARGET).nonzero().squeeze(1),
        }


class CodeLoader(BatchLoader):
    """`loader[plan]` for rows of codes."""

    def load(self, planned: PlannedRow, epoch: int) -> dict:
        return self.collator.prepare(planned, epoch)


class CodeBatches(SpeechBatches):
    """Batches of one rank: `input_ids`, `attention_mask`, `labels` [B, L], `places` [M], `ids`, `index`, `epoch`.

    Rows of more than `tokens_per_sample` tokens, `<s>` and `</s>` among them, are cut into pieces of like length. A
    batch holds at most `batch_tokens`, padding included. `settings` are `num_workers` and fields of `BatchSettings`.
    """

    loader_class = CodeLoader

    def __init__(
        self,
        sources,
        tokenizer: SpeechCodesTokenizer,
        *,
        masking: SpanMasking,
        tokens_per_sample: int,
        batch_tokens: int,
        seed: int,
        **settings,
    ):
        shortest = NUM_MARKS + tokenizer.tokens_per_frame
        if tokens_per_sample < shortest:
            raise ValueError(f"tokens_per_sample: expected at least {shortest}, a frame, got {tokens_per_sample}.")
        super().__init__(
            sources=sources,
            collator=MaskedCodesCollator(tokenizer, masking, seed),
            # what is planned here is counted in tokens, which are whole numbers, and not in seconds
            batch_seconds=batch_tokens,
            max_seconds=tokens_per_sample,
            seed=seed,
            **settings,
        )
        self.sources = [in_pieces(source, tokenizer, tokens_per_sample) for source in self.sources]


def in_pieces(source: RowSource, tokenizer: SpeechCodesTokenizer, tokens_per_sample: int) -> RowSource:
    """A source whose rows are pieces of codes, and last as many "seconds" as they have tokens.

    Raises:
        ValueError: while streaming, for a row without codes of the right shape.
    """

    def find_shards() -> list[Shard]:
        rows = (partial(_pieces, shard, source.source.path, tokenizer, tokens_per_sample) for shard in source.shards)
        return [Shard(pieces) for pieces in rows]

    return replace(source, find_shards=find_shards)


def _pieces(
    shard: Shard, path: str, tokenizer: SpeechCodesTokenizer, tokens_per_sample: int, begin: int
) -> Iterator[Row]:
    return islice(_all_pieces(shard, path, tokenizer, tokens_per_sample), begin, None)


def _all_pieces(shard: Shard, path: str, tokenizer: SpeechCodesTokenizer, tokens_per_sample: int) -> Iterator[Row]:
    groups, per_frame = tokenizer.num_codevector_groups, tokenizer.tokens_per_frame
    max_frames = (tokens_per_sample - NUM_MARKS) // per_frame
    for row in shard.rows(0):
        codes = np.asarray(row.extra.get("codes", []), dtype=np.int32)
        if codes.ndim != 2 or codes.shape[-1] != groups or not len(codes):
            raise ValueError(
                f"{path}, {row.id}: expected a column codes [T, {groups}], as the vocabulary has it, got"
                f" {codes.shape if 'codes' in row.extra else 'none'}; training.extract_codes makes them of audio."
            )
        begin = 0
        for piece in np.array_split(codes, -(-len(codes) // max_frames)):
            name = row.id if len(piece) == len(codes) else f"{row.id}[{begin}:{begin + len(piece)}]"
            yield Row(name, b"", duration_seconds=len(piece) * per_frame + NUM_MARKS, extra={"codes": piece})
            begin += len(piece)
