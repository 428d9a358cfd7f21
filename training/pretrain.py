"""Pre-training of any architecture of the package on speech without transcripts.

python -m training.pretrain training/recipes/wav2vec2/base_ls960.yaml data.train=/my/audio run.output_dir=runs/mine
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from accelerate.utils import broadcast
from torch import nn
from tqdm.auto import tqdm

from hf_wav2vec_family.frame_places import min_num_samples
from hf_wav2vec_family.quantizers import code_counts

from .collators import CLEAN
from .data import SpeechBatches, pretraining_batches
from .engine import make_accelerator
from .loop import seed_step, train
from .recipe import (
    Recipe,
    batch_settings,
    begin,
    configuration,
    family_class,
    parse_command,
    refuse_settings,
    refuse_unknown_fields,
)
from .sources import as_sources, openable
from .stage import Stage, StepOutput

INPUTS = ("input_values", "attention_mask", "speaker_ids", CLEAN)
Compute = Callable[[nn.Module, dict], StepOutput]


def make_feature_extractor(recipe: Recipe, config) -> transformers.Wav2Vec2FeatureExtractor:
    """The feature extractor that goes with a configuration; a recipe that contradicts it is an error."""
    expected = config.expects_normalized_input
    if recipe.do_normalize is not None and recipe.do_normalize != expected:
        raise ValueError(
            f"do_normalize must be {expected} for this {type(config).__name__}, whose published models were trained"
            f" so, got {recipe.do_normalize}."
        )
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=expected, return_attention_mask=True)


def needs_of(model: nn.Module) -> dict[str, int | bool]:
    """What the objective of a model asks of batches, as `pretraining_batches` takes it.

    The shortest clip that it can learn from, or that gives it a frame; the fewest clips of a batch; and speakers, if
    it can tell them apart.
    """
    return {
        "min_samples": getattr(model, "num_samples_needed", None) or min_num_samples(model),
        "min_clips": getattr(model, "num_clips_needed", 1),
        "with_speakers": "speaker_ids" in inspect.signature(type(model).forward).parameters,
    }


def refuse_past_only(recipe: Recipe, model: nn.Module):
    """ValueError if a recipe has clean targets for augmented contexts and the model takes none."""
    if recipe.data.augment_past_only and CLEAN not in inspect.signature(type(model).forward).parameters:
        raise ValueError(
            f"data.augment_past_only needs a model that takes {CLEAN}, such as CPC, got {type(model).__name__}."
        )


def compute(model: nn.Module, batch: dict) -> StepOutput:
    """The model's own objective; every scalar of its output record is logged under its name.

    In evaluation, what it has for each step that it predicts ahead is logged as `step_accuracies/1`,
    `step_accuracies/2` and so on; in training, which codes were chosen and what share of the frames was masked.
    """
    output = model(**{name: batch[name] for name in INPUTS if batch.get(name) is not None})
    scalars = {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.dim() == 0 and name not in ("loss", "num_targets")
    }
    if model.training:
        if output.get("target_mask") is not None:
            scalars["mask_share"] = output.num_targets / output.last_hidden_state[..., 0].numel()
        return StepOutput(output.loss, output.num_targets, scalars, chosen_codes(model, output))
    for name in ("step_losses", "step_accuracies"):
        values = output.get(name)
        if values is not None:
            scalars |= {f"{name}/{ahead}": value for ahead, value in enumerate(values, start=1)}
    return StepOutput(output.loss, output.num_targets, scalars)


def chosen_codes(model: nn.Module, output) -> dict[str, torch.Tensor]:
    """How often each entry of each group was chosen, of a model with a codebook."""
    if output.get("codes") is None:
        return {}
    config = getattr(model, "module", model).config
    return {"codes": code_counts(output.codes, config.num_codevectors_per_group, output.get("target_mask"))}


def codebook_care(recipe: Recipe, config):
    """What keeps a k-means codebook in use during training, or None if the recipe asks for nothing.

    Every process would take other frames from its own batch, so the first one's codebook goes to all.
    """
    options = recipe.optimization.codebook
    if not options:
        return None
    if getattr(config, "quantizer_type", None) != "kmeans":
        raise ValueError(f"optimization.codebook needs a model with a k-means quantizer, got {type(config).__name__}.")
    every = options.get("restart_every_steps", 0)

    def before_batch(model: nn.Module, batch: dict, step: int):
        inputs = {name: batch[name] for name in INPUTS if batch.get(name) is not None}
        encoder = model.base_model
        if step == 0 and options.get("initialize"):
            encoder.initialize_codebook(**inputs)
        elif step > 0 and every and step % every == 0:
            encoder.restart_dead_codes(**inputs)
        else:
            return
        broadcast(encoder.quantizer.codevectors.data)

    return before_batch


def averages(
    model: nn.Module, batches: SpeechBatches, compute: Compute, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Loss and metrics over all targets of `batches`, with what the model draws seeded by the place of each batch."""
    sums, total = {}, 0.0
    for i, batch in enumerate(tqdm(batches, desc="evaluation", leave=False)):
        seed_step(seed, i, 0)
        output = compute(model, {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()})
        weight = float(output.num_targets)
        for name, value in {"loss": output.loss, **output.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * weight
        total += weight
    if total == 0:
        raise ValueError(f"data.evaluation has nothing to evaluate on: {batches.summary()}.")
    return {name: value / total for name, value in sums.items()}


def evaluator(recipe: Recipe, feature_extractor, device: torch.device):
    """model -> its metrics on the evaluation data, with the same masks and distractors every time."""
    sources = openable(as_sources(recipe.data.evaluation, split="dev"))

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = pretraining_batches(
            sources,
            feature_extractor,
            seed=recipe.run.seed,
            batch_seconds=recipe.data.batch_seconds,
            min_seconds=recipe.data.min_seconds,
            max_seconds=recipe.data.max_seconds,
            max_bad_fraction=recipe.data.max_bad_fraction,
            **needs_of(model),
            num_epochs=1,
        )
        return averages(model, batches, compute, seed=recipe.run.seed, device=device)

    return evaluate


def check(recipe: Recipe):
    """ValueError for a setting that this stage would pass over, or a field that the model does not have."""
    refuse_settings(
        recipe,
        "pre-training",
        optimization=["frozen_encoder_steps", "linear_segmentation_steps"],
        data=["text_case", "on_bad_text"],
        run=["decoder"],
        own=["encoder", "codes", "masking"],
    )
    refuse_unknown_fields(family_class(recipe, "Config"), recipe.model)


def main(recipe: Recipe) -> dict:
    """Runs the stage; returns its summary. The model is in `run.output_dir`/model."""
    check(recipe)
    accelerator = make_accelerator(recipe)
    config = configuration(family_class(recipe, "Config"), recipe.model, pretrained=recipe.pretrained)
    feature_extractor = make_feature_extractor(recipe, config)
    transformers.set_seed(recipe.run.seed)
    model = begin(family_class(recipe, "ForPreTraining"), config, recipe.pretrained)
    refuse_past_only(recipe, model)
    data = recipe.data
    batches = pretraining_batches(
        as_sources(data.train),
        feature_extractor,
        **needs_of(model),
        **batch_settings(recipe, rank=accelerator.process_index, world_size=accelerator.num_processes),
    )

    def save(model: nn.Module, folder: Path, weights: dict | None):
        model.save_pretrained(folder, state_dict=weights)
        feature_extractor.save_pretrained(folder)

    stage = Stage(
        compute=compute,
        save=save,
        evaluate=evaluator(recipe, feature_extractor, accelerator.device) if data.evaluation else None,
        best=recipe.run.best_metric or "contrastive_loss",
        before_batch=codebook_care(recipe, config),
    )
    return train(recipe, stage, accelerator=accelerator, model=model, batches=batches)


if __name__ == "__main__":
    main(parse_command(__doc__))
