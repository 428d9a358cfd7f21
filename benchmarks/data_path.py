"""What the way from a file to a batch costs, in processor time, and how a stream of very many rows behaves.

python -m benchmarks.data_path decode --speech /my/corpus
python -m benchmarks.data_path stream --kind parquet --rows 1000000
python -m benchmarks.data_path padding

`decode` writes clips in every format and at every rate, reads them as pre-training does (decoding, resampling,
normalising, cropping, batches), and prints how many hours of audio come out per second of one core, beside what one
GPU could consume: `--gpu` is that rate in seconds of audio per second. `stream` writes shards of tiny clips and plans
two epochs of them; it prints the memory on the way, the seconds to the first batch from the start and from the middle,
and the correlation of the places that rows have in the two epochs (a full shuffle: 0, with a deviation of
1 / sqrt(rows)). `padding` plans an epoch of clips as long as LibriSpeech's and prints which share of the batches is
padding and, where batches are cut to their shortest clip, which share of the audio is cut away, for batches and
windows of the recipes, with lengths for compiling and without.
"""

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import soxr
import transformers

from hf_wav2vec_family.audio_reading import read_audio
from training.data import pretraining_batches
from training.dealing import Deal, RankState
from training.machine import commit_hash, processor_name
from training.planning import BatchSettings, Planner
from training.recipe import COMPILED_LENGTH_STEP_SECONDS
from training.rows import SUFFIXES
from training.sources import RowSource, Source, open_source

RATE = 16_000
ENCODINGS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", None)}
ROWS_PER_FILE, ROWS_PER_GROUP = 10_000, 100
# shares of the training clips, and how long they are at most
LIBRISPEECH_SECONDS = (
    (0.0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375, 1.0),
    (1.4, 2.5, 5.0, 9.0, 12.0, 13.5, 14.5, 15.2, 16.0, 17.0),
)


def process_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def clips(options: argparse.Namespace) -> list[np.ndarray]:
    """Waveforms [S] at `RATE`: speech of a folder, or noise as long as LibriSpeech's clips are."""
    if options.speech:
        paths = sorted(path for path in options.speech.rglob("*") if path.suffix in SUFFIXES["audio"])
        chosen = np.linspace(0, len(paths) - 1, options.clips).astype(int)
        return [read_audio(paths[number], RATE) for number in chosen]
    generator = np.random.default_rng(0)
    return [noise(generator, seconds) for seconds in librispeech_durations(generator, options.clips)]


def librispeech_durations(generator: np.random.Generator, num_clips: int) -> np.ndarray:
    return np.interp(generator.uniform(size=num_clips), *LIBRISPEECH_SECONDS)


