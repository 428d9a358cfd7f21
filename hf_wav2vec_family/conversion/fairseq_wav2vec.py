"""wav2vec and vq-wav2vec checkpoints of fairseq to `Wav2VecForPreTraining` and `VQWav2VecForPreTraining`."""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_wav2vec_family.configuration_vq_wav2vec import VQWav2VecConfig
from hf_wav2vec_family.configuration_wav2vec import Wav2VecConfig
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint
from hf_wav2vec_family.conversion.fairseq_file import (
    FairseqCheckpoint,
    Options,
    TrainingOptions,
    feature_extractor,
    fill,
    is_fairseq,
    parse_conv_layers,
)
from hf_wav2vec_family.modeling_vq_wav2vec import VQWav2VecForPreTraining
from hf_wav2vec_family.modeling_wav2vec import Wav2VecForPreTraining

WAV2VEC = "wav2vec-pretraining"
VQ_WAV2VEC = "vq-wav2vec-pretraining"

DEFAULTS = {
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 8, 4)] + [(512, 4, 2)] * 3 + [(512, 1, 1)] * 3",
    "conv_aggregator_layers": [(512, kernel_size, 1) for kernel_size in range(2, 14)],
    "skip_connections_feat": False,
    "skip_connections_agg": True,
    "residual_scale": 0.5,
    "log_compression": True,
    "no_conv_bias": False,
    "agg_zero_pad": False,
    "non_affine_group_norm": False,
    "activation": "relu",
    "dropout": 0.0,
    "dropout_features": 0.0,
    "dropout_agg": 0.0,
    "prediction_steps": 12,
    "offset": "auto",
    "num_negatives": 10,
    "cross_sample_negatives": 0,
    "balanced_classes": False,
    "project_features": "none",
    "vq_type": "none",
    "vq_vars": 320,
    "vq_groups": 2,
    "vq_dim": 0,
    "vq_depth": 1,
    "combine_groups": False,
    "vq_temp": (2.0, 0.5, 0.999995),
    "vq_gamma": 0.25,
}
# An option that an old file lacks had the default of its time, which is not today's.
DEFAULTS_BEFORE_HYDRA = DEFAULTS | {
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 8, 4)] + [(512, 4, 2)] * 3",
    "conv_aggregator_layers": "[(512, 3, 1)] * 9",
    "skip_connections_agg": False,
    "log_compression": False,
    "num_negatives": 1,
}
CRITERION_DEFAULTS = {"infonce": False, "loss_weights": (0.0,)}

# What the models have no counterpart of, with the only value that can be converted. fairseq's recurrent aggregator
# goes through the clips of a batch instead of through time.
REQUIRED = {"aggregator": "cnn", "encoder": "cnn", "sample_distance": None}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu"}
PROJECTIONS = {"none": "none", "same": "same", "new": "new"}
# Width of the quantizer's hidden layers in multiples of the frames', written out in fairseq's model.
QUANTIZER_FACTOR = 2

PREDICTION_WEIGHT = "wav2vec_predictions.project_to_steps.weight"
PREDICTION_BIAS = "wav2vec_predictions.project_to_steps.bias"
CODEBOOK = "vector_quantizer.embedding"

ENCODER = r"(?:vq_)?wav2vec\.feature_extractor\.conv_layers\.(\d+)\."
NETWORKS = {r"(?:vq_)?wav2vec\.context_network": "feature_aggregator", "project_features": "project_features"}
RENAMINGS = [
    (ENCODER + r"conv\.weight", r"feature_extractor.conv_layers.\1.0.weight"),
    (ENCODER + r"layer_norm\.(\w+)", r"feature_extractor.conv_layers.\1.2.\2"),
    *(
        (own + r"\.conv_layers\.(\d+)\.conv\.(\w+)", theirs + r".conv_layers.\1.1.\2")
        for own, theirs in NETWORKS.items()
    ),
    *(
        (own + r"\.conv_layers\.(\d+)\.layer_norm\.(\w+)", theirs + r".conv_layers.\1.3.\2")
        for own, theirs in NETWORKS.items()
    ),
    *(
        (own + r"\.residual_proj\.(\d+)\.weight", theirs + r".residual_proj.\1.weight")
        for own, theirs in NETWORKS.items()
    ),
    (r"prediction\.predictor\.(\w+)", r"wav2vec_predictions.project_to_steps.\1"),
    (r"vq_wav2vec\.quantizer\.weight_proj\.(.+)", r"vector_quantizer.weight_proj.\1"),
    (r"vq_wav2vec\.quantizer\.projection\.weight", "vector_quantizer.projection.0.weight"),
    (r"vq_wav2vec\.quantizer\.layer_norm\.(\w+)", r"vector_quantizer.projection.1.\1"),
]
CODEVECTORS = r"vq_wav2vec\.quantizer\.codevectors"
CODEVECTOR_RENAMINGS = {"gumbel": (CODEVECTORS, "vector_quantizer.vars"), "kmeans": (CODEVECTORS, CODEBOOK)}


