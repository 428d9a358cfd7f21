"""What a graph takes and gives: a whole batch of clips, or the next piece of a stream with its state.

Shapes: B clips, S samples, T frames, C channels of a convolution, H channels of a context, V symbols, G codebooks.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..conv import num_valid
from ..frame_places import min_num_samples
from .recurrence import replace_recurrence

DYNAMIC = torch.export.Dim.DYNAMIC
# neither 0 nor 1 of anything, or the graph would be made for just that
EXAMPLE_CLIPS, EXAMPLE_FRAMES = 2, 25
ANSWERS = ("logits", "last_hidden_state", "extract_features", "codes")


@dataclass(frozen=True)
class Graph:
    """A module that is ready to be written down.

    Args:
        module: takes tensors, gives a tuple of tensors.
        inputs: one example of each, by name. dynamic: which of their dimensions may have any size.
        outputs: names of what comes out.
        state: of a stream: inputs that are answered by outputs of the same name with `next_` before it, and the
            shape in which each is all zeros at the beginning; -1 is the number of clips.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    state: dict[str, list[int]] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple:
        """The example inputs as `module` takes them: what makes up a state together, behind the others."""
        alone = tuple(value for name, value in self.inputs.items() if name not in self.state)
        return (*alone, [self.inputs[name] for name in self.state]) if self.state else alone

    def program(self) -> torch.export.ExportedProgram:
        """The module as `torch.export` has it."""
        free = {name: dict.fromkeys(self.dynamic[name], DYNAMIC) for name in self.inputs}
        shapes = [free[name] for name in self.inputs if name not in self.state]
        shapes += [[free[name] for name in self.state]] if self.state else []
        with torch.no_grad():
            # spectral front ends make their constants in the first call; a trace would make them of nothing
            self.module(*self.arguments)
            return torch.export.export(self.module, self.arguments, dynamic_shapes=tuple(shapes), strict=False)


def graph_of(model: PreTrainedModel, *, stream: bool = False) -> Graph:
    """The graph of a copy of a model of this package; of one with an objective of pre-training, that of its encoder.

    Raises:
        ValueError: `stream` of a model whose frames depend on samples that have yet to come.
    """
    model = copy.deepcopy(model).float().cpu().eval()
    if type(model).__name__.endswith("ForPreTraining"):
        model = model.base_model
    replace_recurrence(model)
    return stream_graph(model) if stream else batch_graph(model)


class Batch(nn.Module):
    """Waveforms [B, S], their mask [B, S] int64 -> the answers called `names`, and how many frames [B] count of each.

    Of a model trained with ASG it gives the emissions: its `logits` are those of a best path, whose search goes frame
    by frame and has no graph for clips of any length. Emissions and transitions say the same and more.
    """

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...] = ()):
        super().__init__()
        self.model, self.names = model, names
        if getattr(model, "criterion", None) is not None:
            model.greedy_logits = lambda emissions, lengths: emissions

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(input_values, attention_mask=attention_mask)
        frames = self.model._get_feat_extract_output_lengths(num_valid(attention_mask))
        return (*(outputs[name] for name in self.names), frames)


