"""A recipe: one YAML file and dotted overrides, checked against the fields below.

    python -m training.pretrain training/recipes/wav2vec2/base_ls960.yaml data.train=/my/corpus run.output_dir=runs/x

A file says only what differs from the defaults here; a key that is not here is an error.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import hf_wav2vec_family

from . import schedules
from .augmentation import Augmentation, make_augmentation
from .sources import as_sources
from .span_masking import SpanMasking

# the least and the largest value of what has limits
LIMITS = {
    "optimization": {
        "num_steps": (1, math.inf),
        "gradient_accumulation_steps": (1, math.inf),
        "learning_rate": (0, math.inf),
        "max_grad_norm": (0, math.inf),
        "frozen_encoder_steps": (0, math.inf),
        "linear_segmentation_steps": (0, math.inf),
    },
    "data": {"max_bad_fraction": (0, 1), "num_workers": (0, math.inf), "num_streams": (1, math.inf)},
    "run": {
        "log_every_steps": (0, math.inf),
        "evaluation_every_steps": (0, math.inf),
        "checkpoint_every_steps": (0, math.inf),
        "keep_checkpoints": (1, math.inf),
    },
}

# Kernels that were tried for one length are used for every batch of it: 60 lengths, and 1 % of a crop of 12 s lost.
COMPILED_LENGTH_STEP_SECONDS = 0.25


@dataclass
class DataRecipe:
    """Where speech comes from and how it is cut into batches.

    Args:
        train: a path or Hub id, a mapping `{path, name, split, weight}`, or a list of those.
        evaluation: the same; its default split is "dev" or what the mapping says.
        batch_seconds: audio in one batch of one process, rows times the longest row.
        min_seconds, max_seconds: shorter clips are left out; longer ones are cropped in pre-training, left out in
            fine-tuning.
        shuffle_window: rows among which lengths are sorted and batches shuffled.
        same_speaker: only clips of one `speaker_id` stand in a batch, as CPC's negatives of the same speaker want it.
        num_streams: into so many parts shards are dealt, from which batches come in turn; nothing means one per
            process for parquet, tar and Hub, and one for everything else.
        budget_seconds: train on so much of the data only, taken in an order drawn from `budget_seed`.
        text_case: "upper", "lower" or nothing: what is done to transcripts.
        max_bad_fraction: a larger share of clips that cannot be read, or of damaged shards, stops the run.
        on_bad_text: fine-tuning only: "skip" leaves out, names and counts transcripts that are missing, have symbols
            outside the vocabulary, or more of them than the audio has frames; "error" stops at the first.
        augmentation: `{noise: {snr_db: [5, 20], prob: 0.5}, …}`, what is done to the clips of training, in this order:
            kinds and options of training/augmentation.py; an empty mapping `{}` takes the defaults of a kind.
        augment_past_only: CPC's pre-training only: the context hears the augmented clip, what it has to predict is of
            the clean one.
    """

    train: Any = MISSING
    evaluation: Any = None
    batch_seconds: float = 40.0
    min_seconds: float = 0.1
    max_seconds: float = 20.0
    shuffle_window: int = 1000
    same_speaker: bool = False
    num_streams: int | None = None
    num_workers: int = 1
    budget_seconds: float | None = None
    budget_seed: int = 0
    text_case: str | None = None
    max_bad_fraction: float = 0.01
    on_bad_text: str = "skip"
    augmentation: dict[str, Any] | None = None
    augment_past_only: bool = False


@dataclass
class CodesRecipe:
    """BERT on codes only: how they are cut into sequences and batches.

    Args:
        tokens_per_sample: the longest sequence, `<s>` and `</s>` included; what is longer is cut into pieces.
        batch_tokens: tokens in one batch of one process, sequences times the longest of them.
        vq_wav2vec: folder or Hub id of the model that made the codes, to leave both as one Discrete BERT as well.
    """

    tokens_per_sample: int = 2048
    batch_tokens: int = 3072
    vq_wav2vec: str | None = None

    def __post_init__(self):
        if not 3 <= self.tokens_per_sample <= self.batch_tokens:
            raise ValueError(
                "codes: tokens_per_sample must be at least 3 and at most batch_tokens, got"
                f" {self.tokens_per_sample} and {self.batch_tokens}."
            )


@dataclass
class OptimizationRecipe:
    """The optimizer and what it follows. Defaults are those of wav2vec 2.0.

    Args:
        learning_rate: the peak.
        optimizer: "adamw", which `betas` and `eps` belong to, or "sgd" with `momentum`.
        schedule: `{kind: ..., options}`, a function of training/schedules.py.
        gumbel_temperature: `{kind: ..., options}` for models with a Gumbel quantizer, else nothing.
        codebook: `{initialize: true, restart_every_steps: N}` for models with a k-means quantizer, else nothing: take
            the codebook from the first batch, and every N steps move entries that no frame of a batch chooses.
        mixed_precision: "no", "bf16", "fp16", or "auto": bf16 where the device has it in hardware, else no.
        max_grad_norm: gradients above this norm are scaled down; 0 leaves them alone.
        frozen_encoder_steps: fine-tuning only: steps in which nothing but the head learns.
        linear_segmentation_steps: fine-tuning with ASG only: first steps, whose targets are stretched evenly over
            their frames.
    """

    learning_rate: float = 5e-4
    num_steps: int = 400_000
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "polynomial", "warmup_steps": 32_000})
    gumbel_temperature: dict[str, Any] | None = None
    codebook: dict[str, Any] | None = None
    optimizer: str = "adamw"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 0.0
    gradient_accumulation_steps: int = 1
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    frozen_encoder_steps: int = 0
    linear_segmentation_steps: int = 0


@dataclass
class RunRecipe:
    """Where a run lives and how often it speaks.

    Args:
        output_dir: the folder of logs, checkpoints and the finished model.
        resume: go on from the newest complete checkpoint in `output_dir`, if there is one. A folder or Hub id of
            another run means its newest checkpoint where `output_dir` has none.
        evaluation_every_steps, checkpoint_every_steps: 0 means at the end only.
        best_metric: evaluation number whose lowest value marks the best model; nothing means the stage's own.
        decoder: fine-tuning only: folder of a beam search that evaluations transcribe with, so that the best model is
            the best one with its language model, as in the papers; nothing means greedy.
        keep_checkpoints: so many of the newest stay, and that of the best step.
        trackers: Accelerate's names, such as tensorboard or wandb. `log.jsonl` is always written.
    """

    output_dir: str = MISSING
    seed: int = 1
    resume: Any = True
    log_every_steps: int = 50
    evaluation_every_steps: int = 5000
    checkpoint_every_steps: int = 5000
    keep_checkpoints: int = 2
    best_metric: str | None = None
    decoder: str | None = None
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class Recipe:
    """
    Args:
        architecture: prefix of the classes of the package, such as Wav2Vec2.
        pretrained: folder or Hub id of the model to start from, in pre-training to go on with it on other speech;
            nothing means random weights.
        encoder: fine-tuning only: folder or Hub id of a pre-trained encoder, for an architecture that puts a new
            network on one; instead of `pretrained`.
        vocabulary: in fine-tuning, "letters" for the English letters of the original models, "transcripts" for the
            characters found in the training transcripts, "timit39", "timit48", "timit61" or "cmu39" for phones
            between blanks, "wsj" for the graphemes of WSJ with replabels (ASG), or the folder of a tokenizer; for
            BERT on codes, "codes" for the words of the training data, or the folder of a `SpeechCodesTokenizer`.
        do_normalize: whether clips are given zero mean and unit variance; nothing means as the model expects.
        model: fields of the model's configuration that differ from its defaults; for BERT on codes, those of
            `RobertaConfig`.
        masking: for BERT on codes only.
    """

    architecture: str = "Wav2Vec2"
    pretrained: str | None = None
    encoder: str | None = None
    vocabulary: str = "letters"
    do_normalize: bool | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: DataRecipe = field(default_factory=DataRecipe)
    codes: CodesRecipe = field(default_factory=CodesRecipe)
    masking: SpanMasking = field(default_factory=SpanMasking)
    optimization: OptimizationRecipe = field(default_factory=OptimizationRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe file and lays `key.key=value` overrides over it.

    Raises ValueError for a key or a value that no recipe has, naming it.
    """
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"an override is written key=value, such as data.train=/my/corpus, got {override!r}.")
    try:
        merged = OmegaConf.structured(Recipe)
        for layer in (OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))):
            merged = OmegaConf.merge(_without_replaced_schedules(merged, layer), layer)
        # YAML takes an unquoted no for false
        if merged.optimization.mixed_precision == "False":
            merged.optimization.mixed_precision = "no"
        recipe = OmegaConf.to_object(merged)
        check_recipe(recipe)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, IsADirectoryError) as error:
        described = " ".join(str(error).split("\n\n")[0].split())
        raise ValueError(f"{path} with overrides {list(overrides)}: {described}") from error
    return recipe


