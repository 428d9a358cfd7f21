"""wav2vec 2.0 checkpoints of fairseq, pre-trained or fine-tuned with CTC, to `Wav2Vec2ForPreTraining` and `ForCTC`."""

import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, Wav2Vec2CTCTokenizer

from hf_wav2vec_family.configuration_wav2vec2 import Wav2Vec2Config
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint
from hf_wav2vec_family.conversion.fairseq_file import (
    DICTIONARY_SPECIALS,
    FairseqCheckpoint,
    Options,
    TrainingOptions,
    feature_extractor,
    fill,
    is_fairseq,
    parse_conv_layers,
    read_dictionary,
)
from hf_wav2vec_family.modeling_wav2vec2 import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

PRETRAINING = "wav2vec2-pretraining"
CTC = "wav2vec2-ctc"
CTC_PREFIX = "w2v_encoder."
ENCODER_PREFIX = "w2v_encoder.w2v_model."
WORD_BOUNDARY = "|"
# The rows of fairseq's <s>, which is its CTC blank, and <pad> under the names that Transformers expects them by.
TOKENIZER_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")

PRETRAINING_DEFAULTS = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2",
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "encoder_layerdrop": 0.0,
    "feature_grad_mult": 1.0,
    "mask_prob": 0.65,
    "mask_length": 10,
    "mask_channel_prob": 0.0,
    "mask_channel_length": 10,
    "final_dim": 0,
    "quantize_targets": False,
    "latent_vars": 320,
    "latent_groups": 2,
    "latent_dim": 0,
    "latent_temp": (2, 0.5, 0.999995),
    "quantizer_depth": 1,
    "quantizer_factor": 3,
    "num_negatives": 100,
    "cross_sample_negatives": 0,
    "logit_temp": 0.1,
}
PRETRAINING_DEFAULTS_BEFORE_HYDRA = PRETRAINING_DEFAULTS | {
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 8, 4)] + [(512, 4, 2)] * 3 + [(512, 1, 1)]",
    "mask_channel_prob": 0.65,
}
CTC_DEFAULTS = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "feature_grad_mult": 0.0,
    "apply_mask": False,
    "mask_prob": 0.5,
    "mask_length": 10,
    "mask_channel_prob": 0.0,
    "mask_channel_length": 10,
}
CTC_DEFAULTS_BEFORE_HYDRA = CTC_DEFAULTS | {"mask_channel_prob": 0.5}

EXTRACTOR_NORMS = {"default": "group", "layer_norm": "layer"}
# gelu_fast is fairseq's older name of gelu_accurate, the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}

# What the architecture has no counterpart of, with the only value that can be converted.
REQUIRED_OF_ENCODER = {
    "quantize_input": False,
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "crop_seq_to_multiple": 1,
}
REQUIRED_OF_OBJECTIVE = {
    "target_glu": False,
    "codebook_negatives": 0,
    "negatives_from_everywhere": False,
}
REQUIRED_OF_CTC = {"layer_type": "transformer", "blank_weight": 0.0}
# Forms of masking that no answer of the trained model depends on.
USUAL_MASKING = {
    "mask_selection": "static",
    "mask_channel_selection": "static",
    "no_mask_overlap": False,
    "no_mask_channel_overlap": False,
    "mask_channel_before": False,
    "mask_dropout": 0.0,
}

# Weight names of Transformers and, in fairseq's words, where their values are in the file.
RENAMINGS = [
    (r"wav2vec2\.masked_spec_embed", "mask_emb"),
    (r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.conv\.(\w+)", r"feature_extractor.conv_layers.\1.0.\2"),
    (r"wav2vec2\.feature_projection\.layer_norm\.(\w+)", r"layer_norm.\1"),
    (r"wav2vec2\.feature_projection\.projection\.(\w+)", r"post_extract_proj.\1"),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.bias", "encoder.pos_conv.0.bias"),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"wav2vec2\.encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"wav2vec2\.encoder\.layer_norm\.(\w+)", r"encoder.layer_norm.\1"),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.attention\.(\w+)\.(\w+)", r"encoder.layers.\1.self_attn.\2.\3"),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.layer_norm\.(\w+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(\w+)", r"encoder.layers.\1.fc1.\2"),
    (r"wav2vec2\.encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(\w+)", r"encoder.layers.\1.fc2.\2"),
    (r"quantizer\.codevectors", "quantizer.vars"),
    (r"quantizer\.weight_proj\.(.+)", r"quantizer.weight_proj.\1"),
    (r"project_q\.(\w+)", r"project_q.\1"),
    (r"project_hid\.(\w+)", r"final_proj.\1"),
    (r"lm_head\.(\w+)", r"w2v_encoder.proj.\1"),
]
CONV_NORM = r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)"
CONV_NORM_RENAMINGS = {
    "group": (CONV_NORM, r"feature_extractor.conv_layers.\1.2.\2"),
    "layer": (CONV_NORM, r"feature_extractor.conv_layers.\1.2.1.\2"),
}


