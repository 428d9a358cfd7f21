"""What stands on top of an encoder: CTC, a class per clip, a class per frame. Written once for every architecture.

A head is mixed into an encoder's `PreTrainedModel`. It asks of it what all of them have: `self.base_model`,
`self.frame_mask(...)` and `self.num_frames(...)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import (
    CausalLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from .conv import num_valid
from .fused import Dropout
from .labels import in_front


def ctc_loss(
    logits: Tensor, num_frames: Tensor, labels: Tensor, *, blank: int, reduction: str, zero_infinity: bool
) -> Tensor:
    """Connectionist temporal classification (Graves et al., 2006) in float32.

    Args:
        logits: [B, T, vocabulary]. num_frames: [B], how many of the T count.
        labels: [B, L]; anything below 0 is padding, wherever it stands.
        reduction: "sum", or "mean" of each utterance's loss over its number of labels.
        zero_infinity: an utterance that no path spells costs 0; otherwise it is an error.

    Raises:
        ValueError: labels outside the vocabulary, blanks among them, or more than the frames can spell, where labels
            and lengths are on the CPU; the rows of the batch are named. No accelerator is waited for to check them;
            PyTorch's loss itself waits for the lengths.
    """
    labels = in_front(labels)
    refuse_bad_labels(labels, num_frames, vocab_size=logits.shape[-1], blank=blank, allow_unreachable=zero_infinity)
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    # cuDNN's kernel reads concatenated labels on the host and wants int32; the native one takes them padded
    with torch.backends.cudnn.flags(enabled=False):
        return F.ctc_loss(
            log_probs,
            labels.clamp(min=0),
            num_frames,
            (labels >= 0).sum(dim=-1),
            blank=blank,
            reduction=reduction,
            zero_infinity=zero_infinity,
        )


def refuse_bad_labels(labels: Tensor, num_frames: Tensor, *, vocab_size: int, blank: int, allow_unreachable: bool):
    """ValueError that names the rows [B, L], padded behind, that CTC can't spell, of what is on the CPU."""
    on_the_host = labels.device.type == num_frames.device.type == "cpu" and not torch.compiler.is_compiling()
    if not on_the_host or not labels.numel():
        return
    twice = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)).sum(dim=-1)
    faults = [
        ((labels >= vocab_size).any(dim=-1), f"must be below vocab_size = {vocab_size}, got {int(labels.max())}"),
        ((labels == blank).any(dim=-1), f"must not be {blank}, the blank"),
    ]
    if not allow_unreachable:
        too_few = "need a frame each and one between equal neighbours, more than there are; ctc_zero_infinity leaves"
        faults.append(((labels >= 0).sum(dim=-1) + twice > num_frames, f"{too_few} such rows out"))
    for rows, message in faults:
        if rows.any():
            raise ValueError(f"labels, rows {rows.nonzero().flatten().tolist()} of the batch: they {message}.")


class _Head:
    # Transformers' Trainer would take the **kwargs of `forward` for a wish to normalise the loss itself
    accepts_loss_kwargs = False

    def freeze_feature_encoder(self):
        """Stops training the convolutions."""
        self.base_model.freeze_feature_encoder()

    def freeze_base_model(self):
        """Stops training everything but the head."""
        self.base_model.requires_grad_(False)

    def add_layer_weights(self, num_layers: int):
        """One learned weight per layer output, for a weighted sum of layers (SUPERB's protocol)."""
        self.layer_weights = nn.Parameter(torch.full((num_layers,), 1.0 / num_layers))

    def encode(self, input_values: Tensor, attention_mask: Tensor | None, **kwargs) -> tuple[Tensor, ModelOutput]:
        """The frames [B, T, D] that the head works on, and the encoder's whole output."""
        weighted = hasattr(self, "layer_weights")
        if weighted:
            kwargs["output_hidden_states"] = True
        outputs = self.base_model(input_values, attention_mask=attention_mask, **kwargs)
        if not weighted:
            return outputs.last_hidden_state, outputs
        layers = torch.stack(outputs.hidden_states, dim=-1)  # [B, T, D, layers]
        return layers @ torch.softmax(self.layer_weights, dim=0), outputs


class CTCHead(_Head):
    """Dropout and one linear layer, trained with CTC."""

    def add_ctc_head(self, hidden_size: int, vocab_size: int | None, dropout: float):
        if vocab_size is None:
            raise ValueError("vocab_size of the configuration is None; a CTC head needs the number of symbols.")
        self.dropout = Dropout(dropout)
        self.lm_head = nn.Linear(hidden_size, vocab_size)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz.
            attention_mask: [B, S], 1 for samples, 0 for padding.
            labels: [B, L] ids; -100 (or anything negative) is padding, wherever it stands. At least as many frames as
                labels are needed, and one more for each pair of equal neighbours.
        """
        frames, outputs = self.encode(input_values, attention_mask, **kwargs)
        logits = self.lm_head(self.dropout(frames))
        loss = None if labels is None else self.loss_of(logits, input_values, attention_mask, labels)
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def loss_of(self, logits: Tensor, input_values: Tensor, attention_mask: Tensor | None, labels: Tensor) -> Tensor:
        if attention_mask is None:
            lengths = labels.new_full((len(labels),), input_values.shape[-1])
        else:
            lengths = num_valid(attention_mask)
        loss = ctc_loss(
            logits,
            self._get_feat_extract_output_lengths(lengths),
            labels,
            blank=self.config.pad_token_id,
            reduction=self.config.ctc_loss_reduction,
            zero_infinity=self.config.ctc_zero_infinity,
        )
        return loss / len(labels) if self.config.ctc_loss_per_utterance else loss


class SequenceClassificationHead(_Head):
    """A class per clip, such as its speaker: projection, mean over valid frames, linear layer."""

    def add_classifier(self, hidden_size: int, projection_size: int, num_labels: int):
        self.projector = nn.Linear(hidden_size, projection_size)
        self.classifier = nn.Linear(projection_size, num_labels)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """`labels` [B] int64: the class of each clip. Returns logits [B, num_labels]."""
        frames, outputs = self.encode(input_values, attention_mask, **kwargs)
        projected = self.projector(frames)
        if attention_mask is None:
            pooled = projected.mean(dim=1)
        else:
            valid = self.frame_mask(attention_mask, projected.shape[1]).unsqueeze(-1)
            pooled = torch.where(valid, projected, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        logits = self.classifier(pooled)
        return SequenceClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels.view(-1)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class AudioFrameClassificationHead(_Head):
    """A class per frame, such as its phone: one linear layer."""

    def add_classifier(self, hidden_size: int, num_labels: int):
        self.classifier = nn.Linear(hidden_size, num_labels)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """`labels` [B, T] int64 with -100 where there is none, or one-hot [B, T, num_labels]."""
        frames, outputs = self.encode(input_values, attention_mask, **kwargs)
        logits = self.classifier(frames)
        loss = None
        if labels is not None:
            classes = labels.argmax(dim=-1) if labels.dim() == 3 else labels
            total = F.cross_entropy(
                logits.float().flatten(0, 1), classes.flatten(), ignore_index=-100, reduction="sum"
            )
            loss = total / (classes != -100).sum().clamp(min=1)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
