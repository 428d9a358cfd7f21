"""The contrastive speech models, CPC to wav2vec 2.0, for Hugging Face Transformers."""

import transformers

from .configuration_cpc import CPCConfig
from .configuration_discrete_bert import DiscreteBertConfig
from .configuration_vq_wav2vec import VQWav2VecConfig
from .configuration_wav2letter import Wav2LetterConfig
from .configuration_wav2vec import Wav2VecConfig
from .configuration_wav2vec2 import Wav2Vec2Config
from .modeling_cpc import (
    CPCForAudioFrameClassification,
    CPCForCTC,
    CPCForPreTraining,
    CPCForSequenceClassification,
    CPCModel,
)
from .modeling_discrete_bert import (
    DiscreteBertForAudioFrameClassification,
    DiscreteBertForCTC,
    DiscreteBertForSequenceClassification,
    DiscreteBertModel,
)
from .modeling_vq_wav2vec import (
    VQWav2VecForAudioFrameClassification,
    VQWav2VecForCTC,
    VQWav2VecForPreTraining,
    VQWav2VecForSequenceClassification,
    VQWav2VecModel,
)
from .modeling_wav2letter import Wav2LetterForCTC, Wav2LetterModel
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
from .tokenization_vq_wav2vec import SpeechCodesTokenizer
from .tokenization_wav2letter import Wav2LetterCTCTokenizer

__version__ = "0.1.0"

__all__ = [
    "CPCConfig",
    "CPCForAudioFrameClassification",
    "CPCForCTC",
    "CPCForPreTraining",
    "CPCForSequenceClassification",
    "CPCModel",
    "DiscreteBertConfig",
    "DiscreteBertForAudioFrameClassification",
    "DiscreteBertForCTC",
    "DiscreteBertForSequenceClassification",
    "DiscreteBertModel",
    "SpeechCodesTokenizer",
    "VQWav2VecConfig",
    "VQWav2VecForAudioFrameClassification",
    "VQWav2VecForCTC",
    "VQWav2VecForPreTraining",
    "VQWav2VecForSequenceClassification",
    "VQWav2VecModel",
    "Wav2LetterCTCTokenizer",
    "Wav2LetterConfig",
    "Wav2LetterForCTC",
    "Wav2LetterModel",
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

# wav2vec 2.0 is not among them: Transformers' own classes load our folders, and stay what the Auto classes find
_REGISTERED = ("CPC", "Wav2Vec", "VQWav2Vec", "DiscreteBert", "Wav2Letter")
_AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForPreTraining": "ForPreTraining",
    "AutoModelForCTC": "ForCTC",
    "AutoModelForAudioClassification": "ForSequenceClassification",
    "AutoModelForAudioFrameClassification": "ForAudioFrameClassification",
}

for _architecture in _REGISTERED:
    _config = globals()[f"{_architecture}Config"]
    transformers.AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto_class, _suffix in _AUTO_CLASSES.items():
        # Discrete BERT has no objective of its own: its RoBERTa is trained as a masked language model; wav2letter has
        # no other task than text
        if _architecture + _suffix in __all__:
            getattr(transformers, _auto_class).register(_config, globals()[_architecture + _suffix], exist_ok=True)

transformers.AutoTokenizer.register(VQWav2VecConfig, SpeechCodesTokenizer, exist_ok=True)
transformers.AutoTokenizer.register(Wav2LetterConfig, Wav2LetterCTCTokenizer, exist_ok=True)