def noise(generator: np.random.Generator, seconds: float) -> np.ndarray:
    """Under a slow envelope, which a codec finds about as hard as speech."""
    envelope = np.repeat(generator.uniform(0, 0.2, int(seconds * 10) + 1), RATE // 10)[: int(seconds * RATE)]
    clip = np.cumsum(generator.standard_normal(len(envelope))) * 0.05
    return envelope * np.clip(clip - np.convolve(clip, np.ones(64) / 64, mode="same"), -1, 1)


def write_clips(folder: Path, encoding: str, rate: int, waveforms: Iterable[np.ndarray]):
    container, subtype = ENCODINGS[encoding]
    for number, waveform in enumerate(waveforms):
        resampled = soxr.resample(waveform, RATE, rate)
        soundfile.write(folder / f"{number:04d}.{encoding}", resampled, rate, format=container, subtype=subtype)


def decode(options: argparse.Namespace):
    """Prints a Markdown row per encoding and rate, and writes them as JSON."""
    feature_extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waveforms = clips(options)
    settings = {"batch_seconds": options.batch_seconds, "max_seconds": 15.6, "min_seconds": 1.0, "num_epochs": 1}
    seconds = sum(map(len, waveforms)) / RATE
    about = {
        "commit": commit_hash(),
        "processor": processor_name(),
        "of": "speech" if options.speech else "noise",
        "clips": len(waveforms),
        "seconds": round(seconds),
    }
    cases = []
    print("| format | Hz | kbit/s | cut away, % | hours per second of a core | cores for one GPU |\n|" + " --- |" * 6)
    for encoding, rate in product(options.formats, options.rates):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_clips(folder, encoding, rate, waveforms)
            num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            batches = pretraining_batches(str(folder), feature_extractor, **settings)
            num_samples = sum(batch["input_values"].numel() for batch in batches)  # that are left when clips are cut
            rounds = [process_seconds(lambda batches=batches: list(batches)) for _ in range(options.rounds)]
        per_core = num_samples / RATE / 3600 / float(np.median(rounds))
        case = {
            "format": encoding,
            "rate": rate,
            "kbit_per_second": round(num_bytes * 8 / 1000 / seconds),
            "cut_away_percent": round(100 * (1 - num_samples / RATE / seconds), 1),
            "hours_per_second_per_core": round(per_core, 3),
            "cores_for_one_gpu": round(options.gpu / 3600 / per_core, 1),
        }
        cases.append(case)
        print("|", " | ".join(map(str, case.values())), "|", flush=True)
        if options.output:
            found = {**about, "load": os.getloadavg()[0], "cases": cases}
            options.output.write_text(json.dumps(found, indent=1) + "\n")


def write_shards(folder: Path, kind: str, durations: np.ndarray):
    """Clips of 50 samples that say they last `durations`, in seconds, `ROWS_PER_FILE` a file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(50), RATE, format="WAV")
    clip = buffer.getvalue()
    for begin in range(0, len(durations), ROWS_PER_FILE):
        said = durations[begin : begin + ROWS_PER_FILE].round(2).tolist()
        names = [str(begin + number) for number in range(len(said))]
        path = folder / f"train-{begin // ROWS_PER_FILE:05d}.{kind}"
        (write_parquet if kind == "parquet" else write_tar)(path, names, said, clip)


def write_parquet(path: Path, names: list[str], durations: list[float], clip: bytes):
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = pa.StructArray.from_arrays(
        [pa.array([clip] * len(names)), pa.nulls(len(names), pa.string())], ["bytes", "path"]
    )
    table = pa.table({"id": names, "audio": audio, "duration": durations})
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)


def write_tar(path: Path, names: list[str], durations: list[float], clip: bytes):
    with tarfile.open(path, "w") as tar:
        for name, duration in zip(names, durations, strict=True):
            for suffix, content in (("wav", clip), ("json", json.dumps({"duration": duration}).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def resident_mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def seconds_to_first(source, settings: BatchSettings, state: RankState) -> dict[str, float]:
    """Wall clock and processor time until the first batch is planned, opening the source included."""
    began, began_process = time.perf_counter(), time.process_time()
    next(iter(Planner([open_source(source)], settings, state)))
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "process_seconds": round(time.process_time() - began_process, 2),
    }


def stream(options: argparse.Namespace):
    """Prints one line."""
    settings = BatchSettings(batch_seconds=160, max_seconds=20.0, crop=True, shuffle_window=options.window)
    start = state = RankState(Deal(1))
    places = np.zeros((2, options.rows), dtype=np.int32)
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), options.kind, np.random.default_rng(0).uniform(1, 20, options.rows))
        source, memory, counts, middle = Source(name), [], [0, 0], None
        began = time.process_time()
        for plan in Planner([open_source(source)], settings, start):
            state = state.after(plan.index, plan.following)
            for planned in plan.rows:
                if planned.epoch < 2:
                    places[planned.epoch, int(planned.row.id)] = counts[planned.epoch]
                    counts[planned.epoch] += 1
            if len(memory) < 20 * sum(counts) // (2 * options.rows):
                memory.append(round(resident_mebibytes()))
            if middle is None and counts[0] >= options.rows // 2:
                middle = state
            if plan.epoch > 1:
                break
        spent = time.process_time() - began
        found = {
            "kind": options.kind,
            "rows": options.rows,
            "shuffle_window": options.window,
            "rows_per_second_per_core": round(2 * options.rows / spent),
            "resident_mebibytes": memory,
            "from_the_start": seconds_to_first(source, settings, start),
            "from_the_middle": seconds_to_first(source, settings, middle),
            "state_bytes": len(json.dumps(middle.as_dict())),
            "every_row_once": counts == [options.rows] * 2 and all(len(np.unique(p)) == options.rows for p in places),
            "correlation_between_epochs": round(float(np.corrcoef(places)[0, 1]), 4),
            "correlation_with_the_source": round(float(np.corrcoef(places[0], np.arange(options.rows))[0, 1]), 4),
            "neighbours_that_stay_within_a_window": round(share_of_close_neighbours(places, options.window), 4),
        }
    print(json.dumps(found))


def share_of_close_neighbours(places: np.ndarray, window: int) -> float:
    """Of rows that follow each other in the first epoch, the share that is less than a window apart in the second."""
    second = places[1][np.argsort(places[0])]
    return float(np.mean(np.abs(np.diff(second)) < window))


def padding(options: argparse.Namespace):
    """Prints a Markdown row for each setting."""
    generator = np.random.default_rng(0)
    durations = librispeech_durations(generator, options.rows)
    print("| batch, s | window | length step, s | lengths | padding, % | cut away, % |\n|" + " --- |" * 6)
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), "parquet", durations)
        source = open_source(Source(name))
        for batch_seconds, window, step in product(options.batch_seconds, options.windows, (0.0, options.step)):
            settings = BatchSettings(
                batch_seconds=batch_seconds,
                max_seconds=15.6,
                shuffle_window=window,
                length_step_seconds=step,
                num_epochs=1,
            )
            cropped = plan_epoch(source, replace(settings, crop=True))
            padded = plan_epoch(source, replace(settings, max_seconds=20.0))
            cells = [batch_seconds, window, step, cropped.num_lengths, padded.lost_share, cropped.lost_share]
            print("|", " | ".join(f"{cell:.3g}" for cell in cells), "|", flush=True)


@dataclass(frozen=True)
class PlannedEpoch:
    """How many lengths the batches of an epoch have, and the percentage of them that is padding or cut away."""

    num_lengths: int
    lost_share: float


def plan_epoch(source: RowSource, settings: BatchSettings) -> PlannedEpoch:
    lengths, of_rows, of_batches = set(), 0.0, 0.0
    choose = min if settings.crop else max
    for plan in Planner([source], settings, RankState(Deal(1))):
        seconds = choose(planned.seconds for planned in plan.rows)
        lengths.add(round(seconds, 3))
        of_batches += seconds * len(plan.rows)
        of_rows += sum(min(planned.row.duration_seconds, settings.longest_seconds) for planned in plan.rows)
    lost = (of_rows - of_batches) / of_rows if settings.crop else (of_batches - of_rows) / of_batches
    return PlannedEpoch(len(lengths), 100 * lost)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    decoding = commands.add_parser("decode")
    decoding.add_argument("--speech", type=Path, help="folder of audio files to take clips from")
    decoding.add_argument("--formats", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    decoding.add_argument("--rates", type=int, nargs="+", default=[RATE, 48_000], help="Hz of the files")
    decoding.add_argument("--clips", type=int, default=100)
    decoding.add_argument("--batch-seconds", type=float, default=87.5)
    decoding.add_argument("--rounds", type=int, default=3)
    decoding.add_argument("--gpu", type=float, default=15_900, help="wav2vec 2.0 BASE at the floor of an H200")
    decoding.add_argument("--output", type=Path, help="JSON of all that was measured")
    decoding.set_defaults(run=decode)
    streaming = commands.add_parser("stream")
    streaming.add_argument("--kind", choices=["parquet", "tar"], default="parquet")
    streaming.add_argument("--rows", type=int, default=1_000_000)
    streaming.add_argument("--window", type=int, default=1000)
    streaming.set_defaults(run=stream)
    lengths = commands.add_parser("padding")
    lengths.add_argument("--rows", type=int, default=20_000)
    lengths.add_argument("--batch-seconds", type=float, nargs="+", default=[87.5, 160.0])
    lengths.add_argument("--windows", type=int, nargs="+", default=[500, 1000, 2048])
    lengths.add_argument("--step", type=float, default=COMPILED_LENGTH_STEP_SECONDS, help="s, of compiled lengths")
    lengths.set_defaults(run=padding)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
