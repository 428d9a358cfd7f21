"""Checkpoints of the original code bases to models of this package, without any of that code.

`python -m hf_wav2vec_family.conversion CHECKPOINT OUTPUT_DIR` does the same from a shell.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_wav2vec_family.conversion import cpc_audio, fairseq_roberta, fairseq_wav2vec, fairseq_wav2vec2
from hf_wav2vec_family.conversion.checkpoint_file import read_checkpoint
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint

__all__ = ["ConvertedCheckpoint", "convert_checkpoint"]


@dataclass(frozen=True)
class Converter:
    """One kind of checkpoint: how to tell it from its contents, and what to make of it.

    `options_file` names a JSON file that lies beside such a checkpoint; what it holds is given to `convert` as one
    more entry of that name.
    """

    kind: str
    recognizes: Callable[[dict[str, Any]], bool]
    convert: Callable[[dict[str, Any], str | Path | None], ConvertedCheckpoint]
    options_file: str | None = None


CONVERTERS = (
    Converter(fairseq_wav2vec2.PRETRAINING, fairseq_wav2vec2.is_pretrained, fairseq_wav2vec2.convert_pretrained),
    Converter(fairseq_wav2vec2.CTC, fairseq_wav2vec2.is_ctc, fairseq_wav2vec2.convert_ctc),
    Converter(fairseq_wav2vec.WAV2VEC, fairseq_wav2vec.is_wav2vec, fairseq_wav2vec.convert_wav2vec),
    Converter(fairseq_wav2vec.VQ_WAV2VEC, fairseq_wav2vec.is_vq_wav2vec, fairseq_wav2vec.convert_vq_wav2vec),
    Converter(fairseq_roberta.ROBERTA, fairseq_roberta.is_roberta, fairseq_roberta.convert_roberta),
    Converter(cpc_audio.PUBLISHED, cpc_audio.is_published, cpc_audio.convert_published),
    Converter(
        cpc_audio.TRAINING,
        cpc_audio.is_training_checkpoint,
        cpc_audio.convert_training_checkpoint,
        cpc_audio.OPTIONS_FILE,
    ),
)


def convert_checkpoint(
    path: str | Path, *, dictionary: str | Path | None = None, vq_wav2vec: str | Path | None = None
) -> ConvertedCheckpoint:
    """Convert the original checkpoint at `path`; its kind is found from its contents.

    Args:
        path: A checkpoint of fairseq, of any year: wav2vec, vq-wav2vec, or wav2vec 2.0, pre-trained or fine-tuned
            with CTC, or a RoBERTa on codes. Or one of CPC_audio: of its training, with `checkpoint_args.json` beside
            it if there is one, or as published. Nothing in the file is executed.
        dictionary: `dict.ltr.txt` of the training data of a CTC model, `dict.txt` of a RoBERTa. Without it there is no
            tokenizer.
        vq_wav2vec: Folder (or Hub id) of the vq-wav2vec whose codes a RoBERTa reads; the two become one
            `DiscreteBertModel`. Without it a RoBERTa becomes a `RobertaForMaskedLM`.

    Returns:
        The model in float32 with what it has of feature extractor, tokenizer and processor.

    Raises:
        ValueError: The file names classes that are not known to be harmless, is of no known kind, has weights or
            options that the model has no place for, or disagrees with the dictionary or the vq-wav2vec.
        OSError: A file cannot be opened.
    """
    checkpoint = read_checkpoint(path)
    for converter in CONVERTERS:
        if converter.recognizes(checkpoint):
            options = _options_beside(path, converter.options_file)
            converted = converter.convert(checkpoint | options, dictionary)
            return converted if vq_wav2vec is None else fairseq_roberta.with_vq_wav2vec(converted, vq_wav2vec)
    kinds = ", ".join(converter.kind for converter in CONVERTERS)
    raise ValueError(f"{path} is of no kind that can be converted ({kinds}); its entries are {', '.join(checkpoint)}.")


def _options_beside(path: str | Path, name: str | None) -> dict[str, Any]:
    """The contents of the JSON file `name` beside `path`, under its name; nothing if there is no such file."""
    file = None if name is None else Path(path).parent / name
    if file is None or not file.exists():
        return {}
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{file} holds a {type(options).__name__}, expected the options by name.")
    return {name: options}
