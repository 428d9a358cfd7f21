"""When each word and each letter or phone of a recording is spoken, of a given text or of what the model hears.

A symbol lasts as long as the frames that the best path gives to it; frames of CTC's blank belong to nobody. Models
trained with CTC know well which symbol comes next and say it in few frames, so that ends are early and gaps long; the
surround token of ASG and phones with silences leave fewer of them.
"""

from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCTC, AutoProcessor, PreTrainedModel, PreTrainedTokenizer, ProcessorMixin

from ..audio_reading import Recording
from ..norm_statistics import NormStatistics, check_norm_statistics
from ..viterbi import align_ctc, align_targets, best_paths
from .emissions import Emissions, emissions_of
from .pipeline import own_class
from .spelling import writes_phones


@dataclass(frozen=True)
class Segment:
    """What is spoken from `start` to `end`, in seconds of the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Alignment:
    """The words and symbols of a recording in their order.

    Args:
        text: all that is spoken.
        num_seconds: what the recording lasts.
        words: none where the vocabulary has no word boundary.
        symbols: letters or phones, as `unit` ("letters" or "phones") says; no word boundaries.
    """

    text: str
    num_seconds: float
    words: list[Segment]
    symbols: list[Segment]
    unit: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `text`, `num_seconds`, `words`, and `letters` or `phones`; times to a tenth of a millisecond."""
        words, symbols = (
            [{**asdict(part), "start": round(part.start, 4), "end": round(part.end, 4)} for part in parts]
            for parts in (self.words, self.symbols)
        )
        return {"text": self.text, "num_seconds": self.num_seconds, "words": words, self.unit: symbols}


class Aligner:
    """
    A CTC or ASG model as a clock:

        Aligner.from_pretrained(folder)("clip.flac", "WHAT WAS SAID")

    Args:
        model, processor: as `AutoModelForCTC` and `AutoProcessor` load them.
        chunk_seconds, context_seconds, norm_statistics: as in `emissions_of`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        chunk_seconds: float | None = 30.0,
        context_seconds: float = 5.0,
        norm_statistics: NormStatistics | None = None,
    ):
        self.model, self.processor = model.eval(), processor
        self.chunking = {
            "chunk_seconds": chunk_seconds,
            "context_seconds": context_seconds,
            "norm_statistics": check_norm_statistics(norm_statistics, model),
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "cpu", **chunking: float | str | None) -> "Aligner":
        """Of a folder or a repository of the Hub; `chunking` as above."""
        model = (own_class(folder) or AutoModelForCTC).from_pretrained(folder).to(device)
        return cls(model, AutoProcessor.from_pretrained(folder), **chunking)

    def __call__(self, audio: str | Path | bytes | np.ndarray, text: str | None = None) -> Alignment:
        """The alignment of a recording with `text`, or with what the model hears if there is none.

        Args:
            audio: a file of any sampling rate, its bytes, or a waveform [S] at the model's.
            text: as it was spoken, or phones between blanks; in the case of the vocabulary.

        Raises:
            ValueError: audio that can't be read or is too short, a text with symbols that the vocabulary doesn't have,
                or one too long for the recording.
        """
        extractor, tokenizer = self.processor.feature_extractor, self.processor.tokenizer
        waveform = audio if isinstance(audio, np.ndarray) else Recording(audio, extractor.sampling_rate)
        emissions = emissions_of(self.model, extractor, waveform, **self.chunking)
        labels = None
        if text is not None:
            labels = labels_of(text, tokenizer)
            if getattr(self.model.config, "merge_repeated_labels", False):
                labels = [label for label, _ in groupby(labels)]
        path = best_path(emissions, labels, blank=tokenizer.pad_token_id)
        return timed(path, emissions, tokenizer)


def labels_of(text: str, tokenizer: PreTrainedTokenizer) -> list[int]:
    """The ids of a text; ValueError for what the vocabulary lacks, which no frame could be given to."""
    text = " ".join(text.split())
    labels = list(tokenizer(text).input_ids) if text else []
    if tokenizer.unk_token_id in labels:
        tokens = tokenizer.tokenize(text)
        unknown = sorted({token for token in tokens if token not in tokenizer.get_vocab()})
        raise ValueError(
            f"text: {' '.join(unknown) or tokenizer.unk_token} is not in the vocabulary, which has"
            f" {' '.join(sorted(tokenizer.get_vocab()))}; got {text!r}."
        )
    return labels


def best_path(emissions: Emissions, labels: list[int] | None, *, blank: int) -> Tensor:
    """[T] int64, the best symbol of each frame, for what `labels` spell or, without them, among all.

    Raises:
        ValueError: no path spells the labels in so few frames.
    """
    scores, lengths = emissions.scores[None], torch.tensor([len(emissions.scores)])
    if labels is None:
        if emissions.transitions is None:
            return scores[0].argmax(dim=-1)
        return best_paths(scores, emissions.transitions, lengths).paths[0]
    targets, target_lengths = torch.tensor([labels], dtype=torch.long), torch.tensor([len(labels)])
    if emissions.transitions is None:
        return align_ctc(scores, targets, lengths, target_lengths, blank=blank).paths[0]
    return align_targets(scores, emissions.transitions, targets, lengths, target_lengths).paths[0]


def timed(path: Tensor, emissions: Emissions, tokenizer: PreTrainedTokenizer) -> Alignment:
    """The words and symbols that `path` [T] spells, each from where its first frame begins to where its last ends."""
    decoded = tokenizer.decode(path.tolist(), output_char_offsets=True)
    symbols, words = decoded.char_offsets, []
    if not writes_phones(tokenizer):
        boundary = tokenizer.replace_word_delimiter_char
        words = tokenizer._get_word_offsets(symbols, boundary)
        symbols = [offset for offset in symbols if offset["char"] != boundary]
    return Alignment(
        text=decoded.text,
        num_seconds=emissions.num_seconds,
        words=_segments(words, "word", emissions),
        symbols=_segments(symbols, "char", emissions),
        unit="phones" if writes_phones(tokenizer) else "letters",
    )


def _segments(offsets: list[dict], name: str, emissions: Emissions) -> list[Segment]:
    """Frames to seconds. What shares its frames, as the letters that one replabel stands for, shares the time."""
    segments = []
    for (first, behind), sharing in groupby(offsets, key=lambda o: (int(o["start_offset"]), int(o["end_offset"]))):
        texts = [offset[name] for offset in sharing]
        times = np.linspace(emissions.border(first), emissions.border(behind), len(texts) + 1).tolist()
        segments += [Segment(*one) for one in zip(texts, times[:-1], times[1:], strict=True)]
    return segments
