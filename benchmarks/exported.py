"""Exported models: size, latency and errors of 32 and of 8 bits, beside PyTorch, in one run; prints a table.

python -m benchmarks.exported                                                 random weights in the papers' sizes
python -m benchmarks.exported runs/mine-ctc/model --data /my/corpus --split dev

Latency is the median over `--rounds` of one clip of `--seconds`, PyTorch and both graphs in turn. With `--data` the
CER is that of greedy text over `--limit` utterances; without it `agreement` says at which share of the frames the best
symbol is that of PyTorch, which for random weights is only a hint.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import onnxruntime
import torch
from transformers import AutoProcessor

import hf_wav2vec_family as family
from hf_wav2vec_family.export import export_model
from hf_wav2vec_family.export.opening import model_class
from hf_wav2vec_family.export.writing import MODEL, QUANTIZED
from training.sources import Source, open_source

SYMBOLS = {"vocab_size": 32, "pad_token_id": 0}
# what each model is called and makes its configuration of
PAPERS = {
    "cpc": ("CPC", family.CPCConfig),
    "wav2vec": ("Wav2Vec", family.Wav2VecConfig.large),
    "vq-wav2vec": ("VQWav2Vec", family.VQWav2VecConfig),
    "discrete-bert": ("DiscreteBert", family.DiscreteBertConfig),
    "wav2vec2-base": ("Wav2Vec2", family.Wav2Vec2Config),
    "wav2letter": ("Wav2Letter", partial(family.Wav2LetterConfig, criterion="ctc")),
}
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def runners(folder: Path, exported: Path, threads: int) -> dict[str, Run]:
    """PyTorch and both graphs as functions of waveforms [B, S] and mask [B, S] to scores [B, T, V]."""
    model = model_class(folder).from_pretrained(folder).eval()

    @torch.inference_mode()
    def in_torch(waveforms, mask):
        outputs = model(torch.from_numpy(waveforms), attention_mask=torch.from_numpy(mask))
        emissions = outputs.get("emissions")
        return (outputs.logits if emissions is None else emissions).numpy()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    runs = {"torch": in_torch}
    for name, file in (("onnx", MODEL), ("int8", QUANTIZED)):
        session = onnxruntime.InferenceSession(exported / file, options, providers=["CPUExecutionProvider"])
        first = session.get_outputs()[0].name
        runs[name] = lambda waveforms, mask, session=session, first=first: session.run(
            [first], {"input_values": waveforms, "attention_mask": mask}
        )[0]
    return runs


def latencies(runs: dict[str, Run], seconds: float, rounds: int) -> dict[str, float]:
    """Median seconds of each run on one clip, in turn, so that whatever else the machine does falls on all."""
    samples = np.random.default_rng(0).normal(0, 0.1, (1, int(16_000 * seconds))).astype(np.float32)
    mask, measured = np.ones(samples.shape, np.int64), {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run(samples, mask)
            measured[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in measured.items()}


def agreement(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    samples = np.random.default_rng(1).normal(0, 0.1, (1, int(16_000 * seconds))).astype(np.float32)
    best = {name: run(samples, np.ones(samples.shape, np.int64)).argmax(-1) for name, run in runs.items()}
    return {name: float((found == best["torch"]).mean()) for name, found in best.items()}


def character_error_rates(runs: dict[str, Run], folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Greedy CER of each run over the first utterances of a corpus."""
    processor = AutoProcessor.from_pretrained(folder)
    rows = [
        row
        for _, row in zip(
            range(options.limit), open_source(Source(options.data, None, options.split)).rows(), strict=False
        )
    ]
    texts = {name: [] for name in runs}
    from hf_wav2vec_family.audio_reading import read_audio

    for row in rows:
        inputs = processor(read_audio(row.audio, 16_000), sampling_rate=16_000, return_tensors="np")
        waveforms = inputs["input_values"].astype(np.float32)
        mask = np.ones(waveforms.shape, np.int64)
        for name, run in runs.items():
            texts[name].append(processor.batch_decode(run(waveforms, mask).argmax(-1))[0])
    references = [row.text for row in rows]
    upper = [reference.upper() for reference in references] if texts["torch"][0].isupper() else references
    return {name: jiwer.cer(upper, found) for name, found in texts.items()}


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        exported = export_model(folder, Path(temporary), int8=True)
        runs = runners(folder, Path(temporary), options.threads)
        row = {"model": name, "difference": exported.difference}
        row |= {f"mib_{run}": exported.files[file] / 2**20 for run, file in (("onnx", MODEL), ("int8", QUANTIZED))}
        row |= {f"seconds_{run}": value for run, value in latencies(runs, options.seconds, options.rounds).items()}
        judged = character_error_rates(runs, folder, options) if options.data else agreement(runs, options.seconds)
        return row | {f"{'cer' if options.data else 'agreement'}_{run}": value for run, value in judged.items()}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="folders of CTC models; by default random ones")
    parser.add_argument("--only", nargs="+", choices=PAPERS, default=list(PAPERS), help="of the random ones")
    parser.add_argument("--data", help="corpus with transcripts")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
    print(json.dumps({**versions, "threads": options.threads, "clip_seconds": options.seconds}))
    rows = [measure(str(folder), folder, options) for folder in options.models]
    for name in options.only if not options.models else ():
        prefix, configuration = PAPERS[name]
        torch.manual_seed(0)
        model = getattr(family, f"{prefix}ForCTC")(configuration(**SYMBOLS))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            rows.append(measure(name, Path(folder), options))
            print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = [row[column] if isinstance(row[column], str) else f"{row[column]:.4g}" for column in columns]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
