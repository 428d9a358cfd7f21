"""wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477).

A convolutional encoder turns the waveform into latent frames z, 20 ms apart; spans of them are masked and a
Transformer turns what is left into context c; at each masked frame the context has to tell the true quantized latent
from distractors of the same clip.

Weight names and configuration are those of Transformers' own implementation: a folder saved here loads there and the
other way round. Where the paper and the original code disagree, this is the code that made the published checkpoints:
the positional convolution is added before the layer norm, a distractor equal to the target is left out of the loss,
BASE has 12 attention heads (the paper's text says 8). Differences to that code: spans may reach the last frame, rows
keep the masks they drew (the original trims all rows of a batch to the smallest count), and padding changes nothing
unless `padding_invariant` is off.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput, Wav2Vec2BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.wav2vec2 import modeling_wav2vec2 as transformers_wav2vec2
from transformers.utils import can_return_tuple

from .configuration_wav2vec2 import Wav2Vec2Config
from .contrastive import ContrastiveLoss, contrastive_scores, info_nce, sample_negatives
from .conv import (
    ChannelsLayerNorm,
    MaskedGroupNorm,
    frame_centers,
    mean_over_valid,
    num_frames,
    num_valid,
    receptive_field,
    sample_lengths,
    scale_gradient,
    valid_frames,
)
from .fast_conv import convolve, convolve_norm_gelu, rows_pay
from .fused import Dropout, eager_on_cpu, sdpa
from .heads import AudioFrameClassificationHead, CTCHead, SequenceClassificationHead
from .masking import MaskedFrames, masked_frames, max_masked_frames, sample_span_mask, take_frames
from .quantizers import GumbelVectorQuantizer, UniformLinear
from .wide_conv import WideConvolution


@dataclass
class Wav2Vec2ForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, `contrastive_loss + diversity_loss + feature_penalty`, a mean over targets.
        contrastive_loss: mean InfoNCE over the masked frames (equation 3).
        diversity_loss: `diversity_loss_weight` * (G V - perplexity) / (G V) (equation 4, as the original code has it).
        feature_penalty: `feature_penalty_weight` * mean square of the convolutional features.
        accuracy: share of the masked frames whose target scores above every distractor.
        codevector_perplexity: of the mean soft choice, between G and G * V; what the diversity loss pulls on.
        code_perplexity: of the codes chosen in fact.
        num_targets: masked frames; `loss * num_targets` is the sum that the original code minimises.
        codes: [B, M, G] entries chosen at the M places of the targets.
        projected_states: [B, M, P] predictions. projected_quantized_states: [B, M, P] targets.
        target_index: [B, M] frame of each place. target_mask: [B, M] False where a place is not taken.
        last_hidden_state: [B, T, D]. hidden_states, attentions: if asked for.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
    feature_penalty: Tensor | None = None
    accuracy: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    code_perplexity: Tensor | None = None
    num_targets: Tensor | None = None
    codes: Tensor | None = None
    projected_states: Tensor | None = None
    projected_quantized_states: Tensor | None = None
    target_index: Tensor | None = None
    target_mask: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Features(NamedTuple):
    """Latent frames before masking: `normalized` [B, T, C], `valid` [B, T] or None, `mean_square` a scalar."""

    normalized: Tensor
    valid: Tensor | None
    mean_square: Tensor


class Wav2Vec2ConvLayer(GradientCheckpointingLayer):
    """Convolution, norm (none, group or layer), activation."""

    def __init__(self, config: Wav2Vec2Config, index: int):
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index else 1
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            in_channels, channels, config.conv_kernel[index], config.conv_stride[index], bias=config.conv_bias
        )
        self.layer_norm = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = ChannelsLayerNorm(channels)
        elif index == 0:
            self.layer_norm = MaskedGroupNorm(num_groups=channels, num_channels=channels)
        self.activation = ACT2FN[config.feat_extract_activation]
        self.is_foldable = (
            isinstance(self.layer_norm, MaskedGroupNorm)
            and not config.conv_bias
            and config.feat_extract_activation == "gelu"
        )

    def forward(self, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        """[B, C, T] -> [B, C', T']; `lengths` [B] counts the valid frames that come out."""
        if self.is_foldable and self.layer_norm.statistics is None and rows_pay(self.conv, hidden_states):
            return convolve_norm_gelu(hidden_states, self.conv, self.layer_norm, lengths)
        norm_reads_channels = isinstance(self.layer_norm, ChannelsLayerNorm)
        hidden_states = convolve(self.conv, hidden_states, norm_over="channels" if norm_reads_channels else None)
        if norm_reads_channels:
            hidden_states = self.layer_norm(hidden_states)
        elif self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states, lengths)
        return self.activation(hidden_states)


class Wav2Vec2FeatureEncoder(nn.Module):
    """The convolutions: 25 ms of waveform to a frame, every 20 ms."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.kernel_sizes, self.strides = config.conv_kernel, config.conv_stride
        self.conv_layers = nn.ModuleList(Wav2Vec2ConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, S], valid samples [B] or None -> [B, T, C]."""
        hidden_states = input_values[:, None]
        for i, layer in enumerate(self.conv_layers):
            if lengths is not None:
                lengths = num_frames(lengths, self.kernel_sizes[i : i + 1], self.strides[i : i + 1])
            hidden_states = layer(hidden_states, lengths)
        return hidden_states.transpose(1, 2)


class Wav2Vec2FeatureProjection(nn.Module):
    """Layer norm of the latent frames, then a linear layer to the Transformer's width."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = UniformLinear(config.conv_dim[-1], config.hidden_size)
        self.dropout = Dropout(config.feat_proj_dropout)

    def forward(self, normalized: Tensor) -> Tensor:
        return self.dropout(self.projection(normalized))


