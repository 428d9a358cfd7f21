"""The contrastive speech models, CPC to wav2vec 2.0, for Hugging Face Transformers."""

import transformers

from .configuration_cpc import CPCConfig
from .configuration_wav2vec2 import Wav2Vec2Config
from .modeling_cpc import AUTO_CLASSES as CPC_AUTO_CLASSES
from .modeling_cpc import (
    CPCForAudioFrameClassification,
    CPCForCTC,
    CPCForPreTraining,
    CPCForSequenceClassification,
    CPCModel,
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
    "CPCConfig",
    "CPCForAudioFrameClassification",
    "CPCForCTC",
    "CPCForPreTraining",
    "CPCForSequenceClassification",
    "CPCModel",
    "Wav2Vec2Config",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForCTC",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2Model",
]

transformers.AutoConfig.register("cpc", CPCConfig, exist_ok=True)
for _auto_class, _model_class in CPC_AUTO_CLASSES.items():
    getattr(transformers, _auto_class).register(CPCConfig, _model_class, exist_ok=True)
