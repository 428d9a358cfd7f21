"""Error rates for `evaluate` with confidence intervals, ABX of features, purity of codes.

wer.py, cer.py and per.py also load as scripts, each by itself: `evaluate.load("path/to/wer.py")`.
"""

try:
    import evaluate  # noqa: F401
    import jiwer  # noqa: F401
except ImportError as error:
    raise ImportError(f'{error}: metrics need pip install "hf-wav2vec-family[train]".') from error
