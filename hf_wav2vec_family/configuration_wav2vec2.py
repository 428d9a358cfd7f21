"""Configuration of wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477)."""

from huggingface_hub.dataclasses import strict
from transformers import Wav2Vec2Config as TransformersWav2Vec2Config

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


@strict
class Wav2Vec2Config(TransformersWav2Vec2Config):
    r"""
    Configuration of [`Wav2Vec2Model`]: Transformers' own `Wav2Vec2Config` with the same `model_type` and field names,
    and the parts of the original training that it lacks. The defaults are the paper's BASE model as pre-trained; those
    that differ from Transformers' are listed first.

    Args:
        mask_time_prob (`float`, *optional*, defaults to 0.65):
            p * M of section 3.1: the share of frames that begin a masked span, 0.065, times `mask_time_length`.
        layerdrop (`float`, *optional*, defaults to 0.05):
            Probability that a layer of the Transformer is skipped in a training step.
        activation_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the activation of a feed-forward block.
        feat_proj_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the projected features that enter the Transformer.
        feat_quantizer_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the features that enter the quantizer.
        feature_penalty_weight (`float`, *optional*):
            Weight of the mean square of the convolutional features in the loss (section 4.2). Not set: 10 with
            `feat_extract_norm="group"`, 0 with `"layer"`, as the two kinds of model were trained.
        feature_gradient_scale (`float`, *optional*):
            Factor on the gradient that reaches the convolutions (section 4.2); 0 runs them without gradient. Not set:
            0.1 with `feat_extract_norm="group"`, 1 with `"layer"`.
        num_cross_sample_negatives (`int`, *optional*, defaults to 0):
            Distractors drawn from the masked frames of the whole batch, beside the `num_negatives` of the same clip.
        gumbel_temperature (`float`, *optional*, defaults to 2.0):
            Temperature of the quantizer until `set_gumbel_temperature` is called; 2 is where the paper starts.
        quantizer_depth (`int`, *optional*, defaults to 1):
            Layers of the network that makes the quantizer's logits.
        quantizer_factor (`int`, *optional*, defaults to 3):
            Width of its hidden layers in multiples of the feature width.
        padding_invariant (`bool`, *optional*, defaults to `True`):
            With an attention mask, take norms and the feature penalty over valid frames only, so that padding changes
            no answer. `False` reproduces the numbers of the original code and of Transformers on padded batches.
        ctc_loss_per_utterance (`bool`, *optional*, defaults to `False`):
            Divide the summed CTC loss by the number of utterances, as the original fine-tuning does; needs
            `ctc_loss_reduction="sum"`.
    """

    mask_time_prob: float | int = 0.65
    layerdrop: float | int = 0.05
    activation_dropout: float | int = 0.0
    feat_proj_dropout: float | int = 0.1
    feat_quantizer_dropout: float | int = 0.1
    feature_penalty_weight: float | int | None = None
    feature_gradient_scale: float | int | None = None
    num_cross_sample_negatives: int = 0
    gumbel_temperature: float | int = 2.0
    quantizer_depth: int = 1
    quantizer_factor: int = 3
    padding_invariant: bool = True
    ctc_loss_per_utterance: bool = False

    def __post_init__(self, **kwargs):
        check_labels(kwargs)
        group_norm = self.feat_extract_norm == "group"
        if self.feature_penalty_weight is None:
            self.feature_penalty_weight = 10.0 if group_norm else 0.0
        if self.feature_gradient_scale is None:
            self.feature_gradient_scale = 0.1 if group_norm else 1.0
        super().__post_init__(**kwargs)

    @property
    def expects_normalized_input(self) -> bool:
        """Whether clips are to have zero mean and unit variance: models with layer norms were trained so."""
        return self.feat_extract_norm == "layer"

    def validate_architecture(self):
        super().validate_architecture()
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f'feat_extract_norm must be "group" or "layer", got {self.feat_extract_norm!r}.')
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and"
                f" {self.num_attention_heads}."
            )
        self._validate_size()
        if self.codevector_dim % self.num_codevector_groups:
            raise ValueError(
                f"codevector_dim must be a multiple of num_codevector_groups, got {self.codevector_dim} and"
                f" {self.num_codevector_groups}."
            )
        if self.quantizer_depth < 1:
            raise ValueError(f"quantizer_depth must be at least 1, got {self.quantizer_depth}.")
        if self.num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {self.num_negatives}.")
        if self.gumbel_temperature <= 0:
            raise ValueError(f"gumbel_temperature must be above 0, got {self.gumbel_temperature}.")
        if self.ctc_loss_per_utterance and self.ctc_loss_reduction != "sum":
            raise ValueError(
                f'ctc_loss_per_utterance needs ctc_loss_reduction="sum", got {self.ctc_loss_reduction!r}.'
            )

    def _validate_size(self):
        at_most(MAX_LAYERS, conv_dim=len(self.conv_dim), num_hidden_layers=self.num_hidden_layers)
        at_most(MAX_LAYERS, num_adapter_layers=self.num_adapter_layers, quantizer_depth=self.quantizer_depth)
        of_frames = ("conv_dim", "conv_kernel", "hidden_size", "intermediate_size", "num_conv_pos_embeddings")
        of_codes = ("num_codevector_groups", "num_codevectors_per_group", "codevector_dim", "proj_codevector_dim")
        of_heads = ("num_negatives", "num_cross_sample_negatives", "classifier_proj_size", "output_hidden_size")
        names = (*of_frames, *of_codes, *of_heads, "adapter_kernel_size", "adapter_attn_dim")
        at_most(MAX_CHANNELS, **{name: getattr(self, name) for name in names})
        at_most(MAX_WORDS, vocab_size=self.vocab_size)
        hidden, width = self.hidden_size, self.quantizer_factor * self.conv_dim[-1]
        at_most(MAX_CHANNELS, **{"quantizer_factor * conv_dim[-1]": width})
        entries = self.num_codevector_groups * self.num_codevectors_per_group
        of_quantizer = self.quantizer_depth * width**2 + entries * (width + self.codevector_dim)
        of_adapter = self.num_adapter_layers * 2 * hidden**2 * self.adapter_kernel_size if self.add_adapter else 0
        blocks = transformer_weights(self.num_hidden_layers, hidden, self.intermediate_size)
        positions = hidden**2 * self.num_conv_pos_embeddings // self.num_conv_pos_embedding_groups
        convolutions = conv_weights(1, self.conv_dim, self.conv_kernel)
        rest = of_quantizer + of_adapter + positions + hidden * (self.vocab_size or 0)
        at_most(MAX_WEIGHTS, weights=convolutions + blocks + rest)
