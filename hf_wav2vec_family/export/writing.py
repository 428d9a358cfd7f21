"""A folder with the graph of a model, what is needed to use it, and the proof that it gives the model's answers."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.emissions import transitions_of
from ..frame_places import frame_centers_of, min_num_samples
from ..log_mel import LogMel
from .comparison import answers_of_onnx, answers_of_program, compare
from .graphs import Graph, graph_of
from .opening import feature_extractor_of, model_class, tokenizer_of

MODEL, QUANTIZED, PROGRAM, DESCRIPTION = "model.onnx", "model.int8.onnx", "model.pt2", "export.json"
# graph and model add up in another order; larger differences are a mistake
TOLERANCE = 1e-3
SAMPLING_RATE = 16_000


@dataclass
class Exported:
    """What was written.

    Args:
        files: bytes by name.
        difference: largest difference of any answer that is no code from the model's, relative to the largest value.
        code_agreement: share of the codes that are the same, None without codes.
        description: content of `export.json`.
    """

    files: dict[str, int]
    difference: float
    code_agreement: float | None
    description: dict[str, Any] = field(repr=False)


def export_model(
    source: str | Path,
    output: Path,
    *,
    stream: bool = False,
    int8: bool = False,
    torch_program: bool = False,
    **hub: Any,
) -> Exported:
    """Writes `model.onnx` and `export.json` of a folder or repository into the folder `output`.

    Args:
        stream: the graph takes a stream piece by piece, with its state.
        int8: `model.int8.onnx` beside it.
        torch_program: `model.pt2` beside it, a program of `torch.export`.
        hub: `revision`, `token` and the like.

    Raises:
        ValueError: no model of this package, or one that cannot stream.
        RuntimeError: the graph gives other answers than the model.
    """
    model = model_class(source, **hub).from_pretrained(source, **hub).float().eval()
    graph = graph_of(model, stream=stream)
    output.mkdir(parents=True, exist_ok=True)
    with quiet():
        program = graph.program()
        if torch_program:
            torch.export.save(program, output / PROGRAM)
        write_onnx(graph, program, output / MODEL)
    answers = {MODEL: answers_of_onnx(output / MODEL)}
    if torch_program:
        answers[PROGRAM] = answers_of_program(output / PROGRAM)
    found = {name: compare(graph, answer) for name, answer in answers.items()}
    for name, one in found.items():
        if one.difference > TOLERANCE:
            raise RuntimeError(
                f"{output / name} differs by {one.difference:.1e} from the model, accepted is {TOLERANCE}."
            )
    if int8:
        write_int8(output / MODEL, output / QUANTIZED)
    described = {**describe(model, graph), **symbols_of(model, source, **hub)}
    described["do_normalize"] = feature_extractor_of(source, **hub).do_normalize
    (output / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir()) if path.is_file()}
    worst = max(found.values(), key=lambda one: one.difference)
    return Exported(files, worst.difference, worst.code_agreement, described)


def write_onnx(graph: Graph, program: torch.export.ExportedProgram, path: Path):
    """The program as ONNX, with the names of the graph."""
    from .translations import TRANSLATIONS

    exported = torch.onnx.export(
        program,
        graph.arguments,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    for node in exported.model.graph:
        # names the folders of whoever exports
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    exported.save(path)


def write_int8(source: Path, target: Path):
    """Weights of products and recurrent layers in 8 bits, what they are multiplied with rounded as it comes.

    Convolutions stay as they are: onnxruntime multiplies them in integers without gain. The weights have no sign:
    products of signed ones overflow on x86 processors without VNNI, which changes scores by half of the largest.
    Spectra stay as they are too: of energies before their logarithm is taken, 8 bits leave the loudest alone.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(source, load_external_data=False).graph.node
    spectra = [
        node.name for node in nodes if any(f"{LogMel.__module__}." in entry.value for entry in node.metadata_props)
    ]
    with quiet():
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
            nodes_to_exclude=spectra,
        )


def describe(model: PreTrainedModel, graph: Graph) -> dict[str, Any]:
    """What a user of the graph has to know, as JSON."""
    centers = frame_centers_of(model, 2)
    times = {}
    if centers is not None:
        first, second = centers.tolist()
        times = {"first_seconds": first / SAMPLING_RATE, "hop_seconds": (second - first) / SAMPLING_RATE}
    transitions = transitions_of(model)
    return {
        "architecture": type(model).__name__,
        "sampling_rate": SAMPLING_RATE,
        "inputs": {name: str(value.dtype).removeprefix("torch.") for name, value in graph.inputs.items()},
        "outputs": list(graph.outputs),
        "state": graph.state,
        "min_samples": min_num_samples(model),
        "max_samples": max_samples(model),
        **times,
        "transitions": None if transitions is None else transitions.tolist(),
    }


def max_samples(model: PreTrainedModel) -> int | None:
    """The most samples that a graph takes at once: a Discrete BERT's first piece; None if there is no limit."""
    for part in model.modules():
        frames = getattr(getattr(part, "config", None), "max_frames", None)
        if frames is not None:
            return min_num_samples(part) + part.config.inputs_to_logits_ratio * frames - 1
    return None


def symbols_of(model: PreTrainedModel, source: str | Path, **hub: Any) -> dict[str, Any]:
    """Symbols by number, the blank and what stands between words, where the model writes text."""
    tokenizer = tokenizer_of(source, **hub) if type(model).__name__.endswith("ForCTC") else None
    if tokenizer is None:
        return {}
    symbols = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return {"symbols": symbols, "blank": tokenizer.pad_token_id, "word_delimiter": tokenizer.word_delimiter_token}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says about itself; errors are raised all the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
