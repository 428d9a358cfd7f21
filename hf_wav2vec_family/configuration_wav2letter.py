"""Configuration of the wav2letter acoustic models (Collobert, Puhrsch, Synnaeve, 2016, arXiv:1609.03193)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_cpc import CPCConfig
from .configuration_discrete_bert import DiscreteBertConfig
from .configuration_vq_wav2vec import VQWav2VecConfig
from .configuration_wav2vec import Wav2VecConfig
from .configuration_wav2vec2 import Wav2Vec2Config
from .model_size import MAX_CHANNELS, MAX_LAYERS, MAX_WEIGHTS, MAX_WORDS, at_most, check_labels, conv_weights

ENCODER_CONFIGS = {
    config.model_type: config
    for config in (CPCConfig, Wav2VecConfig, VQWav2VecConfig, DiscreteBertConfig, Wav2Vec2Config)
}
CHOICES = {
    "front_end": ("log_mel", "mfcc", "encoder"),
    "encoder_output": ("last_hidden_state", "extract_features", "quantized_features", "weighted_sum"),
    "feature_norm": ("utterance", "channel", "none"),
    "conv_activation": ("prelu", "glu"),
    "criterion": ("ctc", "asg"),
    "loss_norm": ("none", "sqrt_target_length"),
    "ctc_loss_reduction": ("sum", "mean"),
}
SPECTRAL_WINDOW, SPECTRAL_HOP = 400, 160  # samples at 16 kHz: 25 ms every 10 ms


@strict
class Wav2LetterConfig(PreTrainedConfig):
    r"""
    Configuration of [`Wav2LetterForCTC`]; the defaults are the network that wav2vec (Schneider et al., 2019,
    arXiv:1904.05862, section 3.3) has for TIMIT, on log-mel filter banks. `Wav2LetterConfig.gated()` is that for WSJ.

    Args:
        front_end (`str`, *optional*, defaults to `"log_mel"`):
            What the network reads: `"log_mel"` or `"mfcc"` (with first and second differences), windows of 25 ms every
            10 ms; or `"encoder"`, a model of this package.
        num_mel_bins (`int`, *optional*, defaults to 80):
            Bands of log-mel and of what cepstra are made of.
        num_cepstra (`int`, *optional*, defaults to 13):
            Cepstra of `"mfcc"`; a frame has three times as many numbers.
        encoder_config (`PreTrainedConfig` or `dict`, *optional*):
            Of the encoder, of any architecture but this one; a `dict` says which by `model_type`. Not given, it is
            wav2vec as published.
        encoder_output (`str`, *optional*, defaults to `"last_hidden_state"`):
            What the encoder gives: `"last_hidden_state"` (c, or the output of BERT), `"extract_features"` (z),
            `"quantized_features"` (vq-wav2vec only), or a learned `"weighted_sum"` of its layers.
        freeze_encoder (`bool`, *optional*, defaults to `True`):
            Features as they were pre-trained, without dropout, as the papers take them.
        feature_norm (`str`, *optional*, defaults to `"utterance"`):
            Zero mean and unit variance over all features of an utterance (wav2letter's), each `"channel"` by itself,
            or `"none"`.
        conv_dim (`list[int]`, *optional*, defaults to seven times 1000):
            Output channels of each convolution; a gate halves them.
        conv_kernel (`list[int]`, *optional*, defaults to seven times 5):
            Their kernel sizes in frames; zeros at both ends keep the number of frames.
        conv_activation (`str`, *optional*, defaults to `"prelu"`):
            `"prelu"` with one slope per layer, or `"glu"`, gated linear units.
        conv_dropout (`float`, *optional*, defaults to 0.7):
            Dropout behind each activation.
        weight_norm (`bool`, *optional*, defaults to `False`):
            Whether convolutions and the output layer learn direction and magnitude of their weights apart.
        criterion (`str`, *optional*, defaults to `"asg"`):
            `"asg"`, the Auto Segmentation Criterion over the symbols below `pad_token_id`, or `"ctc"` with
            `pad_token_id` as its blank.
        initial_diagonal (`float`, *optional*, defaults to 0.0):
            What staying with a symbol scores before training with ASG; wav2letter's `transdiag`.
        transition_gradient_scale (`float`, *optional*, defaults to 1.0):
            Multiplies the gradient of ASG's transitions: with SGD the ratio of wav2letter's `lrcrit` to its `lr`.
        merge_repeated_labels (`bool`, *optional*, defaults to `False`):
            Make one label of a run, as the original does for phones. Otherwise ASG refuses runs, which it can't spell;
            [`Wav2LetterCTCTokenizer`] writes letters without any.
        loss_norm (`str`, *optional*, defaults to `"none"`):
            `"sqrt_target_length"` divides an utterance's loss by the square root of its number of labels; wav2letter's
            `onorm=target`, `sqnorm`.
        vocab_size (`int`, *optional*, defaults to 41):
            Symbols of the tokenizer: 39 phones, the blank, and what is unknown.
        pad_token_id (`int`, *optional*, defaults to 39):
            Blank of CTC; also what no frame of ASG has but padding.
        bos_token_id, eos_token_id (`int`, *optional*):
            As of the tokenizer; not used.
        final_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before the output layer, beside that of the last convolution.
        ctc_loss_reduction (`str`, *optional*, defaults to `"sum"`):
            `"sum"` or `"mean"`, over the labels of each utterance; of either criterion, as the next two.
        ctc_zero_infinity (`bool`, *optional*, defaults to `False`):
            Whether an utterance that no path spells costs nothing: one with more labels than frames, or with none.
        ctc_loss_per_utterance (`bool`, *optional*, defaults to `False`):
            Divide the summed loss by the number of utterances; needs `ctc_loss_reduction="sum"`.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation that the output layer starts with.
    """

    model_type = "wav2letter"
    # a Trainer hands `logits` to a metric, and no pair
    keys_to_ignore_at_inference: ClassVar = ["emissions"]

    front_end: str = "log_mel"
    num_mel_bins: int = 80
    num_cepstra: int = 13
    encoder_config: dict | PreTrainedConfig | None = None
    encoder_output: str = "last_hidden_state"
    freeze_encoder: bool = True
    feature_norm: str = "utterance"
    conv_dim: list[int] | tuple[int, ...] = (1000,) * 7
    conv_kernel: list[int] | tuple[int, ...] = (5,) * 7
    conv_activation: str = "prelu"
    conv_dropout: float | int = 0.7
    weight_norm: bool = False
    criterion: str = "asg"
    initial_diagonal: float | int = 0.0
    transition_gradient_scale: float | int = 1.0
    merge_repeated_labels: bool = False
    loss_norm: str = "none"
    vocab_size: int | None = 41
    pad_token_id: int | None = 39
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    final_dropout: float | int = 0.0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    ctc_loss_per_utterance: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_labels(kwargs)
        if self.front_end == "encoder" and not isinstance(self.encoder_config, PreTrainedConfig):
            settings = dict(self.encoder_config or {})
            model_type = settings.pop("model_type", Wav2VecConfig.model_type)
            if model_type not in ENCODER_CONFIGS:
                raise ValueError(
                    f"encoder_config: model_type must be one of {', '.join(ENCODER_CONFIGS)}, got {model_type!r}."
                )
            self.encoder_config = ENCODER_CONFIGS[model_type](**settings)
        super().__post_init__(**kwargs)

    @classmethod
    def gated(cls, **fields: Any) -> "Wav2LetterConfig":
        """The network for WSJ: 15 gated convolutions and a gated linear layer under the output, with weight norm."""
        widths = (200, 200, 200, 250, 250, 300, 350, 400, 450, 500, 500, 500, 600, 600, 750, 1000)
        changed = {
            "conv_dim": widths,
            "conv_kernel": (13, *range(3, 16), 21, 1),
            "conv_activation": "glu",
            "conv_dropout": 0.25,
            "weight_norm": True,
            "vocab_size": 33,
            "pad_token_id": 31,
        }
        return cls(**{**changed, **fields})

    @property
    def hidden_size(self) -> int:
        """Channels that the output layer reads."""
        return self.conv_dim[-1] // 2 if self.conv_activation == "glu" else self.conv_dim[-1]

    @property
    def num_symbols(self) -> int:
        """What a frame has a score for: the symbols of ASG, or the whole vocabulary of CTC."""
        return self.pad_token_id if self.criterion == "asg" else self.vocab_size

    @property
    def feature_size(self) -> int:
        """Numbers in a frame of the front end."""
        if self.front_end != "encoder":
            return self.num_mel_bins if self.front_end == "log_mel" else 3 * self.num_cepstra
        if self.encoder_output == "quantized_features":
            return self.encoder_config.codevector_dim
        latents = self.encoder_output == "extract_features"
        return self.encoder_config.conv_dim[-1] if latents else self.encoder_config.hidden_size

    @property
    def num_encoder_layers(self) -> int:
        """Layers that a weighted sum is over, what enters the first one included."""
        widths = getattr(self.encoder_config, "context_dim", None)
        return (len(widths) if widths else self.encoder_config.num_hidden_layers) + 1

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples per frame."""
        return self.encoder_config.inputs_to_logits_ratio if self.front_end == "encoder" else SPECTRAL_HOP

    @property
    def expects_normalized_input(self) -> bool:
        """Whether clips are to have zero mean and unit variance, as an encoder may have it."""
        return self.front_end == "encoder" and self.encoder_config.expects_normalized_input

    def validate_architecture(self):
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}.")
        if not self.conv_dim or len(self.conv_dim) != len(self.conv_kernel):
            raise ValueError(
                f"conv_dim and conv_kernel describe the same layers, but have {len(self.conv_dim)} and"
                f" {len(self.conv_kernel)} entries."
            )
        if min(*self.conv_dim, *self.conv_kernel) < 1:
            raise ValueError(
                f"conv_dim and conv_kernel must be at least 1, got {self.conv_dim} and {self.conv_kernel}."
            )
        if self.num_mel_bins < 1:
            raise ValueError(f"num_mel_bins must be at least 1, got {self.num_mel_bins}.")
        if self.front_end == "mfcc" and not 1 <= self.num_cepstra <= self.num_mel_bins:
            raise ValueError(
                f"num_cepstra must be from 1 to num_mel_bins = {self.num_mel_bins}, got {self.num_cepstra}."
            )
        if self.conv_activation == "glu" and any(channels % 2 for channels in self.conv_dim):
            raise ValueError(f"conv_dim must be even for gates, which halve it, got {self.conv_dim}.")
        for name in ("conv_dropout", "final_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        if self.ctc_loss_per_utterance and self.ctc_loss_reduction != "sum":
            raise ValueError(
                f'ctc_loss_per_utterance needs ctc_loss_reduction="sum", got {self.ctc_loss_reduction!r}.'
            )
        self._validate_symbols()
        if self.front_end == "encoder":
            self._validate_encoder()
        elif self.encoder_config is not None:
            raise ValueError(f'encoder_config needs front_end="encoder", got {self.front_end!r}.')
        self._validate_size()

    def _validate_size(self):
        at_most(MAX_LAYERS, conv_dim=len(self.conv_dim))
        names = ("conv_dim", "conv_kernel", "num_mel_bins", "num_cepstra")
        at_most(MAX_CHANNELS, **{name: getattr(self, name) for name in names})
        # ASG has a score for each pair of symbols
        at_most(MAX_CHANNELS if self.criterion == "asg" else MAX_WORDS, vocab_size=self.vocab_size)
        pairs = self.vocab_size**2 if self.criterion == "asg" else 0
        convolutions = conv_weights(self.feature_size, self.conv_dim, self.conv_kernel)
        at_most(MAX_WEIGHTS, weights=convolutions + self.hidden_size * self.vocab_size + pairs)

    def _validate_symbols(self):
        if self.vocab_size is None or self.pad_token_id is None:
            raise ValueError(
                f"vocab_size and pad_token_id must be given, got {self.vocab_size} and {self.pad_token_id}."
            )
        if self.criterion == "asg" and not 1 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                'criterion="asg" has a score for the symbols below pad_token_id, which must be from 1 to vocab_size -'
                f" 1 = {self.vocab_size - 1}, got {self.pad_token_id}; a vocabulary of CTC often has it first."
            )

    def _validate_encoder(self):
        encoder = self.encoder_config
        if encoder.model_type not in ENCODER_CONFIGS:
            raise ValueError(
                f"encoder_config: model_type must be one of {', '.join(ENCODER_CONFIGS)}, got {encoder.model_type!r}."
            )
        lacking = {
            "quantized_features": encoder.model_type != "vq-wav2vec",
            "extract_features": encoder.model_type == "discrete-bert",
        }
        if lacking.get(self.encoder_output):
            raise ValueError(f"encoder_output: {encoder.model_type} has no {self.encoder_output}.")
        if getattr(encoder, "add_adapter", False):
            raise ValueError("encoder_config: add_adapter must be False, for frames are those of the convolutions.")
        if self.encoder_output == "weighted_sum":
            first = {"cpc": "conv_dim", "wav2vec": "conv_dim", "vq-wav2vec": "codevector_dim"}.get(encoder.model_type)
            entering = getattr(encoder, first) if first else encoder.hidden_size
            widths = {*(entering[-1:] if first == "conv_dim" else [entering]), *getattr(encoder, "context_dim", ())}
            if len(widths | {encoder.hidden_size}) > 1:
                raise ValueError(
                    f'encoder_output="weighted_sum" needs layers of one width, got {sorted(widths)} and'
                    f" {encoder.hidden_size}."
                )


Wav2LetterConfig.register_for_auto_class()
