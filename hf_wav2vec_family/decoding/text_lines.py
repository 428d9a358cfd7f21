"""Sentences of text files, as words or as the symbols of a model, for what trains and measures language models."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

UNITS_HELP = (
    "folder of a model whose symbols are the units instead of words, for decoding without a lexicon: letters with a"
    " word delimiter, or letters and replabels"
)


def read_lines(paths: Iterable[str | Path]) -> Iterator[str]:
    """Lines of text files that aren't blank; of a manifest (`.jsonl`) the field `text`. `.gz` files are unpacked."""
    for path in map(Path, paths):
        is_manifest = path.name.removesuffix(".gz").endswith(".jsonl")
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                line = json.loads(line).get("text") or "" if is_manifest and line.strip() else line
                if line.strip():
                    yield line.strip()


def units_of(lines: Iterable[str], tokenizer: str | Path | None) -> Iterator[Sequence[str]]:
    """Words of each line, or what the tokenizer of the folder or repository `tokenizer` makes of it.

    A word delimiter before the first letter, as ASG's tokenizers put it, is left out: beam search begins in it.

    Raises:
        ValueError: a line holds what the tokenizer has no symbol for.
    """
    if tokenizer is None:
        yield from map(str.split, lines)
        return
    from transformers import AutoTokenizer

    symbols = AutoTokenizer.from_pretrained(tokenizer)
    known = set(symbols.get_vocab()) - {symbols.unk_token}
    delimiter = getattr(symbols, "word_delimiter_token", None)
    for line in lines:
        units = symbols.tokenize(" ".join(line.split()))
        if not known.issuperset(units):
            raise ValueError(f"text: the tokenizer of {tokenizer} has no symbol for something in {line!r}.")
        yield units[1:] if units[:1] == [delimiter] else units
