"""The contrastive speech models, CPC to wav2vec 2.0, for Hugging Face Transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
)

from .configuration_vq_wav2vec import VQWav2VecConfig
from .configuration_wav2vec import Wav2VecConfig
from .configuration_wav2vec2 import Wav2Vec2Config
from .modeling_vq_wav2vec import (
    VQWav2VecForAudioFrameClassification,
    VQWav2VecForCTC,
    VQWav2VecForPreTraining,
    VQWav2VecForSequenceClassification,
    VQWav2VecModel,
)
from .modeling_wav2vec import (
    Wav2VecForAudioFrameClassification,
    Wav2VecForCTC,
    Wav2VecForPreTraining,
    Wav2VecForSequenceClassification,
    Wav2VecModel,
)
from .modeling_wav2vec2 import (
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

__version__ = "0.1.0"

__all__ = [
    "VQWav2VecConfig",
    "VQWav2VecForAudioFrameClassification",
    "VQWav2VecForCTC",
    "VQWav2VecForPreTraining",
    "VQWav2VecForSequenceClassification",
    "VQWav2VecModel",
    "Wav2Vec2Config",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2Model",
    "Wav2VecConfig",
    "Wav2VecForAudioFrameClassification",
    "Wav2VecForCTC",
    "Wav2VecForPreTraining",
    "Wav2VecForSequenceClassification",
    "Wav2VecModel",
]


def _register(config, model, pretraining, ctc, sequence_classification, frame_classification):
    """Lets Transformers' Auto classes find an architecture by the `model_type` of its configuration."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForPreTraining.register(config, pretraining, exist_ok=True)
    AutoModelForCTC.register(config, ctc, exist_ok=True)
    AutoModelForAudioClassification.register(config, sequence_classification, exist_ok=True)
    AutoModelForAudioFrameClassification.register(config, frame_classification, exist_ok=True)


_register(
    Wav2VecConfig,
    Wav2VecModel,
    Wav2VecForPreTraining,
    Wav2VecForCTC,
    Wav2VecForSequenceClassification,
    Wav2VecForAudioFrameClassification,
)
_register(
    VQWav2VecConfig,
    VQWav2VecModel,
    VQWav2VecForPreTraining,
    VQWav2VecForCTC,
    VQWav2VecForSequenceClassification,
    VQWav2VecForAudioFrameClassification,
)
