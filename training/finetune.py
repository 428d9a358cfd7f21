"""CTC fine-tuning of a pre-trained encoder (or of random weights) on transcribed speech.

python -m training.finetune training/recipes/wav2vec2/finetune_base_10h.yaml data.train=/my/corpus
"""

import json
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from torch import nn

from hf_wav2vec_family import Wav2LetterCTCTokenizer
from hf_wav2vec_family.decoding.decoder_folder import load_decoder
from hf_wav2vec_family.decoding.emissions import transitions_of
from hf_wav2vec_family.decoding.spelling import writes_phones
from hf_wav2vec_family.phones import CMU_39, TIMIT_39, TIMIT_48, TIMIT_61, WSJ_GRAPHEMES

from .collators import normalized_text
from .data import finetuning_batches
from .engine import make_accelerator
from .evaluate import evaluate_on, write_report
from .loop import train
from .pretrain import make_feature_extractor
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
from .sources import as_sources, open_source, openable
from .stage import Stage, StepOutput

# ids as in the published English models, most frequent letters first
LETTERS = "|ETAONIHSRDLUMWCFGYPBVK'XJQZ"
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")

# The acoustic models of the papers count their symbols from 0, and have specials behind them
PHONE_SETS = {"timit39": TIMIT_39, "timit48": TIMIT_48, "timit61": TIMIT_61, "cmu39": ("SIL", *CMU_39)}
LAST_TOKENS = ("<pad>", "<unk>")
NO_MARKS = {"bos_token": None, "eos_token": None}


def make_tokenizer(recipe: Recipe, folder: Path) -> transformers.PreTrainedTokenizer:
    """The symbols of the CTC head, as `recipe.vocabulary` asks for them."""
    kind = recipe.vocabulary
    if kind in PHONE_SETS:
        path = write_vocabulary([*PHONE_SETS[kind], *LAST_TOKENS], folder)
        return transformers.Wav2Vec2PhonemeCTCTokenizer(path, do_phonemize=False, **NO_MARKS)
    if kind == "wsj":
        return Wav2LetterCTCTokenizer(write_vocabulary([*WSJ_GRAPHEMES, *LAST_TOKENS], folder), **NO_MARKS)
    if kind not in ("letters", "transcripts"):
        return transformers.Wav2Vec2CTCTokenizer.from_pretrained(kind)
    letters = LETTERS if kind == "letters" else letters_of(recipe)
    if recipe.run.resume and any((folder.parent / "checkpoints").glob("step-*")):
        refuse_other_symbols([*SPECIAL_TOKENS, *letters], folder / "vocab.json")
    return transformers.Wav2Vec2CTCTokenizer(write_vocabulary([*SPECIAL_TOKENS, *letters], folder))


def refuse_other_symbols(symbols: list[str], path: Path):
    """ValueError if a run that goes on was begun with other symbols than these."""
    before = [*json.loads(path.read_text())] if path.is_file() else symbols
    if before != symbols:
        raise ValueError(
            f"{path} has the symbols {' '.join(before)}, but the transcripts of data.train now have"
            f" {' '.join(symbols)}; choose another run.output_dir, or start anew with run.resume=false."
        )


def write_vocabulary(symbols: list[str], folder: Path) -> str:
    """Writes `vocab.json`, the number of each symbol, and returns its path."""
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.json"
    content = json.dumps(vocabulary, ensure_ascii=False, indent=1)
    if not path.exists() or path.read_text() != content:  # other processes may be reading it
        path.write_text(content)
    return str(path)


def letters_of(recipe: Recipe) -> list[str]:
    """The word boundary and every character of the training transcripts, sorted."""
    found: set[str] = set()
    for source in as_sources(recipe.data.train):
        for row in open_source(source).readable_rows():
            found |= set(normalized_text(row.text or "", recipe.data.text_case))
    found -= set(" |")
    if not found:
        raise ValueError(f"data.train has no transcripts to take a vocabulary from: {recipe.data.train}.")
    return ["|", *sorted(found)]


def make_model(recipe: Recipe, tokenizer) -> nn.Module:
    """A CTC model from `recipe.pretrained`, on `recipe.encoder`, or from random weights if there is neither."""
    config_class, model_class = family_class(recipe, "Config"), family_class(recipe, "ForCTC")
    of_this_task = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "ctc_loss_reduction": "sum",
        "ctc_loss_per_utterance": True,
        "ctc_zero_infinity": True,
    }
    if recipe.encoder is not None:
        if recipe.pretrained is not None or not hasattr(model_class, "from_encoder"):
            raise ValueError(
                f"encoder is for an architecture that puts a new network on one, and no other pretrained model, got"
                f" {recipe.encoder!r} with {recipe.architecture} and pretrained={recipe.pretrained!r}."
            )
        refuse_unknown_fields(config_class, recipe.model)
        return model_class.from_encoder(recipe.encoder, **{**recipe.model, **of_this_task})
    config = configuration(config_class, recipe.model, pretrained=recipe.pretrained, **of_this_task)
    return begin(model_class, config, recipe.pretrained)


