"""What a decoded clip becomes: an example, and examples a batch."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hf_wav2vec_family.decoding.spelling import check_case, in_case

from .augmentation import Augmentation
from .rows import Row
from .skips import UnusableRow

CLEAN = "clean_input_values"
RECORDED = ("recorded_rms", "recorded_mean")


@dataclass
class PretrainingCollator:
    """Waveforms of one length: normalised whole by the feature extractor, as fairseq does; the loader crops them.

    `with_speakers` adds a number for each row's `speaker_id`, if all rows of the batch have one. What the loader does
    to a waveform first is `augmentation`. Of fewer than `min_samples`, or of fewer than `min_clips` in a batch, the
    objective can make nothing.
    """

    feature_extractor: Callable
    with_speakers: bool = False
    augmentation: Augmentation | None = None
    min_samples: int = 1
    min_clips: int = 1

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        if len(waveform) < self.min_samples:
            message = f"{row.id}: {len(waveform)} samples, the model needs {self.min_samples}."
            raise UnusableRow("too_short", message)
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_attention_mask=True)
        example = {"input_values": np.asarray(features["input_values"][0])}
        if self.with_speakers and row.extra.get("speaker_id") is not None:
            # any name, and the same number in every worker and process
            example["speaker_id"] = zlib.crc32(str(row.extra["speaker_id"]).encode())
        return example

    def collate(self, examples: list[dict]) -> dict:
        names = [name for name in ("input_values", CLEAN) if name in examples[0]]
        batch = {name: torch.stack([torch.from_numpy(example[name]) for example in examples]) for name in names}
        if all("speaker_id" in example for example in examples):
            batch["speaker_ids"] = torch.tensor([example["speaker_id"] for example in examples])
        return batch


class FinetuningCollator(PretrainingCollator):
    """Whole utterances, padded, with the labels of their texts; the arguments are those of `finetuning_batches`.

    `pad_to_multiple_of` is in samples.
    """

    def __init__(
        self,
        processor,
        text_case: str | None,
        num_frames: Callable[[int], int] | None,
        augmentation: Augmentation | None = None,
        pad_to_multiple_of: int | None = None,
        merge_repeats: bool = False,
    ):
        check_case(text_case)
        super().__init__(processor.feature_extractor, augmentation=augmentation)
        self.pad_to_multiple_of, self.merge_repeats = pad_to_multiple_of, merge_repeats
        self.tokenizer, self.text_case, self.num_frames = processor.tokenizer, text_case, num_frames

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        text = self._text(row)
        labels = self.tokenizer(text).input_ids
        if self.num_frames is not None:
            num_frames, num_needed = self.num_frames(len(waveform)), num_frames_needed(labels, self.merge_repeats)
            if num_needed > num_frames:
                message = f"{row.id}: {len(labels)} labels need {num_needed} frames, the audio gives {num_frames}."
                raise UnusableRow("too_many_labels", message)
        return super().prepare(row, waveform) | {"labels": torch.tensor(labels, dtype=torch.long), "text": text}

    def _text(self, row: Row) -> str:
        if row.text is None:
            raise UnusableRow("bad_text", f"{row.id}: no text.")
        text = normalized_text(row.text, self.text_case)
        tokens = self.tokenizer.tokenize(text)
        ids = self.tokenizer.convert_tokens_to_ids(tokens)
        unknown = sorted({t for t, i in zip(tokens, ids, strict=True) if i in (None, self.tokenizer.unk_token_id)})
        if unknown:
            raise UnusableRow("bad_text", f"{row.id}: not in the vocabulary: {' '.join(map(repr, unknown))}.")
        return text

    def collate(self, examples: list[dict]) -> dict:
        padded = pad_waveforms(self.feature_extractor, examples, self.pad_to_multiple_of)
        labels = pad_sequence([example["labels"] for example in examples], batch_first=True, padding_value=-100)
        return {**padded, "labels": labels, "texts": [example["text"] for example in examples]}


def prepare_augmented(
    collator: PretrainingCollator, row: Row, waveform: np.ndarray, generator: np.random.Generator
) -> dict:
    """The example of a row's augmented `waveform` [S]; past-only augmentation keeps the clean one beside it."""
    example = collator.prepare(row, collator.augmentation(waveform, collator.sampling_rate, generator))
    if collator.augmentation.past_only:
        example[CLEAN] = collator.prepare(row, waveform)["input_values"]
    return example


def recorded_level(waveform: np.ndarray) -> dict[str, float]:
    """Root mean square and mean of a waveform [S] as it was recorded, before anything hides what is wrong with it."""
    return {"recorded_rms": float(np.sqrt(np.mean(waveform**2))), "recorded_mean": float(np.mean(waveform))}


class EvaluationCollator(PretrainingCollator):
    """Whole utterances, padded, with their texts as they are: no label has to be encoded to be compared with."""

    def __init__(self, feature_extractor, text_case: str | None):
        super().__init__(feature_extractor)
        self.text_case = text_case

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        if row.text is None:
            raise UnusableRow("bad_text", f"{row.id}: no text.")
        return super().prepare(row, waveform) | {"text": normalized_text(row.text, self.text_case)}

    def collate(self, examples: list[dict]) -> dict:
        padded = pad_waveforms(self.feature_extractor, examples)
        return {**padded, "texts": [example["text"] for example in examples]}


def normalized_text(text: str, text_case: str | None) -> str:
    """White space to single blanks, and all letters to `text_case`: "upper", "lower" or None for neither."""
    return in_case(" ".join(text.split()), text_case)


def pad_waveforms(feature_extractor, examples: list[dict], pad_to_multiple_of: int | None = None) -> dict:
    """`input_values` [B, S] and `attention_mask` [B, S] of examples of different length."""
    return feature_extractor.pad(
        {"input_values": [example["input_values"] for example in examples]},
        padding=True,
        pad_to_multiple_of=pad_to_multiple_of,
        return_attention_mask=True,
        return_tensors="pt",
    )


def num_frames_needed(labels: list[int], merge_repeats: bool = False) -> int:
    """The least number of frames on which CTC can align `labels`: one each, and a blank between equal neighbours.

    With `merge_repeats` the model learns runs as one label, which a frame is enough for.
    """
    repeats = sum(left == right for left, right in pairwise(labels))
    return len(labels) + (-repeats if merge_repeats else repeats)
