"""Hours of speech: time and memory of timestamps as a recording grows, and what hearing it in chunks changes.

python -m benchmarks.long_audio runs/mine/model /my/corpus --split dev --minutes 1 10 60 --whole-minutes 10

Recordings are the clips of a corpus one after another, over and over. Each is timed in a process of its own, whose
largest memory is printed; the peer is the same model that hears all of a recording at once. What it says differs by
what attention does not reach, and with --norm-statistics chunk by the norms over time.
"""

import argparse
import multiprocessing
import resource
import time
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import cycle
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from hf_wav2vec_family.audio_reading import read_audio
from hf_wav2vec_family.decoding.alignment import Aligner, Alignment
from training.sources import Source, open_source

RATE = 16_000
MIN_RUN = 5


@dataclass
class Timing:
    """Seconds it took, MiB of the process before the recording was read and at most, and what was found."""

    seconds: float
    before_mib: float
    peak_mib: float
    alignment: Alignment


def write_recording(path: Path, source: Source, minutes: float):
    """As many clips of a corpus as last so long."""
    with soundfile.SoundFile(str(path), "w", samplerate=RATE, channels=1) as file:
        for row in cycle(list(open_source(source).rows())):
            left = round(60 * minutes * RATE) - file.tell()
            if left <= 0:
                return
            file.write(read_audio(row.audio, RATE)[:left])


def run(model: str, recording: Path, chunk_seconds: float | None, norm_statistics: str | None) -> Timing:
    """Words and letters of a recording, as the model hears them."""
    aligner = Aligner.from_pretrained(model, chunk_seconds=chunk_seconds, norm_statistics=norm_statistics)
    aligner(np.zeros(2 * RATE, dtype=np.float32))
    before, began = _peak_mib(), time.perf_counter()
    alignment = aligner(recording)
    return Timing(time.perf_counter() - began, before, _peak_mib(), alignment)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*arguments) -> Timing:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


def differences(one: Alignment, other: Alignment) -> np.ndarray:
    """[N], how far apart the starts of N symbols are that both heard, in seconds.

    Where less than `MIN_RUN` symbols are alike in a row they may be others of the same name; so may those that are
    next to what only one heard, which don't count.
    """
    texts = [[segment.text for segment in alignment.symbols] for alignment in (one, other)]
    matcher = SequenceMatcher(None, *texts, autojunk=False)
    pairs = []
    for i, j, size in matcher.get_matching_blocks():
        first = 0 if i == j == 0 else 1
        last = size if (i + size, j + size) == (len(texts[0]), len(texts[1])) else size - 1
        if size >= MIN_RUN:
            pairs += [(i + k, j + k) for k in range(first, last)]
    return np.array([abs(one.symbols[i].start - other.symbols[j].start) for i, j in pairs])


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a model trained with CTC or ASG, with its processor")
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60])
    parser.add_argument("--whole-minutes", type=float, help="hear a recording of this length at once, too")
    parser.add_argument("--chunk-seconds", type=float, default=30.0)
    parser.add_argument("--norm-statistics", choices=["recording", "chunk"], help="as the model has them unless told")
    parser.add_argument("--folder", type=Path, default=Path("runs/long_audio"), help="for the recordings")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    source = Source(options.corpus, split=options.split)
    print("| minutes | chunks | seconds | x real time | memory, MiB | of it beyond the model's |")
    print("| --- | --- | --- | --- | --- | --- |")
    wanted = [(minutes, options.chunk_seconds) for minutes in options.minutes]
    if options.whole_minutes is not None:
        wanted += [(options.whole_minutes, options.chunk_seconds), (options.whole_minutes, None)]
    found = {}
    for minutes, chunk in tqdm(dict.fromkeys(wanted)):
        recording = options.folder / f"{minutes:g}.wav"
        write_recording(recording, source, minutes)
        timing = found[minutes, chunk] = in_own_process(options.model, recording, chunk, options.norm_statistics)
        speed = 60 * minutes / timing.seconds
        beyond = timing.peak_mib - timing.before_mib
        title = "whole" if chunk is None else f"{chunk:g} s"
        print(f"| {minutes:g} | {title} | {timing.seconds:.1f} | {speed:.1f} | {timing.peak_mib:.0f} | {beyond:.0f} |")
    if options.whole_minutes is not None:
        one, other = (found[options.whole_minutes, chunk].alignment for chunk in (options.chunk_seconds, None))
        apart = differences(one, other)
        print(
            f"\n{len(apart)} of {len(other.symbols)} symbols are heard alike in chunks and at once, inside of what"
            " both hear; their starts are"
            f" {np.mean(apart < 1e-6):.2%} the same, {np.mean(apart < 0.0201):.2%} within 20 ms, and at most"
            f" {1000 * apart.max():.1f} ms apart."
        )


if __name__ == "__main__":
    main()
