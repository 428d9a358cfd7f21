"""Which symbols of a model spell which word: what a beam search with a lexicon walks through.

The file has one spelling per line, `word<TAB>symbols` with blanks between symbols, wav2letter's and fairseq's format;
a word may come again with another spelling. Each spelling ends with the word delimiter, so that words stay apart.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Lexicon = dict[str, list[list[str]]]


def spell_words(words: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Lexicon:
    """Each word as the tokenizer spells it; words with letters that it doesn't know are left out and counted.

    Raises:
        ValueError: no word is left, or the tokenizer has no word delimiter.
    """
    delimiter = delimiter_of(tokenizer)
    known, lexicon, unspelled = set(tokenizer.get_vocab()) - {tokenizer.unk_token}, {}, []
    for word in words:
        spelling = tokenizer.tokenize(word)
        # A tokenizer for ASG puts the delimiter around the whole.
        spelling = spelling[spelling[:1] == [delimiter] :]
        spelling = spelling if spelling[-1:] == [delimiter] else [*spelling, delimiter]
        if known.issuperset(spelling) and len(spelling) > 1:
            lexicon[word] = [spelling]
        else:
            unspelled.append(word)
    if not lexicon:
        raise ValueError(f"words: none of {len(unspelled)} is of the tokenizer's symbols, such as {unspelled[:3]}.")
    if unspelled:
        logger.warning(
            "%d of %d words have other symbols than the tokenizer's and are left out, such as %s.",
            len(unspelled),
            len(unspelled) + len(lexicon),
            ", ".join(unspelled[:5]),
        )
    return lexicon


def read_lexicon(path: str | Path) -> Lexicon:
    """
    Raises:
        ValueError: a line has no spelling.
    """
    lexicon: Lexicon = {}
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            word, *spelling = line.split()
            if not spelling:
                raise ValueError(f"{path}, line {number}: expected a word and its symbols, got {line!r}.")
            lexicon.setdefault(word, []).append(spelling)
    return lexicon


def write_lexicon(lexicon: Lexicon, path: str | Path) -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        for word, spellings in lexicon.items():
            file.writelines(f"{word}\t{' '.join(spelling)}\n" for spelling in spellings)


def delimiter_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The symbol between words.

    Raises:
        ValueError: there is none.
    """
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    if delimiter is None or delimiter not in tokenizer.get_vocab():
        raise ValueError(
            "tokenizer: a lexicon needs a word delimiter among the symbols, and there is none; search without one."
        )
    return delimiter
