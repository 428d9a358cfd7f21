"""Targets as ASG (asg.py) can spell them: repeated symbols as replabels, `ann` -> `an1`, and a token around the whole.

A replabel is a symbol of the alphabet that says how many more times the one before it comes. The first of
`replabel_ids` says once, the next one twice, and so on.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby


def encode_target(
    ids: Sequence[int], replabel_ids: Sequence[int] = (), *, surround: int | None = None, merge: bool = False
) -> list[int]:
    """`ids` with replabels for repeated symbols; longer runs than the last replabel begin anew: `aaaa` -> `a2a`.

    Args:
        surround: symbol put before and behind (wav2letter's `|`: silence) unless it stands there already; an empty
            text becomes one.
        merge: without replabels, make one symbol of a run, as the original does for phones.

    Raises:
        ValueError: `ids` have a replabel already, or a run that nothing can tell from a single symbol.
    """
    ids = list(ids)
    if present := sorted(set(ids) & set(replabel_ids)):
        raise ValueError(f"ids: {present} are replabels, and no symbols of a text.")
    if surround is not None:
        ids = ids if ids[-1:] == [surround] else [*ids, surround]
        ids = ids if ids[0] == surround else [surround, *ids]
    longest, encoded = 1 + len(replabel_ids), []
    for symbol, run in groupby(ids):
        length = len(list(run))
        if length > 1 and longest == 1 and not merge:
            raise ValueError(
                f"ids: {symbol} comes {length} times in a row, which ASG can't tell from one that lasts; expected"
                " replabel_ids, or merge=True to make them one."
            )
        for rest in range(length, 0, -longest) if longest > 1 else [1]:
            encoded += [symbol] if rest == 1 else [symbol, replabel_ids[min(rest, longest) - 2]]
    return encoded


def decode_path(path: Iterable[int], replabel_ids: Sequence[int] = (), *, surround: int | None = None) -> list[int]:
    """The symbols that a path of frames (or an encoded target) spells: runs merged, replabels written out.

    Anything below 0 is padding. A replabel with no symbol before it to repeat says nothing and is left out; so is
    `surround` at either end.
    """
    times = {symbol: i for i, symbol in enumerate(replabel_ids, start=1)}
    symbols = [symbol for symbol, _ in groupby(path) if symbol >= 0]
    decoded: list[int] = []
    for before, symbol in zip([None, *symbols], symbols, strict=False):
        if symbol not in times:
            decoded.append(symbol)
        elif before is not None and before not in times:
            decoded += [before] * times[symbol]
    if surround is not None:
        while decoded[:1] == [surround]:
            del decoded[0]
        while decoded[-1:] == [surround]:
            del decoded[-1]
    return decoded
