"""Configuration of wav2vec (Schneider et al., 2019, arXiv:1904.05862)."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .causal_conv_fields import check_causal_conv_fields
from .conv import receptive_field


@strict
class Wav2VecConfig(PreTrainedConfig):
    r"""
    Configuration of [`Wav2VecModel`]; the defaults are the base model of Schneider et al., 2019, section 3.
    [`Wav2VecConfig.large`] is the paper's large one, as published.

    Where paper and original code disagree: the paper predicts the frames 1 to 12 ahead, the code 3 to 14
    (`prediction_offset="auto"`); the paper has a bias for each step, the code one for all (`prediction_bias`); the
    code draws the positive itself as a negative once in T times, here never; the published large model compresses
    its latent frames logarithmically, of which the paper says nothing.

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
            Latent frames are log(1 + |x|), as in the published large model.
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

    model_type = "wav2vec"

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

    @classmethod
    def large(cls, **fields) -> "Wav2VecConfig":
        """The large model as published (`wav2vec_large.pt`); `fields` override.

        Against the base: two more layers of kernel 1 in the encoder (section 3.3 calls them linear; published, they
        have norm and ReLU too), twelve context layers of kernel 2 to 13 with skip connections, log compression, and
        the prediction offset of the original code.
        """
        large = {
            "conv_dim": (512,) * 7,
            "conv_kernel": (10, 8, 4, 4, 4, 1, 1),
            "conv_stride": (5, 4, 2, 2, 2, 1, 1),
            "context_dim": (512,) * 12,
            "context_kernel": tuple(range(2, 14)),
            "context_skip_connections": True,
            "log_compression": True,
            "prediction_offset": "auto",
        }
        return cls(**{**large, **fields})

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
