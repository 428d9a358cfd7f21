"""The dictionary files of fairseq, `dict.txt`: one `symbol count` per line, behind four symbols that it leaves out."""

from collections.abc import Mapping
from pathlib import Path

# Their ids are 0 to 3; the first line of the file has id 4.
DICTIONARY_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
# fairseq makes the number of rows, its specials included, a multiple of this.
PADDING_FACTOR = 8


def read_counts(path: str | Path) -> dict[str, int]:
    """Symbols of a dictionary and how often each was counted, in the order of their ids.

    Raises:
        ValueError: A line has another form, or a symbol occurs twice or is one of fairseq's four.
    """
    counts: dict[str, int] = {}
    repeated = set()
    # Not splitlines: a symbol may be one of Unicode's other line separators.
    lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        symbol, _, count = line.rstrip().rpartition(" ")
        if not symbol or not count.isdecimal():
            raise ValueError(f"Line {number} of the dictionary {path} is {line!r}, expected `symbol count`.")
        if symbol in counts or symbol in DICTIONARY_SPECIALS:
            repeated.add(symbol)
        counts[symbol] = int(count)
    if repeated:
        raise ValueError(f"The dictionary {path} defines {', '.join(sorted(repeated))} more than once.")
    return counts


def write_counts(path: str | Path, counts: Mapping[str, int]):
    """Writes what `read_counts` reads."""
    Path(path).write_text("".join(f"{symbol} {count}\n" for symbol, count in counts.items()), encoding="utf-8")


def padded_size(num_symbols: int) -> int:
    """Rows of fairseq's four and so many further symbols with the fillers behind them."""
    return -(-(len(DICTIONARY_SPECIALS) + num_symbols) // PADDING_FACTOR) * PADDING_FACTOR


def with_fillers(counts: Mapping[str, int]) -> dict[str, int]:
    """The symbols and as many `madeupwordNNNN` as fairseq adds to them."""
    num_fillers = padded_size(len(counts)) - len(DICTIONARY_SPECIALS) - len(counts)
    return {**counts, **{f"madeupword{i:04d}": 0 for i in range(num_fillers)}}
