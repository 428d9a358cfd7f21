"""Deterministic batches of speech.

The order of the rows, the batches and the crops are functions of (seed, epoch, position), never of what came before.
So the state to resume is a position, and the number of workers changes nothing:

    rows -> plans of batches                              `Planner` in planning.py, in a thread that plans ahead
    plan -> decoded, prepared, cropped, collated batch    `BatchLoader` with a collator of collators.py, in the workers
    batches handed out, counted and resumed               `SpeechBatches`, what the loop iterates over
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hf_wav2vec_family.audio_reading import AudioError, read_audio

from .augmentation import Augmentation
from .collators import (
    CLEAN,
    RECORDED,
    EvaluationCollator,
    FinetuningCollator,
    PretrainingCollator,
    prepare_augmented,
    recorded_level,
)
from .dealing import Deal, RankState, dealt_anew
from .ordering import parts_of
from .planning import NUM_PLANS_AHEAD, BatchPlan, BatchSettings, PlannedRow, Planner, ahead
from .preemption import end_workers_at_exit, leave_signals_to_the_main_process
from .skips import NUM_ROWS_TO_JUDGE, Report, Skip, UnusableRow
from .sources import KINDS_WITH_AUDIO, as_sources, open_source

logger = logging.getLogger(__name__)


class BatchLoader(Dataset):
    """`loader[plan]`: the batch of a plan and what happened on the way; runs in the workers."""

    def __init__(self, collator, settings: BatchSettings):
        self.collator, self.settings = collator, settings

    def __getitem__(self, plan: BatchPlan) -> dict:
        rows, examples, skips = [], [], list(plan.skips)
        for planned in plan.rows:
            try:
                examples.append(self.load(planned, planned.epoch))
                rows.append(planned)
            except UnusableRow as error:
                skips.append(error.skip)
        if len(rows) < getattr(self.collator, "min_clips", 1):
            skips += [Skip("alone", f"{planned.row.id}: {len(rows)} clips in its batch.") for planned in rows]
            rows = []
        batch = None
        if rows:
            if self.settings.crop:
                self._crop(examples, rows)
            batch = self.collator.collate(examples)
            batch |= {"ids": [planned.row.id for planned in rows], "index": plan.index, "epoch": plan.epoch}
            if "recorded_rms" in examples[0]:
                batch |= {name: torch.tensor([example[name] for example in examples]) for name in RECORDED}
        num_rows = len(plan.rows) + len(plan.skips)
        return {"batch": batch, "num_rows": num_rows, "skips": skips, "plan": (plan.index, plan.following)}

    def load(self, planned: PlannedRow, epoch: int) -> dict:
        """The example of a row in an epoch; may raise `UnusableRow`."""
        row = planned.row
        try:
            waveform = read_audio(row.audio, self.collator.sampling_rate)
        except AudioError as error:
            raise UnusableRow("bad", f"{row.id}: {error}") from error
        # Once more: the metadata may have been wrong.
        self.settings.refuse_length(row.id, len(waveform) / self.collator.sampling_rate)
        augmentation = getattr(self.collator, "augmentation", None)
        if augmentation is None:
            example = self.collator.prepare(row, waveform)
        else:
            seed = self.settings.generator("augmentation", epoch, planned.number).getrandbits(64)
            example = prepare_augmented(self.collator, row, waveform, np.random.default_rng(seed))
        return example | recorded_level(waveform)

    def _crop(self, examples: list[dict], rows: list[PlannedRow]) -> None:
        rate, shortest = self.collator.sampling_rate, min(len(example["input_values"]) for example in examples)
        length = min(shortest, round(self.settings.length_in_batch(shortest / rate) * rate))
        for example, planned in zip(examples, rows, strict=True):
            generator = self.settings.generator("crop", planned.epoch, planned.number)
            begin = generator.randint(0, len(example["input_values"]) - length)
            for name in {"input_values", CLEAN} & example.keys():
                example[name] = example[name][begin : begin + length]


class SpeechBatches:
    """Batches of one rank, as dicts of tensors and lists; see `pretraining_batches` and `finetuning_batches`.

    Every batch has `ids` (of its rows), `index` (its place among the batches of all ranks and epochs, to seed masks
    and negatives with) and `epoch`; batches of audio have `recorded_rms` and `recorded_mean` [B] of the clips as they
    were decoded. A row that can't be used is logged, counted in `report` and left out; a batch with nothing left is
    passed over. A new `for` goes on after the last batch handed out, and starts again after the end.

    Args:
        sources: whatever `as_sources` takes; several are read one after another.
        collator: has `sampling_rate`, `prepare(row, waveform [S]) -> example` (a dict with `input_values`; may raise
            `UnusableRow`) and `collate(examples) -> batch`; is sent to the workers.
        num_workers: processes that decode; 0 decodes in this one. The batches are the same.
        settings: the fields of `BatchSettings`.

    Raises:
        ValueError: while iterating, if too many rows are bad or none can be used.
    """

    loader_class = BatchLoader

    def __init__(self, *, sources, collator, num_workers: int = 0, **settings):
        self.settings = BatchSettings(**settings)
        self.sources = [open_source(source) for source in as_sources(sources)]
        self.collator, self.num_workers = collator, num_workers
        num_streams = self.settings.num_streams or self._one_stream_per_process()
        # one stream is always right, and shards are not looked for before they are needed
        if num_streams > 1 and num_streams > (num_shards := self._fewest_shards()):
            raise ValueError(f"num_streams: expected at most {num_shards}, the shards of a source, got {num_streams}.")
        self.beginning = RankState(Deal(self.settings.world_size), num_streams)
        self.state, self.report = self.beginning, Report()

    def _fewest_shards(self) -> int:
        """Of the parts that have streams of their own."""
        return min((len(part.shards) for part in parts_of(self.sources)), default=0)

    def _one_stream_per_process(self) -> int:
        """As many streams as processes, if rows come with their audio and there are shards enough, else one."""
        settings, with_audio = self.settings, all(source.kind in KINDS_WITH_AUDIO for source in self.sources)
        if settings.num_epochs is not None or settings.world_size == 1 or not with_audio:
            return 1
        num_shards = self._fewest_shards()
        if num_shards >= settings.world_size:
            return settings.world_size
        logger.warning(
            "a source has %d shards for %d processes, so that each process reads all of them; with more shards, each"
            " would read its own only",
            num_shards,
            settings.world_size,
        )
        return 1

    def __iter__(self) -> Iterator[dict]:
        if self.state == self.beginning:
            self.report = Report()
        if self.num_workers:
            end_workers_at_exit()
        planner = Planner(self.sources, self.settings, self.state)
        loader = DataLoader(
            self.loader_class(self.collator, self.settings),
            sampler=_PlannedAhead(planner),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            worker_init_fn=leave_signals_to_the_main_process,
            pin_memory=torch.cuda.is_available(),
            # Its own, because the loader draws a number, and the global generator belongs to the model.
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        for loaded in loader:
            self.state = self.state.after(*loaded["plan"])
            self._count(loaded["num_rows"], loaded["skips"])
            if loaded["batch"] is not None:
                yield loaded["batch"]
            elif self.report.rows >= NUM_ROWS_TO_JUDGE:
                self.report.refuse_nothing_used()
        self._count(len(planner.skips), planner.skips)
        if self.state != self.beginning:
            self.report.refuse_nothing_used()
        self.state = self.beginning

    def _count(self, num_rows: int, skips: list[Skip]) -> None:
        for skip in skips:
            level = logging.INFO if skip.reason in ("too_short", "too_long", "alone") else logging.WARNING
            logger.log(level, "left out (%s): %s", skip.reason, skip.message)
            if skip.reason in ("bad_text", "too_many_labels") and self.settings.on_bad_text == "error":
                raise ValueError(skip.message)
        self.report.count(num_rows, skips)
        self.report.refuse_too_many_bad(self.settings.max_bad_fraction)
        if any(skip.shard is not None for skip in skips):
            num_shards = sum(len(source.shards) for source in self.sources)
            self.report.refuse_too_many_damaged(self.settings.max_bad_fraction, num_shards)

    def state_dict(self) -> dict:
        """The place after the last batch handed out, the report, and the settings they belong to; plain values."""
        return {"place": self.state.as_dict(), "report": self.summary(), "settings": self._order_settings()}

    def summary(self) -> dict:
        """The report as plain values."""
        return asdict(self.report)

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken, on the same rank and with the same settings, or else ValueError."""
        place = self._place(state)
        if place.deal.world_size != self.settings.world_size:
            change = f"{place.deal.world_size} -> {self.settings.world_size}"
            raise ValueError(
                f"state: one rank's place only holds for as many processes; changed: world_size ({change})."
            )
        self.state = place
        self.report = Report(**deepcopy(state["report"]))

    def load_state_dicts(self, states: Sequence[dict]) -> None:
        """Goes on where a run of `len(states)` processes was, each of which took its `state_dict` at the same step.

        With another number of processes than now, what was left to them is dealt out anew.
        """
        if len(states) == self.settings.world_size:
            self.load_state_dict(states[self.settings.rank])
            return
        self.state = dealt_anew([self._place(state) for state in states], self.settings.world_size)
        reports = [Report(**deepcopy(state["report"])) for state in states]
        self.report = Report.sum_of(reports) if self.settings.rank == 0 else Report()

    def _place(self, state: dict) -> RankState:
        ours = self._order_settings()
        differing = [name for name in ours if ours[name] != state["settings"].get(name)]
        if differing:
            changes = ", ".join(f"{name} ({state['settings'].get(name)} -> {ours[name]})" for name in differing)
            raise ValueError(f"state: a position only holds for the settings it was taken with; changed: {changes}.")
        return RankState.from_dict(state["place"])

    def _order_settings(self) -> dict:
        # the number of streams is taken over from the state
        without_effect = ("num_epochs", "max_bad_fraction", "on_bad_text", "rank", "world_size", "num_streams")
        return {name: value for name, value in asdict(self.settings).items() if name not in without_effect}