def _without_replaced_schedules(merged, layer):
    """A schedule of another kind has other options, so that a layer that names a kind replaces the options too."""
    for key, nothing in (("schedule", {}), ("gumbel_temperature", None)):
        if OmegaConf.select(layer, f"optimization.{key}.kind") is not None:
            merged.optimization[key] = nothing
    return merged


def check_recipe(recipe: Recipe):
    """Everything that can be told to be wrong before data and models are loaded."""
    optimization = recipe.optimization
    refuse_impossible_schedules(optimization)
    unknown = sorted(set(optimization.codebook or {}) - {"initialize", "restart_every_steps"})
    if unknown:
        raise ValueError(f"optimization.codebook takes initialize, restart_every_steps, got {', '.join(unknown)}.")
    accepted = ("no", "bf16", "fp16", "auto")
    if optimization.mixed_precision not in accepted:
        raise ValueError(
            f"optimization.mixed_precision must be one of {accepted}, got {optimization.mixed_precision!r}."
        )
    if optimization.optimizer not in ("adamw", "sgd"):
        raise ValueError(f"optimization.optimizer must be adamw or sgd, got {optimization.optimizer!r}.")
    if optimization.momentum and optimization.optimizer != "sgd":
        raise ValueError(f"optimization.momentum needs the optimizer sgd, got {optimization.optimizer!r}.")
    for section, limits in LIMITS.items():
        for name, (lowest, highest) in limits.items():
            value = getattr(getattr(recipe, section), name)
            if value is not None and not lowest <= value <= highest:
                at_most = "" if highest == math.inf else f" and at most {highest}"
                raise ValueError(f"{section}.{name} must be at least {lowest}{at_most}, got {value}.")
    for name in ("accuracy", "codevector_perplexity"):
        if name in (recipe.run.best_metric or ""):
            raise ValueError(f"run.best_metric must be a number whose lowest value is the best, got {name}.")
    if not isinstance(recipe.run.resume, bool | str) or recipe.run.resume == "":
        raise ValueError(f"run.resume must be true, false, a folder or a Hub id, got {recipe.run.resume!r}.")
    if recipe.data.budget_seconds is not None and recipe.data.budget_seconds <= 0:
        raise ValueError(f"data.budget_seconds must be above 0, or null for all, got {recipe.data.budget_seconds}.")
    if recipe.data.min_seconds > recipe.data.max_seconds:
        raise ValueError(
            "data.min_seconds must not be above data.max_seconds, got"
            f" {recipe.data.min_seconds} and {recipe.data.max_seconds}."
        )
    augmentation_of(recipe)
    as_sources(recipe.data.train)
    if recipe.data.evaluation is not None:
        weighted = [source.path for source in as_sources(recipe.data.evaluation) if source.weight is not None]
        if weighted:
            raise ValueError(f"data.evaluation takes every row once and no weight, got one for {', '.join(weighted)}.")


