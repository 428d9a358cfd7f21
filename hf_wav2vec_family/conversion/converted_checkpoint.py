"""What every converter returns: a model of this package with what prepares its input and reads its output."""

from dataclasses import dataclass
from pathlib import Path

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizer,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A converted checkpoint.

    Attributes:
        model: In float32 and evaluation mode.
        feature_extractor: Prepares waveforms as the original training did; `None` for a model that reads codes.
        tokenizer: Of text for a CTC model, of codes for a model that reads them, where the dictionary was given; else
            `None`.
        kind: Which converter recognised the file.
    """

    model: PreTrainedModel
    feature_extractor: Wav2Vec2FeatureExtractor | None
    tokenizer: PreTrainedTokenizer | None
    kind: str

    @property
    def processor(self) -> Wav2Vec2Processor | None:
        """Feature extractor and tokenizer in one, or `None` without a tokenizer of text."""
        if not isinstance(self.tokenizer, Wav2Vec2CTCTokenizer):
            return None
        return Wav2Vec2Processor(feature_extractor=self.feature_extractor, tokenizer=self.tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads; raises `OSError` if `folder` cannot be a folder."""
        # Transformers only logs that the path is a file.
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        elif self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.feature_extractor is not None:
            # Beside processor_config.json, for readers that know only the older preprocessor_config.json.
            self.feature_extractor.save_pretrained(folder)