def expect_unused_parameters(accelerator: Accelerator):
    """Lets DDP look for parameters without a gradient.

    A head that reads an inner output of an encoder leaves what lies behind it without one, and so does a codebook. DDP
    waits for those, and until it has them the gradients of the rest stay those of one process.
    """
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.find_unused_parameters = True


def compute(model: nn.Module, batch: dict) -> StepOutput:
    """CTC loss, a mean over utterances as in the original fine-tuning."""
    output = model(batch["input_values"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    return StepOutput(output.loss, torch.tensor(len(batch["labels"]), device=output.loss.device))


def thaw_after(num_steps: int, model: nn.Module):
    """The paper's schedule for few labels: only the head learns in the first steps, then all that learns at all."""
    learning = {name for name, parameter in model.base_model.named_parameters() if parameter.requires_grad}

    def before_step(model: nn.Module, step: int):
        for name, parameter in model.base_model.named_parameters():
            parameter.requires_grad_(name in learning and step >= num_steps)

    return before_step


def segment_linearly(num_steps: int):
    """wav2letter's beginning: targets of the first steps are stretched evenly over their frames."""

    def before_step(model: nn.Module, step: int):
        model.set_linear_segmentation(step < num_steps)

    return before_step


def hooks_of(recipe: Recipe, model: nn.Module):
    """(model, step) -> None, all that a recipe wants done before a step, or None if it wants nothing."""
    frozen, linear = recipe.optimization.frozen_encoder_steps, recipe.optimization.linear_segmentation_steps
    if linear and not hasattr(model, "set_linear_segmentation"):
        raise ValueError(f"optimization.linear_segmentation_steps needs a model with ASG, got {type(model).__name__}.")
    hooks = [thaw_after(frozen, model)] if frozen else []
    hooks += [segment_linearly(linear)] if linear else []
    if not hooks:
        return None

    def before_step(model: nn.Module, step: int):
        for hook in hooks:
            hook(model, step)

    return before_step


def evaluator(recipe: Recipe, processor, accelerator: Accelerator):
    """model -> error rates on the evaluation data; the table of utterances is written beside the run."""
    sources = openable(as_sources(recipe.data.evaluation, split="dev"))
    folder, of_decoder = Path(recipe.run.output_dir), recipe.run.decoder
    if of_decoder:
        load_decoder(of_decoder, processor.tokenizer)  # what is wrong with it is said now

    def evaluate(model: nn.Module) -> dict[str, float]:
        utterances, scores = evaluate_on(
            sources,
            model,
            processor,
            batch_seconds=recipe.data.batch_seconds,
            text_case=recipe.data.text_case,
            max_bad_fraction=recipe.data.max_bad_fraction,
            # anew, since the transitions of ASG learn
            decoder=load_decoder(of_decoder, processor.tokenizer, transitions_of(model)) if of_decoder else None,
        )
        if accelerator.is_main_process:
            write_report(folder / "evaluation", scores, utterances)
        return {name: value for name, value in scores.items() if isinstance(value, int | float)}

    return evaluate


def check(recipe: Recipe):
    """ValueError for a setting that this stage would pass over, or a field that the model does not have."""
    refuse_settings(
        recipe,
        "fine-tuning",
        optimization=["gumbel_temperature"],
        data=["augment_past_only"],
        own=["codes", "masking"],
    )
    refuse_unknown_fields(family_class(recipe, "Config"), recipe.model)


def main(recipe: Recipe) -> dict:
    """Runs the stage; returns its summary. Model and processor are in `run.output_dir`/model."""
    check(recipe)
    accelerator = make_accelerator(recipe)
    transformers.set_seed(recipe.run.seed)
    folder = Path(recipe.run.output_dir)
    with accelerator.main_process_first():
        tokenizer = make_tokenizer(recipe, folder / "vocabulary")
    model = make_model(recipe, tokenizer)
    if getattr(model.config, "feature_gradient_scale", None) == 0:
        model.freeze_feature_encoder()  # DDP waits for a gradient of everything that is not frozen
    expect_unused_parameters(accelerator)
    processor = transformers.Wav2Vec2Processor(make_feature_extractor(recipe, model.config), tokenizer)
    data = recipe.data
    batches = finetuning_batches(
        as_sources(data.train),
        processor,
        num_frames=model.num_frames,
        merge_repeats=getattr(model.config, "merge_repeated_labels", False),
        text_case=data.text_case,
        **batch_settings(recipe, rank=accelerator.process_index, world_size=accelerator.num_processes),
    )

    def save(model: nn.Module, folder: Path, weights: dict | None):
        model.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)
        # readers of the older layout look for the feature extractor in a file of its own
        processor.feature_extractor.save_pretrained(folder)

    stage = Stage(
        compute=compute,
        save=save,
        evaluate=evaluator(recipe, processor, accelerator) if data.evaluation else None,
        best=recipe.run.best_metric or ("per" if writes_phones(tokenizer) else "wer"),
        before_step=hooks_of(recipe, model),
    )
    return train(recipe, stage, accelerator=accelerator, model=model, batches=batches)


if __name__ == "__main__":
    main(parse_command(__doc__))
