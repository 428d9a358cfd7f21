"""A decoder beside its model: `decoder/` in the model's folder or repository. `decoder.json` has the weights and names
the n-gram model, the lexicon and the causal language model, which lie there too."""

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from .beam_search import BeamSearchDecoder, BeamSettings
from .emissions import transitions_of
from .lexicon import read_lexicon, write_lexicon
from .rescoring import CausalLanguageModel

logger = logging.getLogger(__name__)

FOLDER, DESCRIPTION = "decoder", "decoder.json"
LEXICON, CAUSAL_LM = "lexicon.txt", "causal_lm"


def save_decoder(decoder: BeamSearchDecoder, folder: str | Path, *, tuning: dict | None = None) -> None:
    """Write all that `load_decoder` needs but the tokenizer and the transitions, which the model has.

    Args:
        tuning: how the weights were found, for people; stored as it is.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {"settings": asdict(decoder.settings)}
    description["hot_words"] = [" ".join(phrase) for phrase in decoder.hot_words]
    if decoder.language_model is not None:
        description["language_model"] = decoder.language_model.name
        target = folder / decoder.language_model.name
        if not (target.exists() and os.path.samefile(target, decoder.language_model)):
            shutil.copyfile(decoder.language_model, target)
    if decoder.lexicon is not None:
        description["lexicon"] = LEXICON
        write_lexicon(decoder.lexicon, folder / LEXICON)
    if decoder.causal_lm is not None:
        description["causal_lm"] = {"path": CAUSAL_LM, "text_case": decoder.causal_lm.text_case}
        decoder.causal_lm.save_pretrained(folder / CAUSAL_LM)
    if tuning is not None:
        description["tuning"] = tuning
    # The file that says what is here comes last, or nothing is here.
    partial = folder / f"{DESCRIPTION}.partial"
    partial.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    partial.replace(folder / DESCRIPTION)


def load_decoder(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase, transitions: Tensor | None = None
) -> BeamSearchDecoder:
    """The decoder of a folder for the model that `tokenizer` and, with ASG, `transitions` belong to.

    Raises:
        ImportError: flashlight-text is not installed.
        ValueError: there is no decoder in `folder`.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder}: expected a decoder, which has a file {DESCRIPTION}.")
    description = json.loads((folder / DESCRIPTION).read_text())
    lexicon, language_model = description.get("lexicon"), description.get("language_model")
    causal_lm = description.get("causal_lm")
    return BeamSearchDecoder(
        tokenizer,
        BeamSettings(**description["settings"]),
        transitions=transitions,
        language_model=language_model and folder / language_model,
        lexicon=lexicon and read_lexicon(folder / lexicon),
        causal_lm=causal_lm
        and CausalLanguageModel.from_pretrained(folder / causal_lm["path"], text_case=causal_lm["text_case"]),
        hot_words=description["hot_words"],
    )


def find_decoder(model: PreTrainedModel) -> Path | None:
    """The decoder's folder beside where a model was loaded from, or None."""
    name, revision = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if not name:
        return None
    if Path(name).is_dir():
        folder = Path(name) / FOLDER
        return folder if (folder / DESCRIPTION).is_file() else None
    description = cached_file(
        name,
        f"{FOLDER}/{DESCRIPTION}",
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if description is None:
        return None
    return Path(snapshot_download(name, revision=revision, allow_patterns=f"{FOLDER}/*")) / FOLDER


def decoder_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    decoder: BeamSearchDecoder | str | Path | Literal[False] | None = None,
) -> BeamSearchDecoder | None:
    """What `decoder=` of the pipeline and of `training.evaluate` stands for; None is greedy.

    Args:
        decoder: one, the folder of one, False for none, or None for that beside the model, if there is one. Where
            flashlight-text is not installed that is greedy with a warning, and to ask for one an error.
    """
    if isinstance(decoder, BeamSearchDecoder):
        return decoder
    if decoder is False:
        return None
    folder = find_decoder(model) if decoder is None else decoder
    if folder is None:
        return None
    try:
        return load_decoder(folder, tokenizer, transitions_of(model))
    except ImportError as error:
        if decoder is not None:
            raise
        logger.warning("The decoder in %s is not used: %s.", folder, error)
        return None
