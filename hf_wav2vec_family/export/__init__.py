"""Models as graphs that run without this package: ONNX for onnxruntime, programs of `torch.export`.

`python -m hf_wav2vec_family.export MODEL OUTPUT` does the same from a shell.

What does not export: losses and sampling, which are for training; the best path of ASG, of which the graph has
emissions and `export.json` the transitions; language models and beam search. A Discrete BERT takes no more than
`max_samples` at once, since it reads longer clips piece by piece; cut them before.
"""

from .graphs import Graph, graph_of
from .writing import Exported, export_model

__all__ = ["Exported", "Graph", "export_model", "graph_of"]
