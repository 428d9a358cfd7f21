"""Pre-training of BERT on codes: Transformers' own RoBERTa as a masked language model of what extract_codes left.

python -m training.pretrain_bert training/recipes/discrete_bert/bert_base_ls960.yaml data.train=codes \
    codes.vq_wav2vec=runs/vq/model run.output_dir=runs/bert

`model/` is a `RobertaForMaskedLM` with its tokenizer; with `codes.vq_wav2vec`, `discrete_bert/` is both in one, which
reads waveforms and can be fine-tuned.
"""

import math
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from hf_wav2vec_family import SpeechCodesTokenizer
from hf_wav2vec_family.configuration_discrete_bert import ORIGINAL_ROBERTA
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint
from hf_wav2vec_family.conversion.fairseq_roberta import ROBERTA, with_vq_wav2vec

from .checkpoints import replace_folder
from .code_batches import CodeBatches
from .engine import make_accelerator
from .extract_codes import VOCABULARY
from .loop import train
from .masked_lm import RobertaForMaskedLM
from .pretrain import averages
from .recipe import Recipe, configuration, parse_command, refuse_settings, refuse_unknown_fields
from .sources import as_sources, openable
from .span_masking import NOT_A_TARGET
from .stage import Stage, StepOutput

ARCHITECTURE = "DiscreteBert"


def load_tokenizer(recipe: Recipe) -> SpeechCodesTokenizer:
    """The words of all of `data.train`, as training.extract_codes counted them, or of the folder the recipe names."""
    if recipe.vocabulary != "codes":
        return tokenizer_in(Path(recipe.vocabulary))
    parts = [tokenizer_in(Path(source.path) / source.split / VOCABULARY) for source in as_sources(recipe.data.train)]
    sizes = {part.num_codevectors_per_group for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"data.train must have the codes of one model, but there are codebooks of {sorted(sizes)}.")
    counts = sum((Counter(part.word_counts) for part in parts), Counter())
    return SpeechCodesTokenizer.from_counts(counts, sizes.pop())


def tokenizer_in(folder: Path) -> SpeechCodesTokenizer:
    if not (folder / "dict.txt").is_file():
        raise ValueError(
            f'vocabulary must be "codes", with shards of training.extract_codes in data.train, or a folder with a'
            f" dict.txt, but there is none in {folder}."
        )
    return SpeechCodesTokenizer.from_pretrained(folder)


def make_model(recipe: Recipe, tokenizer: SpeechCodesTokenizer) -> RobertaForMaskedLM:
    """A RoBERTa with random weights for a vocabulary; ValueError if it has fewer positions than a sequence."""
    fields = {**ORIGINAL_ROBERTA, **recipe.model}
    config = configuration(transformers.RobertaConfig, fields, vocab_size=tokenizer.vocab_size)
    num_positions = config.max_position_embeddings - config.pad_token_id - 1
    if recipe.codes.tokens_per_sample > num_positions:
        raise ValueError(
            f"codes.tokens_per_sample must be at most {num_positions}, the positions that"
            f" model.max_position_embeddings = {config.max_position_embeddings} leaves, got"
            f" {recipe.codes.tokens_per_sample}."
        )
    return RobertaForMaskedLM(config)


def as_discrete_bert(model: nn.Module, tokenizer: SpeechCodesTokenizer, vq_wav2vec: str) -> ConvertedCheckpoint:
    """A RoBERTa and the model that made its codes as one Discrete BERT, ready to be saved.

    Raises:
        ValueError: the folder has another model, or one whose codes are not those of the vocabulary.
    """
    return with_vq_wav2vec(ConvertedCheckpoint(model, None, tokenizer, ROBERTA), vq_wav2vec)


def compute(model: nn.Module, batch: dict) -> StepOutput:
    """Cross entropy of the original ids at masked places, a mean over those; `accuracy` of the best guesses."""
    labels = batch["labels"].flatten().index_select(0, batch["places"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "places")}
    logits = model(**inputs).logits
    num_targets = (batch["labels"] != NOT_A_TARGET).sum()
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    right = (logits.argmax(dim=-1) == labels).sum()
    # a batch of short pieces may have nothing masked
    at_least_one = num_targets.clamp(min=1)
    return StepOutput(total / at_least_one, num_targets, {"accuracy": right / at_least_one})


def code_batches(recipe: Recipe, tokenizer: SpeechCodesTokenizer, sources: list, **settings) -> CodeBatches:
    """Batches as the recipe masks and cuts them."""
    return CodeBatches(
        sources,
        tokenizer,
        masking=recipe.masking,
        tokens_per_sample=recipe.codes.tokens_per_sample,
        batch_tokens=recipe.codes.batch_tokens,
        seed=recipe.run.seed,
        **settings,
    )


def evaluator(recipe: Recipe, tokenizer: SpeechCodesTokenizer, device: torch.device):
    """model -> loss, perplexity and accuracy on the evaluation data, with the same masks every time."""
    sources = openable(as_sources(recipe.data.evaluation, split="dev"))

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = code_batches(recipe, tokenizer, sources, num_epochs=1)
        metrics = averages(model, batches, compute, seed=recipe.run.seed, device=device)
        return {**metrics, "perplexity": math.exp(metrics["loss"])}

    return evaluate


def check(recipe: Recipe):
    """ValueError for another architecture, and for a setting that this stage would pass over."""
    if recipe.architecture != ARCHITECTURE:
        raise ValueError(f"architecture must be {ARCHITECTURE} in pre-training on codes, got {recipe.architecture!r}.")
    of_audio = ["batch_seconds", "min_seconds", "max_seconds", "budget_seconds", "text_case", "same_speaker"]
    of_audio += ["augmentation", "augment_past_only", "on_bad_text"]
    of_others = ["gumbel_temperature", "codebook", "frozen_encoder_steps", "linear_segmentation_steps"]
    refuse_settings(
        recipe,
        "pre-training on codes",
        optimization=of_others,
        data=of_audio,
        run=["decoder"],
        own=["pretrained", "encoder", "do_normalize"],
    )
    refuse_unknown_fields(transformers.RobertaConfig, recipe.model)


def main(recipe: Recipe) -> dict:
    """Runs the stage; returns its summary."""
    check(recipe)
    accelerator = make_accelerator(recipe)
    tokenizer = load_tokenizer(recipe)
    transformers.set_seed(recipe.run.seed)
    model = make_model(recipe, tokenizer)
    vq_wav2vec, folder = recipe.codes.vq_wav2vec, Path(recipe.run.output_dir)
    if vq_wav2vec is not None:
        as_discrete_bert(model, tokenizer, vq_wav2vec)  # what does not fit is said now and not hours later
    batches = code_batches(
        recipe,
        tokenizer,
        as_sources(recipe.data.train),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        shuffle_window=recipe.data.shuffle_window,
        num_streams=recipe.data.num_streams,
        num_workers=recipe.data.num_workers,
    )

    def save(model: nn.Module, folder: Path, weights: dict | None):
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    stage = Stage(
        compute=compute,
        save=save,
        evaluate=evaluator(recipe, tokenizer, accelerator.device) if recipe.data.evaluation else None,
        best=recipe.run.best_metric or "loss",
    )
    summary = train(recipe, stage, accelerator=accelerator, model=model, batches=batches)
    if vq_wav2vec is not None and accelerator.is_main_process:
        best = RobertaForMaskedLM.from_pretrained(folder / "model")
        replace_folder(folder / "discrete_bert", as_discrete_bert(best, tokenizer, vq_wav2vec).save_pretrained)
    return summary


if __name__ == "__main__":
    main(parse_command(__doc__))
