"""wav2vec (Schneider et al., 2019, arXiv:1904.05862).

An encoder of strided convolutions turns the waveform into latent frames z, 10 ms apart; a stack of causal convolutions
turns those into context c; from c at a frame, K maps tell the next K latent frames from others of the same clip. The
context serves as input of an acoustic model in place of log-mel filter banks.

Where paper and original code disagree, `Wav2VecConfig` says so and has both. As published, the group norm spans a
whole clip, so that the model is not causal although its convolutions are: `conv_norm="layer"` is, and streams.
Differences to the original code: padding changes nothing unless `padding_invariant` is off, a frame is never its own
negative, and a recurrent context network recurs over time.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput, Wav2Vec2BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .causal_conv_model import CausalConvModelMixin
from .configuration_wav2vec import Wav2VecConfig
from .conv_model import classes_of
from .fused import Dropout
from .heads import AudioFrameClassificationHead, CTCHead, SequenceClassificationHead


@dataclass
class Wav2VecForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, equal to `contrastive_loss`.
        contrastive_loss: mean over all pairs of a context and a step of the sum over their candidates.
        step_losses, step_accuracies: [K], contrastive loss and accuracy of each step.
        accuracy: share of the pairs whose positive scores at least as high as every negative, unless all tie.
        num_targets: pairs; `loss * num_targets` is the sum that the original code minimises.
        last_hidden_state: c [B, T, H]. extract_features: z [B, T, C]. hidden_states: if asked for.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    step_losses: Tensor | None = None
    step_accuracies: Tensor | None = None
    accuracy: Tensor | None = None
    num_targets: Tensor | None = None
    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class Wav2VecStream:
    """Frames that a chunk completes and what `stream` needs to go on.

    Args:
        last_hidden_state: c [B, T, H]. extract_features: z [B, T, C].
        encoder_state, context_state: at most a receptive field of numbers, however long the stream is.
    """

    last_hidden_state: Tensor
    extract_features: Tensor
    encoder_state: list[Tensor]
    context_state: list[Tensor] | None


class Wav2VecPreTrainedModel(CausalConvModelMixin, PreTrainedModel):
    """Initialisation, lengths and masks for every wav2vec model."""

    config: Wav2VecConfig
    base_model_prefix = "wav2vec"
    travelling_classes: ClassVar = classes_of("wav2vec", "Wav2Vec")


class Wav2VecModel(Wav2VecPreTrainedModel):
    """Waveform to latent frames z and context c."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__(config)
        self.feature_extractor = self.make_encoder()
        self.feature_dropout = Dropout(config.feat_dropout)
        self.context_network = self.make_context_network(config.conv_dim[-1])
        self.post_init()

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
            input_values: [B, S] waveform at 16 kHz, as it was recorded.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.

        Returns:
            `last_hidden_state` c [B, T, H], `extract_features` z [B, T, C]; `hidden_states`, z and the output of each
            layer of the context network, if asked for.

        Raises:
            ValueError: a clip is too short for a frame, or attentions are asked for.
        """
        self.refuse_attentions(output_attentions)
        samples = self.norm_lengths(self.sample_lengths(input_values, attention_mask))
        lengths = None if samples is None else self.num_frames(samples)
        latents = self.feature_extractor(input_values, samples)
        layers = self.context_network(self.feature_dropout(latents), lengths)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=layers[-1].transpose(1, 2),
            extract_features=latents.transpose(1, 2),
            hidden_states=tuple(x.transpose(1, 2) for x in (latents, *layers)) if wanted else None,
        )

    @torch.no_grad()
    def stream(self, chunk: Tensor, past: Wav2VecStream | None = None) -> Wav2VecStream:
        """The next samples of a waveform [B, S], of any number, and the last answer -> the frames they complete.

        All answers one behind the other equal one pass over the whole waveform. Needs `conv_norm="layer"`.
        """
        self.refuse_to_stream_unless_causal()
        latents = self.feature_extractor.stream(chunk, None if past is None else past.encoder_state)
        context = self.context_network.stream(latents.frames, None if past is None else past.context_state)
        return Wav2VecStream(
            last_hidden_state=context.frames.transpose(1, 2),
            extract_features=latents.frames.transpose(1, 2),
            encoder_state=latents.state,
            context_state=context.state,
        )


class Wav2VecForPreTraining(Wav2VecPreTrainedModel):
    """wav2vec with its objective (section 3.2)."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__(config)
        self.wav2vec = Wav2VecModel(config)
        self.context_dropout = Dropout(config.context_dropout)
        self.project_features = None
        if config.project_features == "new":
            self.project_features = self.make_context_network(config.conv_dim[-1])
        self.prediction = self.make_prediction(config.conv_dim[-1])
        self.post_init()

    @property
    def num_frames_needed(self) -> int:
        """Those of the prediction."""
        return self.prediction.num_frames_needed

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        sampled_negative_indices: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
    ) -> Wav2VecForPreTrainingOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, long enough for all prediction steps.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            sampled_negative_indices: [B, N, T] negatives of each target frame as indices into the B * T frames, the
                same for all steps, those from other clips last; drawn on the device from valid frames if not given.
            generator: for the negatives, on the device of the input.
        """
        outputs = self.wav2vec(input_values, attention_mask, output_hidden_states=output_hidden_states)
        lengths = self.frame_lengths(attention_mask)
        found = self.prediction(
            self.context_dropout(outputs.last_hidden_state),
            self.targets(outputs.extract_features, lengths),
            lengths,
            sampled_negative_indices=sampled_negative_indices,
            generator=generator,
        )
        return Wav2VecForPreTrainingOutput(
            loss=found.loss,
            contrastive_loss=found.loss,
            step_losses=found.step_losses,
            step_accuracies=found.step_accuracies,
            accuracy=found.accuracy,
            num_targets=found.num_targets,
            last_hidden_state=outputs.last_hidden_state,
            extract_features=outputs.extract_features,
            hidden_states=outputs.hidden_states,
        )


class Wav2VecForCTC(CTCHead, Wav2VecPreTrainedModel):
    """wav2vec with a linear layer over the symbols of a language."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__(config)
        self.wav2vec = Wav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_ctc_head(config.hidden_size, config.vocab_size, config.final_dropout)
        self.post_init()


class Wav2VecForSequenceClassification(SequenceClassificationHead, Wav2VecPreTrainedModel):
    """wav2vec with one class per clip."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__(config)
        self.wav2vec = Wav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_classifier(config.hidden_size, config.classifier_proj_size, config.num_labels)
        self.post_init()


class Wav2VecForAudioFrameClassification(AudioFrameClassificationHead, Wav2VecPreTrainedModel):
    """wav2vec with one class per frame."""

    def __init__(self, config: Wav2VecConfig):
        super().__init__(config)
        self.wav2vec = Wav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_classifier(config.hidden_size, config.num_labels)
        self.post_init()


Wav2VecConfig.register_for_auto_class()
Wav2VecModel.register_for_auto_class("AutoModel")
Wav2VecForPreTraining.register_for_auto_class("AutoModelForPreTraining")
Wav2VecForCTC.register_for_auto_class("AutoModelForCTC")
Wav2VecForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
Wav2VecForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
