"""Whether what was written gives the model's answers, over clips of other sizes than it was made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..conv import valid_frames
from .graphs import Graph


@dataclass
class Comparison:
    """`difference` and `code_agreement` of `Exported`."""

    difference: float
    code_agreement: float | None


def answers_of_onnx(path: Path) -> Callable[[Graph], list[np.ndarray]]:
    """What onnxruntime answers to the inputs of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    return lambda graph: session.run(None, {n: value.numpy() for n, value in graph.inputs.items() if n in taken})


def answers_of_program(path: Path) -> Callable[[Graph], list[np.ndarray]]:
    """What a saved program of `torch.export` answers to the inputs of a graph."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def answer(graph: Graph) -> list[np.ndarray]:
        return [value.numpy() for value in module(*graph.arguments)]

    return answer


def compare(graph: Graph, answer: Callable[[Graph], list[np.ndarray]]) -> Comparison:
    """What `answer` says to clips of other sizes than the graph was made of, and what the model does.

    Raises RuntimeError where the two are not of one shape.
    """
    compared = Comparison(0.0, None)
    for inputs in other_inputs(graph):
        other = replace(graph, inputs=inputs)
        with torch.no_grad():
            expected = graph.module(*other.arguments)
        frames = expected[-1] if graph.outputs[-1] == "num_frames" else None
        for name, ours, theirs in zip(graph.outputs, expected, answer(other), strict=True):
            ours = ours.numpy()
            if ours.shape != theirs.shape:
                raise RuntimeError(f"{name} is {theirs.shape}, the model's {ours.shape}.")
            if frames is not None and ours.ndim == 3:
                # what stands at frames of padding means nothing
                kept = valid_frames(frames, ours.shape[1]).numpy()
                ours, theirs = ours[kept], theirs[kept]
            if name == "codes":
                share = float((ours == theirs).mean())
                compared.code_agreement = min(
                    share, 1.0 if compared.code_agreement is None else compared.code_agreement
                )
            elif ours.size:
                difference = float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
                compared.difference = max(compared.difference, difference)
    return compared


def other_inputs(graph: Graph) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of one clip and of three, of odd lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(1)
    samples = graph.inputs["input_values"].shape[1]
    for clips, total in ((1, samples - 137), (3, samples + 1001)):
        inputs = {}
        for name, example in graph.inputs.items():
            shape = [clips if d in graph.dynamic[name] and n == 2 else n for d, n in enumerate(example.shape)]
            inputs[name] = example.new_zeros(shape)
        inputs["input_values"] = 0.1 * torch.randn(clips, total, generator=generator)
        if "attention_mask" in inputs:
            lengths = torch.tensor([total, samples - 500, samples - 1111])[:clips]
            inputs["attention_mask"] = (torch.arange(total) < lengths[:, None]).long()
        yield inputs
