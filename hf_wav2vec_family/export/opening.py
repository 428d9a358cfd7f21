"""From a folder or a repository of the Hub to a model of this package and what lies beside it."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Wav2Vec2FeatureExtractor


def model_class(folder: str | Path, **hub: Any) -> type[PreTrainedModel]:
    """The class of this package that a folder or repository names as its architecture.

    Raises:
        ValueError: it names another one.
    """
    import hf_wav2vec_family

    name = (AutoConfig.from_pretrained(folder, **hub).architectures or ["no architecture"])[0]
    found = getattr(hf_wav2vec_family, name, None)
    if found is None:
        raise ValueError(f"{folder} holds {name}; accepted are {', '.join(hf_wav2vec_family.__all__)}.")
    return found


def tokenizer_of(folder: str | Path, **hub: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or repository, or None where there is none, as beside an encoder."""
    try:
        return AutoTokenizer.from_pretrained(folder, **hub)
    # the last where Transformers knows the tokenizer of an architecture, and opens the vocabulary that is not there
    except (OSError, ValueError, TypeError):
        return None


def feature_extractor_of(folder: str | Path, **hub: Any) -> Wav2Vec2FeatureExtractor:
    """The feature extractor of a folder or repository; where there is none, one that leaves the waveform as it is."""
    try:
        return Wav2Vec2FeatureExtractor.from_pretrained(folder, **hub)
    except OSError:
        return Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
