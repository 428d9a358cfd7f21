"""Alignments as TextGrid files, which Praat and the tools of phoneticians read."""

from .alignment import Alignment, Segment


def textgrid(alignment: Alignment) -> str:
    """The content of a TextGrid in Praat's long form, with a tier of the words, if there are any, and of the symbols.

    A tier covers the whole recording: where nothing is spoken its intervals are empty.
    """
    tiers = {"words": alignment.words} if alignment.words else {}
    tiers[alignment.unit] = alignment.symbols
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {alignment.num_seconds}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, segments) in enumerate(tiers.items(), start=1):
        intervals = _without_gaps(segments, alignment.num_seconds)
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {alignment.num_seconds}",
            f"        intervals: size = {len(intervals)}",
        ]
        for place, interval in enumerate(intervals, start=1):
            text = interval.text.replace('"', '""')
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {interval.start}",
                f"            xmax = {interval.end}",
                f'            text = "{text}"',
            ]
    return "\n".join(lines) + "\n"


def _without_gaps(segments: list[Segment], num_seconds: float) -> list[Segment]:
    """`segments` and empty ones in between, from 0 to `num_seconds`."""
    intervals, reached = [], 0.0
    for segment in segments:
        if segment.start > reached:
            intervals.append(Segment("", reached, segment.start))
        intervals.append(segment)
        reached = segment.end
    if reached < num_seconds or not intervals:
        intervals.append(Segment("", reached, num_seconds))
    return intervals
