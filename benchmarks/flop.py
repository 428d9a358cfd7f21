"""Floating-point operations of a model's forward and backward pass, counted from its configuration.

2 for each multiply-add of convolutions, linear layers, recurrent layers and products of attention and of objectives.
What is no such product (norms, activations, dropout, losses, the optimizer) counts as nothing, and so do wav2vec 2.0's
quantizer, heads and loss, a quarter of a percent of it. A backward pass costs twice the forward pass, a product for
the gradient of the input and one for that of the weight; the input of the first convolution needs none.
tests/test_on_paper.py holds these numbers against what PyTorch counts of the models themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, RobertaConfig

from hf_wav2vec_family import CPCConfig, VQWav2VecConfig, Wav2VecConfig
from hf_wav2vec_family.conv import num_frames

SAMPLING_RATE = 16_000
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Flop:
    """Operations of clips or of a sequence.

    Args:
        parts: those of the forward pass, by what makes them.
        no_input_gradient: of them those of the first convolution.
        frozen: of them those that nothing is learned by, and that no gradient goes through.
    """

    parts: dict[str, float]
    no_input_gradient: float = 0.0
    frozen: float = 0.0

    @property
    def forward(self) -> float:
        return sum(self.parts.values())

    @property
    def training(self) -> float:
        """Forward and backward pass."""
        backward = 2 * (self.forward - self.frozen)
        return self.forward + backward - (0.0 if self.frozen else self.no_input_gradient)


def convolution_flop(
    num_samples: int,
    channels: Sequence[int],
    kernel_sizes: Sequence[int],
    strides: Sequence[int],
    paddings: Sequence[int] | None = None,
) -> list[float]:
    """Of each of the convolutions that turn a waveform of one channel into frames."""
    counted = []
    for i, (kernel_size, width) in enumerate(zip(kernel_sizes, channels, strict=True)):
        upto = slice(i + 1)
        frames = num_frames(
            num_samples, kernel_sizes[upto], strides[upto], None if paddings is None else paddings[upto]
        )
        counted.append(2.0 * frames * kernel_size * (channels[i - 1] if i else 1) * width)
    return counted


def transformer_flop(tokens: int, *, layers: int, width: int, inner: int) -> dict[str, float]:
    """Of a Transformer encoder: four projections and two feed-forward layers; scores and their sums over values."""
    return {
        "linear layers": 2.0 * tokens * layers * (4 * width * width + 2 * width * inner),
        "attention": 4.0 * tokens * tokens * width * layers,
    }


def wav2vec2_flop(config: PreTrainedConfig, seconds: float, *, num_clips: int = 1) -> Flop:
    """wav2vec 2.0 on clips, every layer of it run; with `feature_gradient_scale=0` its convolutions do not learn."""
    samples, width = int(SAMPLING_RATE * seconds), config.hidden_size
    convolutions = convolution_flop(samples, config.conv_dim, config.conv_kernel, config.conv_stride)
    frames = num_frames(samples, config.conv_kernel, config.conv_stride)
    group = width // config.num_conv_pos_embedding_groups
    transformer = transformer_flop(
        frames, layers=config.num_hidden_layers, width=width, inner=config.intermediate_size
    )
    parts = {
        "convolutions": sum(convolutions),
        "positions": 2.0 * frames * width * group * config.num_conv_pos_embeddings,
        **transformer,
        "projection": 2.0 * frames * config.conv_dim[-1] * width,
    }
    learns = getattr(config, "feature_gradient_scale", 1.0) > 0
    return Flop(
        {name: num_clips * operations for name, operations in parts.items()},
        no_input_gradient=num_clips * convolutions[0],
        frozen=0.0 if learns else num_clips * sum(convolutions),
    )


def wav2vec_flop(config: Wav2VecConfig | VQWav2VecConfig, seconds: float) -> Flop:
    """wav2vec or vq-wav2vec with its objective on a clip.

    Raises:
        ValueError: for a recurrent context network and for k-means, neither of which is counted here.
    """
    quantizes = isinstance(config, VQWav2VecConfig)
    if config.context_type != "conv":
        raise ValueError(f'context_type must be "conv" to be counted, got {config.context_type!r}.')
    if quantizes and config.quantizer_type != "gumbel":
        raise ValueError(f'quantizer_type must be "gumbel" to be counted, got {config.quantizer_type!r}.')
    samples, width = int(SAMPLING_RATE * seconds), config.conv_dim[-1]
    convolutions = convolution_flop(samples, config.conv_dim, config.conv_kernel, config.conv_stride)
    frames = num_frames(samples, config.conv_kernel, config.conv_stride)
    contexts = frames - config.first_predicted_frame
    target_width = config.codevector_dim if quantizes else width
    context = zip([target_width, *config.context_dim[:-1]], config.context_dim, config.context_kernel, strict=True)
    maps = config.hidden_size * target_width * config.num_prediction_steps
    candidates = 1 + config.num_negatives + config.num_cross_sample_negatives
    parts = {
        "convolutions": sum(convolutions),
        "context network": sum(2.0 * frames * kernel_size * a * b for a, b, kernel_size in context),
        "predictions": 2.0 * contexts * maps,
        "scores": 2.0 * contexts * candidates * config.num_prediction_steps * target_width,
    }
    if quantizes:
        inner = [width * config.quantizer_factor] * (config.quantizer_depth - 1)
        entries = config.num_codevector_groups * config.num_codevectors_per_group
        layers = zip([width, *inner], [*inner, entries], strict=True)
        # the second is the gradient's way through the choice, a product with all entries
        chosen = config.num_codevectors_per_group * target_width
        parts["quantizer"] = 2.0 * frames * (sum(a * b for a, b in layers) + chosen)
    return Flop(parts, no_input_gradient=convolutions[0])


def cpc_flop(config: CPCConfig, seconds: float) -> Flop:
    """CPC with its objective on a clip.

    Raises:
        ValueError: for predictors other than the paper's linear ones, which alone are counted here.
    """
    if config.predictor != "linear":
        raise ValueError(f'predictor must be "linear" to be counted, got {config.predictor!r}.')
    samples, width, hidden = int(SAMPLING_RATE * seconds), config.conv_dim[-1], config.hidden_size
    of_encoder = (config.conv_kernel, config.conv_stride, config.conv_padding)
    convolutions = convolution_flop(samples, config.conv_dim, *of_encoder)
    frames, steps = num_frames(samples, *of_encoder), config.num_prediction_steps
    contexts = frames - steps
    recurrent = width + hidden + (config.num_hidden_layers - 1) * 2 * hidden
    parts = {
        "convolutions": sum(convolutions),
        "recurrent network": 2.0 * frames * GATES[config.context_network] * hidden * recurrent,
        "predictions": 2.0 * contexts * steps * hidden * width,
        # each of the predictions against every frame that any of them has for a target, see `future_scores`
        "scores": 2.0 * contexts * steps * (steps + config.num_negatives) * width,
    }
    return Flop(parts, no_input_gradient=convolutions[0])


def bert_flop(config: RobertaConfig, tokens: int, masked: float) -> Flop:
    """A masked language model on a sequence of `tokens`, its head on the `masked` share of them."""
    width = config.hidden_size
    transformer = transformer_flop(
        tokens, layers=config.num_hidden_layers, width=width, inner=config.intermediate_size
    )
    return Flop({**transformer, "head": 2.0 * tokens * masked * (width * width + width * config.vocab_size)})