def is_pretrained(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a pre-trained wav2vec 2.0 model of fairseq."""
    return is_fairseq(checkpoint) and any(name.startswith("encoder.pos_conv.") for name in checkpoint["model"])


def is_ctc(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a wav2vec 2.0 model of fairseq fine-tuned with CTC."""
    return is_fairseq(checkpoint) and any(name.startswith(CTC_PREFIX) for name in checkpoint["model"])


def convert_pretrained(checkpoint: dict[str, Any], dictionary: str | Path | None) -> ConvertedCheckpoint:
    """Contents of a pre-trained file to `Wav2Vec2ForPreTraining`; errors as `convert_checkpoint` describes."""
    if dictionary is not None:
        raise ValueError(
            f"dictionary is {dictionary}, but the checkpoint is pre-trained only and has no output layer."
        )
    file = FairseqCheckpoint.from_file(checkpoint)
    config = pretraining_config(file.options)
    model = _filled(Wav2Vec2ForPreTraining(config), file.weights, prefix="")
    return ConvertedCheckpoint(model, feature_extractor(file.options), None, PRETRAINING)


def convert_ctc(checkpoint: dict[str, Any], dictionary: str | Path | None) -> ConvertedCheckpoint:
    """Contents of a fine-tuned file to `Wav2Vec2ForCTC`; errors as `convert_checkpoint` describes."""
    file = FairseqCheckpoint.from_file(checkpoint)
    output_layer = file.weights.get("w2v_encoder.proj.weight")
    if output_layer is None:
        raise ValueError("The checkpoint lacks weights of the model: w2v_encoder.proj.weight.")
    vocab_size = len(output_layer)
    tokenizer = None if dictionary is None else ctc_tokenizer(dictionary, vocab_size)
    model = _filled(Wav2Vec2ForCTC(ctc_config(file.options, vocab_size)), file.weights, prefix=ENCODER_PREFIX)
    return ConvertedCheckpoint(model, feature_extractor(file.options), tokenizer, CTC)


def pretraining_config(options: TrainingOptions) -> Wav2Vec2Config:
    """Configuration of a pre-trained model, its objective included.

    Raises:
        ValueError: An option is malformed or asks for something the model cannot do; the message names it.
    """
    defaults = PRETRAINING_DEFAULTS_BEFORE_HYDRA if options.before_hydra else PRETRAINING_DEFAULTS
    model = Options(options.model, defaults)
    model.require(REQUIRED_OF_OBJECTIVE)
    if not model.flag("quantize_targets"):
        raise ValueError(
            "The checkpoint was trained without quantize_targets; only quantize_targets=True is supported."
        )
    hidden_size = model.integer("encoder_embed_dim")
    final_dim = max(model.integer("final_dim"), 0) or hidden_size
    diversity_weight, penalty_weight = _loss_weights(options)
    return _checked_config(
        **_encoder_fields(model),
        **_regularization_fields(model, layerdrop="encoder_layerdrop"),
        feat_quantizer_dropout=model.number("dropout_features"),
        num_codevectors_per_group=model.integer("latent_vars"),
        num_codevector_groups=model.integer("latent_groups"),
        codevector_dim=max(model.integer("latent_dim"), 0) or final_dim,
        proj_codevector_dim=final_dim,
        quantizer_depth=model.integer("quantizer_depth"),
        quantizer_factor=model.integer("quantizer_factor"),
        gumbel_temperature=model.numbers("latent_temp")[0],
        num_negatives=model.integer("num_negatives"),
        num_cross_sample_negatives=model.integer("cross_sample_negatives"),
        contrastive_logits_temperature=model.number("logit_temp"),
        diversity_loss_weight=diversity_weight,
        feature_penalty_weight=penalty_weight,
    )


def ctc_config(options: TrainingOptions, vocab_size: int) -> Wav2Vec2Config:
    """Configuration of a fine-tuned model: the encoder as pre-trained, dropout and masks as fine-tuned.

    Raises:
        ValueError: As `pretraining_config`, or the options of the encoder are not in the file.
    """
    encoder_options = options.model.get("w2v_args")
    if not isinstance(encoder_options, dict):
        raise ValueError("The options of the pre-trained encoder, w2v_args, are not in the checkpoint.")
    nested = TrainingOptions.from_plain(encoder_options)
    defaults = PRETRAINING_DEFAULTS_BEFORE_HYDRA if nested.before_hydra else PRETRAINING_DEFAULTS
    model = Options(options.model, CTC_DEFAULTS_BEFORE_HYDRA if options.before_hydra else CTC_DEFAULTS)
    model.require(REQUIRED_OF_CTC)
    return _checked_config(
        **_encoder_fields(Options(nested.model, defaults)),
        **_regularization_fields(model, layerdrop="layerdrop"),
        final_dropout=model.number("final_dropout"),
        apply_spec_augment=model.flag("apply_mask"),
        vocab_size=vocab_size,
        ctc_zero_infinity=Options(options.criterion, {"zero_infinity": False}).flag("zero_infinity"),
    )


def ctc_tokenizer(dictionary: str | Path, vocab_size: int) -> Wav2Vec2CTCTokenizer:
    """Tokenizer of a fairseq letter dictionary, whose ids are the rows of an output layer of `vocab_size` rows.

    Raises:
        ValueError: The dictionary has another number of symbols, no word boundary `|`, or is malformed.
    """
    symbols = read_dictionary(dictionary)
    if len(symbols) != vocab_size:
        raise ValueError(
            f"The dictionary {dictionary} makes {len(symbols)} symbols, fairseq's {len(DICTIONARY_SPECIALS)} included,"
            f" but the output layer of the checkpoint has {vocab_size}."
        )
    if WORD_BOUNDARY not in symbols:
        raise ValueError(
            f"The dictionary {dictionary} has no word boundary {WORD_BOUNDARY!r}, which the tokenizer needs;"
            " without a dictionary the model alone is converted."
        )
    symbols[: len(TOKENIZER_SPECIALS)] = TOKENIZER_SPECIALS
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = Path(folder) / "vocab.json"
        vocab_file.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(vocab_file), word_delimiter_token=WORD_BOUNDARY)


