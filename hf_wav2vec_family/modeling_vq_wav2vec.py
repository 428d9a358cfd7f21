"""vq-wav2vec (Baevski et al., 2019, arXiv:1910.05453).

wav2vec with a quantizer between encoder and context network: each latent frame is replaced by codevectors, one from
each of G codebooks, and the context has to tell the quantized frames that follow. The codes are what the model is for:
a language model such as BERT is trained on them as on words.

Where paper and published models disagree, `VQWav2VecConfig` says so and has both. Differences to the original code:
padding changes nothing unless `padding_invariant` is off, a frame is never its own negative, the codebook can start
from data (`initialize_codebook`) and entries that no frame chooses can be moved (`restart_dead_codes`). As published,
the group norm spans a whole clip; `conv_norm="layer"` makes the model causal, and then it streams.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .causal_conv_model import CausalConvModelMixin
from .configuration_vq_wav2vec import VQWav2VecConfig
from .conv import valid_frames
from .conv_model import classes_of
from .fused import Dropout
from .heads import AudioFrameClassificationHead, CTCHead, SequenceClassificationHead
from .kmeans import KmeansOutput, KmeansVectorQuantizer
from .quantizers import GumbelVectorQuantizer, QuantizerOutput, code_usage


@dataclass
class VQWav2VecModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: c [B, T, H]. extract_features: z [B, T, C].
        codes: [B, T, G] int64, the entry chosen in each group.
        quantized_features: [B, T, D], the codevectors of the codes, which the context network has seen.
        code_perplexity: of the codes chosen in fact.
        codevector_perplexity: Gumbel only: of the mean soft choice, between G and G * V.
        codebook_loss, commitment_loss: k-means only, neither weighted but by gamma.
        hidden_states: the quantized frames and the output of each layer of the context network, if asked for.
        attentions: None, for heads that ask every encoder for them.
    """

    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    codes: Tensor | None = None
    quantized_features: Tensor | None = None
    code_perplexity: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    codebook_loss: Tensor | None = None
    commitment_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class VQWav2VecForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, the sum of the losses below.
        contrastive_loss: mean over all pairs of a context and a step of the sum over their candidates.
        diversity_loss: Gumbel only: `diversity_loss_weight` * (G V - perplexity).
        quantizer_loss: k-means only: `quantizer_loss_weight` * (codebook loss + commitment loss).
        step_losses, step_accuracies: [K], contrastive loss and accuracy of each step.
        accuracy: share of the pairs whose positive scores at least as high as every negative, unless all tie.
        codevector_perplexity: Gumbel only: of the mean soft choice, between G and G * V.
        code_perplexity: of the codes chosen in fact.
        num_targets: pairs; `loss * num_targets` is the sum that the original code minimises.
        last_hidden_state: c [B, T, H]. extract_features: z [B, T, C]. codes: [B, T, G].
        quantized_features: [B, T, D]. hidden_states: if asked for.
    """

    loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    diversity_loss: Tensor | None = None
    quantizer_loss: Tensor | None = None
    step_losses: Tensor | None = None
    step_accuracies: Tensor | None = None
    accuracy: Tensor | None = None
    codevector_perplexity: Tensor | None = None
    code_perplexity: Tensor | None = None
    num_targets: Tensor | None = None
    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    codes: Tensor | None = None
    quantized_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class VQWav2VecStream:
    """Frames that a chunk completes and what `stream` needs to go on.

    Args:
        last_hidden_state: c [B, T, H]. codes: [B, T, G]. quantized_features: [B, T, D].
        encoder_state, context_state: at most a receptive field of numbers, however long the stream is.
    """

    last_hidden_state: Tensor
    codes: Tensor
    quantized_features: Tensor
    encoder_state: list[Tensor]
    context_state: list[Tensor] | None


def make_quantizer(config: VQWav2VecConfig) -> GumbelVectorQuantizer | KmeansVectorQuantizer:
    options = {
        "num_groups": config.num_codevector_groups,
        "num_codevectors": config.num_codevectors_per_group,
        "share_codevectors": config.share_codevectors,
    }
    if config.quantizer_type == "kmeans":
        return KmeansVectorQuantizer(
            config.conv_dim[-1], norm=config.conv_norm, commitment_weight=config.commitment_weight, **options
        )
    return GumbelVectorQuantizer(
        config.conv_dim[-1],
        codevector_dim=config.codevector_dim,
        depth=config.quantizer_depth,
        hidden_factor=config.quantizer_factor,
        activation=lambda: ACT2FN[config.hidden_act],
        **options,
    )


class VQWav2VecPreTrainedModel(CausalConvModelMixin, PreTrainedModel):
    """Initialisation, lengths and masks for every vq-wav2vec model."""

    config: VQWav2VecConfig
    base_model_prefix = "vq_wav2vec"
    travelling_classes: ClassVar = classes_of("vq_wav2vec", "VQWav2Vec")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, KmeansVectorQuantizer):
            init.normal_(module.codevectors, mean=0.0, std=0.01)
        elif isinstance(module, GumbelVectorQuantizer):
            init.uniform_(module.codevectors)
            if isinstance(module.weight_proj, nn.Linear):
                init.normal_(module.weight_proj.weight, mean=0.0, std=1.0)
        elif isinstance(module, VQWav2VecModel):
            init.constant_(module.gumbel_temperature, self.config.gumbel_temperature)


class VQWav2VecModel(VQWav2VecPreTrainedModel):
    """Waveform to latent frames z, codes, and context c."""

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.feature_extractor = self.make_encoder()
        self.quantizer = make_quantizer(config)
        self.feature_dropout = Dropout(config.feat_dropout)
        self.context_network = self.make_context_network(config.codevector_dim)
        # a tensor, so that a compiled graph reads it rather than being compiled for each value
        self.register_buffer("gumbel_temperature", torch.tensor(float(config.gumbel_temperature)), persistent=False)
        self.post_init()

    def set_gumbel_temperature(self, temperature: float):
        """Sets the temperature of the quantizer's softmax; the training loop calls it with a function of the step."""
        if self.config.quantizer_type != "gumbel":
            raise ValueError(f'a temperature is for quantizer_type="gumbel", got {self.config.quantizer_type!r}.')
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.gumbel_temperature.fill_(temperature)

    def extract_features(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Waveform [B, S] and its mask [B, S] or None -> z [B, T, C]."""
        samples = self.norm_lengths(self.sample_lengths(input_values, attention_mask))
        return self.feature_extractor(input_values, samples).transpose(1, 2)

    def quantize_features(
        self, latents: Tensor, lengths: Tensor | None = None, generator: torch.Generator | None = None
    ) -> QuantizerOutput | KmeansOutput:
        """z [B, T, C] and valid frames [B] or None -> the quantizer's record; noisy in training with Gumbel."""
        valid = None if lengths is None else valid_frames(lengths, latents.shape[1])
        if self.config.quantizer_type == "kmeans":
            return self.quantizer(latents, self.norm_lengths(lengths), valid=valid)
        return self.quantizer(latents, self.gumbel_temperature, valid=valid, generator=generator)

    @torch.no_grad()
    def quantize(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes [B, T, G] int64 of the waveform [B, S], without noise; those of padded frames mean nothing."""
        latents = self.extract_features(input_values, attention_mask)
        if self.config.quantizer_type == "kmeans":
            return self.quantizer.encode(latents, self.norm_lengths(self.frame_lengths(attention_mask)))
        return self.quantizer.encode(latents)

    @torch.no_grad()
    def initialize_codebook(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ):
        """K-means only: takes the codevectors from the frames of a first batch [B, S] by k-means++."""
        self._needs_kmeans("initialize_codebook")
        latents = self.extract_features(input_values, attention_mask)
        lengths = self.norm_lengths(self.frame_lengths(attention_mask))
        self.quantizer.initialize_codebook(latents, lengths, generator)

    @torch.no_grad()
    def restart_dead_codes(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        min_count: int = 1,
        generator: torch.Generator | None = None,
    ) -> int:
        """K-means only: moves entries that a batch [B, S] chooses less than `min_count` times; returns how many."""
        self._needs_kmeans("restart_dead_codes")
        latents = self.extract_features(input_values, attention_mask)
        lengths = self.frame_lengths(attention_mask)
        valid = None if lengths is None else valid_frames(lengths, latents.shape[1])
        codes = self.quantizer.encode(latents, self.norm_lengths(lengths))
        counts = code_usage(codes, self.config.num_codevectors_per_group, valid).counts
        return self.quantizer.restart_dead_codes(
            latents, counts, self.norm_lengths(lengths), min_count=min_count, generator=generator
        )

    def _needs_kmeans(self, method: str):
        if self.config.quantizer_type != "kmeans":
            raise ValueError(f'{method} is for quantizer_type="kmeans", got {self.config.quantizer_type!r}.')

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> VQWav2VecModelOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, as it was recorded.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            generator: for the noise of a Gumbel quantizer in training, on the device of the input.

        Raises:
            ValueError: a clip is too short for a frame, or attentions are asked for.
        """
        self.refuse_attentions(output_attentions)
        lengths = self.frame_lengths(attention_mask)
        latents = self.extract_features(input_values, attention_mask)
        quantizer = self.quantize_features(latents, lengths, generator)
        entering = self.feature_dropout(quantizer.quantized.transpose(1, 2))
        layers = self.context_network(entering, self.norm_lengths(lengths))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = (quantizer.quantized, *(layer.transpose(1, 2) for layer in layers))
        return VQWav2VecModelOutput(
            last_hidden_state=states[-1],
            extract_features=latents,
            codes=quantizer.codes,
            quantized_features=quantizer.quantized,
            code_perplexity=quantizer.code_perplexity,
            codevector_perplexity=getattr(quantizer, "perplexity", None),
            codebook_loss=getattr(quantizer, "codebook_loss", None),
            commitment_loss=getattr(quantizer, "commitment_loss", None),
            hidden_states=states if wanted else None,
        )

    @torch.no_grad()
    def stream(self, chunk: Tensor, past: VQWav2VecStream | None = None) -> VQWav2VecStream:
        """The next samples of a waveform [B, S], of any number, and the last answer -> the frames they complete.

        All answers one behind the other equal one pass over the whole waveform. Needs `conv_norm="layer"`.
        """
        self.refuse_to_stream_unless_causal()
        latents = self.feature_extractor.stream(chunk, None if past is None else past.encoder_state)
        if latents.frames.shape[-1] > 0:
            codes = self.quantizer.encode(latents.frames.transpose(1, 2))
        else:  # a convolution does not take what has no frames
            codes = torch.empty(len(chunk), 0, self.quantizer.num_groups, dtype=torch.long, device=chunk.device)
        quantized = self.quantizer.look_up(codes)
        context = self.context_network.stream(quantized.transpose(1, 2), None if past is None else past.context_state)
        return VQWav2VecStream(
            last_hidden_state=context.frames.transpose(1, 2),
            codes=codes,
            quantized_features=quantized,
            encoder_state=latents.state,
            context_state=context.state,
        )


class VQWav2VecForPreTraining(VQWav2VecPreTrainedModel):
    """vq-wav2vec with its objective (section 3)."""

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.vq_wav2vec = VQWav2VecModel(config)
        self.context_dropout = Dropout(config.context_dropout)
        self.project_features = None
        if config.project_features == "new":
            self.project_features = self.make_context_network(config.codevector_dim)
        self.prediction = self.make_prediction(config.codevector_dim)
        self.post_init()

    def set_gumbel_temperature(self, temperature: float):
        """Sets the temperature of the quantizer's softmax; the training loop calls it with a function of the step."""
        self.vq_wav2vec.set_gumbel_temperature(temperature)

    def quantize(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes [B, T, G] int64 of the waveform [B, S], without noise; those of padded frames mean nothing."""
        return self.vq_wav2vec.quantize(input_values, attention_mask)

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
    ) -> VQWav2VecForPreTrainingOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, long enough for all prediction steps.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.
            sampled_negative_indices: [B, N, T] negatives of each target frame as indices into the B * T frames, the
                same for all steps, those from other clips last; drawn on the device from valid frames if not given.
            generator: for noise and negatives, on the device of the input.
        """
        outputs = self.vq_wav2vec(
            input_values, attention_mask, generator=generator, output_hidden_states=output_hidden_states
        )
        lengths = self.frame_lengths(attention_mask)
        found = self.prediction(
            self.context_dropout(outputs.last_hidden_state),
            self.targets(outputs.quantized_features, lengths),
            lengths,
            sampled_negative_indices=sampled_negative_indices,
            generator=generator,
        )
        if self.config.quantizer_type == "kmeans":
            added = self.config.quantizer_loss_weight * (outputs.codebook_loss + outputs.commitment_loss)
            parts = {"quantizer_loss": added}
        else:
            num_codevectors = self.config.num_codevector_groups * self.config.num_codevectors_per_group
            added = self.config.diversity_loss_weight * (num_codevectors - outputs.codevector_perplexity)
            parts = {"diversity_loss": added, "codevector_perplexity": outputs.codevector_perplexity}
        return VQWav2VecForPreTrainingOutput(
            loss=found.loss + added,
            contrastive_loss=found.loss,
            step_losses=found.step_losses,
            step_accuracies=found.step_accuracies,
            accuracy=found.accuracy,
            code_perplexity=outputs.code_perplexity,
            num_targets=found.num_targets,
            last_hidden_state=outputs.last_hidden_state,
            extract_features=outputs.extract_features,
            codes=outputs.codes,
            quantized_features=outputs.quantized_features,
            hidden_states=outputs.hidden_states,
            **parts,
        )


class VQWav2VecForCTC(CTCHead, VQWav2VecPreTrainedModel):
    """vq-wav2vec with a linear layer over the symbols of a language."""

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.vq_wav2vec = VQWav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_ctc_head(config.hidden_size, config.vocab_size, config.final_dropout)
        self.post_init()


class VQWav2VecForSequenceClassification(SequenceClassificationHead, VQWav2VecPreTrainedModel):
    """vq-wav2vec with one class per clip."""

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.vq_wav2vec = VQWav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_classifier(config.hidden_size, config.classifier_proj_size, config.num_labels)
        self.post_init()


class VQWav2VecForAudioFrameClassification(AudioFrameClassificationHead, VQWav2VecPreTrainedModel):
    """vq-wav2vec with one class per frame."""

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.vq_wav2vec = VQWav2VecModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(len(config.context_dim) + 1)
        self.add_classifier(config.hidden_size, config.num_labels)
        self.post_init()


VQWav2VecConfig.register_for_auto_class()
VQWav2VecModel.register_for_auto_class("AutoModel")
VQWav2VecForPreTraining.register_for_auto_class("AutoModelForPreTraining")
VQWav2VecForCTC.register_for_auto_class("AutoModelForCTC")
VQWav2VecForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
VQWav2VecForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
