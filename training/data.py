"""Deterministic batches of speech.

The order of the rows, the batches and the crops are functions of (seed, epoch, position), never of what came before.
So the state to resume is a position, and the number of workers changes nothing:

    rows of the sources -> windows of rows -> plans of batches        `Planner`, in the main process, reads no audio
    plan -> decoded, prepared, cropped, collated batch                `BatchLoader`, in the workers
    batches handed out, counted and resumed                           `SpeechBatches`, what the loop iterates over
"""

import logging
import math
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import chain, count, islice, pairwise
from random import Random

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from hf_wav2vec_family.audio.reading import AudioError, audio_info, read_audio

from .sources import Row, RowSource, as_sources, open_source

logger = logging.getLogger(__name__)

# Lengths that differ by less than this share count as one, or else every epoch would have the same batches.
LENGTH_STEP = 0.05
NUM_ROWS_UNSHUFFLED = 256  # planned at a time when nothing is shuffled
NUM_ROWS_TO_JUDGE = 100  # before so many rows a share of bad ones means nothing
NUM_EXAMPLES = 5
SKIP_REASONS = ("bad", "too_short", "too_long", "bad_text", "too_many_labels")


@dataclass(frozen=True)
class Skip:
    """A row that is left out and counted under `reason`, one of `SKIP_REASONS`; the message names it."""

    reason: str
    message: str


class UnusableRow(Exception):
    """Raised by whoever finds that a row must be left out."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.skip = Skip(reason, message)


@dataclass
class Report:
    """What became of the rows of one rank, summed over epochs; the sum over all ranks counts every row once.

    `rows` were seen, `skipped` of them left out per reason, `examples` are the first messages per reason.
    """

    rows: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in SKIP_REASONS})

    @property
    def used(self) -> int:
        return self.rows - sum(self.skipped.values())

    def count(self, num_rows: int, skips: list[Skip]) -> None:
        self.rows += num_rows
        for skip in skips:
            self.skipped[skip.reason] += 1
            if len(self.examples[skip.reason]) < NUM_EXAMPLES:
                self.examples[skip.reason].append(skip.message)

    def refuse_too_many_bad(self, max_bad_fraction: float) -> None:
        """ValueError if more than `max_bad_fraction` of at least `NUM_ROWS_TO_JUDGE` rows could not be decoded."""
        num_bad = self.skipped["bad"]
        if self.rows >= NUM_ROWS_TO_JUDGE and num_bad > max_bad_fraction * self.rows:
            raise ValueError(
                f"{num_bad} of {self.rows} rows ({num_bad / self.rows:.1%}) have no usable audio; max_bad_fraction is"
                f" {max_bad_fraction:.1%}. The first: {' | '.join(self.examples['bad'])}"
            )

    def refuse_nothing_used(self) -> None:
        """ValueError if all rows were left out."""
        if not self.used:
            counts = ", ".join(f"{number} {reason}" for reason, number in self.skipped.items() if number)
            examples = " | ".join(chain.from_iterable(self.examples.values()))
            raise ValueError(f"None of {self.rows} rows could be used ({counts or 'no source has any'}). {examples}")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How rows become batches.

    Args:
        batch_seconds: a batch holds at most so much audio, padding included: rows x the longest of them.
        seed: of the order and the crops.
        min_seconds: shorter rows are left out.
        max_seconds: longer rows are cropped or, without `crop`, left out; `batch_seconds` by default. With infinity
            nothing is too long, and what exceeds `batch_seconds` is a batch by itself.
        crop: cut all rows of a batch, at random places, to the shortest of them and at most `max_seconds`.
        shuffle_window: so many rows are shuffled, sorted by length and batched together; all of a window's metadata,
            and its audio if the source is parquet, tar or on the Hub, is in memory. 0 keeps the order of the source.
        rank, world_size: this process takes every `world_size`-th batch.
        num_epochs: None is without end.
        max_bad_fraction: more rows without usable audio than this share stop the iteration.
        on_bad_text: "skip" leaves out rows without text or with letters outside the vocabulary, "error" stops at one.
        budget_seconds, budget_seed: see `rows_in_budget`; None is all rows.
    """

    batch_seconds: float
    seed: int = 0
    min_seconds: float = 0.0
    max_seconds: float | None = None
    crop: bool = False
    shuffle_window: int = 2048
    rank: int = 0
    world_size: int = 1
    num_epochs: int | None = None
    max_bad_fraction: float = 0.01
    on_bad_text: str = "skip"
    budget_seconds: float | None = None
    budget_seed: int = 0

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}.")
        bound = self.batch_seconds if math.isfinite(self.longest_seconds) else math.inf
        if not 0 <= self.min_seconds <= self.longest_seconds <= bound:
            raise ValueError(
                "expected 0 <= min_seconds <= max_seconds <= batch_seconds, got"
                f" {self.min_seconds}, {self.max_seconds}, {self.batch_seconds}."
            )
        if self.shuffle_window < 0:
            raise ValueError(f"shuffle_window: expected a number of rows or 0, got {self.shuffle_window}.")
        if self.on_bad_text not in ("skip", "error"):
            raise ValueError(f"on_bad_text: expected 'skip' or 'error', got {self.on_bad_text!r}.")

    @property
    def longest_seconds(self) -> float:
        return self.batch_seconds if self.max_seconds is None else self.max_seconds

    def refuse_length(self, row_id: str, seconds: float) -> None:
        if seconds < self.min_seconds:
            raise UnusableRow("too_short", f"{row_id}: {seconds:.2f} s, min_seconds is {self.min_seconds}.")
        if seconds > self.longest_seconds and not self.crop:
            raise UnusableRow("too_long", f"{row_id}: {seconds:.2f} s, max_seconds is {self.longest_seconds}.")

    def generator(self, *key: int | str) -> Random:
        """Random numbers that depend on the seed and `key` alone."""
        return Random(repr((self.seed, *key)))