def _checked_config(**fields: Any) -> Wav2Vec2Config:
    try:
        return Wav2Vec2Config(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"The options of the checkpoint make no valid configuration: {error}") from error


def _encoder_fields(model: Options) -> dict[str, Any]:
    """The fields that shape the convolutions and the Transformer."""
    model.require(REQUIRED_OF_ENCODER)
    convolutions = parse_conv_layers(model["conv_feature_layers"])
    return {
        "conv_dim": convolutions.dims,
        "conv_kernel": convolutions.kernel_sizes,
        "conv_stride": convolutions.strides,
        "conv_bias": model.flag("conv_bias"),
        "feat_extract_norm": model.choice("extractor_mode", EXTRACTOR_NORMS),
        "hidden_size": model.integer("encoder_embed_dim"),
        "num_hidden_layers": model.integer("encoder_layers"),
        "num_attention_heads": model.integer("encoder_attention_heads"),
        "intermediate_size": model.integer("encoder_ffn_embed_dim"),
        "hidden_act": model.choice("activation_fn", ACTIVATIONS),
        "do_stable_layer_norm": model.flag("layer_norm_first"),
        "num_conv_pos_embeddings": model.integer("conv_pos"),
        "num_conv_pos_embedding_groups": model.integer("conv_pos_groups"),
    }


def _regularization_fields(model: Options, *, layerdrop: str) -> dict[str, Any]:
    """Dropout, masks and gradient scale of the last training; `layerdrop` is that option's name."""
    if unusual := model.differing(USUAL_MASKING):
        found = ", ".join(f"{name}={value!r}" for name, value in unusual.items())
        warnings.warn(
            f"The checkpoint was trained with {found}; further training of the converted model masks without it.",
            stacklevel=2,
        )
    return {
        "hidden_dropout": model.number("dropout"),
        "attention_dropout": model.number("attention_dropout"),
        "activation_dropout": model.number("activation_dropout"),
        "feat_proj_dropout": model.number("dropout_input"),
        "layerdrop": model.number(layerdrop),
        "feature_gradient_scale": model.number("feature_grad_mult"),
        "mask_time_prob": model.number("mask_prob"),
        "mask_time_length": model.integer("mask_length"),
        "mask_feature_prob": model.number("mask_channel_prob"),
        "mask_feature_length": model.integer("mask_channel_length"),
    }


def _loss_weights(options: TrainingOptions) -> list[float]:
    """Weights of the diversity loss and the feature penalty; without the option fairseq adds neither."""
    weights = Options(options.criterion, {"loss_weights": (0.0, 0.0)}).numbers("loss_weights")
    weights = weights * 2 if len(weights) == 1 else weights
    if len(weights) != 2:
        raise ValueError(f"Option loss_weights has {len(weights)} entries {weights}, expected two.")
    return weights


def _filled(model: PreTrainedModel, weights: dict[str, torch.Tensor], *, prefix: str) -> PreTrainedModel:
    """Copy the file's `weights` into `model`, as `fill` does; `prefix` is where the encoder's names begin there."""
    renamings = [*RENAMINGS, CONV_NORM_RENAMINGS[model.config.feat_extract_norm]]
    sources = {name: fairseq_name(name, renamings, prefix) for name in model.state_dict()}
    weights = weights | _weights_fairseq_leaves_out(model, weights, prefix)
    # a model that never masks has no mask embedding
    return fill(model, weights, sources, optional={prefix + "mask_emb"})


def _weights_fairseq_leaves_out(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    """fairseq projects features only where their width changes; here the projection is then the identity."""
    name = prefix + "post_extract_proj"
    width = model.config.hidden_size
    if model.config.conv_dim[-1] != width or f"{name}.weight" in weights:
        return {}
    return {f"{name}.weight": torch.eye(width), f"{name}.bias": torch.zeros(width)}


def fairseq_name(name: str, renamings: list[tuple[str, str]], prefix: str) -> str:
    """What fairseq calls the weight that is `name` here."""
    for pattern, replacement in renamings:
        if re.fullmatch(pattern, name):
            renamed = re.sub(pattern, replacement, name)
            return renamed if renamed.startswith(CTC_PREFIX) else prefix + renamed
    raise AssertionError(f"no fairseq name is known for {name}")
