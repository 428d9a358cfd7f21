"""Configuration of vq-wav2vec (Baevski et al., 2019, arXiv:1910.05453)."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .causal_conv_fields import check_causal_conv_fields
from .conv import receptive_field


@strict
class VQWav2VecConfig(PreTrainedConfig):
    r"""
    Configuration of [`VQWav2VecModel`]; the defaults are the Gumbel model of Baevski et al., 2019, sections 3 and 5.
    [`VQWav2VecConfig.published`] has what the published checkpoints have instead.

    Where paper and published models disagree: the paper predicts 8 frames from the next one on, the models 12 from the
    third; the paper has ReLU, the models GELU; the paper lowers the Gumbel temperature in a straight line over 70 % of
    the updates, the code multiplies it by 0.999995 at each, which takes about as long from 2 to 0.5; the paper's rate
    of learning peaks at 5e-3, that of the code's instructions at 1e-5. No diversity loss was used with Gumbel.

    Args:
        quantizer_type (`str`, *optional*, defaults to `"gumbel"`):
            `"gumbel"` (section 3.1) or `"kmeans"` (section 3.2).
        num_codevector_groups (`int`, *optional*, defaults to 2):
            G: parts of a frame that are quantized each by themselves.
        num_codevectors_per_group (`int`, *optional*, defaults to 320):
            V: entries of each group.
        share_codevectors (`bool`, *optional*, defaults to `True`):
            One codebook for all groups, as in the published models.
        codevector_dim (`int`, *optional*):
            Channels of a quantized frame. Not set: as many as the encoder has. `"kmeans"` takes no other number.
        quantizer_depth (`int`, *optional*, defaults to 2):
            Layers of the network that makes the logits of `"gumbel"`.
        quantizer_factor (`int`, *optional*, defaults to 2):
            Width of its hidden layers in multiples of the encoder's channels.
        gumbel_temperature (`float`, *optional*, defaults to 2.0):
            Temperature of `"gumbel"` until `set_gumbel_temperature` is called; 2 is where the paper starts.
        commitment_weight (`float`, *optional*, defaults to 0.25):
            gamma: weight of the commitment loss of `"kmeans"`.
        quantizer_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of both losses of `"kmeans"` in the sum.
        diversity_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of G V - perplexity of `"gumbel"`; unlike in wav2vec 2.0 it is not divided by G V.
        conv_dim (`list[int]`, *optional*, defaults to `(512,) * 8`):
            Channels of each convolution of the encoder.
        conv_kernel (`list[int]`, *optional*, defaults to `(10, 8, 4, 4, 4, 1, 1, 1)`):
            Kernel size of each, in samples or frames of the layer below.
        conv_stride (`list[int]`, *optional*, defaults to `(5, 4, 2, 2, 2, 1, 1, 1)`):
            Stride of each; their product, 160, is the number of samples per frame (10 ms at 16 kHz).
        context_type (`str`, *optional*, defaults to `"conv"`):
            `"conv"` or `"gru"`, one GRU of `context_dim[0]` units, which wants `context_kernel=()`.
        context_dim (`list[int]`, *optional*, defaults to `(512,) * 12`):
            Channels of each layer of the context network.
        context_kernel (`list[int]`, *optional*, defaults to `(2, 3, ..., 13)`):
            Kernel size of each, in frames.
        context_bias (`bool`, *optional*, defaults to `True`):
            Whether convolutions of the context network have a bias.
        context_padding (`str`, *optional*, defaults to `"replicate"`):
            What stands before the first frame: `"replicate"`, the first frame itself, or `"zero"`.
        feat_skip_connections (`bool`, *optional*, defaults to `False`):
            Skip connections in the encoder, around layers that keep the number of channels.
        context_skip_connections (`bool`, *optional*, defaults to `True`):
            Skip connections in the context network.
        residual_scale (`float`, *optional*, defaults to 0.5):
            The sum of a skip connection is multiplied by the square root of this.
        log_compression (`bool`, *optional*, defaults to `False`):
            Latent frames are log(1 + |x|); not in the published models.
        conv_norm (`str`, *optional*, defaults to `"group"`):
            `"group"`, as published: statistics over all channels and all frames, so that a frame depends on the whole
            clip although the convolutions are causal. `"layer"`: over the channels of each frame, which makes the
            model causal and `stream` possible.
        conv_norm_affine (`bool`, *optional*, defaults to `True`):
            Whether norms have a weight and a bias.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation after each norm and in the network that makes the logits.
        conv_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after every convolution and on the predictions.
        feat_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the frames that enter the context network.
        context_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the context that enters the predictor.
        project_features (`str`, *optional*, defaults to `"none"`):
            What makes targets of the frames: `"none"`, `"same"` for the context network, `"new"` for another like it.
        num_prediction_steps (`int`, *optional*, defaults to 8):
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

    model_type = "vq-wav2vec"

    quantizer_type: str = "gumbel"
    num_codevector_groups: int = 2
    num_codevectors_per_group: int = 320
    share_codevectors: bool = True
    codevector_dim: int | None = None
    quantizer_depth: int = 2
    quantizer_factor: int = 2
    gumbel_temperature: float | int = 2.0
    commitment_weight: float | int = 0.25
    quantizer_loss_weight: float | int = 1.0
    diversity_loss_weight: float | int = 0.0
    conv_dim: list[int] | tuple[int, ...] = (512,) * 8
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4, 1, 1, 1)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2, 1, 1, 1)
    context_type: str = "conv"
    context_dim: list[int] | tuple[int, ...] = (512,) * 12
    context_kernel: list[int] | tuple[int, ...] = tuple(range(2, 14))
    context_bias: bool = True
    context_padding: str = "replicate"
    feat_skip_connections: bool = False
    context_skip_connections: bool = True
    residual_scale: float | int = 0.5
    log_compression: bool = False
    conv_norm: str = "group"
    conv_norm_affine: bool = True
    hidden_act: str = "relu"
    conv_dropout: float | int = 0.0
    feat_dropout: float | int = 0.0
    context_dropout: float | int = 0.0
    project_features: str = "none"
    num_prediction_steps: int = 8
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
        if self.codevector_dim is None and self.conv_dim:
            self.codevector_dim = self.conv_dim[-1]
        super().__post_init__(**kwargs)

    @classmethod
    def published(cls, quantizer_type: str = "gumbel", **fields) -> "VQWav2VecConfig":
        """The published model of a quantizer (`vq-wav2vec.pt`, `vq-wav2vec_kmeans.pt`); `fields` override."""
        published = {"num_prediction_steps": 12, "prediction_offset": "auto", "hidden_act": "gelu"}
        return cls(quantizer_type=quantizer_type, **{**published, **fields})

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
        self.validate_quantizer()

    def validate_quantizer(self):
        if self.quantizer_type not in ("gumbel", "kmeans"):
            raise ValueError(f'quantizer_type must be "gumbel" or "kmeans", got {self.quantizer_type!r}.')
        for name in ("num_codevector_groups", "num_codevectors_per_group", "quantizer_depth", "quantizer_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.codevector_dim % self.num_codevector_groups:
            raise ValueError(
                f"codevector_dim must be a multiple of num_codevector_groups, got {self.codevector_dim} and"
                f" {self.num_codevector_groups}."
            )
        if self.quantizer_type == "kmeans" and self.codevector_dim != self.conv_dim[-1]:
            raise ValueError(
                'codevector_dim of quantizer_type="kmeans" must be the last of conv_dim, got'
                f" {self.codevector_dim} and {self.conv_dim[-1]}."
            )
        if self.gumbel_temperature <= 0:
            raise ValueError(f"gumbel_temperature must be above 0, got {self.gumbel_temperature}.")
        for name in ("commitment_weight", "quantizer_loss_weight", "diversity_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0, got {getattr(self, name)}.")
