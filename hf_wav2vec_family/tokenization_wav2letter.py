"""Letters as the Auto Segmentation Criterion can spell them, and back: replabels and a token around the whole."""

from collections.abc import Sequence
from itertools import accumulate, groupby

from transformers import Wav2Vec2CTCTokenizer

from .replabels import encode_target


class Wav2LetterCTCTokenizer(Wav2Vec2CTCTokenizer):
    r"""
    A CTC tokenizer whose labels have no symbol twice in a row: `ann b` becomes `| a n 1 | b |`. Phones do not need
    it; Transformers' `Wav2Vec2PhonemeCTCTokenizer` with `do_phonemize=False` reads those.

    Decoding merges runs, leaves padding out and writes replabels out; word delimiters at the ends are lost with the
    blanks they stand for. A text with a replabel among its letters has an unknown symbol there.

    Args:
        vocab_file (`str`):
            A JSON file of symbols and ids, the replabels among them.
        replabels (`list[str]`, *optional*, defaults to `("1", "2")`):
            The symbols that say "once more", "twice more", and so on.
        surround (`bool`, *optional*, defaults to `True`):
            Whether a word delimiter, which silence is learned as, stands before and behind a text.
    """

    def __init__(self, vocab_file, *, replabels: Sequence[str] = ("1", "2"), surround: bool = True, **kwargs):
        self.replabels, self.surround = list(replabels), surround
        super().__init__(vocab_file, replabels=self.replabels, surround=surround, **kwargs)
        if missing := [symbol for symbol in self.replabels if symbol not in self.encoder]:
            raise ValueError(f"replabels: {', '.join(missing)} of {vocab_file} are missing in the vocabulary.")

    def tokenize(self, text: str, *args, **kwargs) -> list[str]:
        # of the whole text: the base class hands it on in parts, cut at special and added tokens
        symbols = super().tokenize(text, *args, **kwargs)
        return encode_target(symbols, self.replabels, surround=self.word_delimiter_token if self.surround else None)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return [self.unk_token if symbol in self.replabels else symbol for symbol in super()._tokenize(text, **kwargs)]

    def convert_tokens_to_string(
        self,
        tokens: list[str],
        group_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
    ) -> dict[str, str | list | None]:
        """Text and, if asked for, the frames of letters and words; a repeated letter has those of its replabel."""
        if group_tokens:
            runs = [(token, len(list(run))) for token, run in groupby(tokens)]
        else:
            runs = [(token, 1) for token in tokens]
        ends = list(accumulate(length for _, length in runs))
        spoken = [(token, end - n, end) for (token, n), end in zip(runs, ends, strict=True) if token != self.pad_token]
        offsets, before = [], None
        for token, start, end in spoken:
            times = self.replabels.index(token) + 1 if token in self.replabels else 0
            symbols = [token] if not times else [before] * times if before not in (None, *self.replabels) else []
            for symbol in symbols:
                char = self.replace_word_delimiter_char if symbol == self.word_delimiter_token else symbol
                offsets.append({"char": char, "start_offset": start, "end_offset": end})
            before = token
        text = (" " if spaces_between_special_tokens else "").join(offset["char"] for offset in offsets).strip()
        words = self._get_word_offsets(offsets, self.replace_word_delimiter_char) if output_word_offsets else None
        return {
            "text": text.lower() if self.do_lower_case else text,
            "char_offsets": offsets if output_char_offsets else None,
            "word_offsets": words,
        }


Wav2LetterCTCTokenizer.register_for_auto_class("AutoTokenizer")
