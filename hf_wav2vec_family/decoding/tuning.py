"""Weights of a beam search found on a development set: those with the fewest wrong words.

The frames of the set are computed once; then settings are tried, half of them drawn evenly from `RANGES`, half around
the best so far, closer and closer, all from one seed. Afterwards larger beams, and the weight of a causal language
model on the n-best lists of the best setting. Equal settings give equal errors, so what is stored reproduces.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCTC, AutoProcessor, PreTrainedModel

from ..audio_reading import read_audio
from .arpa import ArpaModel
from .beam_search import BeamSearchDecoder, BeamSettings
from .decoder_folder import FOLDER, save_decoder
from .emissions import frame_scores, transitions_of
from .lexicon import read_lexicon, spell_words
from .rescoring import CausalLanguageModel
from .spelling import CASES, in_case, letter_case

# Where weights are looked for. Units are those of beam_search.py.
RANGES = {"lm_weight": (0.0, 6.0), "word_score": (-4.0, 4.0), "silence_score": (-2.0, 2.0)}
RESCORING_WEIGHTS = np.linspace(0.0, 5.0, 51)


@dataclass
class Spoken:
    """One utterance: what was said, and its emissions [T, V]."""

    reference: str
    emissions: Tensor


@dataclass
class Trial:
    """A setting, and how many of the words and letters it gets wrong."""

    settings: BeamSettings
    word_errors: int
    letter_errors: int

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.word_errors, self.letter_errors, self.settings.beam_size


@dataclass
class Tuning:
    """The best setting and its word error rate, what no language model gives, and all trials in order."""

    settings: BeamSettings
    wer: float
    wer_without_language_model: float
    trials: list[Trial]


def errors(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[int, int]:
    """Wrong words and wrong letters: substitutions, insertions and deletions."""
    import jiwer

    results = [measure(references, hypotheses) for measure in (jiwer.process_words, jiwer.process_characters)]
    words, letters = (result.substitutions + result.insertions + result.deletions for result in results)
    return words, letters


def tune(
    decoder: BeamSearchDecoder,
    spoken: Sequence[Spoken],
    *,
    beam_sizes: Sequence[int] = (50,),
    num_trials: int = 40,
    seed: int = 0,
) -> Tuning:
    """The best of `num_trials` settings with the first of `beam_sizes`, then the best of these beams.

    Raises:
        ValueError: nothing was said.
    """
    references = [one.reference for one in spoken]
    num_words = sum(len(reference.split()) for reference in references)
    if not num_words:
        raise ValueError("spoken: expected utterances with words, got none.")
    names = _tunable(decoder)
    generator, trials = np.random.default_rng(seed), []
    plain = replace(decoder.settings, beam_size=beam_sizes[0], rescoring_weight=0.0, **dict.fromkeys(names, 0.0))

    def attempt(settings: BeamSettings) -> Trial:
        search = decoder.with_settings(settings)
        trials.append(Trial(settings, *errors(references, [search.decode(one.emissions)[0].text for one in spoken])))
        return min(trials, key=lambda trial: trial.rank)

    best = attempt(plain)
    for number in tqdm(range(1, num_trials if names else 1), desc="tuning", unit="trial", leave=False):
        weights = {name: generator.uniform(*RANGES[name]) for name in names}
        if number >= num_trials / 2:
            closeness = 0.3 * (1 - number / num_trials)
            for name in names:
                low, high = RANGES[name]
                weights[name] = generator.normal(getattr(best.settings, name), closeness * (high - low))
        # Four digits are what a person reads, and what is stored is what was tried.
        best = attempt(replace(plain, **{name: round(float(weight), 4) for name, weight in weights.items()}))
    for beam_size in beam_sizes[1:]:
        best = attempt(replace(best.settings, beam_size=beam_size))
    if decoder.causal_lm is not None:
        best = _tune_rescoring(decoder.with_settings(best.settings), spoken)
        trials.append(best)
    return Tuning(best.settings, best.word_errors / num_words, trials[0].word_errors / num_words, trials)


def _tunable(decoder: BeamSearchDecoder) -> list[str]:
    """Weights that have an effect."""
    names = {
        "lm_weight": decoder.language_model is not None,
        "word_score": decoder.lexicon is not None,
        "silence_score": decoder.silence >= 0,
    }
    return [name for name, has_effect in names.items() if has_effect]


def _tune_rescoring(decoder: BeamSearchDecoder, spoken: Sequence[Spoken]) -> Trial:
    """The weight of the causal language model on the n-best lists of a setting without it."""
    lists = [decoder.decode(one.emissions, decoder.settings.num_rescored) for one in spoken]
    judged = [decoder.causal_lm.score([hypothesis.text for hypothesis in hypotheses]) for hypotheses in lists]
    trials = []
    for weight in RESCORING_WEIGHTS.round(4).tolist():
        best = [
            max(zip(hypotheses, scores, strict=True), key=lambda pair: pair[0].score + weight * pair[1])[0].text
            for hypotheses, scores in zip(lists, judged, strict=True)
        ]
        settings = replace(decoder.settings, rescoring_weight=weight)
        trials.append(Trial(settings, *errors([one.reference for one in spoken], best)))
    return min(trials, key=lambda trial: trial.rank)


def read_manifest(path: str | Path, split: str) -> Iterator[tuple[Path, str]]:
    """Audio files and their transcripts: `metadata.jsonl` of a folder or of its sub-folder `split`, or a `.jsonl`.

    Raises:
        ValueError: there is none; a line without `file_name` or `text`.
    """
    path = Path(path)
    candidates = [path, path / split / "metadata.jsonl", path / "metadata.jsonl"]
    manifest = next((file for file in candidates if file.is_file()), None)
    if manifest is None:
        raise ValueError(f"{path}: expected a .jsonl file or a folder with {split}/metadata.jsonl or metadata.jsonl.")
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if not row.get("file_name") or not row.get("text"):
            raise ValueError(f"{manifest}, line {number}: expected file_name and text, got {sorted(row)}.")
        yield manifest.parent / row["file_name"], row["text"]


@torch.no_grad()
def listen(model: PreTrainedModel, processor, utterances: Sequence[tuple[Path, str]]) -> list[Spoken]:
    """Emissions of each utterance, one by one, so that no padding can change them."""
    model.eval()
    spoken, sampling_rate = [], processor.feature_extractor.sampling_rate
    for path, text in tqdm(utterances, desc="listening", unit="clip", leave=False):
        waveform = read_audio({"path": str(path), "bytes": None}, sampling_rate)
        inputs = processor.feature_extractor(waveform, sampling_rate=sampling_rate, return_tensors="pt")
        emissions = frame_scores(model(inputs[model.main_input_name].to(model.device)))
        spoken.append(Spoken(text, emissions[0].float().cpu()))
    return spoken


def add_command(subcommands: "argparse._SubParsersAction"):
    """The subcommand `tune`."""
    parser = subcommands.add_parser("tune", help="find the weights of a beam search and store it with the model")
    parser.add_argument("model", metavar="MODEL", help="folder of a CTC or ASG model with its processor")
    parser.add_argument("data", metavar="DATA", help="folder with metadata.jsonl, or such a file; file_name and text")
    parser.add_argument("--split", default="dev", help="sub-folder of DATA; dev unless told")
    parser.add_argument("--language-model", type=Path, metavar="FILE", help="ARPA, or a binary of KenLM")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--lexicon", type=Path, metavar="FILE", help="spellings; otherwise of the words of the ARPA")
    words.add_argument("--lexicon-free", action="store_true", help="any symbols; the language model is one of symbols")
    parser.add_argument("--causal-lm", metavar="FOLDER", help="causal language model of Transformers to rescore with")
    parser.add_argument("--causal-lm-text-case", choices=CASES)
    parser.add_argument("--beam-sizes", type=int, nargs="+", default=[50])
    parser.add_argument("--num-trials", type=int, default=40)
    parser.add_argument("--num-utterances", type=int, help="the first ones only")
    parser.add_argument("--text-case", choices=CASES, help="of texts; that of the model's letters unless told")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="MODEL/decoder unless told")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict:
    from .pipeline import own_class

    model = (own_class(options.model) or AutoModelForCTC).from_pretrained(options.model).to(options.device)
    processor = AutoProcessor.from_pretrained(options.model)
    lexicon = None
    if options.lexicon:
        lexicon = read_lexicon(options.lexicon)
    elif options.language_model and not options.lexicon_free:
        lexicon = spell_words(ArpaModel.read(options.language_model).words, processor.tokenizer)
    decoder = BeamSearchDecoder(
        processor.tokenizer,
        transitions=transitions_of(model),
        language_model=options.language_model,
        lexicon=lexicon,
        causal_lm=options.causal_lm
        and CausalLanguageModel.from_pretrained(options.causal_lm, text_case=options.causal_lm_text_case),
    )
    text_case = options.text_case or letter_case(processor.tokenizer)
    utterances = [(path, in_case(text, text_case)) for path, text in read_manifest(options.data, options.split)]
    spoken = listen(model, processor, utterances[: options.num_utterances])
    tuning = tune(decoder, spoken, beam_sizes=options.beam_sizes, num_trials=options.num_trials, seed=options.seed)
    report = {
        "wer": tuning.wer,
        "wer_without_language_model": tuning.wer_without_language_model,
        "num_utterances": len(spoken),
        "num_trials": len(tuning.trials),
        "seed": options.seed,
    }
    folder = options.output or Path(options.model) / FOLDER
    save_decoder(decoder.with_settings(tuning.settings), folder, tuning=report)
    return {"output": str(folder), "settings": asdict(tuning.settings), **report}
