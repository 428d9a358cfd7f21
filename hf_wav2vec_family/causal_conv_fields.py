"""Checks of the configuration fields that wav2vec and vq-wav2vec have in common."""

from typing import Any

CHOICES = {
    "context_type": ("conv", "gru"),
    "context_padding": ("replicate", "zero"),
    "conv_norm": ("group", "layer"),
    "project_features": ("none", "same", "new"),
    "prediction_bias": ("shared", "per_step"),
    "objective": ("binary_nce", "info_nce"),
    "ctc_loss_reduction": ("sum", "mean"),
}
PROBABILITIES = ("conv_dropout", "feat_dropout", "context_dropout", "final_dropout")


def check_causal_conv_fields(fields: dict[str, Any]):
    """Raises ValueError for fields that no model can be made of, naming them and what they are."""
    for name, accepted in CHOICES.items():
        if fields[name] not in accepted:
            raise ValueError(f"{name} must be one of {accepted}, got {fields[name]!r}.")
    for name in PROBABILITIES:
        if not 0 <= fields[name] < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {fields[name]}.")
    _check_layers(fields)
    _check_objective(fields)
    if fields["ctc_loss_per_utterance"] and fields["ctc_loss_reduction"] != "sum":
        raise ValueError(
            f'ctc_loss_per_utterance needs ctc_loss_reduction="sum", got {fields["ctc_loss_reduction"]!r}.'
        )


def _check_layers(fields: dict[str, Any]):
    dims, kernels, strides = fields["conv_dim"], fields["conv_kernel"], fields["conv_stride"]
    if not len(dims) == len(kernels) == len(strides) > 0:
        raise ValueError(
            "conv_dim, conv_kernel and conv_stride describe the same layers, but have"
            f" {len(dims)}, {len(kernels)} and {len(strides)} entries."
        )
    if any(kernel < stride for kernel, stride in zip(kernels, strides, strict=True)) or min(strides) < 1:
        raise ValueError(f"conv_kernel must reach over conv_stride in each layer, got {kernels} and {strides}.")
    dims, kernels = fields["context_dim"], fields["context_kernel"]
    if fields["context_type"] == "gru":
        if len(dims) != 1 or len(kernels) != 0:
            raise ValueError(
                'context_type="gru" takes one entry of context_dim and none of context_kernel, got'
                f" {len(dims)} and {len(kernels)}."
            )
    elif not len(dims) == len(kernels) > 0 or min(kernels) < 1:
        raise ValueError(
            "context_dim and context_kernel describe the same layers with kernels of at least 1, but are"
            f" {dims} and {kernels}."
        )
    if fields["use_weighted_layer_sum"] and len({*dims, fields["conv_dim"][-1]}) > 1:
        raise ValueError(f"use_weighted_layer_sum needs layers of one width, got conv_dim[-1] and {dims}.")


def _check_objective(fields: dict[str, Any]):
    for name in ("num_prediction_steps", "num_negatives"):
        if fields[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {fields[name]}.")
    if fields["num_cross_sample_negatives"] < 0:
        raise ValueError(
            f"num_cross_sample_negatives must not be below 0, got {fields['num_cross_sample_negatives']}."
        )
    offset = fields["prediction_offset"]
    if offset != "auto" and not (isinstance(offset, int) and offset >= 1):
        raise ValueError(f'prediction_offset must be "auto" or at least 1, got {offset!r}.')
