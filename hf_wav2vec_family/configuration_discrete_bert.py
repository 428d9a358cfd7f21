"""Configuration of Discrete BERT (Baevski, Auli, Mohamed, 2019, arXiv:1911.03912)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, RobertaConfig

from .configuration_vq_wav2vec import VQWav2VecConfig
from .fairseq_dictionary import padded_size
from .model_size import MAX_CHANNELS, MAX_LAYERS, MAX_WEIGHTS, MAX_WORDS, at_most, check_labels, transformer_weights

# What the RoBERTa of the original code has where `RobertaConfig` begins with something else. Two rows of the position
# table come before the first position.
ORIGINAL_ROBERTA = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048 + 2}
# `<s>` and `</s>` around a clip
NUM_MARKS = 2


@strict
class DiscreteBertConfig(PreTrainedConfig):
    r"""
    Configuration of [`DiscreteBertModel`]; the defaults are BERT base (12 layers of 768) on the codes of vq-wav2vec,
    with 2048 positions as in the published checkpoint.

    The original vocabulary is learned from data, some 23 thousand words. It is not in a configuration: here all V^G
    words are the default, in the order of their numbers. [`DiscreteBertModel.from_parts`] takes a learned one.

    Args:
        vq_wav2vec_config (`VQWav2VecConfig` or `dict`, *optional*):
            What makes the codes; never trained.
        roberta_config (`RobertaConfig` or `dict`, *optional*):
            What reads them; fields not given are those of BERT base in the original code.
        freeze_roberta (`bool`, *optional*, defaults to `False`):
            Features as they were pre-trained, as Baevski et al., 2019 (arXiv:1910.05453) use them, without dropout;
            Discrete BERT fine-tunes instead.
        vocab_size (`int`, *optional*, defaults to 32):
            Symbols of a CTC head; the words of codes are counted by `roberta_config.vocab_size`.
        final_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before a CTC head.
        ctc_loss_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"`, over the labels of each utterance.
        ctc_zero_infinity (`bool`, *optional*, defaults to `False`):
            Whether an utterance with more labels than frames costs nothing.
        ctc_loss_per_utterance (`bool`, *optional*, defaults to `False`):
            Divide the summed CTC loss by the number of utterances; needs `ctc_loss_reduction="sum"`.
        use_weighted_layer_sum (`bool`, *optional*, defaults to `False`):
            Heads see a learned weighted sum of the layers instead of the last one.
        classifier_proj_size (`int`, *optional*, defaults to 256):
            Width between the frames and the classes of a clip.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation that linear layers of heads start with.
        pad_token_id (`int`, *optional*, defaults to 0):
            Blank of CTC.
    """

    model_type = "discrete-bert"
    # the name of it in Transformers since 5.24, and before
    sub_configs_defaults: ClassVar = {"vq_wav2vec_config": VQWav2VecConfig, "roberta_config": RobertaConfig}
    sub_configs: ClassVar = sub_configs_defaults

    vq_wav2vec_config: dict | PreTrainedConfig | None = None
    roberta_config: dict | PreTrainedConfig | None = None
    freeze_roberta: bool = False
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
        if not isinstance(self.vq_wav2vec_config, PreTrainedConfig):
            self.vq_wav2vec_config = VQWav2VecConfig(**(self.vq_wav2vec_config or {}))
        if not isinstance(self.vq_wav2vec_config, VQWav2VecConfig):
            raise ValueError(
                f"vq_wav2vec_config must be a VQWav2VecConfig, got {type(self.vq_wav2vec_config).__name__}."
            )
        if not isinstance(self.roberta_config, PreTrainedConfig):
            all_words = {"vocab_size": padded_size(self.num_possible_words) + 1}  # and <mask>
            self.roberta_config = RobertaConfig(**{**ORIGINAL_ROBERTA, **all_words, **(self.roberta_config or {})})
        super().__post_init__(**kwargs)

    @property
    def num_possible_words(self) -> int:
        """V^G: the combinations of codes."""
        return self.vq_wav2vec_config.num_codevectors_per_group**self.vq_wav2vec_config.num_codevector_groups

    @property
    def hidden_size(self) -> int:
        """Channels of a frame."""
        return self.roberta_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of RoBERTa."""
        return self.roberta_config.num_hidden_layers

    @property
    def conv_kernel(self) -> list[int] | tuple[int, ...]:
        """Kernel sizes of the convolutions that make the frames."""
        return self.vq_wav2vec_config.conv_kernel

    @property
    def conv_stride(self) -> list[int] | tuple[int, ...]:
        """Their strides."""
        return self.vq_wav2vec_config.conv_stride

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples per frame."""
        return self.vq_wav2vec_config.inputs_to_logits_ratio

    @property
    def max_frames(self) -> int:
        """Frames that RoBERTa has positions for, beside the marks of beginning and end."""
        return self.roberta_config.max_position_embeddings - self.roberta_config.pad_token_id - 1 - NUM_MARKS

    @property
    def expects_normalized_input(self) -> bool:
        """Whether clips are to have zero mean and unit variance, as vq-wav2vec has it."""
        return self.vq_wav2vec_config.expects_normalized_input

    def validate_architecture(self):
        self._validate_size()
        if self.num_possible_words >= 2**63:
            raise ValueError(
                f"num_codevectors_per_group = {self.vq_wav2vec_config.num_codevectors_per_group} to the power of"
                f" num_codevector_groups = {self.vq_wav2vec_config.num_codevector_groups} must be below 2^63."
            )
        ids = [getattr(self.roberta_config, f"{name}_token_id") for name in ("bos", "pad", "eos")]
        if ids != [0, 1, 2]:
            raise ValueError(f"bos, pad and eos of roberta_config must have the ids 0, 1, 2, got {ids}.")
        if self.max_frames < 1:
            raise ValueError(
                "max_position_embeddings of roberta_config must leave room for a frame, got"
                f" {self.roberta_config.max_position_embeddings}."
            )
        if not 0 <= self.final_dropout < 1:
            raise ValueError(f"final_dropout must be at least 0 and below 1, got {self.final_dropout}.")
        if self.ctc_loss_reduction not in ("sum", "mean"):
            raise ValueError(f'ctc_loss_reduction must be "sum" or "mean", got {self.ctc_loss_reduction!r}.')
        if self.ctc_loss_per_utterance and self.ctc_loss_reduction != "sum":
            raise ValueError(
                f'ctc_loss_per_utterance needs ctc_loss_reduction="sum", got {self.ctc_loss_reduction!r}.'
            )

    def _validate_size(self):
        roberta = self.roberta_config
        at_most(MAX_LAYERS, num_hidden_layers=roberta.num_hidden_layers)
        counted = ("hidden_size", "intermediate_size", "max_position_embeddings")
        at_most(MAX_CHANNELS, classifier_proj_size=self.classifier_proj_size)
        at_most(MAX_CHANNELS, **{name: getattr(roberta, name) for name in (*counted, "type_vocab_size")})
        at_most(MAX_WORDS, vocab_size=self.vocab_size)
        at_most(MAX_WORDS, **{"roberta_config.vocab_size": roberta.vocab_size})
        words = (roberta.vocab_size + roberta.max_position_embeddings + (self.vocab_size or 0)) * roberta.hidden_size
        blocks = transformer_weights(roberta.num_hidden_layers, roberta.hidden_size, roberta.intermediate_size)
        at_most(MAX_WEIGHTS, weights=words + blocks)
