"""Configuration of vq-wav2vec (Baevski et al., 2019, arXiv:1910.05453)."""

from huggingface_hub.dataclasses import strict

from .causal_conv_fields import CausalConvConfig
from .model_size import MAX_CHANNELS, MAX_LAYERS, MAX_WEIGHTS, at_most


@strict
class VQWav2VecConfig(CausalConvConfig):
    r"""
    Configuration of [`VQWav2VecModel`]; the defaults are the Gumbel model of Baevski et al., 2019, sections 3 and 5.
    [`VQWav2VecConfig.published`] has what the published checkpoints have instead.

    Where paper and published models disagree: the paper predicts 8 frames from the next one on, the models 12 from the
    third; the paper has ReLU, the models GELU; the paper lowers the Gumbel temperature in a straight line over 70 % of
    the updates, the code multiplies it by 0.999995 at each, which takes about as long from 2 to 0.5; the paper's rate
    of learning peaks at 5e-3, that of the code's instructions at 1e-5. No diversity loss was used with Gumbel.

    The fields that it shares with wav2vec are described in [`CausalConvConfig`]; below are its own, and the shared
    ones that start from another value or mean more here.

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
        context_dim (`list[int]`, *optional*, defaults to `(512,) * 12`):
            Channels of each layer of the context network.
        context_kernel (`list[int]`, *optional*, defaults to `(2, 3, ..., 13)`):
            Kernel size of each, in frames.
        context_skip_connections (`bool`, *optional*, defaults to `True`):
            Skip connections in the context network.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation after each norm and in the network that makes the logits.
        num_prediction_steps (`int`, *optional*, defaults to 8):
            K: how many frames the context predicts.
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
    context_dim: list[int] | tuple[int, ...] = (512,) * 12
    context_kernel: list[int] | tuple[int, ...] = tuple(range(2, 14))
    context_skip_connections: bool = True
    num_prediction_steps: int = 8

    def __post_init__(self, **kwargs):
        if self.codevector_dim is None and self.conv_dim:
            self.codevector_dim = self.conv_dim[-1]
        super().__post_init__(**kwargs)

    @classmethod
    def published(cls, quantizer_type: str = "gumbel", **fields) -> "VQWav2VecConfig":
        """The published model of a quantizer (`vq-wav2vec.pt`, `vq-wav2vec_kmeans.pt`); `fields` override."""
        published = {"num_prediction_steps": 12, "prediction_offset": "auto", "hidden_act": "gelu"}
        return cls(quantizer_type=quantizer_type, **{**published, **fields})

    def validate_quantizer(self):
        if self.quantizer_type not in ("gumbel", "kmeans"):
            raise ValueError(f'quantizer_type must be "gumbel" or "kmeans", got {self.quantizer_type!r}.')
        for name in ("num_codevector_groups", "num_codevectors_per_group", "quantizer_depth", "quantizer_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        groups, entries = self.num_codevector_groups, self.num_codevectors_per_group
        at_most(MAX_LAYERS, num_codevector_groups=groups, quantizer_depth=self.quantizer_depth)
        at_most(MAX_CHANNELS, num_codevectors_per_group=entries, codevector_dim=self.codevector_dim)
        width = self.quantizer_factor * self.conv_dim[-1]
        at_most(MAX_CHANNELS, **{"quantizer_factor * conv_dim[-1]": width})
        at_most(
            MAX_WEIGHTS, weights=self.quantizer_depth * width**2 + (width + self.codevector_dim) * groups * entries
        )
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
