"""Transcription of a data set, greedy or with a decoder, and its word and character, or phone, error rates.

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

from hf_wav2vec_family.decoding.beam_search import BeamSearchDecoder
from hf_wav2vec_family.decoding.decoder_folder import load_decoder
from hf_wav2vec_family.decoding.emissions import frame_scores, transitions_of
from hf_wav2vec_family.decoding.pipeline import own_class
from hf_wav2vec_family.decoding.spelling import CASES, letter_case, writes_phones
from hf_wav2vec_family.frame_places import blank_padding, min_num_samples
from hf_wav2vec_family.metrics.bootstrap import confidence_interval
from hf_wav2vec_family.metrics.cer import CharacterErrorRate
from hf_wav2vec_family.metrics.per import PhoneErrorRate
from hf_wav2vec_family.metrics.wer import WordErrorRate
from hf_wav2vec_family.phones import TIMIT_39, TIMIT_48, TIMIT_61, timit_map

from .data import evaluation_batches
from .sources import Source, open_source
from .summarize import table


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


def transcribe(
    model: nn.Module,
    processor,
    batches: Iterable[dict],
    device: torch.device,
    decoder: BeamSearchDecoder | None = None,
) -> list[Utterance]:
    """Transcripts: those of `decoder`, or greedy ones, the best symbol of each frame, repeats and blanks removed."""
    utterances = []
    model.eval()
    for batch in tqdm(batches, desc="transcribing", unit="batch", leave=False):
        mask = batch["attention_mask"].to(device)
        with torch.no_grad():
            outputs = model(batch["input_values"].to(device), attention_mask=mask)
        if decoder is None:
            best = blank_padding(outputs.logits.argmax(dim=-1), mask, model, processor.tokenizer.pad_token_id)
            texts = processor.batch_decode(best)
        else:
            lengths = model._get_feat_extract_output_lengths(mask.sum(dim=-1)).tolist()
            rows = zip(frame_scores(outputs), lengths, strict=True)
            texts = [decoder.decode(emissions[:length])[0].text for emissions, length in rows]
        seconds = (batch["attention_mask"].sum(dim=-1) / processor.feature_extractor.sampling_rate).tolist()
        rows = zip(batch["ids"], batch["texts"], texts, seconds, strict=True)
        utterances += [Utterance(*row) for row in rows]
    return utterances


def score(utterances: list[Utterance], tokenizer=None) -> dict[str, float | list[float]]:
    """WER and CER over all utterances, or PER where the symbols of `tokenizer` are phones, with their counts.

    `wer_interval` and the like are 95 % confidence intervals over utterances. Phones of TIMIT are scored as 39.
    """
    if not utterances:
        raise ValueError("there is nothing to score: the data holds no utterance that could be read.")
    texts = {
        "predictions": [u.hypothesis for u in utterances],
        "references": [u.reference for u in utterances],
    }
    if tokenizer is not None and writes_phones(tokenizer):
        phone_map = phone_map_of(tokenizer)
        if phone_map is not None:
            # a phone that the model does not have is one that it gets wrong
            phone_map = {**{phone: phone for text in texts["references"] for phone in text.split()}, **phone_map}
        results = {"per": PhoneErrorRate().compute(**texts, phone_map=phone_map, per_clip=True)}
    else:
        metrics = {"wer": WordErrorRate(), "cer": CharacterErrorRate()}
        results = {name: metric.compute(**texts, per_clip=True) for name, metric in metrics.items()}
    scores = {}
    for name, result in results.items():
        scores[name] = result.pop(name)
        errors, lengths = result.pop("clip_errors"), result.pop("clip_lengths")
        if any(lengths):
            scores[f"{name}_interval"] = list(confidence_interval(errors, lengths))
        scores |= {f"{name}_{count}": value for count, value in result.items()}
    return scores


def phone_map_of(tokenizer) -> dict[str, str | None] | None:
    """How phones are scored: those of TIMIT as 39, those of any other set as they are."""
    special = set(tokenizer.all_special_tokens)
    if set(tokenizer.get_vocab()) - special not in (set(TIMIT_39), set(TIMIT_48), set(TIMIT_61)):
        return None
    return {**timit_map(), **{token: token for token in special}}


def evaluate_on(
    sources: list[Source],
    model: nn.Module,
    processor,
    *,
    batch_seconds: float,
    text_case: str | None,
    max_bad_fraction: float = 0.01,
    decoder: BeamSearchDecoder | None = None,
) -> tuple[list[Utterance], dict]:
    """Transcribes all of `sources` and scores it; clips too short for a frame are left out and counted."""
    batches = evaluation_batches(
        sources,
        processor.feature_extractor,
        batch_seconds=batch_seconds,
        text_case=text_case,
        min_seconds=min_num_samples(model) / processor.feature_extractor.sampling_rate,
        max_bad_fraction=max_bad_fraction,
    )
    began = time.perf_counter()
    utterances = transcribe(model, processor, batches, next(model.parameters()).device, decoder)
    elapsed = time.perf_counter() - began
    seconds = sum(u.seconds for u in utterances)
    return utterances, {
        **score(utterances, processor.tokenizer),
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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a CTC model with its processor")
    parser.add_argument("data", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--text-column", help="column of the references, such as phones, if it has another name")
    parser.add_argument("--output", type=Path, help="folder for scores.json, scores.md and utterances.jsonl")
    parser.add_argument("--decoder", metavar="FOLDER", help="of a beam search with its weights; greedy unless told")
    parser.add_argument("--text-case", choices=CASES, help="of texts; that of the model's letters unless told")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    options = parse_arguments(arguments)
    model = load_model(options.model).to(options.device)
    processor = transformers.AutoProcessor.from_pretrained(options.model)
    source = Source(options.data, options.name, options.split, options.text_column)
    decoder = None
    if options.decoder:
        decoder = load_decoder(options.decoder, processor.tokenizer, transitions_of(model))
    utterances, scores = evaluate_on(
        [source],
        model,
        processor,
        batch_seconds=options.batch_seconds,
        text_case=options.text_case or letter_case(processor.tokenizer),
        decoder=decoder,
    )
    print(json.dumps(scores, indent=2))
    if options.output:
        # push_to_hub makes results of them, which are nothing without the data they are on
        data = {**asdict(source), "kind": open_source(source).kind}
        decoding = "beam search" if decoder else "greedy"
        write_report(options.output, {**scores, "source": data, "decoding": decoding}, utterances)
        (options.output / "scores.md").write_text(table([scores], f"{options.model}, {decoding}") + "\n")
    return scores


if __name__ == "__main__":
    main()
