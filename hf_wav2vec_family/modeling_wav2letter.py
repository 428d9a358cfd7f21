"""The acoustic models of wav2letter (Collobert et al., 2016, arXiv:1609.03193), which wav2vec and vq-wav2vec measure
their features with (Schneider et al., 2019, arXiv:1904.05862, section 3.3).

A front end, spectral or pre-trained, gives frames; convolutions that keep their number make of them a score per symbol
and frame; the criterion is CTC or ASG.

Text of an ASG model is that of its best path, which no frame can tell by itself. Everything that decodes CTC without
`generate`, Transformers' pipeline, ours and the evaluation of `training`, takes the argmax of `logits` and knows no
other method of a model. So outside of training, `logits` of ASG are log-probabilities of the Viterbi path: 0 for the
symbol it has at a frame (the blank in padding), -inf for all others. Merging runs, as for CTC, reads what it spells.
Scores for a beam search are `emissions`, and `criterion.transitions`.

Differences to the original code: padding changes nothing; a convolution with an even kernel keeps the number of frames
instead of adding one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput, Wav2Vec2BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .asg import AutoSegmentationCriterion, asg_loss
from .configuration_wav2letter import SPECTRAL_HOP, SPECTRAL_WINDOW, Wav2LetterConfig
from .conv import MaskedGroupNorm, frame_centers, num_frames, num_valid, scale_gradient, valid_frames
from .conv_model import ConvModelMixin
from .fused import Dropout
from .heads import CTCHead, ctc_loss
from .labels import in_front, merge_runs
from .log_mel import MFCC, LogMel
from .modeling_cpc import CPCModel
from .modeling_discrete_bert import DiscreteBertModel
from .modeling_vq_wav2vec import VQWav2VecModel
from .modeling_wav2vec import Wav2VecModel
from .modeling_wav2vec2 import Wav2Vec2Model
from .viterbi import best_paths

ENCODERS = {
    model.config_class.model_type: model
    for model in (CPCModel, Wav2VecModel, VQWav2VecModel, DiscreteBertModel, Wav2Vec2Model)
}


@dataclass
class Wav2LetterOutput(CausalLMOutput):
    """
    Args:
        loss: scalar, if there are labels.
        logits: [B, T, vocab_size], whose argmax is the greedy answer; see the head of this file. In training those of
            ASG are the emissions.
        emissions: [B, T, V] scores of the symbols: V is `vocab_size` for CTC, `pad_token_id` for ASG.
    """

    emissions: Tensor | None = None


class Wav2LetterPreTrainedModel(ConvModelMixin, PreTrainedModel):
    """Initialisation, lengths and masks for every wav2letter model."""

    config: Wav2LetterConfig
    base_model_prefix = "wav2letter"
    main_input_name = "input_values"
    input_modalities = "audio"
    # `FrozenVQWav2Vec` of an encoder while it is loaded
    _keep_in_fp32_modules_strict: ClassVar = {"vq_wav2vec"}
    travelling_classes: ClassVar = {
        "AutoConfig": "configuration_wav2letter.Wav2LetterConfig",
        "AutoModel": "modeling_wav2letter.Wav2LetterModel",
        "AutoModelForCTC": "modeling_wav2letter.Wav2LetterForCTC",
    }

    @classmethod
    def from_encoder(cls, encoder: PreTrainedModel | str | Path, **fields: Any) -> "Wav2LetterPreTrainedModel":
        """A model with a new network on a copy of a trained encoder.

        Args:
            encoder: a model of this package, with or without its objective on top, its folder or its name on the Hub.
            fields: of the configuration, such as `encoder_output`.

        Raises:
            ValueError: the encoder is of no architecture of this package.
        """
        if not isinstance(encoder, PreTrainedModel):
            model_type = PreTrainedConfig.get_config_dict(encoder)[0].get("model_type")
            if model_type not in ENCODERS:
                raise ValueError(f"encoder: {encoder} must be one of {', '.join(ENCODERS)}, got {model_type!r}.")
            encoder = ENCODERS[model_type].from_pretrained(encoder)
        settings = encoder.config.to_dict()
        settings.pop("auto_map", None)  # the code of this folder, not of the one it came from
        model = cls(Wav2LetterConfig(**{**fields, "front_end": "encoder", "encoder_config": settings}))
        part, weights = model.base_model.front_end.encoder, encoder.base_model.state_dict()
        part.load_state_dict({name: weights[name] for name in part.state_dict()})
        return model.eval()

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the front end for a number of samples at 16 kHz (or a tensor of them)."""
        return self.base_model.front_end.num_frames(num_samples)

    def frame_centers(self, total: int) -> Tensor:
        """[total] float64: the sample in the middle of what each frame of the front end sees."""
        return self.base_model.front_end.frame_centers(total)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, nn.utils.parametrize.ParametrizationList):  # weight norm
            direction = module.original1
            bound = direction[0].numel() ** -0.5
            init.uniform_(direction, -bound, bound)
            # the magnitude has to match, or the weights are not the ones that were drawn
            norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
            init.copy_(module.original0, norm)
        elif isinstance(module, AutoSegmentationCriterion):
            diagonal = torch.eye(len(module.transitions), device=module.transitions.device)
            init.copy_(module.transitions, self.config.initial_diagonal * diagonal)


