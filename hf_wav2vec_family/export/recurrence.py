"""Recurrent layers as one node of a graph.

`torch.export` writes a GRU or LSTM out frame by frame, so that the graph would take clips of one length only. Here a
layer is an operation of its own, with its weights in the order of gates that ONNX has.

A saved `torch.export` program with such a layer needs `import hf_wav2vec_family.export` before it is loaded.

Shapes: B clips, T frames, D channels in, H channels out, G gates, L layers.
"""

import torch
from torch import Tensor, nn

# the order of ONNX, in PyTorch's numbers
GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN_TANH": (0,)}


def reorder(weights: Tensor, order: tuple[int, ...]) -> Tensor:
    """[G H, ...] with the gates in another order."""
    return weights.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1)


@torch.library.custom_op("hf_wav2vec_family::recurrent_layer", mutates_args=())
def recurrent_layer(
    frames: Tensor, hidden: Tensor, cell: Tensor, reads: Tensor, recurs: Tensor, biases: Tensor, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, with the state before it and after it.

    Args:
        frames: [B, T, D]. hidden, cell: [1, B, H]; only an LSTM looks at the cell.
        reads: [1, G H, D]. recurs: [1, G H, H]. biases: [1, 2 G H], those of both, one behind the other.
        mode: a key of `GATES`.

    Returns: context [B, T, H], hidden and cell [1, B, H].
    """
    order = GATES[mode]
    back = tuple(order.index(gate) for gate in range(len(order)))
    ours = [reorder(weights, back) for weights in (reads[0], recurs[0], *biases[0].chunk(2))]
    options = (ours, True, 1, 0.0, False, False, True)
    if mode == "LSTM":
        return torch.lstm(frames, (hidden, cell), *options)
    context, hidden = (torch.gru if mode == "GRU" else torch.rnn_tanh)(frames, hidden, *options)
    return context, hidden, cell.clone()


@recurrent_layer.register_fake
def _(frames, hidden, cell, reads, recurs, biases, mode):
    context = frames.new_empty(frames.shape[0], frames.shape[1], recurs.shape[-1])
    return context, torch.empty_like(hidden), torch.empty_like(cell)


class GraphRecurrence(nn.Module):
    """In place of an `nn.RNNBase` with `batch_first`, for a graph: the same numbers, no gradient."""

    def __init__(self, network: nn.RNNBase):
        super().__init__()
        self.mode, self.num_layers, self.hidden_size = network.mode, network.num_layers, network.hidden_size
        for i in range(network.num_layers):
            reads, recurs, *biases = (
                reorder(getattr(network, f"{name}_l{i}").detach(), GATES[self.mode])
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            self.register_buffer(f"reads_{i}", reads.unsqueeze(0))
            self.register_buffer(f"recurs_{i}", recurs.unsqueeze(0))
            self.register_buffer(f"biases_{i}", torch.cat(biases).unsqueeze(0))

    def forward(self, frames: Tensor, state: Tensor | tuple[Tensor, ...] | None = None):
        """[B, T, D] and the state before it -> c [B, T, H] and the state after it, as it was given: one or a tuple."""
        if state is None:
            state = (frames.new_zeros(self.num_layers, frames.shape[0], self.hidden_size),) * 2
        before = (state, state) if isinstance(state, Tensor) else (state[0], state[-1])
        hidden, cell = [], []
        for i in range(self.num_layers):
            one = slice(i, i + 1)
            weights = (getattr(self, f"{name}_{i}") for name in ("reads", "recurs", "biases"))
            frames, last, last_cell = recurrent_layer(frames, before[0][one], before[1][one], *weights, self.mode)
            hidden.append(last)
            cell.append(last_cell)
        after = (torch.cat(hidden), torch.cat(cell))[: 2 if self.mode == "LSTM" else 1]
        return frames, after[0] if isinstance(state, Tensor) else after


def replace_recurrence(model: nn.Module):
    """Puts a `GraphRecurrence` in place of every recurrent network in `model`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.RNNBase):
                setattr(parent, name, GraphRecurrence(child))