class Wav2Vec2PositionalConvEmbedding(nn.Module):
    """Relative position by one wide grouped convolution with weight norm over its taps (section 2)."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        kernel_size = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size,
            padding=kernel_size // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.convolve = WideConvolution()
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        positions = self.convolve(self.conv, hidden_states.transpose(1, 2))
        # an even kernel yields one frame too many
        return self.activation(positions[..., : hidden_states.shape[1]]).transpose(1, 2)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T * scaling + mask) v step by step: [B, heads, T, d] each -> [B, T, heads, d] and the weights."""
    weights = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class Wav2Vec2Attention(nn.Module):
    """Multi-head self-attention, computed by whichever kernel `config._attn_implementation` names."""

    is_causal = False

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        name = self.config._attn_implementation
        attend: Callable = sdpa if name == "sdpa" else ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.head_dim**-0.5,
        )
        return self.out_proj(attended.flatten(-2)), weights


class Wav2Vec2FeedForward(nn.Module):
    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.intermediate_dropout = Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.intermediate_dropout(self.activation(self.intermediate_dense(hidden_states)))
        return self.output_dropout(self.output_dense(hidden_states))


class Wav2Vec2EncoderLayer(GradientCheckpointingLayer):
    """One layer of the Transformer; the norms come after each block, or before it with `do_stable_layer_norm`."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.attention = Wav2Vec2Attention(config)
        self.dropout = Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = Wav2Vec2FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        has_adapter = self.norm_first and config.adapter_attn_dim is not None
        self.adapter_layer = transformers_wav2vec2.Wav2Vec2AttnAdapterLayer(config) if has_adapter else None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.norm_first:
            attended, weights = self.attention(self.layer_norm(hidden_states), attention_mask)
            hidden_states = hidden_states + self.dropout(attended)
            hidden_states = hidden_states + self.feed_forward(self.final_layer_norm(hidden_states))
        else:
            attended, weights = self.attention(hidden_states, attention_mask)
            hidden_states = self.layer_norm(hidden_states + self.dropout(attended))
            hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        if self.adapter_layer is not None:
            hidden_states = hidden_states + self.adapter_layer(hidden_states)
        return hidden_states, weights


class LayerDrop:
    """Which layers a training step skips (Fan et al., 2019, arXiv:1909.11556).

    The choice is made on the host. With a seed, one choice stands until the next seed is given: ranks and
    accumulated batches that were given the same seed skip the same layers. Without one, each pass chooses anew.
    A skipped layer stays in the graph with a gradient of 0: no rank waits for a parameter that another left out.
    """

    def __init__(self, prob: float, num_layers: int):
        self.prob, self.num_layers = prob, num_layers
        self.kept: Tensor | None = None

    def seed(self, seed: int | None):
        self.kept = None if seed is None else self._draw(torch.Generator().manual_seed(seed))

    def _draw(self, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(self.num_layers, generator=generator, device="cpu") >= self.prob

    def choose(self) -> Tensor:
        """[num_layers] bool on the host, True for the layers to run."""
        return self._draw() if self.kept is None else self.kept

    @staticmethod
    def run(layer: nn.Module, hidden_states: Tensor, attention_mask: Tensor | None, kept: Tensor):
        """`layer`, or its input if not `kept`. A compiled graph cannot branch: there both are made, one is taken."""
        if torch.compiler.is_compiling():
            output, weights = layer(hidden_states, attention_mask)
            return torch.where(kept.to(output.device), output, hidden_states), weights
        if kept:
            return layer(hidden_states, attention_mask)
        return hidden_states + sum(0.0 * parameter.sum() for parameter in layer.parameters()), None


class Wav2Vec2Encoder(nn.Module):
    """Positions, then the Transformer."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__()
        self.config = config
        self.pos_conv_embed = Wav2Vec2PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Wav2Vec2EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layerdrop = LayerDrop(config.layerdrop, config.num_hidden_layers)

    def attention_mask(self, hidden_states: Tensor, valid: Tensor | None) -> Tensor | None:
        """What the attention kernel takes for the frames that are no padding, [B, T] or None."""
        if valid is None:
            return None  # in a compiled graph Transformers would make a mask, for which there is no fast kernel
        if self.config._attn_implementation != "sdpa" or torch.compiler.is_compiling():
            return create_bidirectional_mask(self.config, hidden_states, valid)
        if eager_on_cpu(valid) and valid.all():
            return None
        # Transformers would ask a device, too, whether there is any padding, and wait for its answer
        return valid[:, None, None].expand(-1, -1, valid.shape[1], -1)

    def forward(
        self, hidden_states: Tensor, valid: Tensor | None, *, output_hidden_states: bool, output_attentions: bool
    ) -> Wav2Vec2BaseModelOutput:
        """Masked frames [B, T, D] and which of them are no padding, [B, T] or None -> context [B, T, D]."""
        if valid is not None:
            hidden_states = torch.where(valid.unsqueeze(-1), hidden_states, 0.0)
        attention_mask = self.attention_mask(hidden_states, valid)
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        if not self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)

        drops = self.training and self.layerdrop.prob > 0
        kept = self.layerdrop.choose() if drops else None
        states, attentions = [hidden_states], []
        for i, layer in enumerate(self.layers):
            if drops:
                hidden_states, weights = self.layerdrop.run(layer, hidden_states, attention_mask, kept[i])
            else:
                hidden_states, weights = layer(hidden_states, attention_mask)
            if output_hidden_states:
                states.append(hidden_states)
            attentions.append(weights)

        if self.config.do_stable_layer_norm:
            hidden_states = self.layer_norm(hidden_states)
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class Wav2Vec2PreTrainedModel(transformers_wav2vec2.Wav2Vec2PreTrainedModel):
    """Initialisation, lengths and masks for every wav2vec 2.0 model; loading of language adapters is Transformers'."""

    config: Wav2Vec2Config
    _no_split_modules: ClassVar = ["Wav2Vec2EncoderLayer"]
    _can_record_outputs: ClassVar = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Linear N(0, 0.02), norms 1 and 0; everything else as the original code has it.

        Each tensor is set at the module that owns it: Transformers passes over modules without tensors of their own.
        """
        PreTrainedModel._init_weights(self, module)
        if hasattr(module, "layer_weights"):
            init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))
        if isinstance(module, UniformLinear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.utils.parametrize.ParametrizationList):  # the positional convolution
            channels, _, kernel_size = module.original1.shape
            init.normal_(module.original1, mean=0.0, std=math.sqrt(4.0 / (kernel_size * channels)))
            # the magnitude has to match, or the convolution is not the one that was drawn
            init.copy_(module.original0, torch.linalg.vector_norm(module.original1, dim=(0, 1), keepdim=True))
        elif type(module) is nn.Conv1d:
            init.kaiming_normal_(module.weight)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_channels * module.kernel_size[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, GumbelVectorQuantizer):
            init.uniform_(module.codevectors)
            if isinstance(module.weight_proj, nn.Linear):
                init.normal_(module.weight_proj.weight, mean=0.0, std=1.0)
        elif isinstance(module, Wav2Vec2Model) and module.masked_spec_embed is not None:
            init.uniform_(module.masked_spec_embed)
        elif isinstance(module, Wav2Vec2ForPreTraining):
            init.constant_(module.gumbel_temperature, self.config.gumbel_temperature)

    def get_input_embeddings(self) -> None:
        """None: a waveform is looked up in no table. Accelerate's FSDP2 asks, and Transformers' answer is an error."""
        return None

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the convolutions for a number of samples at 16 kHz (or a tensor of them)."""
        return num_frames(num_samples, self.config.conv_kernel, self.config.conv_stride)

    def _get_feat_extract_output_lengths(
        self, input_lengths: int | Tensor, add_adapter: bool | None = None
    ) -> int | Tensor:
        lengths = self.num_frames(input_lengths)
        if self.config.add_adapter if add_adapter is None else add_adapter:
            layers = self.config.num_adapter_layers
            lengths = num_frames(lengths, [1] * layers, [self.config.adapter_stride] * layers)
        return lengths

    def frame_centers(self, total: int) -> Tensor:
        """[total] float64: the sample in the middle of what each frame that leaves the model sees of a waveform.

        320 t + 199.5 without an adapter; attention, which sees all of it, is taken to stand where it looks from.
        """
        config = self.config
        kernels, strides, paddings = list(config.conv_kernel), list(config.conv_stride), [0] * len(config.conv_kernel)
        if config.add_adapter:
            # the paddings of Transformers' adapter are fixed
            kernels += [config.adapter_kernel_size] * config.num_adapter_layers
            strides += [config.adapter_stride] * config.num_adapter_layers
            paddings += [1] * config.num_adapter_layers
        return frame_centers(total, kernels, strides, paddings)

    def frame_mask(self, attention_mask: Tensor, total: int) -> Tensor:
        """Mask of samples [B, S] -> mask of the `total` = T frames that leave the model, [B, T] bool."""
        return valid_frames(self._get_feat_extract_output_lengths(num_valid(attention_mask)), total)

    def set_layerdrop_seed(self, seed: int | None):
        """Fixes which layers are skipped until the next call; the same seed skips the same layers on every rank."""
        self.base_model.encoder.layerdrop.seed(seed)


