"""Configuration of CPC (van den Oord et al., 2018, arXiv:1807.03748, section 3.1)."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .model_size import (
    MAX_CHANNELS,
    MAX_LAYERS,
    MAX_WEIGHTS,
    MAX_WORDS,
    at_most,
    check_labels,
    conv_weights,
    transformer_weights,
)

NEGATIVE_SAMPLING = (
    "mixed_speaker",
    "same_speaker",
    "mixed_speaker_excluded",
    "same_speaker_excluded",
    "current_sequence",
)
CHOICES = {
    "feat_extract_norm": ("none", "channel", "batch", "instance"),
    "context_network": ("gru", "lstm", "rnn"),
    "predictor": ("linear", "feed_forward", "conv", "transformer"),
    "score": ("sum", "mean"),
    "negative_sampling": NEGATIVE_SAMPLING,
}


@strict
class CPCConfig(PreTrainedConfig):
    r"""
    Configuration of [`CPCModel`]; the defaults are the audio model of the paper. Where the paper is silent (padding,
    bias, number of negatives) they are those of CPC_audio, the public code of Rivière et al., 2020 (arXiv:2002.02848).
    `CPCConfig.modified()` is the model of that paper.

    Args:
        conv_dim (`list[int]`, *optional*, defaults to `(512, 512, 512, 512, 512)`):
            Channels of each convolution of the encoder.
        conv_kernel (`list[int]`, *optional*, defaults to `(10, 8, 4, 4, 4)`):
            Kernel size of each convolution, in samples or frames of the layer below.
        conv_stride (`list[int]`, *optional*, defaults to `(5, 4, 2, 2, 2)`):
            Stride of each convolution; their product, 160, is the number of samples per frame (10 ms at 16 kHz).
        conv_padding (`list[int]`, *optional*, defaults to `(3, 2, 1, 1, 1)`):
            Zeros on either side of the input of each convolution. The paper gives none; these are CPC_audio's. With
            them, frame t sees the samples 160 t - 153 to 160 t + 311.
        conv_bias (`bool`, *optional*, defaults to `True`):
            Whether convolutions have a bias.
        feat_extract_norm (`str`, *optional*, defaults to `"none"`):
            Norm after each convolution: `"none"`; `"channel"`, each frame over its channels with the unbiased
            variance (CPC_audio's "layerNorm"); `"batch"`; or `"instance"`, each channel over the clip, which makes
            every frame see the whole clip.
        feat_extract_activation (`str`, *optional*, defaults to `"relu"`):
            Activation after the norm.
        normalize_input (`bool`, *optional*, defaults to `False`):
            Whether clips are given zero mean and unit variance by the feature extractor. CPC_audio's models take the
            waveform as it is; small models from scratch, and models without a norm, often learn only with `True`.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the context.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Layers of the recurrent context network.
        context_network (`str`, *optional*, defaults to `"gru"`):
            `"gru"`, `"lstm"` or `"rnn"` (tanh).
        reversed_time (`bool`, *optional*, defaults to `False`):
            Whether the context runs from the end of a clip to its beginning and predicts the past.
        num_prediction_steps (`int`, *optional*, defaults to 12):
            K, the number of frames predicted ahead, each by a network of its own.
        predictor (`str`, *optional*, defaults to `"linear"`):
            The networks that predict: `"linear"` (the paper's W_k), `"feed_forward"`, `"conv"` (causal over the
            contexts) or `"transformer"` (a causal Transformer layer per step).
        predictor_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the predictions; CPC_audio's `--dropout` is 0.5.
        predictor_kernel_size (`int`, *optional*, defaults to 8):
            Contexts that a `"conv"` predictor sees; CPC_audio has 4, 8 and 12.
        predictor_attention_heads (`int`, *optional*, defaults to 8):
            Heads of a `"transformer"` predictor.
        predictor_intermediate_size (`int`, *optional*, defaults to 2048):
            Width of its feed-forward block.
        predictor_hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout inside it: on attention weights and in the feed-forward block.
        predictor_max_positions (`int`, *optional*, defaults to 116):
            Contexts that its relative positions tell apart. 116 are those of a window of 20480 samples with 12 steps;
            longer clips are refused.
        score (`str`, *optional*, defaults to `"sum"`):
            How prediction and frame are compared: `"sum"`, their inner product (equation 3), or `"mean"`, the inner
            product over the number of channels, as in CPC_audio.
        num_negatives (`int`, *optional*, defaults to 128):
            N, frames that the true one has to be told from; one draw serves all steps.
        negative_sampling (`str`, *optional*, defaults to `"mixed_speaker"`):
            Where they come from (table 2): `"mixed_speaker"`, every clip of the batch; `"same_speaker"`, every clip
            of the same speaker; `"mixed_speaker_excluded"` and `"same_speaker_excluded"`, the same without the clip
            itself; `"current_sequence"`, the clip alone. In CPC_audio the sampler is always the first, and batches
            are put together from one speaker.
        padding_invariant (`bool`, *optional*, defaults to `True`):
            With an attention mask, let each clip see the zeros that it would see alone, so that padding changes no
            answer. `False` lets the padding through the encoder, as other code does.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the weights of a new head. Everything else starts as PyTorch starts it.
        vocab_size, pad_token_id, bos_token_id, eos_token_id, final_dropout, ctc_loss_reduction, ctc_zero_infinity:
            Of [`CPCForCTC`], as in Transformers' `Wav2Vec2Config`.
        ctc_loss_per_utterance (`bool`, *optional*, defaults to `False`):
            Divide the summed CTC loss by the number of utterances; needs `ctc_loss_reduction="sum"`.
        classifier_proj_size (`int`, *optional*, defaults to 256):
            Width of the projection of [`CPCForSequenceClassification`].
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Whether classifiers read a learned mixture of z and c, which have to have the same width then.
    """

    model_type = "cpc"

    conv_dim: list[int] | tuple[int, ...] = (512, 512, 512, 512, 512)
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    conv_padding: list[int] | tuple[int, ...] = (3, 2, 1, 1, 1)
    conv_bias: bool = True
    feat_extract_norm: str = "none"
    feat_extract_activation: str = "relu"
    normalize_input: bool = False
    hidden_size: int = 256
    num_hidden_layers: int = 1
    context_network: str = "gru"
    reversed_time: bool = False
    num_prediction_steps: int = 12
    predictor: str = "linear"
    predictor_dropout: float | int = 0.0
    predictor_kernel_size: int = 8
    predictor_attention_heads: int = 8
    predictor_intermediate_size: int = 2048
    predictor_hidden_dropout: float | int = 0.1
    predictor_max_positions: int = 116
    score: str = "sum"
    num_negatives: int = 128
    negative_sampling: str = "mixed_speaker"
    padding_invariant: bool = True
    initializer_range: float = 0.02
    vocab_size: int | None = 32
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    final_dropout: float | int = 0.1
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    ctc_loss_per_utterance: bool = False
    classifier_proj_size: int = 256
    use_weighted_layer_sum: bool = False

    def __post_init__(self, **kwargs):
        check_labels(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def modified(cls, **fields: Any) -> "CPCConfig":
        """The model of Rivière et al., 2020, also of Libri-light: channel norm, LSTM and Transformer predictors."""
        changed = {
            "conv_dim": (256,) * 5,
            "feat_extract_norm": "channel",
            "context_network": "lstm",
            "predictor": "transformer",
            "score": "mean",
        }
        return cls(**{**changed, **fields})

    @property
    def expects_normalized_input(self) -> bool:
        """Whether clips are to have zero mean and unit variance."""
        return self.normalize_input

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples per frame."""
        return math.prod(self.conv_stride)

    def validate_architecture(self):
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}.")
        self._validate_convolutions()
        self._validate_size()
        least_one = ("num_hidden_layers", "num_prediction_steps", "num_negatives", "predictor_kernel_size")
        for name in least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        width, heads = self.conv_dim[-1], self.predictor_attention_heads
        if self.predictor == "transformer" and (self.hidden_size != width or width % heads):
            raise ValueError(
                "a transformer predictor needs hidden_size = conv_dim[-1], a multiple of predictor_attention_heads,"
                f" got {self.hidden_size}, {width} and {heads}."
            )
        if self.use_weighted_layer_sum and self.hidden_size != width:
            raise ValueError(
                f"use_weighted_layer_sum needs hidden_size = conv_dim[-1], got {self.hidden_size} and {width}."
            )
        if self.ctc_loss_per_utterance and self.ctc_loss_reduction != "sum":
            raise ValueError(
                f'ctc_loss_per_utterance needs ctc_loss_reduction="sum", got {self.ctc_loss_reduction!r}.'
            )

    def _validate_size(self):
        steps, width, hidden = self.num_prediction_steps, self.conv_dim[-1], self.hidden_size
        at_most(MAX_LAYERS, conv_dim=len(self.conv_dim), num_hidden_layers=self.num_hidden_layers)
        at_most(MAX_LAYERS, num_prediction_steps=steps)
        at_most(MAX_WORDS, vocab_size=self.vocab_size)
        names = ("conv_dim", "conv_kernel", "hidden_size", "num_negatives", "classifier_proj_size")
        of_predictors = ("kernel_size", "intermediate_size", "attention_heads", "max_positions")
        names = (*names, *(f"predictor_{name}" for name in of_predictors))
        at_most(MAX_CHANNELS, **{name: getattr(self, name) for name in names})
        predictor = hidden * width * (self.predictor_kernel_size if self.predictor == "conv" else 1)
        if self.predictor == "transformer":
            predictor += transformer_weights(1, hidden, self.predictor_intermediate_size)
        recurrent = 4 * hidden * (width + (2 * self.num_hidden_layers - 1) * hidden)
        convolutions = conv_weights(1, self.conv_dim, self.conv_kernel)
        at_most(MAX_WEIGHTS, weights=convolutions + recurrent + steps * predictor + hidden * (self.vocab_size or 0))

    def _validate_convolutions(self):
        described = {name: getattr(self, name) for name in ("conv_dim", "conv_kernel", "conv_stride", "conv_padding")}
        if len({len(values) for values in described.values()}) != 1 or not self.conv_dim:
            counts = ", ".join(f"{name} {len(values)}" for name, values in described.items())
            raise ValueError(f"the fields of the convolutions describe the same layers, but have entries: {counts}.")
        for kernel, stride, padding in zip(self.conv_kernel, self.conv_stride, self.conv_padding, strict=True):
            if not 1 <= stride <= kernel or not 0 <= 2 * padding < kernel:
                raise ValueError(
                    "each convolution needs 1 <= conv_stride <= conv_kernel and 0 <= 2 * conv_padding < conv_kernel,"
                    f" got stride {stride}, kernel {kernel} and padding {padding}."
                )
        if self.feat_extract_norm == "channel" and min(self.conv_dim) < 2:
            raise ValueError(f"a channel norm needs at least 2 channels, got conv_dim {self.conv_dim}.")


CPCConfig.register_for_auto_class()
