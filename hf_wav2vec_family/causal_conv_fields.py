"""The configuration fields that wav2vec and vq-wav2vec have in common, and what must hold of them."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .conv import receptive_field
from .model_size import MAX_CHANNELS, MAX_LAYERS, MAX_WEIGHTS, MAX_WORDS, at_most, check_labels, conv_weights

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


@strict
class CausalConvConfig(PreTrainedConfig):
    r"""
    Fields of a model of two stacks of convolutions that predicts the frames to come; the defaults are the base model
    of Schneider et al., 2019 (arXiv:1904.05862), section 3. A configuration that extends it states what it changes.

    Args:
        conv_dim (`list[int]`, *optional*, defaults to `(512,) * 5`):
            Channels of each convolution of the encoder.
        conv_kernel (`list[int]`, *optional*, defaults to `(10, 8, 4, 4, 4)`):
            Kernel size of each, in samples or frames of the layer below.
        conv_stride (`list[int]`, *optional*, defaults to `(5, 4, 2, 2, 2)`):
            Stride of each; their product, 160, is the number of samples per frame (10 ms at 16 kHz).
        context_type (`str`, *optional*, defaults to `"conv"`):
            `"conv"` or `"gru"`, one GRU of `context_dim[0]` units, which wants `context_kernel=()`.
        context_dim (`list[int]`, *optional*, defaults to `(512,) * 9`):
            Channels of each layer of the context network.
        context_kernel (`list[int]`, *optional*, defaults to `(3,) * 9`):
            Kernel size of each, in frames.
        context_bias (`bool`, *optional*, defaults to `True`):
            Whether convolutions of the context network have a bias.
        context_padding (`str`, *optional*, defaults to `"replicate"`):
            What stands before the first frame: `"replicate"`, the first frame itself, or `"zero"`.
        feat_skip_connections (`bool`, *optional*, defaults to `False`):
            Skip connections in the encoder, around layers that keep the number of channels.
        context_skip_connections (`bool`, *optional*, defaults to `False`):
            Skip connections in the context network.
        residual_scale (`float`, *optional*, defaults to 0.5):
            The sum of a skip connection is multiplied by the square root of this.
        log_compression (`bool`, *optional*, defaults to `False`):
            Latent frames are log(1 + |x|), as in the published large wav2vec; not in vq-wav2vec.
        conv_norm (`str`, *optional*, defaults to `"group"`):
            `"group"`, as published: statistics over all channels and all frames, so that a frame depends on the whole
            clip although the convolutions are causal. `"layer"`: over the channels of each frame, which makes the
            model causal and `stream` possible.
        conv_norm_affine (`bool`, *optional*, defaults to `True`):
            Whether norms have a weight and a bias.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation after each norm.
        conv_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after every convolution and on the predictions.
        feat_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the frames that enter the context network.
        context_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the context that enters the predictor.
        project_features (`str`, *optional*, defaults to `"none"`):
            What makes targets of the frames: `"none"`, `"same"` for the context network, `"new"` for another like it.
        num_prediction_steps (`int`, *optional*, defaults to 12):
            K: how many frames the context predicts.
        prediction_offset (`int` or `str`, *optional*, defaults to 1):
            How many frames ahead the first of them is. `"auto"` is the first frame none of whose samples the context
            has seen, 3, as in the published models.
        prediction_bias (`str`, *optional*, defaults to `"shared"`):
            `"shared"` by all steps as in the published models, or `"per_step"` as the paper writes it.
        objective (`str`, *optional*, defaults to `"binary_nce"`):
            `"binary_nce"`, each candidate by itself, or `"info_nce"`, one out of 1 + N.
        num_negatives (`int`, *optional*, defaults to 10):
            N: frames of the same clip that a target is told from.
        num_cross_sample_negatives (`int`, *optional*, defaults to 0):
            Further ones from the whole batch.
        balanced_classes (`bool`, *optional*, defaults to `False`):
            Weigh each negative of `"binary_nce"` by 1 / N.
        padding_invariant (`bool`, *optional*, defaults to `True`):
            With an attention mask, take norms over valid frames only, so that padding changes no answer. `False`
            reproduces the numbers of the original code on padded batches.
        vocab_size (`int`, *optional*, defaults to 32):
            Symbols of a CTC head.
        final_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before a CTC head.
        ctc_loss_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"`, over the labels of each utterance.
        ctc_zero_infinity (`bool`, *optional*, defaults to `False`):
            Whether an utterance with more labels than frames costs nothing.
        ctc_loss_per_utterance (`bool`, *optional*, defaults to `False`):
            Divide the summed CTC loss by the number of utterances; needs `ctc_loss_reduction="sum"`.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Heads see a learned weighted sum of the layers of the context network instead of the last one.
        classifier_proj_size (`int`, *optional*, defaults to 256):
            Width between the frames and the classes of a clip.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation that linear layers of heads start with.
        pad_token_id (`int`, *optional*, defaults to 0):
            Blank of CTC.
    """

    conv_dim: list[int] | tuple[int, ...] = (512,) * 5
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    context_type: str = "conv"
    context_dim: list[int] | tuple[int, ...] = (512,) * 9
    context_kernel: list[int] | tuple[int, ...] = (3,) * 9
    context_bias: bool = True
    context_padding: str = "replicate"
    feat_skip_connections: bool = False
    context_skip_connections: bool = False
    residual_scale: float | int = 0.5
    log_compression: bool = False
    conv_norm: str = "group"
    conv_norm_affine: bool = True
    hidden_act: str = "relu"
    conv_dropout: float | int = 0.0
    feat_dropout: float | int = 0.0
    context_dropout: float | int = 0.0
    project_features: str = "none"
    num_prediction_steps: int = 12
    prediction_offset: int | str = 1
    prediction_bias: str = "shared"
    objective: str = "binary_nce"
    num_negatives: int = 10
    num_cross_sample_negatives: int = 0
    balanced_classes: bool = False
    padding_invariant: bool = True
    vocab_size: int | None = 32
    final_dropout: float | int = 0.0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    ctc_loss_per_utterance: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        check_labels(kwargs)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the context."""
        return self.context_dim[-1]

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples per frame."""
        return math.prod(self.conv_stride)

    @property
    def first_predicted_frame(self) -> int:
        """`prediction_offset` as a number."""
        if self.prediction_offset == "auto":
            return math.ceil(receptive_field(self.conv_kernel, self.conv_stride) / self.inputs_to_logits_ratio)
        return self.prediction_offset

    @property
    def expects_normalized_input(self) -> bool:
        """Whether clips are to have zero mean and unit variance: the original training took them as they are."""
        return False

    def validate_architecture(self):
        check_causal_conv_fields(self.to_dict())


def check_causal_conv_fields(fields: dict[str, Any]):
    """Raises ValueError for fields that no model can be made of, naming them and what they are."""
    for name, accepted in CHOICES.items():
        if fields[name] not in accepted:
            raise ValueError(f"{name} must be one of {accepted}, got {fields[name]!r}.")
    for name in PROBABILITIES:
        if not 0 <= fields[name] < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {fields[name]}.")
    _check_layers(fields)
    _check_size(fields)
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


def _check_size(fields: dict[str, Any]):
    dims, context, steps = fields["conv_dim"], fields["context_dim"], fields["num_prediction_steps"]
    at_most(MAX_LAYERS, conv_dim=len(dims), context_dim=len(context), num_prediction_steps=steps)
    at_most(MAX_WORDS, vocab_size=fields["vocab_size"])
    counted = ("conv_dim", "conv_kernel", "context_dim", "context_kernel", "classifier_proj_size")
    at_most(MAX_CHANNELS, **{name: fields[name] for name in (*counted, "num_negatives", "num_cross_sample_negatives")})
    gru = 3 * context[-1] * (dims[-1] + context[-1]) if fields["context_type"] == "gru" else 0
    stacks = conv_weights(1, dims, fields["conv_kernel"]) + gru
    stacks += 2 * conv_weights(dims[-1], context, fields["context_kernel"])  # twice, for one that projects features
    at_most(MAX_WEIGHTS, weights=stacks + context[-1] * (steps * dims[-1] + (fields["vocab_size"] or 0)))


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
