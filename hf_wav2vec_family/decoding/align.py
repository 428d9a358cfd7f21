"""When each word, letter or phone of recordings is spoken, as JSON or TextGrid.

python -m hf_wav2vec_family.decoding align runs/mine/model clip.flac --text "WHAT WAS SAID"
python -m hf_wav2vec_family.decoding align runs/mine/model --manifest corpus/metadata.jsonl --output times
python -m hf_wav2vec_family.decoding align runs/mine/model lecture.mp3        # of what the model hears
"""

import argparse
import csv
import json
from pathlib import Path

import torch

from .alignment import Aligner
from .spelling import CASES, in_case, letter_case
from .textgrid import textgrid


def add_command(subcommands: "argparse._SubParsersAction"):
    """The subcommand `align`."""
    parser = subcommands.add_parser(
        "align",
        help="when each word, letter or phone is spoken: JSON and TextGrid",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder or Hub id of a model trained with CTC or ASG, with its processor")
    parser.add_argument(
        "audio", nargs="*", type=Path, help="recordings; without a text, what the model hears is timed"
    )
    parser.add_argument("--text", help="what is said in a single recording")
    parser.add_argument(
        "--manifest", type=Path, help=".jsonl, .csv or .tsv of file_name (relative to it) and text, in place of audio"
    )
    parser.add_argument("--text-case", choices=CASES, help="of texts; that of the model's letters unless told")
    parser.add_argument(
        "--output", type=Path, help="folder for a file per recording; without it, lines of JSON appear"
    )
    parser.add_argument("--format", choices=["json", "textgrid", "both"], default="both", help="of the files")
    parser.add_argument("--chunk-seconds", type=float, default=30.0, help="how much the model hears at once")
    parser.add_argument("--context-seconds", type=float, default=5.0, help="how much of it only helps on either side")
    parser.add_argument(
        "--norm-statistics",
        choices=["recording", "chunk"],
        help="what norms over time take their mean and variance of; of the recording where the model has one of them",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace):
    """Aligns what the options name.

    Raises:
        ValueError: options that don't fit together, a manifest without the columns, or what `Aligner` refuses.
    """
    recordings = _recordings(options)
    aligner = Aligner.from_pretrained(
        options.model,
        device=options.device,
        chunk_seconds=options.chunk_seconds,
        context_seconds=options.context_seconds,
        norm_statistics=options.norm_statistics,
    )
    text_case = options.text_case or letter_case(aligner.processor.tokenizer)
    for audio, text in recordings:
        try:
            alignment = aligner(audio, None if text is None else in_case(text, text_case))
        except ValueError as error:
            raise ValueError(f"{audio}: {error}") from error
        content = json.dumps({"audio": str(audio), **alignment.as_dict()}, ensure_ascii=False)
        if options.output is None:
            print(content)
            continue
        options.output.mkdir(parents=True, exist_ok=True)
        if options.format != "textgrid":
            (options.output / f"{audio.stem}.json").write_text(content + "\n", encoding="utf-8")
        if options.format != "json":
            (options.output / f"{audio.stem}.TextGrid").write_text(textgrid(alignment), encoding="utf-8")


def _recordings(options: argparse.Namespace) -> list[tuple[Path, str | None]]:
    """Each recording and what is said in it."""
    if options.manifest is None:
        if not options.audio or (options.text is not None and len(options.audio) != 1):
            raise ValueError(f"--text is of a single recording, and at least one is needed, got {len(options.audio)}.")
        recordings = [(audio, options.text) for audio in options.audio]
    else:
        if options.audio or options.text is not None:
            raise ValueError("--manifest takes the place of audio and --text; got both.")
        recordings = _read_manifest(options.manifest)
    stems = [audio.stem for audio, _ in recordings]
    if options.output is not None and len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(f"--output has one file per name, but several recordings are called {twice}.")
    return recordings


def _read_manifest(path: Path) -> list[tuple[Path, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in file if line.strip()]
        else:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("file_name"), str) or not isinstance(row.get("text"), str):
            raise ValueError(f"--manifest {path}: row {number} needs file_name and text, it has {', '.join(row)}.")
    return [(path.parent / row["file_name"], row["text"]) for row in rows]