def batch_graph(model: PreTrainedModel) -> Graph:
    """A batch of clips at once, padded on the right."""
    hop = model.config.inputs_to_logits_ratio
    samples = min_num_samples(model) + hop * EXAMPLE_FRAMES
    waveforms = 0.1 * torch.randn(EXAMPLE_CLIPS, samples, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(EXAMPLE_CLIPS, samples, dtype=torch.long)
    mask[1, -hop * EXAMPLE_FRAMES // 2 :] = 0
    module = Batch(model)
    with torch.no_grad():
        answers = model(waveforms, attention_mask=mask)
    ours = ("emissions", *ANSWERS[1:]) if getattr(model, "criterion", None) is not None else ANSWERS
    module.names = tuple(name for name in ours if answers.get(name) is not None)
    return Graph(
        module=module,
        inputs={"input_values": waveforms, "attention_mask": mask},
        dynamic={"input_values": (0, 1), "attention_mask": (0, 1)},
        outputs=(*module.names, "num_frames"),
    )


class Stream(nn.Module):
    """The next samples [B, S] of each clip, and the state before them -> the frames they complete, the state after."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.encoder, self.head = model.base_model, getattr(model, "lm_head", None)

    def answers(self, context: Tensor, features: list[Tensor], state: list[Tensor]) -> tuple[Tensor, ...]:
        first = [self.head(context)] if self.head is not None else []
        return (*first, context, *features, *state)


class CPCStream(Stream):
    """Convolutions that pad with zeros at both ends: `end` [B, E] has a column with the last samples, before none."""

    def forward(self, input_values: Tensor, end: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        layers = self.encoder.encoder.layers
        hidden_states, waiting = input_values[:, None], []
        for layer, before in zip(layers, state, strict=False):
            behind = end.new_zeros(end.shape[0], hidden_states.shape[1], end.shape[1] * layer.conv.padding[0])
            hidden_states, kept = layer.stream(torch.cat([hidden_states, behind], dim=-1), before, final=False)
            waiting.append(kept)
        frames = hidden_states.transpose(1, 2)
        context, recurrent = self.encoder.context_network(frames, tuple(state[len(layers) :]))
        return self.answers(context, [frames], [*waiting, *recurrent])


class CausalStream(Stream):
    """wav2vec and vq-wav2vec with norms over the channels of each frame; `begin` [B] bool is True for the first."""

    def forward(self, input_values: Tensor, begin: Tensor, state: list[Tensor]) -> tuple[Tensor, ...]:
        encoder, context_network = self.encoder.feature_extractor, self.encoder.context_network
        latents = encoder.stream(input_values, state[: len(encoder.conv_layers)])
        frames, past = latents.frames.transpose(1, 2), state[len(encoder.conv_layers) :]
        features = [frames]
        if hasattr(self.encoder, "quantizer"):
            features.append(self.encoder.quantizer.encode(frames))
            frames = self.encoder.quantizer.look_up(features[-1])
        if hasattr(context_network, "gru"):
            context, last = context_network.gru(frames, past[0])
            return self.answers(context, features, [*latents.state, last])
        hidden_states, kept = frames.transpose(1, 2), []
        for i, (layer, before) in enumerate(zip(context_network.conv_layers, past, strict=True)):
            if context_network.pad_mode == "replicate":
                before = torch.where(begin[:, None, None], hidden_states[..., :1], before)
            buffer = torch.cat([before, hidden_states], dim=-1)
            kept.append(buffer[..., buffer.shape[-1] - (layer.kernel_size - 1) :])
            hidden_states = context_network._join(i, layer(buffer), hidden_states)
        return self.answers(hidden_states.transpose(1, 2), features, [*latents.state, *kept])


def stream_graph(model: PreTrainedModel) -> Graph:
    """One piece of a stream at a time."""
    encoder = model.base_model
    if hasattr(model, "layer_weights") or not hasattr(encoder, "stream"):
        raise ValueError(
            f"stream is for CPC, wav2vec and vq-wav2vec, and of them the last layer: {type(model)} has no."
        )
    samples = min_num_samples(model) + model.config.inputs_to_logits_ratio * EXAMPLE_FRAMES
    chunk = torch.randn(EXAMPLE_CLIPS, samples, generator=torch.Generator().manual_seed(0))
    encoder.stream(chunk)  # refuses what has to hear the whole clip
    if hasattr(encoder, "feature_extractor"):
        module, state = CausalStream(model), causal_state(encoder)
        mark, free = {"begin": torch.tensor([True] + [False] * (EXAMPLE_CLIPS - 1))}, (0,)
    else:
        module, state = CPCStream(model), cpc_state(encoder)
        mark, free = {"end": torch.zeros(EXAMPLE_CLIPS, 2)}, (0, 1)
    inputs = {"input_values": chunk, **mark}
    dynamic = dict.fromkeys(mark, free) | {"input_values": (0, 1)}
    for name, shape in state.items():
        waits = name.startswith("conv")
        # in the middle of a stream, where some inputs wait for those that complete a frame
        example = [*shape[:2], 2] if waits else shape
        inputs[name] = torch.zeros([EXAMPLE_CLIPS if size < 0 else size for size in example])
        dynamic[name] = (0, 2) if waits else (shape.index(-1),)
    names = ("logits",) if module.head is not None else ()
    names = (*names, "last_hidden_state", "extract_features")
    names = (*names, "codes") if hasattr(encoder, "quantizer") else names
    return Graph(module, inputs, dynamic, (*names, *(f"next_{name}" for name in state)), state)


def cpc_state(encoder: nn.Module) -> dict[str, list[int]]:
    """See `Graph.state`. The zeros before the beginning wait for the first samples."""
    layers, network = encoder.encoder.layers, encoder.context_network
    state = {f"conv_{i}": [-1, layer.conv.in_channels, layer.conv.padding[0]] for i, layer in enumerate(layers)}
    recurrent = ("hidden", "cell") if network.mode == "LSTM" else ("hidden",)
    return {**state, **{name: [network.num_layers, -1, network.hidden_size] for name in recurrent}}


def causal_state(encoder: nn.Module) -> dict[str, list[int]]:
    """See `Graph.state`."""
    layers, network = encoder.feature_extractor.conv_layers, encoder.context_network
    state = {f"conv_{i}": [-1, layer.conv.in_channels, 0] for i, layer in enumerate(layers)}
    if hasattr(network, "gru"):
        return {**state, "hidden": [1, -1, network.output_dim]}
    past = {f"past_{i}": [-1, c.conv.in_channels, c.kernel_size - 1] for i, c in enumerate(network.conv_layers)}
    return {**state, **past}
