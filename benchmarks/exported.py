"""Exported models: size, latency and errors of 32 and of 8 bits, beside PyTorch, in one run; prints a table.

python -m benchmarks.exported                                                 random weights in the papers' sizes
python -m benchmarks.exported runs/mine-ctc/model --data /my/corpus --split dev

Latency is the median over `--rounds` of one clip of `--seconds`, PyTorch and both graphs in turn, each with a mask of
ones; of wav2vec 2.0 Transformers' own model, with the same weights, is a column beside ours. `agreement` is the
share of frames whose best symbol is that of PyTorch: of the utterances of a corpus, whose greedy text gives the CER
too, or of a clip of noise, which with random weights is only a hint.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import onnxruntime
import torch
import transformers
from transformers import AutoProcessor, PreTrainedModel

import hf_wav2vec_family as family
from hf_wav2vec_family.audio_reading import read_audio
from hf_wav2vec_family.decoding.emissions import frame_scores
from hf_wav2vec_family.decoding.spelling import letter_case
from hf_wav2vec_family.export import export_model
from hf_wav2vec_family.export.opening import model_class
from hf_wav2vec_family.export.writing import MODEL, QUANTIZED
from training.collators import normalized_text
from training.sources import Source, open_source

from .comparing import circumstances, now, options_of, prepare

SAMPLING_RATE = 16_000
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
# waveform [1, S] -> scores [1, T, V]
Run = Callable[[np.ndarray], np.ndarray]


def runners(folder: Path, exported: Path, threads: int) -> dict[str, Run]:
    """PyTorch, Transformers' PyTorch where it has the model, and both graphs."""
    kind = model_class(folder)
    runs = {"torch": partial(in_torch, kind.from_pretrained(folder).eval())}
    if kind is family.Wav2Vec2ForCTC:
        peer = transformers.Wav2Vec2ForCTC.from_pretrained(folder, attn_implementation="sdpa")
        runs["transformers"] = partial(in_torch, peer.eval())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    for name, file in (("onnx", MODEL), ("int8", QUANTIZED)):
        session = onnxruntime.InferenceSession(exported / file, options, providers=["CPUExecutionProvider"])
        runs[name] = partial(in_graph, session)
    return runs


@torch.inference_mode()
def in_torch(model: PreTrainedModel, waveform: np.ndarray) -> np.ndarray:
    attention_mask = torch.ones(waveform.shape, dtype=torch.long)
    return frame_scores(model(torch.from_numpy(waveform), attention_mask=attention_mask)).numpy()


def in_graph(session: onnxruntime.InferenceSession, waveform: np.ndarray) -> np.ndarray:
    first = session.get_outputs()[0].name
    return session.run([first], {"input_values": waveform, "attention_mask": np.ones(waveform.shape, np.int64)})[0]


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (1, int(SAMPLING_RATE * seconds))).astype(np.float32)


def latencies(runs: dict[str, Run], seconds: float, rounds: int) -> dict[str, float]:
    """Median seconds of each run on one clip, in turn, so that whatever else the machine does falls on all."""
    waveform, measured = noise(seconds), {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = now()
            run(waveform)
            measured[name].append(now() - began)
    return {f"seconds_{name}": statistics.median(times[1:]) for name, times in measured.items()}


def agreement(best: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Of the symbols [T] that each run finds best in each clip."""
    joined = {name: np.concatenate(symbols) for name, symbols in best.items()}
    others = [name for name in joined if name != "torch"]
    return {f"agreement_{name}": float((joined[name] == joined["torch"]).mean()) for name in others}


def on_noise(runs: dict[str, Run], seconds: float) -> dict[str, float]:
    return agreement({name: [run(noise(seconds))[0].argmax(-1)] for name, run in runs.items()})


def on_corpus(runs: dict[str, Run], folder: Path, corpus: str, options: argparse.Namespace) -> dict[str, float]:
    """Greedy CER of each run over the first utterances of a corpus, in the case of the model's letters."""
    processor = AutoProcessor.from_pretrained(folder)
    rows = list(itertools.islice(open_source(Source(corpus, None, options.split)).rows(), options.limit))
    best = {name: [] for name in runs}
    for row in rows:
        inputs = processor(read_audio(row.audio, SAMPLING_RATE), sampling_rate=SAMPLING_RATE, return_tensors="np")
        for name, run in runs.items():
            best[name].append(run(inputs["input_values"].astype(np.float32))[0].argmax(-1))
    references = [normalized_text(row.text, letter_case(processor.tokenizer)) for row in rows]
    texts = {name: processor.batch_decode(symbols) for name, symbols in best.items()}
    return {f"cer_{name}": jiwer.cer(references, found) for name, found in texts.items()} | agreement(best)


def measure(name: str, folder: Path, corpus: str | None, options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        exported = export_model(folder, Path(temporary), int8=True)
        runs = runners(folder, Path(temporary), options.threads)
        row = {"model": name, "difference": exported.difference}
        row |= {f"mb_{run}": exported.files[file] / 1e6 for run, file in (("onnx", MODEL), ("int8", QUANTIZED))}
        row |= latencies(runs, options.seconds, options.rounds)
        row |= on_corpus(runs, folder, corpus, options) if corpus else on_noise(runs, options.seconds)
    print(json.dumps(row), flush=True)
    return row


def random_model(name: str, options: argparse.Namespace) -> dict:
    prefix, configuration = PAPERS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        getattr(family, f"{prefix}ForCTC")(configuration(**SYMBOLS)).save_pretrained(folder)
        return measure(name, Path(folder), None, options)


def main():
    parser = options_of(__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="folders of CTC models; by default random ones")
    parser.add_argument("--only", nargs="+", choices=PAPERS, default=list(PAPERS), help="of the random ones")
    parser.add_argument("--data", help="corpus with transcripts")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--limit", type=int, default=100, help="of its utterances")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    prepare(options)
    about = {**circumstances(options), "onnxruntime": onnxruntime.__version__, "clip_seconds": options.seconds}
    rows = [measure(str(folder), folder, options.data, options) for folder in options.models]
    rows += [] if options.models else [random_model(name, options) for name in options.only]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        values = [row.get(column, "") for column in columns]
        cells = [value if isinstance(value, str) else f"{value:.4g}" for value in values]
        print("| " + " | ".join(cells) + " |")
    if options.output:
        options.output.write_text(json.dumps({**about, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
