"""`python -m hf_wav2vec_family.export MODEL OUTPUT [--int8] [--stream] [--torch]`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hf_wav2vec_family.export import export_model


def main(arguments: list[str] | None = None) -> int:
    """Exports one model; returns the exit code: 0, or 2 with one line on stderr for what it can't export."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_wav2vec_family.export",
        description="A model as a graph for onnxruntime, compared with the model before it is said to be there.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or name on the Hub")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder to write")
    parser.add_argument("--int8", action="store_true", help="model.int8.onnx beside it, a quarter of the size or so")
    parser.add_argument("--stream", action="store_true", help="a stream piece by piece, its state in and out")
    parser.add_argument("--torch", action="store_true", help="model.pt2 beside it, a program of torch.export")
    options = parser.parse_args(arguments)
    try:
        exported = export_model(
            options.model, options.output, stream=options.stream, int8=options.int8, torch_program=options.torch
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    summary = asdict(exported)
    inputs, outputs = (summary["description"][name] for name in ("inputs", "outputs"))
    print(json.dumps({**summary, "description": {"inputs": inputs, "outputs": outputs}}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
