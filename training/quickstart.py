"""From speech to a transcript in minutes: the whole way, small enough for two CPU cores.

python -m training.quickstart                       speaks its own corpus with espeak-ng
python -m training.quickstart --data /my/corpus     takes yours: a folder, manifest or Hub id with transcripts
"""

import argparse
import json
import time
from pathlib import Path

import transformers

from hf_wav2vec_family.decoding.pipeline import transcriber

from . import evaluate, finetune, pretrain
from .curves import draw_curves
from .recipe import load_recipe
from .sources import Source, open_source
from .synthetic_speech import write_corpus

RECIPES = Path(__file__).parent / "recipes" / "wav2vec2"
NUM_UTTERANCES, NUM_VOICES = 1600, 80


def main(arguments: list[str] | None = None) -> dict:
    options = parse(arguments)
    began = time.perf_counter()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    announce("1 of 5", "getting speech")
    data = options.data or str(speak(options.output / "speech"))

    announce("2 of 5", "pre-training wav2vec 2.0 on the speech alone")
    pretraining = run_stage(pretrain, "quickstart_pretrain.yaml", options, data, "pretraining")

    announce("3 of 5", "fine-tuning it on the transcripts with CTC")
    finetuning = run_stage(
        finetune, "quickstart_finetune.yaml", options, data, "finetuning", f"pretrained={pretraining / 'model'}"
    )

    announce("4 of 5", f"transcribing the {options.test_split} split, which it never saw")
    scores = test(finetuning / "model", Source(data, options.name, options.test_split), options.output)

    announce("5 of 5", "transcribing a file through the pipeline")
    file = transcribe_one(finetuning / "model", Source(data, options.name, options.test_split))
    curves = options.output / "curves.png"
    draw_curves({"pre-training": [pretraining], "fine-tuning": [finetuning]}, curves)

    summary = {**scores, **file, "minutes": round((time.perf_counter() - began) / 60, 1)}
    (options.output / "quickstart.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nWER {scores['wer']:.1%}   CER {scores['cer']:.1%}   on {scores['num_utterances']} utterances")
    print(f"said:   {file['reference']}\nheard:  {file['transcript']}")
    print(f"model:  {finetuning / 'model'}\ncurves: {curves}\n{summary['minutes']} minutes")
    return summary


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder, manifest or Hub id; by default a corpus is spoken")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--dev-split", default="dev")
    parser.add_argument("--test-split", help="by default test, or dev where a folder has no test split")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both recipes")
    options = parser.parse_args(arguments)
    if options.test_split is None:
        folder = Path(options.data or "")
        no_test = options.data is not None and folder.is_dir() and not (folder / "test").is_dir()
        options.test_split = options.dev_split if no_test else "test"
    return options


def announce(number: str, what: str):
    print(f"\n[{number}] {what}", flush=True)


def speak(folder: Path) -> Path:
    """The spoken corpus, made once."""
    if not folder.exists():
        write_corpus(folder, num_utterances=NUM_UTTERANCES, num_voices=NUM_VOICES, seed=0)
    return folder


def run_stage(stage, recipe: str, options: argparse.Namespace, data: str, name: str, *overrides: str) -> Path:
    """Runs a stage with its recipe and returns its folder. A stage that was interrupted goes on where it stopped."""
    folder = options.output / name
    sources = {
        "data.train": Source(data, options.name, options.train_split),
        "data.evaluation": Source(data, options.name, options.dev_split),
    }
    given = [f"{key}={json.dumps(vars(source))}" for key, source in sources.items()]
    stage.main(load_recipe(RECIPES / recipe, [*given, f"run.output_dir={folder}", *overrides, *options.overrides]))
    return folder


def test(model_folder: Path, source: Source, output: Path) -> dict:
    """WER and CER of the finished model."""
    model = evaluate.load_model(model_folder)
    processor = transformers.AutoProcessor.from_pretrained(model_folder)
    utterances, scores = evaluate.evaluate_on([source], model, processor, batch_seconds=60.0, text_case="upper")
    evaluate.write_report(output / "test", scores, utterances)
    return scores


def transcribe_one(model_folder: Path, source: Source) -> dict[str, str]:
    """The first clip of the split through the pipeline: what was said and what was heard."""
    row = next(row for row in open_source(source).rows() if row.text)
    transcribe = transcriber(str(model_folder))
    return {"reference": row.text.upper(), "transcript": transcribe(row.audio)["text"]}


if __name__ == "__main__":
    main()