@dataclass(frozen=True)
class Position:
    """The next batch is number `batch` of `window` in `epoch`; over all ranks and epochs, `index` came before it."""

    epoch: int = 0
    window: int = 0
    batch: int = 0
    index: int = 0


@dataclass(frozen=True)
class PlannedRow:
    """`row`, the `number`-th of all sources together, and how long it will be in the batch."""

    number: int
    row: Row
    seconds: float


@dataclass(frozen=True)
class BatchPlan:
    """The rows of batch `index`, the rows left out on the way to it, and the position after it."""

    index: int
    epoch: int
    rows: list[PlannedRow]
    skips: list[Skip]
    following: Position


class Planner:
    """The plans of one rank from `start` on; iterating reads metadata, and file headers where they lack durations."""

    def __init__(self, sources: list[RowSource], settings: BatchSettings, start: Position):
        self.sources, self.settings, self.start = sources, settings, start
        self.skips: list[Skip] = []  # left out since the last plan of this rank
        self.scanned = Report()  # all rows planned, whatever their rank

    def __iter__(self) -> Iterator[BatchPlan]:
        settings, start = self.settings, self.start
        kept = None
        if settings.budget_seconds is not None:
            kept = rows_in_budget(self._rows(), settings.budget_seconds, settings.budget_seed)
        # The window of `start` is planned again, and the batches before `start` are passed over.
        index = start.index - start.batch
        for epoch in count(start.epoch):
            if settings.num_epochs is not None and epoch >= settings.num_epochs:
                return
            first_window = start.window if epoch == start.epoch else 0
            index_before = index
            for window, rows in self._windows(first_window, kept):
                for number, batch in enumerate(self._plan_window(epoch, window, rows), start=1):
                    if index % settings.world_size == settings.rank:
                        skips, self.skips = self.skips, []
                        if index >= start.index:
                            yield BatchPlan(index, epoch, batch, skips, Position(epoch, window, number, index + 1))
                    index += 1
            if index == index_before and first_window == 0:
                self.scanned.refuse_nothing_used()

    def _rows(self) -> Iterator[Row]:
        return chain.from_iterable(source.rows() for source in self.sources)

    def _windows(self, first: int, kept: set[int] | None) -> Iterator[tuple[int, list[tuple[int, Row]]]]:
        size = self.settings.shuffle_window or NUM_ROWS_UNSHUFFLED
        numbered = (item for item in enumerate(self._rows()) if kept is None or item[0] in kept)
        numbered = islice(numbered, first * size, None)
        for window in count(first):
            rows = list(islice(numbered, size))
            if not rows:
                return
            yield window, rows

    def _plan_window(self, epoch: int, window: int, rows: list[tuple[int, Row]]) -> list[list[PlannedRow]]:
        settings, planned, skips = self.settings, [], []
        for number, row in rows:
            try:
                seconds = _duration_seconds(row)
                settings.refuse_length(row.id, seconds)
                planned.append(PlannedRow(number, row, min(seconds, settings.longest_seconds)))
            except UnusableRow as error:
                skips.append(error.skip)
                if number % settings.world_size == settings.rank:
                    self.skips.append(error.skip)
        self.scanned.count(len(rows), skips)
        self.scanned.refuse_too_many_bad(settings.max_bad_fraction)
        if not settings.shuffle_window:
            return cut_into_batches(planned, settings.batch_seconds)
        generator = settings.generator("order", epoch, window)
        generator.shuffle(planned)
        planned.sort(key=lambda row: math.log(max(row.seconds, 0.01)) // LENGTH_STEP)
        batches = cut_into_batches(planned, settings.batch_seconds)
        generator.shuffle(batches)
        return batches


def _duration_seconds(row: Row) -> float:
    if row.duration_seconds is not None:
        return row.duration_seconds
    try:
        return audio_info(row.audio).duration_seconds
    except AudioError as error:
        raise UnusableRow("bad", f"{row.id}: {error}") from error


def cut_into_batches(rows: list[PlannedRow], batch_seconds: float) -> list[list[PlannedRow]]:
    """`rows` in their order, cut wherever one more would make number of rows x longest exceed `batch_seconds`."""
    batches, longest = [], 0.0
    for row in rows:
        longest = max(longest, row.seconds)
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = row.seconds
        batches[-1].append(row)
    return batches


def rows_in_budget(rows: Iterator[Row], budget_seconds: float, budget_seed: int) -> set[int]:
    """Numbers of the rows that a label budget, such as 10 min or 1 h, keeps.

    The rows are taken in their order shuffled by `random.Random(budget_seed)` until they last `budget_seconds` or
    more; so the last one may exceed the budget, by less than its own length. Rows whose length can't be read cost
    nothing, and are counted as bad later.

    Raises:
        ValueError: all rows together don't reach the budget.
    """
    seconds = []
    for row in rows:
        try:
            seconds.append(_duration_seconds(row))
        except UnusableRow:
            seconds.append(0.0)
    order = list(range(len(seconds)))
    Random(budget_seed).shuffle(order)
    kept, total = set(), 0.0
    for number in order:
        if total >= budget_seconds:
            break
        kept.add(number)
        total += seconds[number]
    if total < budget_seconds:
        raise ValueError(f"budget_seconds: {budget_seconds} asked for, but all rows together last {total:.1f} s.")
    return kept


class BatchLoader(Dataset):
    """`loader[plan]`: the batch of a plan and what happened on the way; runs in the workers."""

    def __init__(self, collator, settings: BatchSettings):
        self.collator, self.settings = collator, settings

    def __getitem__(self, plan: BatchPlan) -> dict:
        rows, examples, skips = [], [], list(plan.skips)
        for planned in plan.rows:
            try:
                examples.append(self._load(planned.row))
                rows.append(planned)
            except UnusableRow as error:
                skips.append(error.skip)
        batch = None
        if rows:
            if self.settings.crop:
                self._crop(examples, rows, plan.epoch)
            batch = self.collator.collate(examples)
            batch |= {"ids": [planned.row.id for planned in rows], "index": plan.index, "epoch": plan.epoch}
        num_rows = len(plan.rows) + len(plan.skips)
        return {"batch": batch, "num_rows": num_rows, "skips": skips, "following": plan.following}

    def _load(self, row: Row) -> dict:
        try:
            waveform = read_audio(row.audio, self.collator.sampling_rate)
        except AudioError as error:
            raise UnusableRow("bad", f"{row.id}: {error}") from error
        # Once more: the metadata may have been wrong.
        self.settings.refuse_length(row.id, len(waveform) / self.collator.sampling_rate)
        return self.collator.prepare(row, waveform)

    def _crop(self, examples: list[dict], rows: list[PlannedRow], epoch: int) -> None:
        longest = round(self.settings.longest_seconds * self.collator.sampling_rate)
        length = min(longest, *(len(example["input_values"]) for example in examples))
        for example, planned in zip(examples, rows, strict=True):
            generator = self.settings.generator("crop", epoch, planned.number)
            begin = generator.randint(0, len(example["input_values"]) - length)
            example["input_values"] = example["input_values"][begin : begin + length]


class SpeechBatches:
    """Batches of one rank, as dicts of tensors and lists; see `pretraining_batches` and `finetuning_batches`.

    Every batch has `ids` (of its rows), `index` (its place among the batches of all ranks and epochs, to seed masks
    and negatives with) and `epoch`. A row that can't be used is logged, counted in `report` and left out; a batch with
    nothing left is passed over. A new `for` goes on after the last batch handed out, and starts again after the end.

    Args:
        sources: whatever `as_sources` takes; several are read one after another.
        collator: has `sampling_rate`, `prepare(row, waveform [S]) -> example` (a dict with `input_values`; may raise
            `UnusableRow`) and `collate(examples) -> batch`; is sent to the workers.
        num_workers: processes that decode; 0 decodes in this one. The batches are the same.
        settings: the fields of `BatchSettings`.

    Raises:
        ValueError: while iterating, if too many rows are bad or none can be used.
    """

    def __init__(self, *, sources, collator, num_workers: int = 0, **settings):
        self.settings = BatchSettings(**settings)
        self.sources = [open_source(source) for source in as_sources(sources)]
        self.collator, self.num_workers = collator, num_workers
        self.position, self.report = Position(), Report()

    def __iter__(self) -> Iterator[dict]:
        if self.position == Position():
            self.report = Report()
        planner = Planner(self.sources, self.settings, self.position)
        loader = DataLoader(
            BatchLoader(self.collator, self.settings),
            sampler=planner,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            # Its own, because the loader draws a number, and the global generator belongs to the model.
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        for loaded in loader:
            self.position = loaded["following"]
            self._count(loaded["num_rows"], loaded["skips"])
            if loaded["batch"] is not None:
                yield loaded["batch"]
            elif self.report.rows >= NUM_ROWS_TO_JUDGE:
                self.report.refuse_nothing_used()
        self._count(len(planner.skips), planner.skips)
        if self.position != Position():
            self.report.refuse_nothing_used()
        self.position = Position()

    def _count(self, num_rows: int, skips: list[Skip]) -> None:
        for skip in skips:
            level = logging.INFO if skip.reason in ("too_short", "too_long") else logging.WARNING
            logger.log(level, "left out (%s): %s", skip.reason, skip.message)
            if skip.reason == "bad_text" and self.settings.on_bad_text == "error":
                raise ValueError(skip.message)
        self.report.count(num_rows, skips)
        self.report.refuse_too_many_bad(self.settings.max_bad_fraction)

    def state_dict(self) -> dict:
        """The position after the last batch handed out, the report, and the settings they belong to; plain values."""
        return {"position": asdict(self.position), "report": self.summary(), "settings": self._order_settings()}

    def summary(self) -> dict:
        """The report as plain values."""
        return asdict(self.report)

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken, on the same rank and with the same settings, or else ValueError."""
        ours = self._order_settings()
        differing = [name for name in ours if ours[name] != state["settings"].get(name)]
        if differing:
            changes = ", ".join(f"{name} ({state['settings'].get(name)} -> {ours[name]})" for name in differing)
            raise ValueError(f"state: a position only holds for the settings it was taken with; changed: {changes}.")
        self.position = Position(**state["position"])
        self.report = Report(**deepcopy(state["report"]))

    def _order_settings(self) -> dict:
        without_effect = ("num_epochs", "max_bad_fraction", "on_bad_text")
        return {name: value for name, value in asdict(self.settings).items() if name not in without_effect}


def _unchanged(loaded: dict) -> dict:
    return loaded


@dataclass
class PretrainingCollator:
    """Waveforms of one length: normalised whole by the feature extractor, as fairseq does; the loader crops them.

    `with_speakers` adds a number for each row's `speaker_id`, if all rows of the batch have one.
    """

    feature_extractor: Callable
    with_speakers: bool = False

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_attention_mask=True)
        example = {"input_values": np.asarray(features["input_values"][0])}
        if self.with_speakers and row.extra.get("speaker_id") is not None:
            # any name, and the same number in every worker and process
            example["speaker_id"] = zlib.crc32(str(row.extra["speaker_id"]).encode())
        return example

    def collate(self, examples: list[dict]) -> dict:
        batch = {"input_values": torch.stack([torch.from_numpy(example["input_values"]) for example in examples])}
        if all("speaker_id" in example for example in examples):
            batch["speaker_ids"] = torch.tensor([example["speaker_id"] for example in examples])
        return batch


class FinetuningCollator(PretrainingCollator):
    """Whole utterances, padded, with the labels of their texts; the arguments are those of `finetuning_batches`."""

    def __init__(self, processor, text_case: str | None, num_frames: Callable[[int], int] | None):
        if text_case not in ("upper", "lower", None):
            raise ValueError(f"text_case: expected 'upper', 'lower' or None, got {text_case!r}.")
        super().__init__(processor.feature_extractor)
        self.tokenizer, self.text_case, self.num_frames = processor.tokenizer, text_case, num_frames

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        text = self._text(row)
        labels = self.tokenizer(text).input_ids
        if self.num_frames is not None:
            num_frames, num_needed = self.num_frames(len(waveform)), num_frames_needed(labels)
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
        padded = pad_waveforms(self.feature_extractor, examples)
        labels = pad_sequence([example["labels"] for example in examples], batch_first=True, padding_value=-100)
        return {**padded, "labels": labels, "texts": [example["text"] for example in examples]}


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
    if text_case not in ("upper", "lower", None):
        raise ValueError(f"text_case: expected 'upper', 'lower' or None, got {text_case!r}.")
    text = " ".join(text.split())
    return {"upper": text.upper, "lower": text.lower, None: lambda: text}[text_case]()


def pad_waveforms(feature_extractor, examples: list[dict]) -> dict:
    """`input_values` [B, S] and `attention_mask` [B, S] of examples of different length."""
    return feature_extractor.pad(
        {"input_values": [example["input_values"] for example in examples]},
        padding=True,
        return_attention_mask=True,
        return_tensors="pt",
    )


def num_frames_needed(labels: list[int]) -> int:
    """The least number of frames on which CTC can align `labels`: one each, and a blank between equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def pretraining_batches(
    sources,
    feature_extractor,
    *,
    min_seconds: float = 2.0,
    max_seconds: float = 15.625,
    with_speakers: bool = False,
    **settings,
) -> SpeechBatches:
    """Endless batches of random crops, `input_values` [B, S] without padding, as wav2vec and wav2vec 2.0 train on.

    Every row is normalised by `feature_extractor` as a whole, then all rows of a batch are cropped at random places to
    the shortest of them or `max_seconds`. The defaults are those of wav2vec 2.0 BASE: 32,000 and 250,000 samples.
    `with_speakers` adds `speaker_ids` [B], equal for rows whose `speaker_id` is; a batch with a row that has none
    lacks them. `settings` are `num_workers` and the fields of `BatchSettings`.
    """
    settings |= {"min_seconds": min_seconds, "max_seconds": max_seconds, "crop": True}
    collator = PretrainingCollator(feature_extractor, with_speakers)
    return SpeechBatches(sources=sources, collator=collator, **settings)


def finetuning_batches(
    sources,
    processor,
    *,
    text_case: str | None = None,
    num_frames: Callable[[int], int] | None = None,
    **settings,
) -> SpeechBatches:
    """Batches of whole utterances with transcripts and labels to train on.

    A batch has `input_values` [B, S], `attention_mask` [B, S], `labels` [B, L] padded with -100, and `texts`.

    Args:
        processor: has `feature_extractor` and `tokenizer`, such as Transformers' `Wav2Vec2Processor`.
        text_case: "upper" or "lower" turns the transcripts into it first; white space is always made single blanks.
        num_frames: frames that the model makes of a number of samples. If given, rows with more labels than CTC can
            align to their frames, whose loss is infinite, are left out.
        settings: `num_workers` and the fields of `BatchSettings`; rows longer than `max_seconds` are left out.
    """
    collator = FinetuningCollator(processor, text_case, num_frames)
    return SpeechBatches(sources=sources, collator=collator, crop=False, **settings)


def evaluation_batches(
    sources, feature_extractor, *, batch_seconds: float, text_case: str | None = None, num_workers: int = 0
) -> SpeechBatches:
    """All utterances once, whole and in their order, with `texts` to compare with; nothing is too long or too short.

    A batch has `input_values` [B, S], `attention_mask` [B, S], `texts` and `ids`.
    """
    return SpeechBatches(
        sources=sources,
        collator=EvaluationCollator(feature_extractor, text_case),
        num_workers=num_workers,
        batch_seconds=batch_seconds,
        max_seconds=math.inf,
        shuffle_window=0,
        num_epochs=1,
    )
