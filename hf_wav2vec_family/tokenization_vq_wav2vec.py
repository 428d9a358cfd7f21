"""The codes of vq-wav2vec as the words of a language (Baevski et al., 2019, arXiv:1910.05453, section 4).

Each frame is a word such as `12-305`. Ids are those of the original code: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the
lines of a fairseq `dict.txt`, fillers included, and `<mask>` behind them all.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizer

from .code_words import CodeTable, code_numbers, words_of
from .fairseq_dictionary import DICTIONARY_SPECIALS, read_counts, with_fillers, write_counts

NUMBER = r"(?:0|[1-9]\d*)"
FRAME_WORD = re.compile(rf"{NUMBER}(?:-{NUMBER})*")
GROUP_WORD = re.compile(rf"({NUMBER}):({NUMBER})")
FILLER = re.compile(r"madeupword\d+")


class SpeechCodesTokenizer(PreTrainedTokenizer):
    r"""
    Codes `[T, G]` to words such as `12-305`, to ids, and back. A vocabulary is that of a `dict.txt`, learned from
    codes (`from_codes`, `from_counts`), all that are possible (`with_all_codes`), or one of its own for each group
    (`per_group`): then a frame is G tokens, written `0:12 1:305` in the dictionary and `12-305` everywhere else.

    Args:
        vocab_file (`str`, *optional*):
            A fairseq `dict.txt`: lines `12-305 count`, or `0:12 count` for a vocabulary per group.
        word_counts (`dict[str, int]`, *optional*):
            The same without a file.
        num_codevectors_per_group (`int`, *optional*):
            V: codes from here on are refused. Not set: one above the highest in the vocabulary, and codes from there
            on are unknown.
    """

    vocab_files_names: ClassVar = {"vocab_file": "dict.txt"}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        *,
        word_counts: Mapping[str, int] | None = None,
        num_codevectors_per_group: int | None = None,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        special_tokens_pattern="bos_eos",
        **kwargs,
    ):
        if (vocab_file is None) == (word_counts is None):
            raise ValueError("either vocab_file or word_counts is needed, and not both.")
        self.word_counts = dict(word_counts) if vocab_file is None else read_counts(vocab_file)
        self.num_codevectors_per_group = num_codevectors_per_group
        tokens = [*DICTIONARY_SPECIALS, *self.word_counts, str(mask_token)]
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._tokens = tokens
        self._set_codes(vocab_file or "word_counts")
        super().__init__(
            num_codevectors_per_group=num_codevectors_per_group,
            bos_token=bos_token,
            pad_token=pad_token,
            eos_token=eos_token,
            unk_token=unk_token,
            mask_token=mask_token,
            special_tokens_pattern=special_tokens_pattern,
            **kwargs,
        )

    def _set_codes(self, origin: str | Path):
        """The codes of every word as tensors; `origin` is what an error calls the vocabulary."""
        words = [word for word in self.word_counts if not FILLER.fullmatch(word)]
        codes, self._is_per_group = _parse(words, origin)
        groups, highest = codes.shape[-1], int(codes.max())
        if self._is_per_group:
            groups, highest = int(codes[:, 0].max()) + 1, int(codes[:, 1].max())
        limit = self.num_codevectors_per_group
        if limit is not None and highest >= limit:
            raise ValueError(f"{origin} has the code {highest}, but num_codevectors_per_group is {limit}.")
        self.num_codevector_groups = groups
        self._base = highest + 1 if limit is None else limit
        if not self._is_per_group and self._base**groups >= 2**63:
            raise ValueError(f"{groups} groups of {self._base} codes are more combinations than int64 can number.")
        self._word_ids = torch.tensor([self._ids[word] for word in words])
        self._word_codes = codes
        numbers = codes[:, 0] * self._base + codes[:, 1] if self._is_per_group else code_numbers(codes, self._base)
        self._table = CodeTable.of(numbers, self._word_ids, len(words))

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        num_codevectors_per_group: int | None = None,
        *,
        min_count: int = 1,
        **kwargs,
    ) -> "SpeechCodesTokenizer":
        """A vocabulary of the words that were counted at least `min_count` times, as fairseq would write it.

        The most frequent come first, those of one frequency in the order of their letters, fillers last.
        """
        kept = sorted(item for item in counts.items() if item[1] >= min_count)
        kept.sort(key=lambda item: item[1], reverse=True)
        if not kept:
            raise ValueError(f"no word was counted {min_count} times or more, of {len(counts)} words.")
        words = with_fillers(dict(kept))
        return cls(word_counts=words, num_codevectors_per_group=num_codevectors_per_group, **kwargs)

    @classmethod
    def from_codes(
        cls,
        codes: Iterable[Tensor],
        num_codevectors_per_group: int | None = None,
        *,
        min_count: int = 1,
        **kwargs,
    ) -> "SpeechCodesTokenizer":
        """The same, counted in tensors of codes [..., G]; they are read once, one at a time."""
        counts: Counter[str] = Counter()
        for some in codes:
            frames, found = torch.unique(some.flatten(0, -2), dim=0, return_counts=True)
            counts.update(dict(zip(words_of(frames), found.tolist(), strict=True)))
        return cls.from_counts(counts, num_codevectors_per_group, min_count=min_count, **kwargs)

    @classmethod
    def with_all_codes(
        cls, num_codevector_groups: int, num_codevectors_per_group: int, **kwargs
    ) -> "SpeechCodesTokenizer":
        """All V^G words, in the order of their numbers."""
        entries = [str(code) for code in range(num_codevectors_per_group)]
        words = ("-".join(frame) for frame in itertools.product(entries, repeat=num_codevector_groups))
        counts = with_fillers(dict.fromkeys(words, 0))
        return cls(word_counts=counts, num_codevectors_per_group=num_codevectors_per_group, **kwargs)

    @classmethod
    def per_group(cls, num_codevector_groups: int, num_codevectors_per_group: int, **kwargs) -> "SpeechCodesTokenizer":
        """G * V words, those of one group behind those of the other; a frame is G tokens."""
        groups, entries = range(num_codevector_groups), range(num_codevectors_per_group)
        counts = with_fillers({f"{group}:{code}": 0 for group in groups for code in entries})
        return cls(word_counts=counts, num_codevectors_per_group=num_codevectors_per_group, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Ids, those of the special tokens and fillers included."""
        return len(self._tokens)

    @property
    def tokens_per_frame(self) -> int:
        """1, or G with a vocabulary per group."""
        return self.num_codevector_groups if self._is_per_group else 1

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def convert_codes_to_ids(self, codes: Tensor) -> Tensor:
        """Codes [..., T, G] -> ids [..., T] int64, or [..., T * G] with a vocabulary per group, on their device.

        No special tokens are added; `build_inputs_with_special_tokens` and `pad` do that for lists of ids.

        Raises:
            ValueError: another number of groups and, where the codes are on the host (a device would have to be
                waited for), a code below 0 or not below `num_codevectors_per_group`.
        """
        codes = self._checked(codes)
        if self._is_per_group:
            offsets = torch.arange(self.num_codevector_groups, device=codes.device) * self._base
            numbers = torch.where((codes >= 0) & (codes < self._base), codes + offsets, -1).flatten(-2)
        else:
            numbers = code_numbers(codes, self._base)
        table = CodeTable(self._table.numbers.to(codes.device), self._table.ids.to(codes.device))
        return table.look_up(numbers, self._ids["<unk>"])

    def convert_ids_to_codes(self, ids: Tensor) -> Tensor:
        """Ids [..., T] (or [..., T * G]) -> codes [..., T, G] int64, -1 for tokens that are no codes."""
        if self._is_per_group:
            if ids.shape[-1] % self.num_codevector_groups:
                raise ValueError(
                    f"ids must come in groups of {self.num_codevector_groups}, one for each code of a frame, but are"
                    f" {tuple(ids.shape)}."
                )
            codes = torch.full((self.vocab_size,), -1)
            codes[self._word_ids] = self._word_codes[:, 1]
            return _rows(codes.to(ids.device), ids).unflatten(-1, (-1, self.num_codevector_groups))
        codes = torch.full((self.vocab_size, self.num_codevector_groups), -1)
        codes[self._word_ids] = self._word_codes
        return _rows(codes.to(ids.device), ids)

    def convert_codes_to_string(self, codes: Tensor) -> str:
        """Codes [T, G] -> `"12-305 7-1"`."""
        return " ".join(words_of(self._checked(codes)))

    def convert_string_to_codes(self, text: str) -> Tensor:
        """`"12-305 7-1"` -> codes [T, G] int64; raises ValueError for what is not codes of G groups."""
        codes, per_group = _parse(text.split(), "text")
        if per_group or codes.shape[-1] != self.num_codevector_groups:
            raise ValueError(f"text must be words of {self.num_codevector_groups} codes, got {text.split()[0]!r}.")
        return codes

    def code_table(self, num_codevectors_per_group: int, rows: int) -> CodeTable:
        """What finds ids of codes on a device, for a model of so many codes whose embedding has so many rows.

        Raises:
            ValueError: the vocabulary is per group, has another size, or has codes that the model has not.
        """
        if self._is_per_group:
            raise ValueError(f"the vocabulary has {self.tokens_per_frame} tokens per frame, and one is needed.")
        if rows != self.vocab_size:
            raise ValueError(f"the vocabulary has {self.vocab_size} tokens, but the embedding has {rows} rows.")
        highest = int(self._word_codes.max())
        if highest >= num_codevectors_per_group:
            raise ValueError(
                f"the vocabulary has the code {highest}, but there are {num_codevectors_per_group} codes per group."
            )
        return CodeTable.of(code_numbers(self._word_codes, num_codevectors_per_group), self._word_ids, rows)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes `dict.txt`; returns its path."""
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        write_counts(path, self.word_counts)
        return (str(path),)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        words: list[str] = []
        for token in tokens:
            group = GROUP_WORD.fullmatch(token)
            if group and group[1] != "0" and words:
                words[-1] += f"-{group[2]}"
            else:
                words.append(group[2] if group else token)
        return " ".join(words)

    def _checked(self, codes: Tensor) -> Tensor:
        """`codes`, tensor, array or lists, as int64: numbers of V codes are too large for smaller types."""
        codes = torch.as_tensor(codes)
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be whole numbers, got {codes.dtype}.")
        codes = codes.long()
        if codes.dim() < 2 or codes.shape[-1] != self.num_codevector_groups:
            raise ValueError(
                f"codes must be [..., T, G] with G = {self.num_codevector_groups} groups, got {tuple(codes.shape)}."
            )
        if codes.device.type != "cpu" or codes.numel() == 0:
            return codes
        limit = self.num_codevectors_per_group
        if codes.min() < 0 or (limit is not None and codes.max() >= limit):
            accepted = "0 or above" if limit is None else f"from 0 to {limit - 1}"
            raise ValueError(f"codes must be {accepted}, got {int(codes.min())} to {int(codes.max())}.")
        return codes

    def _tokenize(self, text: str) -> list[str]:
        words = text.split()
        if not self._is_per_group:
            return words
        # a word of another number of codes has as many tokens, or every frame behind it would be another
        unknown = ["<unk>"] * self.num_codevector_groups
        frames = [word.split("-") for word in words]
        spelled = ([f"{group}:{code}" for group, code in enumerate(frame)] for frame in frames)
        return [token for tokens in spelled for token in (tokens if len(tokens) == len(unknown) else unknown)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens[index]


def _rows(codes: Tensor, ids: Tensor) -> Tensor:
    """Rows of `codes` [vocabulary, ...] by ids of any shape, -1 for ids that the vocabulary does not have."""
    known = (ids >= 0) & (ids < len(codes))
    found = codes[torch.where(known, ids, 0)]
    return torch.where(known.view(*ids.shape, *[1] * (codes.dim() - 1)), found, -1)


def _parse(words: list[str], origin: str | Path) -> tuple[Tensor, bool]:
    """Words -> their codes [words, G], or [words, 2] of group and code, and whether it is that."""
    per_group = bool(words) and GROUP_WORD.fullmatch(words[0]) is not None
    form = GROUP_WORD if per_group else FRAME_WORD
    for word in words:
        if not form.fullmatch(word):
            raise ValueError(f"{origin} has the word {word!r}, expected codes such as 12-305, or all such as 0:12.")
    codes = [[int(code) for code in word.replace(":", "-").split("-")] for word in words]
    lengths = sorted({len(frame) for frame in codes})
    if len(lengths) != 1:
        raise ValueError(f"{origin} must have words of one number of codes, got {lengths or 'no words'}.")
    return torch.tensor(codes), per_group


SpeechCodesTokenizer.register_for_auto_class("AutoTokenizer")
