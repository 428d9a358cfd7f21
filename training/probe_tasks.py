"""What a probe is asked: the phone at each moment, or the speaker of each clip."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .alignments import AlignedCollator
from .collators import PretrainingCollator, pad_waveforms
from .rows import Row
from .skips import UnusableRow


@dataclass
class LabelledClip:
    """The vectors of a clip and where the labels are.

    Args:
        values: layer -> [F, D] vectors.
        nearest: [N] int64, the vector for each label. labels: [N] strings.
    """

    values: dict[str, Tensor]
    nearest: Tensor
    labels: np.ndarray


@dataclass
class Task:
    """
    Args:
        collator: of a feature extractor, makes the batches.
        labels: (batch, row) -> [N] strings, all labels of a clip.
        label: (the frames [T, D] of each layer of a clip, the seconds [T] of the frames, batch, row) -> labelled clip.
    """

    collator: type[PretrainingCollator]
    labels: Callable[[dict, int], np.ndarray]
    label: Callable[[dict[str, Tensor], Tensor, dict, int], LabelledClip]


class SpeakerCollator(PretrainingCollator):
    """Whole utterances, padded, with the `speaker_id` of each in `speakers`."""

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        if row.extra.get("speaker_id") is None:
            raise UnusableRow("bad_text", f"{row.id}: there is no speaker_id.")
        return super().prepare(row, waveform) | {"speaker": str(row.extra["speaker_id"])}

    def collate(self, examples: list[dict]) -> dict:
        padded = pad_waveforms(self.feature_extractor, examples)
        return {**padded, "speakers": [example["speaker"] for example in examples]}


def label_phones(frames: dict[str, Tensor], seconds: Tensor, batch: dict, row: int) -> LabelledClip:
    """The phone every 10 ms, each for the frame whose centre is nearest."""
    alignment = batch["alignments"][row]
    return LabelledClip(frames, nearest_frames(seconds, torch.from_numpy(alignment.times)), alignment.phones)


def label_speaker(frames: dict[str, Tensor], seconds: Tensor, batch: dict, row: int) -> LabelledClip:
    """The speaker, for the mean of all frames."""
    means = {layer: values.mean(dim=0, keepdim=True) for layer, values in frames.items()}
    return LabelledClip(means, torch.zeros(1, dtype=torch.long), np.array([batch["speakers"][row]]))


TASKS = {
    "phones": Task(AlignedCollator, lambda batch, row: batch["alignments"][row].phones, label_phones),
    "speaker": Task(SpeakerCollator, lambda batch, row: np.array([batch["speakers"][row]]), label_speaker),
}


def nearest_frames(centers: Tensor, times: Tensor) -> Tensor:
    """Which of the frames with `centers` [T] is nearest to each of `times` [N], in the same unit; [N] int64."""
    return torch.searchsorted((centers[1:] + centers[:-1]) / 2, times)


def numbered(labels: np.ndarray, classes: list[str]) -> Tensor:
    """[N] int64 numbers of the labels; -1, which no probe answers, for those that are not among the classes."""
    number = {label: i for i, label in enumerate(classes)}
    different, which = np.unique(labels, return_inverse=True)
    return torch.tensor([number.get(str(label), -1) for label in different])[torch.from_numpy(which)]