class _PlannedAhead:
    """A planner whose plans are made before they are asked for."""

    def __init__(self, planner: Planner):
        self.planner = planner

    def __iter__(self) -> Iterator[BatchPlan]:
        return ahead(iter(self.planner), NUM_PLANS_AHEAD)


def _unchanged(loaded: dict) -> dict:
    return loaded


def pretraining_batches(
    sources,
    feature_extractor,
    *,
    min_seconds: float = 2.0,
    max_seconds: float = 15.625,
    min_samples: int = 1,
    min_clips: int = 1,
    with_speakers: bool = False,
    augmentation: Augmentation | None = None,
    **settings,
) -> SpeechBatches:
    """Endless batches of random crops, `input_values` [B, S] without padding, as wav2vec and wav2vec 2.0 train on.

    Every row is normalised by `feature_extractor` as a whole, then all rows of a batch are cropped at random places to
    the shortest of them or `max_seconds`. The defaults are those of wav2vec 2.0 BASE: 32,000 and 250,000 samples.
    Rows of fewer than `min_samples`, after augmentation, are left out as those below `min_seconds` are, and so are
    batches of fewer than `min_clips`.
    `with_speakers` adds `speaker_ids` [B], equal for rows whose `speaker_id` is; a batch with a row that has none
    lacks them. `augmentation` changes every row before it is normalised, drawn from (seed, epoch, number of the row);
    with its `past_only`, `clean_input_values` [B, S] are the same crops without it. `settings` are `num_workers` and
    the fields of `BatchSettings`.
    """
    settings |= {"min_seconds": min_seconds, "max_seconds": max_seconds, "crop": True}
    collator = PretrainingCollator(feature_extractor, with_speakers, augmentation, min_samples, min_clips)
    return SpeechBatches(sources=sources, collator=collator, **settings)