def refuse_impossible_schedules(optimization: OptimizationRecipe):
    """ValueError for schedules that give no number, or a temperature of 0, at the first or the last step."""
    for key, schedule, lowest in (
        ("schedule", learning_rates(optimization), 0.0),
        ("gumbel_temperature", temperatures(optimization), 1e-6),
    ):
        for step in (0, optimization.num_steps - 1) if schedule is not None else ():
            try:
                value = schedule(step)
            except (ArithmeticError, TypeError) as error:
                raise ValueError(f"optimization.{key}: {error}.") from error
            if not lowest <= value < math.inf:
                raise ValueError(f"optimization.{key} must be at least {lowest} at step {step}, got {value}.")


def learning_rates(optimization: OptimizationRecipe):
    """The learning rate as a function of the step."""
    options = dict(optimization.schedule)
    kind = options.pop("kind", None)
    return schedules.learning_rate_schedule(
        kind, num_steps=optimization.num_steps, peak=optimization.learning_rate, options=options
    )


def temperatures(optimization: OptimizationRecipe):
    """The quantizer's temperature as a function of the step, or None."""
    if not optimization.gumbel_temperature:
        return None
    options = dict(optimization.gumbel_temperature)
    kind = options.pop("kind", None)
    return schedules.temperature_schedule(kind, num_steps=optimization.num_steps, options=options)


