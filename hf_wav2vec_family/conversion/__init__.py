"""Checkpoints of the original code bases to models of this package, without any of that code.

`python -m hf_wav2vec_family.conversion CHECKPOINT OUTPUT_DIR` does the same from a shell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_wav2vec_family.conversion import fairseq_wav2vec, fairseq_wav2vec2
from hf_wav2vec_family.conversion.checkpoint_file import read_checkpoint
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint

__all__ = ["ConvertedCheckpoint", "convert_checkpoint"]


@dataclass(frozen=True)
class Converter:
    """One kind of checkpoint: how to tell it from its contents, and what to make of it."""

    kind: str
    recognizes: Callable[[dict[str, Any]], bool]
    convert: Callable[[dict[str, Any], str | Path | None], ConvertedCheckpoint]


CONVERTERS = (
    Converter(fairseq_wav2vec2.PRETRAINING, fairseq_wav2vec2.is_pretrained, fairseq_wav2vec2.convert_pretrained),
    Converter(fairseq_wav2vec2.CTC, fairseq_wav2vec2.is_ctc, fairseq_wav2vec2.convert_ctc),
    Converter(fairseq_wav2vec.WAV2VEC, fairseq_wav2vec.is_wav2vec, fairseq_wav2vec.convert_wav2vec),
    Converter(fairseq_wav2vec.VQ_WAV2VEC, fairseq_wav2vec.is_vq_wav2vec, fairseq_wav2vec.convert_vq_wav2vec),
)


def convert_checkpoint(path: str | Path, *, dictionary: str | Path | None = None) -> ConvertedCheckpoint:
    """Convert the original checkpoint at `path`; its kind is found from its contents.

    Args:
        path: A checkpoint of fairseq, of any year: wav2vec, vq-wav2vec, or wav2vec 2.0, pre-trained or fine-tuned
            with CTC. Nothing in the file is executed.
        dictionary: `dict.ltr.txt` of the training data of a CTC model. Without it there is no tokenizer.

    Returns:
        The model in float32 with feature extractor, tokenizer and processor.

    Raises:
        ValueError: The file names classes that are not known to be harmless, is of no known kind, has weights or
            options that the model has no place for, or disagrees with the dictionary.
        OSError: A file cannot be opened.
    """
    checkpoint = read_checkpoint(path)
    for converter in CONVERTERS:
        if converter.recognizes(checkpoint):
            return converter.convert(checkpoint, dictionary)
    kinds = ", ".join(converter.kind for converter in CONVERTERS)
    raise ValueError(f"{path} is of no kind that can be converted ({kinds}); its entries are {', '.join(checkpoint)}.")
