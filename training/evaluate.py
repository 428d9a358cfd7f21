"""Greedy transcription of a data set and its word and character error rates.

python -m training.evaluate runs/mine/model /my/corpus --split test --output runs/mine/test
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from hf_wav2vec_family.decoding.pipeline import blank_padding, min_num_samples, own_class
from hf_wav2vec_family.metrics.cer import CharacterErrorRate
from hf_wav2vec_family.metrics.wer import WordErrorRate

from .data import evaluation_batches
from .sources import Source


@dataclass
class Utterance:
    """One line of the table: what was said and what was heard."""

    id: str
    reference: str
    hypothesis: str
    seconds: float


def load_model(folder: str | Path) -> nn.Module:
    """A CTC model: of this package where it has the class, since padding changes no answer of those."""
    return (own_class(folder) or transformers.AutoModelForCTC).from_pretrained(folder)


def transcribe(model: nn.Module, processor, batches: Iterable[dict], device: torch.device) -> list[Utterance]:
    """Greedy CTC transcripts: the best symbol of each frame, repeats and blanks removed."""
    utterances = []
    model.eval()
    for batch in tqdm(batches, desc="transcribing", unit="batch", leave=False):
        mask = batch["attention_mask"].to(device)
        with torch.no_grad():
            logits = model(batch["input_values"].to(device), attention_mask=mask).logits
        best = blank_padding(logits.argmax(dim=-1), mask, model, processor.tokenizer.pad_token_id)
        seconds = (batch["attention_mask"].sum(dim=-1) / processor.feature_extractor.sampling_rate).tolist()
        rows = zip(batch["ids"], batch["texts"], processor.batch_decode(best), seconds, strict=True)
        utterances += [Utterance(*row) for row in rows]
    return utterances


def score(utterances: list[Utterance]) -> dict[str, float]:
    """WER and CER over all utterances, with their counts."""
    if not utterances:
        raise ValueError("there is nothing to score: the data holds no utterance that could be read.")
    texts = {
        "predictions": [u.hypothesis for u in utterances],
        "references": [u.reference for u in utterances],
    }
    scores = {}
    for name, metric in (("wer", WordErrorRate()), ("cer", CharacterErrorRate())):
        result = metric.compute(**texts)
        scores[name] = result.pop(name)
        scores |= {f"{name}_{count}": value for count, value in result.items()}
    return scores


def evaluate_on(
    sources: list[Source], model: nn.Module, processor, *, batch_seconds: float, text_case: str | None
) -> tuple[list[Utterance], dict]:
    """Transcribes all of `sources` and scores it; clips too short for a frame are left out and counted."""
    batches = evaluation_batches(
        sources,
        processor.feature_extractor,
        batch_seconds=batch_seconds,
        text_case=text_case,
        min_seconds=min_num_samples(model) / processor.feature_extractor.sampling_rate,
    )
    began = time.perf_counter()
    utterances = transcribe(model, processor, batches, next(model.parameters()).device)
    elapsed = time.perf_counter() - began
    seconds = sum(u.seconds for u in utterances)
    return utterances, {
        **score(utterances),
        "num_utterances": len(utterances),
        "audio_seconds": round(seconds, 1),
        "real_time_factor": elapsed / seconds,
        "skipped": {reason: number for reason, number in batches.report.skipped.items() if number},
    }


def write_report(folder: Path, scores: dict, utterances: list[Utterance]):
    """`scores.json` and `utterances.jsonl`, one line per utterance."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    with (folder / "utterances.jsonl").open("w") as file:
        for utterance in utterances:
            file.write(json.dumps(asdict(utterance), ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a CTC model with its processor")
    parser.add_argument("data", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--text-column", help="column of the references, such as phones, if it has another name")
    parser.add_argument("--output", type=Path, help="folder for scores.json and utterances.jsonl")
    parser.add_argument("--text-case", choices=["upper", "lower"])
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    model = load_model(options.model).to(options.device)
    processor = transformers.AutoProcessor.from_pretrained(options.model)
    source = Source(options.data, options.name, options.split, options.text_column)
    utterances, scores = evaluate_on(
        [source], model, processor, batch_seconds=options.batch_seconds, text_case=options.text_case
    )
    print(json.dumps(scores, indent=2))
    if options.output:
        write_report(options.output, scores, utterances)
    return scores


if __name__ == "__main__":
    main()
