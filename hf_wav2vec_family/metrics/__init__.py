"""Metrics for `evaluate`. Each is one file that also loads as a script: `evaluate.load("path/to/wer.py")`."""

try:
    import evaluate  # noqa: F401
    import jiwer  # noqa: F401
except ImportError as error:
    raise ImportError(f'{error}: metrics need pip install "hf-wav2vec-family[train]".') from error
