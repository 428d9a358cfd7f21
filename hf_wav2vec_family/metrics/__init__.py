"""Metrics for `evaluate`. Each is one file that also loads as a script: `evaluate.load("path/to/wer.py")`."""