def finetuning_batches(
    sources,
    processor,
    *,
    text_case: str | None = None,
    num_frames: Callable[[int], int] | None = None,
    augmentation: Augmentation | None = None,
    merge_repeats: bool = False,
    **settings,
) -> SpeechBatches:
    """Batches of whole utterances with transcripts and labels to train on.

    A batch has `input_values` [B, S], `attention_mask` [B, S], `labels` [B, L] padded with -100, and `texts`.

    Args:
        processor: has `feature_extractor` and `tokenizer`, such as Transformers' `Wav2Vec2Processor`.
        text_case: "upper" or "lower" turns the transcripts into it first; white space is always made single blanks.
        num_frames: frames that the model makes of a number of samples. If given, rows with more labels than CTC can
            align to their frames, whose loss is infinite, are left out.
        augmentation: changes every row before it is normalised, drawn from (seed, epoch, number of the row).
        merge_repeats: whether the model learns a run of one label as one, which takes a frame and not one for each.
        settings: `num_workers` and the fields of `BatchSettings`; rows longer than `max_seconds` are left out.
    """
    step = round(settings.get("length_step_seconds", 0) * processor.feature_extractor.sampling_rate)
    collator = FinetuningCollator(processor, text_case, num_frames, augmentation, step or None, merge_repeats)
    return SpeechBatches(sources=sources, collator=collator, crop=False, **settings)


def evaluation_batches(
    sources,
    feature_extractor,
    *,
    batch_seconds: float,
    min_seconds: float = 0.0,
    text_case: str | None = None,
    num_workers: int = 0,
    max_bad_fraction: float = 0.01,
) -> SpeechBatches:
    """All utterances once, whole and in their order, with `texts` to compare with; nothing is too long.

    A batch has `input_values` [B, S], `attention_mask` [B, S], `texts` and `ids`.
    """
    return SpeechBatches(
        sources=sources,
        collator=EvaluationCollator(feature_extractor, text_case),
        num_workers=num_workers,
        batch_seconds=batch_seconds,
        min_seconds=min_seconds,
        max_seconds=math.inf,
        shuffle_window=0,
        num_epochs=1,
        max_bad_fraction=max_bad_fraction,
    )
