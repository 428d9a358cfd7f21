"""What wav2vec and vq-wav2vec have in common around their convolutions: the parts they are built of, lengths, targets.

Schneider et al., 2019 (arXiv:1904.05862), section 3; Baevski et al., 2019 (arXiv:1910.05453).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .causal_conv import CausalConvNetwork, CausalGRU, ConvEncoder
from .conv import num_valid
from .conv_model import ConvModelMixin
from .future_prediction import FuturePrediction, StepPredictor
from .quantizers import UniformLinear


class CausalConvModelMixin(ConvModelMixin):
    """For a `PreTrainedModel` with the fields of `CausalConvConfig`, whose base model has a `feature_extractor` and a
    `context_network`, and whose `ForPreTraining` has `project_features`."""

    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["ConvBlock"]

    def make_encoder(self) -> ConvEncoder:
        """Waveform to latent frames."""
        return ConvEncoder(
            self.config.conv_dim,
            self.config.conv_kernel,
            self.config.conv_stride,
            skip_connections=self.config.feat_skip_connections,
            residual_scale=self.config.residual_scale,
            log_compression=self.config.log_compression,
            **self._block_options,
        )

    def make_context_network(self, input_dim: int) -> CausalConvNetwork | CausalGRU:
        """Frames of `input_dim` channels to context."""
        if self.config.context_type == "gru":
            return CausalGRU(input_dim, self.config.context_dim[0])
        return CausalConvNetwork(
            input_dim,
            self.config.context_dim,
            self.config.context_kernel,
            padding=self.config.context_padding,
            skip_connections=self.config.context_skip_connections,
            residual_scale=self.config.residual_scale,
            bias=self.config.context_bias,
            **self._block_options,
        )

    def make_prediction(self, frame_dim: int) -> FuturePrediction:
        """The objective for a model whose context network reads frames of `frame_dim` channels."""
        return FuturePrediction(
            self.config.hidden_size,
            frame_dim if self.config.project_features == "none" else self.config.hidden_size,
            num_steps=self.config.num_prediction_steps,
            offset=self.config.first_predicted_frame,
            objective=self.config.objective,
            num_negatives=self.config.num_negatives,
            num_cross_sample_negatives=self.config.num_cross_sample_negatives,
            balanced_classes=self.config.balanced_classes,
            bias_per_step=self.config.prediction_bias == "per_step",
            dropout=self.config.conv_dropout,
        )

    @property
    def _block_options(self) -> dict:
        return {
            "norm": self.config.conv_norm,
            "affine": self.config.conv_norm_affine,
            "activation": ACT2FN[self.config.hidden_act],
            "dropout": self.config.conv_dropout,
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Heads as all models start them, everything else as PyTorch starts it."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
        elif isinstance(module, UniformLinear):
            bound = module.in_features**-0.5
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5
        elif isinstance(module, StepPredictor):
            bound = module.initial_bound
        else:
            return
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound)

    def freeze_feature_encoder(self):
        """Stops training the convolutions of the encoder."""
        self.base_model.feature_extractor.requires_grad_(False)

    def frame_lengths(self, attention_mask: Tensor | None) -> Tensor | None:
        """Valid frames [B] of each row, None without a mask."""
        return None if attention_mask is None else self.num_frames(num_valid(attention_mask))

    def norm_lengths(self, lengths: Tensor | None) -> Tensor | None:
        """The same for the norms, which see padding too if `padding_invariant` is off."""
        return lengths if self.config.padding_invariant else None

    def targets(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the context has to tell: its own `frames` [B, T, C], or what `project_features` makes of them.

        `lengths` [B] counts the valid frames of each row, None means all of them.
        """
        if self.config.project_features == "none":
            return frames
        network = self.project_features or self.base_model.context_network
        return network(frames.transpose(1, 2), self.norm_lengths(lengths))[-1].transpose(1, 2)

    def refuse_to_stream_unless_causal(self):
        """Raises ValueError if the norm takes statistics over the whole clip."""
        if self.config.conv_norm != "layer":
            raise ValueError(
                f'stream needs conv_norm="layer", got {self.config.conv_norm!r}: its statistics are those of a whole'
                " clip, which is not there yet."
            )