class SpectralFrontEnd(nn.Module):
    """Log-mel or MFCC of a waveform; nothing in it learns."""

    def __init__(self, config: Wav2LetterConfig):
        super().__init__()
        log_mel = LogMel(config.num_mel_bins)
        self.features = log_mel if config.front_end == "log_mel" else MFCC(config.num_cepstra, log_mel=log_mel)

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        return num_frames(num_samples, [SPECTRAL_WINDOW], [SPECTRAL_HOP])

    def frame_centers(self, total: int) -> Tensor:
        return frame_centers(total, [SPECTRAL_WINDOW], [SPECTRAL_HOP])

    def forward(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, S] and mask [B, S] or None -> [B, T, D]."""
        return self.features(input_values, attention_mask)


class EncoderFrontEnd(nn.Module):
    """One of the outputs of an encoder of this package."""

    def __init__(self, config: Wav2LetterConfig):
        super().__init__()
        # Transformers hands the attention that was asked for on to configurations of a fixed class only
        config.encoder_config._attn_implementation = config._attn_implementation
        self.encoder = ENCODERS[config.encoder_config.model_type](config.encoder_config)
        self.output, self.frozen = config.encoder_output, config.freeze_encoder
        if self.output == "weighted_sum":
            # learned even where the layers are frozen
            num_layers = config.num_encoder_layers
            self.layer_weights = nn.Parameter(torch.full((num_layers,), 1.0 / num_layers))

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        return self.encoder.num_frames(num_samples)

    def frame_centers(self, total: int) -> Tensor:
        return self.encoder.frame_centers(total)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, S] and mask [B, S] or None -> [B, T, D]."""
        weighted = self.output == "weighted_sum"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.encoder(input_values, attention_mask, output_hidden_states=weighted)
        if not weighted:
            return outputs[self.output]
        layers = torch.stack(outputs.hidden_states, dim=-1)  # [B, T, D, layers]
        return layers @ torch.softmax(self.layer_weights, dim=0).to(layers.dtype)