def is_wav2vec(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a wav2vec model of fairseq."""
    return _is_first_generation(checkpoint) and not _has_quantizer(checkpoint)


def is_vq_wav2vec(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a vq-wav2vec model of fairseq."""
    return _is_first_generation(checkpoint) and _has_quantizer(checkpoint)


def _is_first_generation(checkpoint: dict[str, Any]) -> bool:
    return is_fairseq(checkpoint) and any(name.startswith("feature_aggregator.") for name in checkpoint["model"])


def _has_quantizer(checkpoint: dict[str, Any]) -> bool:
    return any(name.startswith("vector_quantizer.") for name in checkpoint["model"])


def convert_wav2vec(checkpoint: dict[str, Any], dictionary: str | Path | None) -> ConvertedCheckpoint:
    """Contents of a file to `Wav2VecForPreTraining`; errors as `convert_checkpoint` describes."""
    file = _opened(checkpoint, dictionary)
    model = Wav2VecForPreTraining(wav2vec_config(file.options))
    return ConvertedCheckpoint(_filled(model, file, RENAMINGS), feature_extractor(file.options), None, WAV2VEC)


def convert_vq_wav2vec(checkpoint: dict[str, Any], dictionary: str | Path | None) -> ConvertedCheckpoint:
    """Contents of a file to `VQWav2VecForPreTraining`; errors as `convert_checkpoint` describes."""
    file = _opened(checkpoint, dictionary)
    config = vq_wav2vec_config(file.options)
    renamings = [*RENAMINGS, CODEVECTOR_RENAMINGS[config.quantizer_type]]
    model = _filled(VQWav2VecForPreTraining(config), file, renamings)
    return ConvertedCheckpoint(model, feature_extractor(file.options), None, VQ_WAV2VEC)


def wav2vec_config(options: TrainingOptions) -> Wav2VecConfig:
    """Configuration of a wav2vec model.

    Raises:
        ValueError: An option is malformed or asks for something the model cannot do; the message names it.
    """
    model = _model_options(options)
    model.choice("vq_type", {"none": "none"})
    return _checked(Wav2VecConfig, **_common_fields(model, options))


def vq_wav2vec_config(options: TrainingOptions) -> VQWav2VecConfig:
    """Configuration of a vq-wav2vec model.

    Raises:
        ValueError: As `wav2vec_config`.
    """
    model = _model_options(options)
    fields = _common_fields(model, options)
    weights = Options(options.criterion, CRITERION_DEFAULTS).numbers("loss_weights")
    if len(weights) != 1:
        raise ValueError(f"Option loss_weights has {len(weights)} entries {weights}, expected one.")
    kind = model.choice("vq_type", {"gumbel": "gumbel", "kmeans": "kmeans"})
    return _checked(
        VQWav2VecConfig,
        **fields,
        quantizer_type=kind,
        num_codevector_groups=model.integer("vq_groups"),
        num_codevectors_per_group=model.integer("vq_vars"),
        share_codevectors=model.flag("combine_groups"),
        codevector_dim=model.integer("vq_dim") or fields["conv_dim"][-1],
        quantizer_depth=model.integer("vq_depth"),
        quantizer_factor=QUANTIZER_FACTOR,
        gumbel_temperature=model.numbers("vq_temp")[0],
        commitment_weight=model.number("vq_gamma"),
        # without the option fairseq adds neither
        quantizer_loss_weight=weights[0] if kind == "kmeans" else 1.0,
        diversity_loss_weight=weights[0] if kind == "gumbel" else 0.0,
    )


def _model_options(options: TrainingOptions) -> Options:
    model = Options(options.model, DEFAULTS_BEFORE_HYDRA if options.before_hydra else DEFAULTS)
    model.require(REQUIRED)
    return model


def _common_fields(model: Options, options: TrainingOptions) -> dict[str, Any]:
    encoder = parse_conv_layers(model["conv_feature_layers"])
    context = parse_conv_layers(model["conv_aggregator_layers"], "conv_aggregator_layers")
    if set(context.strides) != {1}:
        raise ValueError(f"Option conv_aggregator_layers has strides {context.strides}; only 1 is supported.")
    offset = model["offset"]
    return {
        "conv_dim": encoder.dims,
        "conv_kernel": encoder.kernel_sizes,
        "conv_stride": encoder.strides,
        "context_dim": context.dims,
        "context_kernel": context.kernel_sizes,
        "context_bias": not model.flag("no_conv_bias"),
        "context_padding": "zero" if model.flag("agg_zero_pad") else "replicate",
        "feat_skip_connections": model.flag("skip_connections_feat"),
        "context_skip_connections": model.flag("skip_connections_agg"),
        "residual_scale": model.number("residual_scale"),
        "log_compression": model.flag("log_compression"),
        "conv_norm_affine": not model.flag("non_affine_group_norm"),
        "hidden_act": model.choice("activation", ACTIVATIONS),
        "conv_dropout": model.number("dropout"),
        "feat_dropout": model.number("dropout_features"),
        "context_dropout": model.number("dropout_agg"),
        "project_features": model.choice("project_features", PROJECTIONS),
        "num_prediction_steps": model.integer("prediction_steps"),
        "prediction_offset": offset if offset == "auto" else model.integer("offset"),
        "objective": "info_nce" if Options(options.criterion, CRITERION_DEFAULTS).flag("infonce") else "binary_nce",
        "num_negatives": model.integer("num_negatives"),
        # a bool in 2019
        "num_cross_sample_negatives": int(model.number("cross_sample_negatives")),
        "balanced_classes": model.flag("balanced_classes"),
    }


def _opened(checkpoint: dict[str, Any], dictionary: str | Path | None) -> FairseqCheckpoint:
    if dictionary is not None:
        raise ValueError(
            f"dictionary is {dictionary}, but the checkpoint is pre-trained only and has no output layer."
        )
    return FairseqCheckpoint.from_file(checkpoint)


def _checked(config_class: type, **fields: Any):
    try:
        return config_class(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"The options of the checkpoint make no valid configuration: {error}") from error


def _filled(model, file: FairseqCheckpoint, renamings: list[tuple[str, str]]):
    sources = {name: fairseq_name(name, renamings) for name in model.state_dict()}
    # where targets go through the aggregator itself, fairseq stores it under both names
    doubled = [name for name in file.weights if name.startswith("project_features.")]
    optional = doubled if model.config.project_features == "same" else ()
    return fill(model, in_own_layout(file.weights), sources, optional=optional)


def in_own_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights, or gradients, with axes in the order they have here; the names stay fairseq's."""
    weights = dict(weights)
    for name, reorder in {
        PREDICTION_WEIGHT: lambda weight: weight[:, :, 0].permute(2, 1, 0),  # [in, out, 1, steps]
        PREDICTION_BIAS: lambda bias: bias.unsqueeze(0),
        CODEBOOK: lambda books: books.transpose(0, 1),  # [entries, groups, channels]
    }.items():
        if name in weights:
            weights[name] = reorder(weights[name])
    return weights


def fairseq_name(name: str, renamings: list[tuple[str, str]]) -> str:
    """What fairseq calls the weight that is `name` here."""
    for pattern, replacement in renamings:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(f"no fairseq name is known for {name}")