class Wav2Vec2Model(Wav2Vec2PreTrainedModel):
    """Waveform to context: convolutions, masks if asked for or in training, Transformer."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        self.feature_extractor = Wav2Vec2FeatureEncoder(config)
        self.feature_projection = Wav2Vec2FeatureProjection(config)
        self.masked_spec_embed = None
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            # where it is never put in place of a frame, DDP must not wait for its gradient
            learns = config.apply_spec_augment and config.mask_time_prob > 0
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size), requires_grad=learns)
        self.encoder = Wav2Vec2Encoder(config)
        self.adapter = transformers_wav2vec2.Wav2Vec2Adapter(config) if config.add_adapter else None
        self.post_init()

    def freeze_feature_encoder(self):
        """Stops training the convolutions."""
        self.feature_extractor.requires_grad_(False)

    def extract_features(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Features:
        """Waveform [B, S] and its mask [B, S] or None -> latent frames before masking."""
        lengths = sample_lengths(input_values, attention_mask, self.receptive_field)
        scale = self.config.feature_gradient_scale
        with torch.no_grad() if scale == 0 else nullcontext():
            latents = self.feature_extractor(input_values, lengths if self.config.padding_invariant else None)
        latents = scale_gradient(latents, scale)
        valid = None if lengths is None else valid_frames(self.num_frames(lengths), latents.shape[1])
        if valid is not None and self.config.padding_invariant:
            latents = torch.where(valid.unsqueeze(-1), latents, 0.0)
            mean_square = mean_over_valid(latents.float().square(), valid)
        else:
            mean_square = latents.float().square().mean()
        return Features(self.feature_projection.layer_norm(latents), valid, mean_square)

    @property
    def receptive_field(self) -> int:
        """Samples that a frame sees of the waveform, the fewest that make one."""
        return receptive_field(self.config.conv_kernel, self.config.conv_stride)

    def sample_time_mask(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """Spans to mask, [B, T] bool, drawn anew on the device of the features."""
        batch_size, total, _ = features.normalized.shape
        lengths = (
            torch.full((batch_size,), total, device=features.normalized.device)
            if features.valid is None
            else features.valid.sum(dim=1)
        )
        return sample_span_mask(lengths, total, generator=generator, **self.time_mask_options)

    @property
    def time_mask_options(self) -> dict[str, float | int]:
        return {
            "mask_prob": self.config.mask_time_prob,
            "mask_length": self.config.mask_time_length,
            "min_spans": self.config.mask_time_min_masks,
        }

    def mask(
        self,
        hidden_states: Tensor,
        mask_time_indices: Tensor | None,
        mask_feature_indices: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Puts the mask embedding at masked frames [B, T], then 0 into masked channels [B, D]."""
        if mask_time_indices is not None:
            embedding = self.masked_spec_embed.to(hidden_states.dtype)
            hidden_states = torch.where(mask_time_indices.unsqueeze(-1), embedding, hidden_states)
        if mask_feature_indices is None and self.training and self.config.mask_feature_prob > 0:
            batch_size, _, channels = hidden_states.shape
            mask_feature_indices = sample_span_mask(
                torch.full((batch_size,), channels, device=hidden_states.device),
                channels,
                mask_prob=self.config.mask_feature_prob,
                mask_length=self.config.mask_feature_length,
                min_spans=self.config.mask_feature_min_masks,
                generator=generator,
            )
        if mask_feature_indices is not None:
            hidden_states = hidden_states.masked_fill(mask_feature_indices.unsqueeze(1), 0.0)
        return hidden_states

    def contextualize(
        self,
        features: Features,
        mask_time_indices: Tensor | None = None,
        mask_feature_indices: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """Latent frames and the mask to put over them -> context."""
        output_attentions = _chosen(output_attentions, self.config.output_attentions)
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                'output_attentions needs attn_implementation="eager"; this model has'
                f" {self.config._attn_implementation!r}, which does not keep them."
            )
        hidden_states = self.feature_projection(features.normalized)
        if self.config.apply_spec_augment:
            hidden_states = self.mask(hidden_states, mask_time_indices, mask_feature_indices, generator)
        outputs = self.encoder(
            hidden_states,
            features.valid,
            output_hidden_states=_chosen(output_hidden_states, self.config.output_hidden_states),
            output_attentions=output_attentions,
        )
        if self.adapter is not None:
            outputs.last_hidden_state = self.adapt(outputs.last_hidden_state, features.valid)
        outputs.extract_features = features.normalized
        return outputs

    def adapt(self, hidden_states: Tensor, valid: Tensor | None) -> Tensor:
        """Transformers' adapter, [B, T, D] -> [B, T', D'], whose strided convolutions see padding as silence."""
        if self.adapter.proj is not None:
            hidden_states = self.adapter.proj_layer_norm(self.adapter.proj(hidden_states))
        hidden_states = hidden_states.transpose(1, 2)
        lengths = None if valid is None else valid.sum(dim=1)
        for layer in self.adapter.layers:
            if lengths is not None:
                kept = valid_frames(lengths, hidden_states.shape[-1]).unsqueeze(1)
                hidden_states = torch.where(kept, hidden_states, 0.0)
                lengths = num_frames(lengths, [1], [self.config.adapter_stride])
            hidden_states = layer(hidden_states)
        return hidden_states.transpose(1, 2)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        mask_feature_indices: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, as the feature extractor of the checkpoint returns it.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            mask_time_indices: [B, T] bool, frames to mask. Drawn anew in training if not given.
            mask_feature_indices: [B, D] bool, channels to set to 0. Drawn anew in training if not given.
            generator: for the masks that are drawn; on the device of the input.

        Returns:
            `last_hidden_state` c [B, T, D], `extract_features` z [B, T, C] after its layer norm; `hidden_states`, the
            input of the first layer and the output of each, and `attentions`, if asked for (attentions need
            `attn_implementation="eager"`).
        """
        masked = mask_time_indices is not None or mask_feature_indices is not None
        with_attentions = _chosen(output_attentions, self.config.output_attentions)
        if not (masked or with_attentions) and self.gains_from_single_rows(input_values, attention_mask):
            return self.forward_row_by_row(input_values, attention_mask, output_hidden_states=output_hidden_states)
        features = self.extract_features(input_values, attention_mask)
        if mask_time_indices is None and self.training and self.config.mask_time_prob > 0:
            mask_time_indices = self.sample_time_mask(features, generator)
        return self.contextualize(
            features,
            mask_time_indices,
            mask_feature_indices,
            generator=generator,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )

    def gains_from_single_rows(self, input_values: Tensor, attention_mask: Tensor | None) -> bool:
        """Whether a twentieth of the batch is padding that a CPU need not compute, because nothing is learned.

        One clip keeps a CPU as busy as eight do. What is not padding answers the same in either way.
        """
        if attention_mask is None or not eager_on_cpu(attention_mask) or attention_mask.shape != input_values.shape:
            return False
        learns = self.training or torch.is_grad_enabled()
        if learns or len(attention_mask) == 1 or not self.config.padding_invariant:
            return False
        return int(num_valid(attention_mask).sum()) < 0.95 * attention_mask.numel()

    def forward_row_by_row(
        self, input_values: Tensor, attention_mask: Tensor, *, output_hidden_states: bool | None
    ) -> Wav2Vec2BaseModelOutput:
        """What `forward` returns, of each row by itself and without its padding; frames of padding are 0."""
        lengths = sample_lengths(input_values, attention_mask, self.receptive_field).tolist()
        rows = [
            self.contextualize(self.extract_features(row[None, :length]), output_hidden_states=output_hidden_states)
            for row, length in zip(input_values, lengths, strict=True)
        ]
        total = self.num_frames(input_values.shape[1])
        total_out = self._get_feat_extract_output_lengths(input_values.shape[1])
        layers = zip(*(row.hidden_states or () for row in rows), strict=True)
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=_stack_padded([row.last_hidden_state for row in rows], total_out),
            extract_features=_stack_padded([row.extract_features for row in rows], total),
            hidden_states=tuple(_stack_padded(layer, total) for layer in layers) or None,
        )


def _stack_padded(rows: Sequence[Tensor], total: int) -> Tensor:
    """[1, T of the row, D] each -> [B, total, D] with zeros behind them."""
    return torch.cat([nn.functional.pad(row, (0, 0, 0, total - row.shape[1])) for row in rows])


def _chosen(asked: bool | None, default: bool) -> bool:
    return default if asked is None else asked


class Wav2Vec2ForPreTraining(Wav2Vec2PreTrainedModel):
    """wav2vec 2.0 with its quantizer and objective (section 3)."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        if config.mask_time_prob <= 0 or not config.apply_spec_augment:
            raise ValueError(
                "mask_time_prob must be above 0 and apply_spec_augment True to pre-train, got"
                f" {config.mask_time_prob} and {config.apply_spec_augment}."
            )
        self.wav2vec2 = Wav2Vec2Model(config)
        self.dropout_features = Dropout(config.feat_quantizer_dropout)
        self.quantizer = GumbelVectorQuantizer(
            config.conv_dim[-1],
            num_groups=config.num_codevector_groups,
            num_codevectors=config.num_codevectors_per_group,
            codevector_dim=config.codevector_dim,
            depth=config.quantizer_depth,
            hidden_factor=config.quantizer_factor,
        )
        self.project_hid = UniformLinear(config.hidden_size, config.proj_codevector_dim)
        self.project_q = UniformLinear(config.codevector_dim, config.proj_codevector_dim)
        # a tensor, so that a compiled graph reads it rather than being compiled for each value
        self.register_buffer("gumbel_temperature", torch.tensor(float(config.gumbel_temperature)), persistent=False)
        self.post_init()

    def set_gumbel_temperature(self, temperature: float):
        """Sets the temperature of the quantizer's softmax; the training loop calls it with a function of the step."""
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.gumbel_temperature.fill_(temperature)

    def freeze_feature_encoder(self):
        """Stops training the convolutions."""
        self.wav2vec2.freeze_feature_encoder()

    @torch.no_grad()
    def quantize(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes [B, T, G] int64 of all frames of the waveform [B, S]; call `eval()` first for the noiseless choice."""
        features = self.wav2vec2.extract_features(input_values, attention_mask)
        return self.quantizer(features.normalized, self.gumbel_temperature).codes

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Wav2Vec2ForPreTrainingOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            mask_time_indices: [B, T] bool, frames to mask; drawn on the device if not given.
            sampled_negative_indices: [B, T, N] distractors of each frame as indices into the B * T frames, as
                Transformers lays them out (rows of frames that are not masked are ignored); drawn from the other
                masked frames of the clip if not given. Needs `mask_time_indices`.
            generator: for masks, distractors and quantizer noise, on the device of the input.
        """
        if sampled_negative_indices is not None and mask_time_indices is None:
            raise ValueError("sampled_negative_indices came without mask_time_indices; they belong to a given mask.")
        features = self.wav2vec2.extract_features(input_values, attention_mask)
        mask, places = self.choose_targets(features, mask_time_indices, generator)
        outputs = self.wav2vec2.contextualize(
            features,
            mask,
            generator=generator,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        quantized = self.quantizer(
            self.dropout_features(take_frames(features.normalized, places.index)),
            self.gumbel_temperature,
            valid=places.valid,
            generator=generator,
        )
        predictions = self.project_hid(take_frames(outputs.last_hidden_state, places.index))  # [B, M, P]
        targets = self.project_q(quantized.quantized)  # [B, M, P]
        negatives = self.choose_negatives(places.valid, sampled_negative_indices, generator)
        contrastive = self.contrast(predictions, targets, quantized.codes, places.valid, negatives)
        num_codevectors = self.config.num_codevector_groups * self.config.num_codevectors_per_group
        diversity = (num_codevectors - quantized.perplexity) / num_codevectors
        diversity_loss = self.config.diversity_loss_weight * diversity
        feature_penalty = self.config.feature_penalty_weight * features.mean_square
        return Wav2Vec2ForPreTrainingOutput(
            loss=contrastive.loss + diversity_loss + feature_penalty,
            contrastive_loss=contrastive.loss,
            diversity_loss=diversity_loss,
            feature_penalty=feature_penalty,
            accuracy=contrastive.accuracy,
            codevector_perplexity=quantized.perplexity,
            code_perplexity=quantized.code_perplexity,
            num_targets=places.valid.sum(),
            codes=quantized.codes,
            projected_states=predictions,
            projected_quantized_states=targets,
            target_index=places.index,
            target_mask=places.valid,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def choose_targets(
        self, features: Features, mask_time_indices: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, MaskedFrames]:
        """The mask [B, T] and the places [B, M] of the masked frames.

        M is known from the shapes: of a mask drawn here how many frames can be masked, of a given one all frames, in
        their own order, so that indices into frames are indices into places.
        """
        total = features.normalized.shape[1]
        if mask_time_indices is None:
            mask = self.wav2vec2.sample_time_mask(features, generator)
            return mask, masked_frames(mask, max_masked_frames(total, **self.wav2vec2.time_mask_options))
        mask = mask_time_indices.bool()
        if mask.shape != features.normalized.shape[:2]:
            raise ValueError(
                f"mask_time_indices must be {tuple(features.normalized.shape[:2])} for this input, got"
                f" {tuple(mask.shape)}."
            )
        index = torch.arange(total, device=mask.device).expand(mask.shape)
        return mask, MaskedFrames(index, mask if features.valid is None else mask & features.valid)

    def contrast(
        self, predictions: Tensor, targets: Tensor, codes: Tensor, valid: Tensor, negatives: Tensor
    ) -> ContrastiveLoss:
        """The contrastive loss of predictions and targets [B, M, P]; codes [B, M, G] tell which targets are equal."""
        powers = self.config.num_codevectors_per_group ** torch.arange(codes.shape[-1], device=codes.device)
        target_ids = (codes * powers).sum(dim=-1)
        if self.config.num_cross_sample_negatives > 0:
            # the batch becomes one long row, so that a place may be told from places of other clips
            predictions, targets, negatives, target_ids, valid = (
                x.flatten(0, 1)[None] for x in (predictions, targets, negatives, target_ids, valid)
            )
        scores = contrastive_scores(
            predictions,
            targets,
            negatives,
            target_ids,
            temperature=self.config.contrastive_logits_temperature,
        )
        return info_nce(scores, valid)

    def choose_negatives(
        self, valid: Tensor, sampled_negative_indices: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Distractors of each place, [B, M, N]: places of its row, or of the whole batch with cross-sample ones."""
        across_batch = self.config.num_cross_sample_negatives > 0
        batch_size, num_places = valid.shape
        first_of_row = torch.arange(batch_size, device=valid.device)[:, None, None] * num_places
        if sampled_negative_indices is not None:
            negatives = self.given_negatives(sampled_negative_indices, num_places)
            return negatives if across_batch else negatives - first_of_row
        negatives = sample_negatives(valid, self.config.num_negatives, generator=generator)
        if not across_batch:
            return negatives
        elsewhere = sample_negatives(
            valid, self.config.num_cross_sample_negatives, across_batch=True, generator=generator
        )
        return torch.cat([negatives + first_of_row, elsewhere], dim=-1)

    def given_negatives(self, sampled_negative_indices: Tensor, total: int) -> Tensor:
        """Checks indices into the B * T frames as far as that does not make a device wait."""
        if sampled_negative_indices.shape[1] != total:
            raise ValueError(
                "sampled_negative_indices must be [B, T, N] for the T frames of mask_time_indices, T ="
                f" {total}, got {tuple(sampled_negative_indices.shape)}."
            )
        if sampled_negative_indices.device.type == "cpu" and self.config.num_cross_sample_negatives == 0:
            row = torch.arange(len(sampled_negative_indices))[:, None, None]
            if not torch.compiler.is_compiling() and not (sampled_negative_indices // total == row).all():
                raise ValueError(
                    "sampled_negative_indices point at frames of other clips; set num_cross_sample_negatives above 0"
                    " to allow that."
                )
        return sampled_negative_indices


class Wav2Vec2ForCTC(CTCHead, Wav2Vec2PreTrainedModel):
    """wav2vec 2.0 with a linear layer over the symbols of a language."""

    def __init__(self, config: Wav2Vec2Config, target_lang: str | None = None):
        super().__init__(config)
        self.target_lang = target_lang
        self.wav2vec2 = Wav2Vec2Model(config)
        width = config.output_hidden_size if config.add_adapter else config.hidden_size
        self.add_ctc_head(width, config.vocab_size, config.final_dropout)
        self.post_init()

    # loads the adapter of `target_lang`, where there is one
    tie_weights = transformers_wav2vec2.Wav2Vec2ForCTC.tie_weights


def _refuse_adapter(config: Wav2Vec2Config):
    if config.add_adapter:
        raise ValueError("add_adapter must be False for classification, got True: its frames are not the encoder's.")


class Wav2Vec2ForSequenceClassification(SequenceClassificationHead, Wav2Vec2PreTrainedModel):
    """wav2vec 2.0 with one class per clip."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        _refuse_adapter(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(config.num_hidden_layers + 1)
        self.add_classifier(config.hidden_size, config.classifier_proj_size, config.num_labels)
        self.post_init()


class Wav2Vec2ForAudioFrameClassification(AudioFrameClassificationHead, Wav2Vec2PreTrainedModel):
    """wav2vec 2.0 with one class per frame."""

    def __init__(self, config: Wav2Vec2Config):
        super().__init__(config)
        _refuse_adapter(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(config.num_hidden_layers + 1)
        self.add_classifier(config.hidden_size, config.num_labels)
        self.post_init()
