"""What can be wrong with the data of a run and the way it takes: sound, broken rows, waiting."""

from statistics import median

from .findings import HEALTHY, NOTE, STOP, WARNING, Finding, Window


def silent_audio(window: Window) -> Finding | None:
    share = window.above_healthy("silent_share", 1)
    if share is None:
        return None
    return Finding(
        "silent audio",
        STOP if share > 0.9 else WARNING,
        f"{share:.0%} of the clips are silent (below -80 dB as they were recorded).",
        "an empty channel, files that were cut or converted wrongly, or long pauses between utterances.",
        "listen to some rows of data.train; leave silent files out, cut pauses, choose the channel that speaks.",
    )


def offset(window: Window) -> Finding | None:
    share = window.above_healthy("input_offset")
    if share is None:
        return None
    return Finding(
        "constant offset",
        WARNING,
        f"the mean of a clip is {share:.0%} of its level: the waveform does not swing around 0.",
        "a recorder with a DC offset, or unsigned samples read as signed.",
        "convert the corpus with a high-pass filter (20 Hz); a model of normalised input"
        " (model.feat_extract_norm=layer) hears no offset.",
    )


def input_level(window: Window) -> Finding | None:
    level, silent = window.last("input_rms"), window.last("silent_share")
    low, high = HEALTHY["input_rms"]
    if level is None or low <= level <= high or (silent or 0.0) > 0.5:
        return None
    return Finding(
        "input level",
        WARNING,
        f"clips have a level of {level:.3g}; speech of full scale 1 has 0.01 to 0.3.",
        "samples that are not scaled to -1..1 (integers as floats)." if level > 1 else "a recording far too quiet.",
        "scale the corpus; to a model of normalised input (model.feat_extract_norm=layer) the level does not matter,"
        " but noise of a quiet recording does.",
    )


def starved(window: Window) -> Finding | None:
    share = window.above_healthy("data_wait_share")
    if share is None:
        return None
    return Finding(
        "waiting for data",
        WARNING,
        f"{share:.0%} of the time the device waits for the next batch.",
        "too few processes decode, or the disk or the network is too slow.",
        "raise data.num_workers; keep the corpus on a local disk; flac or wav instead of mp3; 16 kHz.",
    )


def slowed_down(window: Window) -> Finding | None:
    rates = window.values("audio_seconds_per_second")
    if len(rates) < 8 or not median(rates[-3:]) < 0.4 * median(rates[:-3]):
        return None
    return Finding(
        "slowed down",
        NOTE,
        f"{median(rates[-3:]):.3g} s of audio per second where {median(rates[:-3]):.3g} was usual.",
        "something else on the machine, a device that throttles, a full disk, or a stalled network.",
        "look at data_wait_share: where it rose too, at the data; else at the machine.",
    )


def is_stall(seconds: float, before: list[float]) -> bool:
    """Whether the seconds between two lines of a log, of which those `before` took as many, are no healthy clock's."""
    return seconds <= 0 or (len(before) >= 5 and seconds > max(10 * median(before), 60.0))


def stalled(window: Window) -> Finding | None:
    seconds = window.training[-1].get("stall_seconds")
    if seconds is None:
        return None
    return Finding(
        "the clock stood still",
        NOTE,
        f"{seconds:.3g} s passed between the last two lines of the log, unlike before.",
        "a machine that was suspended or moved, a clock that was set, or a disk, a network or another process that did"
        " not answer for a while.",
        "rates of this line mean nothing, and no step is lost; if it comes back, look at the machine and its disks.",
    )


def bad_rows(window: Window) -> Finding | None:
    share, limit = window.last("bad_row_share", 1), window.facts.max_bad_fraction
    if share is None or share == 0 or share < 0.25 * (limit or 0.0):
        return None
    return Finding(
        "broken rows",
        WARNING,
        f"{share:.2%} of the rows cannot be read; the run stops above data.max_bad_fraction"
        + (f" = {limit:.2%}." if limit is not None else "."),
        "a shard that is corrupt or was copied in part.",
        "the log names them ('left out (bad)'): copy those shards again, or leave them out of data.train.",
    )
