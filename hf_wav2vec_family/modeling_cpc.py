"""Contrastive predictive coding of speech (van den Oord et al., 2018, arXiv:1807.03748, section 3.1).

Convolutions turn the waveform into frames z, 10 ms apart; a recurrent network sums up the frames so far in a context
c; from each context K networks predict the next K frames, and each prediction has to tell the frame that came from
frames that came elsewhere.

Where the paper is silent this follows CPC_audio, the code of Rivière et al., 2020 (arXiv:2002.02848): zero padding in
the convolutions, one draw of negatives for all K steps, and the same W = T - K contexts for every step. Differences to
that code: the loss is the mean over the K steps and not their sum, linear predictors start as PyTorch's linear layers
do, relative positions serve clips of any length up to their number, and padding changes nothing unless
`padding_invariant` is off.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ModelOutput, Wav2Vec2BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_cpc import CPCConfig
from .conv import MaskedGroupNorm, frame_centers, num_frames, num_samples_needed, num_valid, valid_frames
from .conv_model import ConvModelMixin, classes_of
from .fast_conv import convolve
from .fused import Dropout
from .heads import AudioFrameClassificationHead, CTCHead, SequenceClassificationHead
from .masking import take_frames, uniform
from .precision import without_autocast
from .predictors import ConvPredictors, FeedForwardPredictors, LinearPredictors, TransformerPredictors


@dataclass
class CPCStreamState:
    """What `CPCModel.stream` keeps from one chunk to the next; its size does not grow.

    Args:
        conv_inputs: for each convolution the inputs [B, C, n] that frames to come still need; empty if convolutions
            start anew with each chunk.
        recurrent: (hidden,) of a GRU or RNN, (hidden, cell) of an LSTM, each [layers, B, H].
    """

    conv_inputs: tuple[Tensor, ...]
    recurrent: tuple[Tensor, ...]


@dataclass
class CPCModelOutput(Wav2Vec2BaseModelOutput):
    """
    Args:
        last_hidden_state: c, [B, T, H]. extract_features: z, [B, T, D].
        hidden_states: (z, c) if asked for. attentions: always None.
        state: of `CPCModel.stream`, to be given with the next chunk; None after the last one.
    """

    state: CPCStreamState | None = None


@dataclass
class CPCForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, the same as `contrastive_loss`: mean InfoNCE over all targets (equation 4).
        accuracy: share of the targets that score above every negative (figure 3); a negative that is the target
            itself does not count.
        num_targets: targets in the batch, B * W * K without padding.
        step_losses, step_accuracies: [K], the same for each step ahead. `step_losses.sum()` is what CPC_audio
            minimises.
        sampled_negative_indices: [B, N, W] negatives of each context as indices into the B * T frames.
        last_hidden_state: c, [B, T, H]. extract_features: z, [B, T, D]. hidden_states: (z, c) if asked for.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    accuracy: Tensor | None = None
    num_targets: Tensor | None = None
    step_losses: Tensor | None = None
    step_accuracies: Tensor | None = None
    sampled_negative_indices: Tensor | None = None
    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ChannelNorm(nn.LayerNorm):
    """Norm of each frame of [B, C, T] over its channels with the unbiased variance, as CPC_audio has it.

    A layer norm takes the biased variance, smaller by (C - 1) / C: its epsilon and its result are scaled to match.
    """

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        ratio = 1 - 1 / self.normalized_shape[0]
        frames = hidden_states.transpose(1, 2).float()
        normed = F.layer_norm(
            frames, self.normalized_shape, self.weight.float() * ratio**0.5, self.bias.float(), self.eps * ratio
        )
        return normed.transpose(1, 2).to(hidden_states.dtype)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics in training leave padding out."""

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C, T]; `lengths` [B] counts the valid frames of each row, None means all of them."""
        if lengths is None or not self.training:
            return super().forward(hidden_states)
        valid = valid_frames(lengths, hidden_states.shape[-1])[:, None]  # [B, 1, T]
        frames = hidden_states.float()
        count = valid.sum().clamp(min=1)
        mean = torch.where(valid, frames, 0.0).sum(dim=(0, 2)) / count
        centred = torch.where(valid, frames - mean[:, None], 0.0)
        variance = centred.square().sum(dim=(0, 2)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None] + self.bias[:, None]).to(hidden_states.dtype)


def make_norm(kind: str, channels: int) -> nn.Module | None:
    if kind == "channel":
        return ChannelNorm(channels)
    if kind == "batch":
        return MaskedBatchNorm(channels)
    if kind == "instance":
        return MaskedGroupNorm(num_groups=channels, num_channels=channels)
    return None


class CPCConvLayer(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, config: CPCConfig, index: int):
        super().__init__()
        in_channels = config.conv_dim[index - 1] if index else 1
        self.conv = nn.Conv1d(
            in_channels,
            config.conv_dim[index],
            config.conv_kernel[index],
            config.conv_stride[index],
            padding=config.conv_padding[index],
            bias=config.conv_bias,
        )
        self.norm = make_norm(config.feat_extract_norm, config.conv_dim[index])
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C', T']; `lengths` [B] counts the valid frames that come out."""
        over = None if self.norm is None else "channels" if isinstance(self.norm, ChannelNorm) else "time"
        convolved = convolve(self.conv, hidden_states, norm_over=over)
        return self.finish(convolved, lengths)

    def finish(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Norm and activation of what the convolution gave."""
        if self.norm is not None:
            hidden_states = self.norm(hidden_states, lengths)
        return self.activation(hidden_states)

    def stream(self, hidden_states: Tensor, waiting: Tensor | None, final: bool) -> tuple[Tensor, Tensor]:
        """The frames that are complete with `hidden_states` [B, C, n], and the inputs that later frames need.

        `waiting` [B, C, m] are such inputs of the chunk before, None at the beginning; `final` adds the zeros after
        the end.
        """
        kernel_size, stride, padding = self.conv.kernel_size[0], self.conv.stride[0], self.conv.padding[0]
        before = F.pad(hidden_states[..., :0], (padding, 0)) if waiting is None else waiting
        inputs = torch.cat([before, hidden_states], dim=-1)
        if final:
            inputs = F.pad(inputs, (0, padding))
        count = max((inputs.shape[-1] - kernel_size) // stride + 1, 0)
        # a copy, or the state would hold on to the whole chunk
        waiting = inputs[..., count * stride :].clone()
        if count == 0:
            return inputs.new_zeros(len(inputs), self.conv.out_channels, 0), waiting
        read = inputs[..., : (count - 1) * stride + kernel_size]
        return self.finish(F.conv1d(read, self.conv.weight, self.conv.bias, stride)), waiting


class CPCEncoder(nn.Module):
    """The convolutions: 465 samples of the waveform to a frame, every 160."""

    def __init__(self, config: CPCConfig):
        super().__init__()
        self.kernel_sizes, self.strides, self.paddings = config.conv_kernel, config.conv_stride, config.conv_padding
        self.layers = nn.ModuleList(CPCConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, S], valid samples [B] or None -> z [B, T, D], 0 where it is not valid.

        With lengths, what is not valid is set to 0 before each convolution: alone, a row sees such zeros at its end.
        """
        hidden_states = _zero_after(input_values[:, None], lengths)
        for i, layer in enumerate(self.layers):
            if lengths is not None:
                one = slice(i, i + 1)
                lengths = num_frames(lengths, self.kernel_sizes[one], self.strides[one], self.paddings[one])
            hidden_states = _zero_after(layer(hidden_states, lengths), lengths)
        return hidden_states.transpose(1, 2)

    def stream(self, chunk: Tensor, state: tuple[Tensor, ...], final: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Samples [B, S] of a chunk, the state before it -> the frames they complete [B, T, D], the state after it."""
        hidden_states, following = chunk[:, None], []
        for i, layer in enumerate(self.layers):
            hidden_states, waiting = layer.stream(hidden_states, state[i] if state else None, final)
            following.append(waiting)
        return hidden_states.transpose(1, 2), tuple(following)


def _zero_after(hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, C, T] with zeros after each row's valid length."""
    if lengths is None:
        return hidden_states
    # where, not a product: what stands in the padding may be NaN
    return torch.where(valid_frames(lengths, hidden_states.shape[-1])[:, None], hidden_states, 0.0)


class CPCContextNetwork(nn.RNNBase):
    """The recurrent network; its weights have PyTorch's names.

    A type of its own because `torch.compile` refuses to read `nn.GRU`, `nn.LSTM` and `nn.RNN`.
    """

    MODES: ClassVar = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN_TANH"}

    def __init__(self, config: CPCConfig):
        mode = self.MODES[config.context_network]
        super().__init__(mode, config.conv_dim[-1], config.hidden_size, config.num_hidden_layers, batch_first=True)

    def forward(self, frames: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """z [B, T, D], the state before it or None -> c [B, T, H] and the state after it."""
        if state is None:
            zeros = frames.new_zeros(self.num_layers, len(frames), self.hidden_size)
            state = (zeros, zeros) if self.mode == "LSTM" else (zeros,)
        if frames.shape[1] == 0:
            return frames.new_zeros(len(frames), 0, self.hidden_size), state
        if frames.is_cuda and not torch.compiler.is_compiling():
            self.flatten_parameters()  # weights loaded one by one lie apart, which cuDNN warns of
        weights = [getattr(self, name) for name in self._flat_weights_names]
        options = (weights, True, self.num_layers, 0.0, self.training, False, True)
        if self.mode == "LSTM":
            context, *state = torch.lstm(frames, state, *options)
        else:
            run = torch.gru if self.mode == "GRU" else torch.rnn_tanh
            context, *state = run(frames, state[0], *options)
        return context, tuple(state)


def reverse_frames(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, T, D] with the valid frames of each row from last to first; padding stays behind them."""
    if lengths is None:
        return frames.flip(1)
    place = torch.arange(frames.shape[1], device=frames.device)
    return take_frames(frames, torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place))


def make_predictors(config: CPCConfig) -> nn.Module:
    sizes = (config.num_prediction_steps, config.hidden_size, config.conv_dim[-1])
    if config.predictor == "linear":
        return LinearPredictors(*sizes)
    if config.predictor == "feed_forward":
        return FeedForwardPredictors(*sizes)
    if config.predictor == "conv":
        return ConvPredictors(*sizes, kernel_size=config.predictor_kernel_size)
    return TransformerPredictors(
        config.num_prediction_steps,
        config.hidden_size,
        num_heads=config.predictor_attention_heads,
        intermediate_size=config.predictor_intermediate_size,
        dropout=config.predictor_hidden_dropout,
        max_positions=config.predictor_max_positions,
    )


def clips_to_draw_from(mode: str, batch_size: int, speaker_ids: Tensor | None, device: torch.device) -> Tensor:
    """[B, B] bool, True where negatives of the clip of the row may come from the clip of the column (table 2)."""
    own = torch.eye(batch_size, dtype=torch.bool, device=device)
    if mode == "current_sequence":
        return own
    allowed = torch.ones_like(own)
    if mode.startswith("same_speaker"):
        allowed = speaker_ids[:, None] == speaker_ids
    return allowed & ~own if mode.endswith("excluded") else allowed


def sample_negative_frames(
    lengths: Tensor,
    allowed: Tensor,
    *,
    total: int,
    num_contexts: int,
    num_negatives: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws negatives for each context from the valid frames of the clips that its clip is allowed to draw from.

    As in CPC_audio, the frame with the number of the context is left out in every clip, and the target itself is not.

    Args:
        lengths: [B] valid frames of each clip.
        allowed: [B, B] bool, see `clips_to_draw_from`. A row without a True gets meaningless indices.
        total: T, frames of the longest clip. num_contexts: W.

    Returns: [B, N, W] int64 indices into the B * T frames, on the device of `lengths`.
    """
    batch_size, device = len(lengths), lengths.device
    shape = (batch_size, num_negatives, num_contexts)
    ends = torch.where(allowed, lengths, 0).cumsum(dim=1)  # [B, B]: the allowed clips laid end to end
    num_candidates = ends[:, -1:]
    place = (uniform(shape, device, generator).flatten(1) * num_candidates).long()
    # a product of floats can round up to the end itself
    place = torch.minimum(place, num_candidates - 1).clamp(min=0)
    clip = torch.searchsorted(ends, place, right=True).clamp(max=batch_size - 1).view(shape)
    length = lengths[clip]
    offset = 1 + (uniform(shape, device, generator) * (length - 1)).long()
    offset = torch.minimum(offset, (length - 1).clamp(min=1))
    frame = (torch.arange(num_contexts, device=device) + offset) % length.clamp(min=1)
    return clip * total + frame


class FutureScores(NamedTuple):
    """`positive` [B, W, K], `negative` [B, W, K, N]; `is_target` [B, W, K, N]: the negative is the target itself."""

    positive: Tensor
    negative: Tensor
    is_target: Tensor


def future_scores(predictions: Tensor, frames: Tensor, negatives: Tensor) -> FutureScores:
    """Inner products of all predictions with their targets and negatives, float32.

    The candidates of a context, the K frames after it and its N negatives, are gathered once, and one batched matrix
    product compares them with its K predictions. So K * K products are made of which K are used, a tenth more work
    than needed, and neither a score is computed nor a vector copied per step.

    Args:
        predictions: [B, W, K, D]. frames: z, [B, T, D] with T = W + K.
        negatives: [B, N, W] indices into the B * T frames.
    """
    batch_size, num_contexts, num_steps, width = predictions.shape
    context = torch.arange(num_contexts, device=frames.device)[:, None]
    clip = torch.arange(batch_size, device=frames.device)[:, None, None]
    following = clip * frames.shape[1] + context + torch.arange(1, num_steps + 1, device=frames.device)  # [B, W, K]
    negatives = negatives.transpose(1, 2)  # [B, W, N]
    candidates = torch.cat([following, negatives], dim=-1)
    with without_autocast(frames.device):
        chosen = frames.float().flatten(0, 1).index_select(0, candidates.flatten())
        chosen = chosen.view(batch_size * num_contexts, -1, width)
        # candidates first, so that their gradient is made row by row as `index_select` takes it back
        scores = torch.bmm(chosen, predictions.float().flatten(0, 1).transpose(1, 2))
    scores = scores.view(batch_size, num_contexts, -1, num_steps).transpose(2, 3)
    return FutureScores(
        positive=scores[..., :num_steps].diagonal(dim1=-2, dim2=-1),
        negative=scores[..., num_steps:],
        is_target=negatives.unsqueeze(2) == following.unsqueeze(3),
    )


class CPCPreTrainedModel(ConvModelMixin, PreTrainedModel):
    """Initialisation, lengths and masks for every CPC model."""

    config: CPCConfig
    base_model_prefix = "cpc"
    main_input_name = "input_values"
    input_modalities = "audio"
    travelling_classes: ClassVar = classes_of("cpc", "CPC")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Heads N(0, `initializer_range`); everything else as PyTorch's own layers start."""
        starts_itself = (
            nn.Conv1d,
            ChannelNorm,
            CPCContextNetwork,
            LinearPredictors,
            FeedForwardPredictors,
            ConvPredictors,
            TransformerPredictors,
        )
        if isinstance(module, starts_itself):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames for a number of samples at 16 kHz (or a tensor of them): (samples + 1) // 160 with the defaults."""
        config = self.config
        return num_frames(num_samples, config.conv_kernel, config.conv_stride, config.conv_padding)

    def frame_centers(self, total: int) -> Tensor:
        """[total] float64: the sample in the middle of what each frame sees, 160 t + 79 with the defaults."""
        return frame_centers(total, self.config.conv_kernel, self.config.conv_stride, self.config.conv_padding)

    @property
    def num_samples_needed(self) -> int:
        """The fewest samples that make so many frames, those of the padding not counted."""
        config = self.config
        return num_samples_needed(self.num_frames_needed, config.conv_kernel, config.conv_stride, config.conv_padding)


class CPCModel(CPCPreTrainedModel):
    """Waveform to context: convolutions, recurrent network."""

    def __init__(self, config: CPCConfig):
        super().__init__(config)
        self.encoder = CPCEncoder(config)
        self.context_network = CPCContextNetwork(config)
        self.post_init()

    def freeze_feature_encoder(self):
        """Stops training the convolutions."""
        self.encoder.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CPCModelOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, as the feature extractor of the checkpoint returns it.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.

        Returns: `last_hidden_state` c [B, T, H], `extract_features` z [B, T, D], `hidden_states` (z, c) if asked for.

        Raises:
            ValueError: a clip is too short for a frame, or attentions are asked for.
        """
        self.refuse_attentions(output_attentions)
        lengths = self.sample_lengths(input_values, attention_mask)
        lengths = lengths if self.config.padding_invariant else None
        frames = self.encoder(input_values, lengths)
        if self.config.reversed_time:
            lengths = None if lengths is None else self.num_frames(lengths)
            context, _ = self.context_network(reverse_frames(frames, lengths))
            context = reverse_frames(context, lengths)
        else:
            context, _ = self.context_network(frames)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return CPCModelOutput(
            last_hidden_state=context,
            extract_features=frames,
            hidden_states=(frames, context) if wanted else None,
        )

    def stream(
        self,
        chunk: Tensor,
        state: CPCStreamState | None = None,
        *,
        final: bool = False,
        carry_convolutions: bool = True,
    ) -> CPCModelOutput:
        """Context of a waveform that comes in chunks; all of them together equal one pass over the whole.

        Args:
            chunk: [B, S], the next samples of each stream, any number of them. With the default convolutions frame t
                is complete after 160 t + 312 samples.
            state: `state` of the output before, None for the first chunk.
            final: the waveform ends with this chunk, which completes the last frames; it may have no samples.
            carry_convolutions: `False` encodes each chunk by itself, between zeros, and carries the recurrent state
                alone, as CPC_audio does (`keepHidden`); the result then depends on where the waveform is cut.

        Returns:
            `last_hidden_state` [B, T, H] and `extract_features` [B, T, D] of the frames that this chunk completes (T
            may be 0), and `state`, None if `final`.

        Raises:
            ValueError: the model cannot stream, or `state` is of another batch or of the other kind of streaming.
        """
        self._refuse_what_cannot_stream(chunk, state, carry_convolutions)
        conv_inputs, recurrent = (state.conv_inputs, state.recurrent) if state is not None else ((), None)
        if carry_convolutions:
            frames, conv_inputs = self.encoder.stream(chunk, conv_inputs, final)
        else:
            self.sample_lengths(chunk, None)
            frames = self.encoder(chunk)
        context, recurrent = self.context_network(frames, recurrent)
        return CPCModelOutput(
            last_hidden_state=context,
            extract_features=frames,
            state=None if final else CPCStreamState(conv_inputs, recurrent),
        )

    def _refuse_what_cannot_stream(self, chunk: Tensor, state: CPCStreamState | None, carry_convolutions: bool):
        config = self.config
        whole_clip = config.feat_extract_norm == "instance" or (config.feat_extract_norm == "batch" and self.training)
        if config.reversed_time or (whole_clip and carry_convolutions):
            raise ValueError(
                "this model needs the whole clip at once and cannot stream: reversed_time is"
                f" {config.reversed_time}, feat_extract_norm {config.feat_extract_norm!r}, training {self.training}."
            )
        if state is None:
            return
        if state.recurrent[0].shape[1] != len(chunk):
            raise ValueError(f"state is of {state.recurrent[0].shape[1]} streams, but chunk has {len(chunk)} rows.")
        if bool(state.conv_inputs) != carry_convolutions:
            raise ValueError(
                f"carry_convolutions must stay what it was with the first chunk, {bool(state.conv_inputs)}, got"
                f" {carry_convolutions}."
            )


class CPCForPreTraining(CPCPreTrainedModel):
    """CPC with its predictors and objective."""

    def __init__(self, config: CPCConfig):
        super().__init__(config)
        self.cpc = CPCModel(config)
        self.predictors = make_predictors(config)
        self.dropout = Dropout(config.predictor_dropout)
        self.post_init()

    @property
    def num_frames_needed(self) -> int:
        """One more than the steps to predict."""
        return self.config.num_prediction_steps + 1

    @property
    def num_clips_needed(self) -> int:
        """The fewest clips of a batch that negatives can be drawn from."""
        return 2 if self.config.negative_sampling == "mixed_speaker_excluded" else 1

    def freeze_feature_encoder(self):
        """Stops training the convolutions."""
        self.cpc.freeze_feature_encoder()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        speaker_ids: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        *,
        clean_input_values: Tensor | None = None,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
    ) -> CPCForPreTrainingOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, of more than K frames.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right. A row of K frames or fewer has no
                target.
            speaker_ids: [B] int64, equal for clips of one speaker; only the modes that ask for the same speaker look
                at it. A clip without any clip to draw from has no target.
            sampled_negative_indices: [B, N, W] negatives of each context as indices into the B * T frames (with
                `reversed_time` into the frames from last to first); drawn on the device if not given.
            clean_input_values: [B, S], the clips of `input_values` before they were augmented: past-only augmentation
                (Kharitonov et al., 2020, arXiv:2007.00991), the context from the one and targets and negatives from
                the other.
            generator: for the negatives that are drawn; on the device of the input.

        Raises:
            ValueError: the clips are too short, or negatives cannot be drawn from what was given.
        """
        outputs = self.cpc(input_values, attention_mask, output_hidden_states=output_hidden_states)
        frames, context = outputs.extract_features, outputs.last_hidden_state
        if clean_input_values is not None:
            frames = self.clean_frames(clean_input_values, input_values, attention_mask)
        num_contexts = self._num_contexts(frames)
        batch_size, total, _ = frames.shape
        lengths = self._frame_lengths(frames, attention_mask)
        if self.config.reversed_time:
            frames, context = (reverse_frames(values, lengths) for values in (frames, context))
        valid = valid_frames(lengths - self.config.num_prediction_steps, num_contexts)  # [B, W]
        if sampled_negative_indices is None:
            allowed = self.allowed_clips(batch_size, speaker_ids, frames.device)
            valid = valid & allowed.any(dim=1, keepdim=True)
            sampled_negative_indices = sample_negative_frames(
                lengths,
                allowed,
                total=total,
                num_contexts=num_contexts,
                num_negatives=self.config.num_negatives,
                generator=generator,
            )
        elif sampled_negative_indices.shape[::2] != (batch_size, num_contexts):
            raise ValueError(
                f"sampled_negative_indices must be [B, N, W] with B = {batch_size} and W = {num_contexts} for this"
                f" input, got {tuple(sampled_negative_indices.shape)}."
            )
        predictions = self.dropout(self.predictors(context[:, :num_contexts]))  # [B, W, K, D]
        if self.config.score == "mean":
            predictions = predictions / predictions.shape[-1]
        scores = future_scores(predictions, frames, sampled_negative_indices)
        return CPCForPreTrainingOutput(
            **self.objective(scores, valid),
            sampled_negative_indices=sampled_negative_indices,
            last_hidden_state=outputs.last_hidden_state,
            extract_features=outputs.extract_features,
            hidden_states=outputs.hidden_states,
        )

    def clean_frames(self, clean_input_values: Tensor, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        """z [B, T, D] of clips as long as those that the context is computed from."""
        if clean_input_values.shape != input_values.shape:
            raise ValueError(
                f"clean_input_values must be {tuple(input_values.shape)} as input_values are, got"
                f" {tuple(clean_input_values.shape)}."
            )
        lengths = self.cpc.sample_lengths(clean_input_values, attention_mask)
        return self.cpc.encoder(clean_input_values, lengths if self.config.padding_invariant else None)

    def objective(self, scores: FutureScores, valid: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy over the contexts marked in `valid` [B, W], of all steps and of each."""
        # -log(exp(p) / (exp(p) + sum exp(n))) = log(1 + exp(log sum exp(n) - p))
        losses = F.softplus(torch.logsumexp(scores.negative, dim=-1) - scores.positive)  # [B, W, K]
        best_negative = scores.negative.masked_fill(scores.is_target, float("-inf")).amax(dim=-1)
        won = (scores.positive > best_negative) & (best_negative > float("-inf"))
        num_contexts = valid.sum()
        count = num_contexts.clamp(min=1)
        step_losses = torch.where(valid.unsqueeze(-1), losses, 0.0).sum(dim=(0, 1)) / count
        step_accuracies = (won & valid.unsqueeze(-1)).sum(dim=(0, 1)) / count
        loss = step_losses.mean()
        return {
            "loss": loss,
            "contrastive_loss": loss,
            "accuracy": step_accuracies.mean(),
            "num_targets": num_contexts * self.config.num_prediction_steps,
            "step_losses": step_losses,
            "step_accuracies": step_accuracies,
        }

    def _frame_lengths(self, frames: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B], the valid frames of each row."""
        if attention_mask is None:
            return torch.full((len(frames),), frames.shape[1], device=frames.device)
        return self.num_frames(num_valid(attention_mask))

    def _num_contexts(self, frames: Tensor) -> int:
        """W: the frames that have all K steps after them."""
        config = self.config
        num_contexts = frames.shape[1] - config.num_prediction_steps
        if num_contexts < 1:
            raise ValueError(
                f"input_values must have at least {self.num_samples_needed} samples, {self.num_frames_needed} frames,"
                f" to predict {config.num_prediction_steps} steps ahead, but have {frames.shape[1]} frames."
            )
        return num_contexts

    def allowed_clips(self, batch_size: int, speaker_ids: Tensor | None, device: torch.device) -> Tensor:
        """[B, B] bool, where the negatives of each clip may come from; refuses what the mode cannot do."""
        mode = self.config.negative_sampling
        if mode.startswith("same_speaker"):
            if speaker_ids is None or speaker_ids.shape != (batch_size,):
                came = None if speaker_ids is None else tuple(speaker_ids.shape)
                raise ValueError(f"negative_sampling={mode!r} needs speaker_ids of shape ({batch_size},), got {came}.")
            on_host = speaker_ids.device.type == "cpu" and not torch.compiler.is_compiling()
            if on_host and speaker_ids.min() < 0:
                raise ValueError(f"speaker_ids must not be negative, got {speaker_ids.tolist()}.")
        if batch_size < self.num_clips_needed:
            needed = self.num_clips_needed
            raise ValueError(f"negative_sampling={mode!r} needs at least {needed} clips in a batch, got {batch_size}.")
        return clips_to_draw_from(mode, batch_size, speaker_ids, device)


class CPCForCTC(CTCHead, CPCPreTrainedModel):
    """CPC with a linear layer over the symbols of a language."""

    def __init__(self, config: CPCConfig):
        super().__init__(config)
        self.cpc = CPCModel(config)
        self.add_ctc_head(config.hidden_size, config.vocab_size, config.final_dropout)
        self.post_init()


class CPCForSequenceClassification(SequenceClassificationHead, CPCPreTrainedModel):
    """CPC with one class per clip, such as its speaker."""

    def __init__(self, config: CPCConfig):
        super().__init__(config)
        self.cpc = CPCModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(2)
        self.add_classifier(config.hidden_size, config.classifier_proj_size, config.num_labels)
        self.post_init()


class CPCForAudioFrameClassification(AudioFrameClassificationHead, CPCPreTrainedModel):
    """CPC with one class per frame, such as its phone."""

    def __init__(self, config: CPCConfig):
        super().__init__(config)
        self.cpc = CPCModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(2)
        self.add_classifier(config.hidden_size, config.num_labels)
        self.post_init()


CPCModel.register_for_auto_class("AutoModel")
CPCForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CPCForCTC.register_for_auto_class("AutoModelForCTC")
CPCForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
CPCForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