class Wav2LetterLayer(nn.Module):
    """Convolution over as many frames as come in, activation, dropout."""

    def __init__(self, config: Wav2LetterConfig, in_channels: int, index: int):
        super().__init__()
        kernel_size = config.conv_kernel[index]
        self.conv = nn.Conv1d(in_channels, config.conv_dim[index], kernel_size)
        if config.weight_norm:
            self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        self.activation = nn.GLU(dim=1) if config.conv_activation == "glu" else nn.PReLU()
        self.dropout = Dropout(config.conv_dropout)
        self.padding = ((kernel_size - 1) // 2, kernel_size // 2)

    def forward(self, hidden_states: Tensor, valid: Tensor | None) -> Tensor:
        """[B, C, T] -> [B, C', T]; frames that `valid` [B, 1, T] does not mark come back as 0."""
        hidden_states = self.dropout(self.activation(self.conv(F.pad(hidden_states, self.padding))))
        # the next convolution is to see the zeros that a clip alone has behind it
        return hidden_states if valid is None else torch.where(valid, hidden_states, 0.0)


class Wav2LetterModel(Wav2LetterPreTrainedModel):
    """Waveform to features to what the output layer reads."""

    def __init__(self, config: Wav2LetterConfig):
        super().__init__(config)
        self.front_end = (EncoderFrontEnd if config.front_end == "encoder" else SpectralFrontEnd)(config)
        self.feature_norm = None
        if config.feature_norm != "none":
            groups = 1 if config.feature_norm == "utterance" else config.feature_size
            self.feature_norm = MaskedGroupNorm(groups, config.feature_size, affine=False)
        halved = 2 if config.conv_activation == "glu" else 1
        widths = [config.feature_size, *(channels // halved for channels in config.conv_dim[:-1])]
        self.layers = nn.ModuleList(Wav2LetterLayer(config, width, i) for i, width in enumerate(widths))
        self.post_init()
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "Wav2LetterModel":
        """As PyTorch's, except that a frozen encoder never learns."""
        super().requires_grad_(requires_grad)
        if self.config.front_end == "encoder" and self.config.freeze_encoder:
            self.front_end.encoder.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "Wav2LetterModel":
        """As PyTorch's, except that a frozen encoder has no dropout, masks and noise, and stays frozen."""
        super().train(mode)
        if self.config.front_end == "encoder" and self.config.freeze_encoder:
            # from_pretrained makes everything trainable, and then calls eval
            self.front_end.encoder.eval().requires_grad_(False)
        return self

    def freeze_feature_encoder(self):
        """Stops training the convolutions of the encoder, if there is one."""
        if self.config.front_end == "encoder":
            self.front_end.encoder.freeze_feature_encoder()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, as the feature extractor of the checkpoint returns it.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            output_hidden_states: whether to return what enters each layer and the last output, [B, T, *] each.

        Returns:
            `last_hidden_state` [B, T, H] for the output layer, `extract_features` [B, T, D] of the front end,
            normalised; those of padded frames are 0.

        Raises:
            ValueError: a clip is too short for a frame, or attentions are asked for.
        """
        self.refuse_attentions(output_attentions)
        features = self.front_end(input_values, attention_mask).transpose(1, 2)
        lengths = None if attention_mask is None else self.num_frames(num_valid(attention_mask))
        valid = None if lengths is None else valid_frames(lengths, features.shape[-1]).unsqueeze(1)  # [B, 1, T]
        if self.feature_norm is not None:
            features = self.feature_norm(features, lengths)
        elif valid is not None:
            features = torch.where(valid, features, 0.0)
        hidden_states = features.to(self.layers[0].conv.bias.dtype)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, valid)
            states = [*states, hidden_states] if wanted else None
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=hidden_states.transpose(1, 2),
            extract_features=features.transpose(1, 2),
            hidden_states=tuple(state.transpose(1, 2) for state in states) if wanted else None,
        )


class Wav2LetterForCTC(CTCHead, Wav2LetterPreTrainedModel):
    """wav2letter with a score per symbol and frame, trained with CTC or ASG."""

    def __init__(self, config: Wav2LetterConfig):
        super().__init__(config)
        self.wav2letter = Wav2LetterModel(config)
        self.add_ctc_head(config.hidden_size, config.num_symbols, config.final_dropout)
        if config.weight_norm:
            self.lm_head = nn.utils.parametrizations.weight_norm(self.lm_head)
        self.criterion = None
        if config.criterion == "asg":
            self.criterion = AutoSegmentationCriterion(config.num_symbols, initial_diagonal=config.initial_diagonal)
        self.linear_segmentation = False
        self.post_init()

    def set_linear_segmentation(self, wanted: bool):
        """Whether ASG takes a target as stretched evenly over its frames; wav2letter's first updates are such ones.

        Raises:
            ValueError: the criterion is CTC.
        """
        if wanted and self.criterion is None:
            raise ValueError('linear segmentation needs criterion="asg", got "ctc".')
        self.linear_segmentation = wanted

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> Wav2LetterOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            labels: [B, L] ids; -100 (or anything negative) is padding, wherever it stands. ASG needs a frame for each
                and no symbol twice in a row; CTC as many frames, and one more for each pair of equal neighbours.

        Raises:
            ValueError: labels that can't be spelled, where they are on the CPU; the rows of the batch are named.
        """
        frames, outputs = self.encode(input_values, attention_mask, **kwargs)
        emissions = self.lm_head(self.dropout(frames))
        if attention_mask is None:
            lengths = torch.full((len(emissions),), emissions.shape[1], device=emissions.device)
        else:
            lengths = self.num_frames(num_valid(attention_mask))
        logits = emissions
        if self.criterion is not None:
            logits = self.greedy_logits(emissions, lengths)
        loss = None if labels is None else self.loss_of(emissions, lengths, labels)
        return Wav2LetterOutput(loss=loss, logits=logits, emissions=emissions, hidden_states=outputs.hidden_states)

    def greedy_logits(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Emissions [B, T, V] of ASG and valid frames [B] -> `logits` [B, T, vocab_size] of the output record."""
        if self.training:  # nobody reads them, and a best path takes as long as the loss
            return F.pad(emissions, (0, self.config.vocab_size - emissions.shape[-1]), value=-torch.inf)
        paths = best_paths(emissions, self.criterion.transitions, lengths).paths
        paths = torch.where(paths < 0, self.config.pad_token_id, paths).unsqueeze(-1)
        nowhere = emissions.new_full((*emissions.shape[:2], self.config.vocab_size), -torch.inf)
        return nowhere.scatter(-1, paths, 0.0)

    def loss_of(self, emissions: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """The loss of emissions [B, T, V] with `lengths` [B] valid frames, as the configuration reduces it."""
        config, labels = self.config, in_front(labels)
        if config.merge_repeated_labels:
            labels = merge_runs(labels)
        target_lengths = (labels >= 0).sum(dim=-1)
        if self.criterion is None:
            losses = ctc_loss(
                emissions,
                lengths,
                labels,
                blank=config.pad_token_id,
                reduction="none",
                zero_infinity=config.ctc_zero_infinity,
            )
        else:
            losses = self.asg_losses(emissions, lengths, labels, target_lengths)
        counts = target_lengths.clamp(min=1).to(losses.dtype)
        if config.loss_norm == "sqrt_target_length":
            losses = losses / counts.sqrt()
        if config.ctc_loss_reduction == "mean":
            return (losses / counts).mean()
        return losses.mean() if config.ctc_loss_per_utterance else losses.sum()

    def asg_losses(self, emissions: Tensor, lengths: Tensor, labels: Tensor, target_lengths: Tensor) -> Tensor:
        """[B], the loss of each utterance."""
        return asg_loss(
            emissions,
            scale_gradient(self.criterion.transitions, self.config.transition_gradient_scale),
            labels,
            lengths,
            target_lengths,
            reduction="none",
            zero_infinity=self.config.ctc_zero_infinity,
            linear_segmentation=self.linear_segmentation,
        )


Wav2LetterConfig.register_for_auto_class()
Wav2LetterModel.register_for_auto_class("AutoModel")
Wav2LetterForCTC.register_for_auto_class("AutoModelForCTC")
