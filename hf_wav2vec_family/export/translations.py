"""How ONNX says what PyTorch's exporter has no words for."""

import torch
from onnxscript import opset18 as op

from .recurrence import recurrent_layer


def search_sorted(ascending, values, **_):
    """`torch.searchsorted` by bisection: as many steps as the length of `ascending` [N] has bits.

    Values of any shape -> int64 of that shape, how many of `ascending` are smaller.
    """
    total = int(ascending.shape[0])
    found = op.Mul(values, op.Constant(value_int=0))
    for bit in reversed(range(total.bit_length())):
        further = op.Add(found, op.Constant(value_int=1 << bit))
        last = op.Sub(op.Min(further, op.Constant(value_int=total)), op.Constant(value_int=1))
        smaller = op.Less(op.Gather(ascending, last), values)
        inside = op.LessOrEqual(further, op.Constant(value_int=total))
        found = op.Where(op.And(smaller, inside), further, found)
    return found


def recur(frames, hidden, cell, reads, recurs, biases, mode: str):
    """`recurrent_layer` as ONNX's GRU, LSTM or RNN, which want time before clips."""
    size, over_time = int(recurs.shape[-1]), op.Transpose(frames, perm=[1, 0, 2])
    if mode == "LSTM":
        context, hidden, cell = op.LSTM(over_time, reads, recurs, biases, None, hidden, cell, hidden_size=size)
    elif mode == "GRU":
        context, hidden = op.GRU(
            over_time, reads, recurs, biases, None, hidden, hidden_size=size, linear_before_reset=1
        )
    else:
        context, hidden = op.RNN(over_time, reads, recurs, biases, None, hidden, hidden_size=size)
    one_direction = op.Squeeze(context, op.Constant(value_ints=[1]))
    return op.Transpose(one_direction, perm=[1, 0, 2]), hidden, op.Identity(cell)


TRANSLATIONS = {
    torch.ops.aten.searchsorted.Tensor: search_sorted,
    recurrent_layer._opoverload: recur,
}