def configuration(config_class: type, fields: dict[str, Any], *, pretrained: str | None = None, **more: Any):
    """A model configuration from a recipe's `model` section, over that of a `pretrained` model if there is one.

    A field that the class does not have is an error, and so is a model of another architecture.
    """
    refuse_unknown_fields(config_class, fields)
    before = {}
    if pretrained is not None:
        kind = config_class.get_config_dict(pretrained)[0].get("model_type")
        if kind != config_class.model_type:
            raise ValueError(f"pretrained must be a {config_class.model_type}, got {pretrained}, which is a {kind}.")
        stored = config_class.from_pretrained(pretrained)
        before = {f.name: getattr(stored, f.name) for f in dataclasses.fields(config_class)}
    return config_class(**{**before, **fields, **more})


def begin(model_class: type, config, pretrained: str | None):
    """A model with the weights of `pretrained`, or random ones."""
    return model_class(config) if pretrained is None else model_class.from_pretrained(pretrained, config=config)


def refuse_unknown_fields(config_class: type, fields: dict[str, Any]):
    """ValueError for a field of a recipe's `model` section that the class does not have."""
    unknown = sorted(set(fields) - {f.name for f in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(f"model: {config_class.__name__} has no field {', '.join(unknown)}.")


def augmentation_of(recipe: Recipe) -> Augmentation | None:
    """What is done to the clips of training, or None."""
    return make_augmentation(recipe.data.augmentation, past_only=recipe.data.augment_past_only)


def batch_settings(recipe: Recipe, *, rank: int, world_size: int) -> dict[str, Any]:
    """What the training batches of any stage are made by, as `SpeechBatches` takes it."""
    data = recipe.data
    names = ("batch_seconds", "min_seconds", "max_seconds", "shuffle_window", "same_speaker", "num_streams")
    names += ("num_workers", "max_bad_fraction", "on_bad_text")
    budget = {"budget_seconds": data.budget_seconds, "budget_seed": data.budget_seed}
    given = {name: getattr(data, name) for name in names}
    ours = {"seed": recipe.run.seed, "rank": rank, "world_size": world_size}
    ours["length_step_seconds"] = COMPILED_LENGTH_STEP_SECONDS if recipe.optimization.compile else 0.0
    return {**given, **budget, **ours, "augmentation": augmentation_of(recipe)}


def family_class(recipe: Recipe, suffix: str) -> type:
    """A class of the package by the recipe's architecture: "Config", "ForPreTraining", "ForCTC"."""
    found = getattr(hf_wav2vec_family, recipe.architecture + suffix, None)
    if found is None:
        known = sorted(n.removesuffix(suffix) for n in hf_wav2vec_family.__all__ if n.endswith(suffix))
        raise ValueError(f"architecture must be one of {', '.join(known)}, got {recipe.architecture!r}.")
    return found


def refuse_settings(recipe: Recipe, stage: str, *, own: Sequence[str] = (), **sections: Sequence[str]):
    """ValueError for settings that a stage would pass over: `own` of the recipe itself, or named by section."""
    for part, default, names in [
        (recipe, Recipe(), own),
        *((getattr(recipe, section), getattr(Recipe(), section), names) for section, names in sections.items()),
    ]:
        for name in names:
            if getattr(part, name) != getattr(default, name):
                raise ValueError(
                    f"{name} has no effect in {stage}, but the recipe sets it to {getattr(part, name)!r}."
                )


def identity(recipe: Recipe) -> dict[str, Any]:
    """What a run is about; a run that resumes with another is not the same run."""
    names = ("architecture", "pretrained", "encoder", "vocabulary", "do_normalize", "model")
    own = {name: getattr(recipe, name) for name in names}
    sources = [dataclasses.asdict(source) for source in as_sources(recipe.data.train)]
    # a folder is the same however its path is written
    train = [{**s, "path": str(Path(s["path"]).resolve()) if Path(s["path"]).exists() else s["path"]} for s in sources]
    return {**own, "optimization.optimizer": recipe.optimization.optimizer, "data.train": train}


def parse_command(description: str, arguments: list[str] | None = None) -> Recipe:
    """The recipe that a command line asks for: a file, then overrides."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", help="a YAML file under training/recipes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train=/my/corpus")
    parsed = parser.parse_args(arguments)
    try:
        return load_recipe(parsed.recipe, parsed.overrides)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
