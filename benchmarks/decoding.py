"""How long a beam search takes per second of speech, for beams of 50 and 500, with and without lexicon; and greedy.

python -m benchmarks.decoding --threads 1 --rounds 3
python -m benchmarks.decoding --model runs/mine/model --data /my/corpus --split dev --language-model lm.arpa

The real-time factor is seconds of search per second of speech: that of the model is not in it. Without `--model`
emissions are those of a made-up noisy model, 50 frames a second over 29 letters, of sentences of a made-up language of
some 800 words.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCTC, AutoProcessor, PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from hf_wav2vec_family.decoding.arpa import ArpaModel
from hf_wav2vec_family.decoding.beam_search import BeamSearchDecoder, BeamSettings
from hf_wav2vec_family.decoding.lexicon import spell_words
from hf_wav2vec_family.decoding.ngram import NgramSettings, train_ngram
from hf_wav2vec_family.decoding.pipeline import own_class
from hf_wav2vec_family.decoding.tuning import listen, read_manifest

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
FRAMES_PER_SECOND = 50
FRAMES_PER_LETTER = 4


def made_up(folder: Path, num_clips: int) -> tuple[PreTrainedTokenizerBase, list[Tensor], Path]:
    """A tokenizer, emissions [T, V] of `num_clips` sentences, and a 3-gram model of their language."""
    draw = random.Random(0)
    words = ["".join(draw.choices(LETTERS, k=draw.randint(2, 9))) for _ in range(5000)]
    lines = [[words[min(int(draw.paretovariate(0.6)), 5000) - 1] for _ in range(12)] for _ in range(2000)]
    train_ngram(lines, folder / "words.arpa", NgramSettings(order=3, discount_fallback=True))
    symbols = {symbol: i for i, symbol in enumerate(["<pad>", "|", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps(symbols))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"), bos_token=None, eos_token=None, unk_token="<pad>", word_delimiter_token="|"
    )
    emissions = []
    for line in lines[:num_clips]:
        path = [symbols[letter] for letter in "|".join(line) for _ in range(FRAMES_PER_LETTER)]
        path = [0 if i % FRAMES_PER_LETTER > 1 else symbol for i, symbol in enumerate(path)]
        emissions.append(6 * torch.eye(len(symbols))[path] + 1.7 * torch.randn(len(path), len(symbols)))
    return tokenizer, emissions, folder / "words.arpa"


def seconds_of(search: Callable[[Tensor], object], emissions: Sequence[Tensor]) -> float:
    began = time.process_time()
    for one in emissions:
        search(one)
    return time.process_time() - began


def measure(
    tokenizer: PreTrainedTokenizerBase,
    emissions: Sequence[Tensor],
    language_model: Path,
    *,
    num_seconds: float,
    rounds: int,
) -> None:
    """Prints one line of JSON per case, medians over `rounds`."""
    lexicon = spell_words(ArpaModel.read(language_model).words, tokenizer)
    searches: dict[str, Callable[[Tensor], object]] = {"greedy": lambda one: tokenizer.decode(one.argmax(dim=-1))}
    for beam_size in (50, 500):
        free = BeamSearchDecoder(tokenizer, BeamSettings(beam_size=beam_size))
        settings = BeamSettings(beam_size=beam_size, lm_weight=2.0)
        searches[f"no lexicon, no language model, beam {beam_size}"] = free.decode
        searches[f"{len(lexicon)} words, n-gram, beam {beam_size}"] = BeamSearchDecoder(
            tokenizer, settings, language_model=language_model, lexicon=lexicon
        ).decode
    for search in searches.values():
        search(emissions[0])  # reads the language model
    times = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            times[name].append(seconds_of(search, emissions))
    for name, measured in times.items():
        factor = statistics.median(measured) / num_seconds
        print(json.dumps({"case": name, "real_time_factor": round(factor, 6)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-clips", type=int, default=10)
    parser.add_argument("--model", help="folder of a CTC model with its processor")
    parser.add_argument("--data", help="folder with metadata.jsonl")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--language-model", type=Path, help="ARPA of words")
    options = parser.parse_args()
    if bool(options.model) != bool(options.data and options.language_model):
        parser.error("--model, --data and --language-model go together")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads}))
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            tokenizer, emissions, language_model = made_up(Path(folder), options.num_clips)
            num_seconds = sum(map(len, emissions)) / FRAMES_PER_SECOND
        else:
            processor, language_model = AutoProcessor.from_pretrained(options.model), options.language_model
            model = (own_class(options.model) or AutoModelForCTC).from_pretrained(options.model)
            clips = list(read_manifest(options.data, options.split))[: options.num_clips]
            tokenizer, emissions = processor.tokenizer, [one.emissions for one in listen(model, processor, clips)]
            frames_per_second = processor.feature_extractor.sampling_rate / model.config.inputs_to_logits_ratio
            num_seconds = sum(map(len, emissions)) / frames_per_second
        measure(tokenizer, emissions, language_model, num_seconds=num_seconds, rounds=options.rounds)


if __name__ == "__main__":
    main()
