"""Models as small as their architecture allows, for graphs: fewer layers are sooner written."""

import torch
from publications import LETTERS, SMALL_WAV2LETTER, SMALL_WAV2VEC2
from transformers import PreTrainedModel

import hf_wav2vec_family as family

CONVOLUTIONS = {"conv_dim": (8, 8), "conv_kernel": (40, 8), "conv_stride": (20, 8)}
CPC = {**CONVOLUTIONS, "conv_padding": (10, 2), "hidden_size": 6, "num_negatives": 5}
MODIFIED = {"context_network": "lstm", "num_hidden_layers": 2, "feat_extract_norm": "channel"}
CONTEXT = {**CONVOLUTIONS, "context_dim": (8, 8), "context_kernel": (2, 3), "num_negatives": 5}
CODES = {**CONTEXT, "num_codevectors_per_group": 5}
ROBERTA = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GRU = {"context_type": "gru", "context_dim": (9,), "context_kernel": ()}
MODELS = {
    "cpc": ("CPC", CPC),
    "cpc-modified": (
        "CPC",
        {**CPC, "context_network": "lstm", "num_hidden_layers": 2, "feat_extract_norm": "channel"},
    ),
    "cpc-reversed": ("CPC", {**CPC, "context_network": "rnn", "reversed_time": True}),
    "wav2vec": ("Wav2Vec", CONTEXT),
    "wav2vec-large": ("Wav2Vec", {**CONTEXT, "context_skip_connections": True, "log_compression": True}),
    "wav2vec-causal": ("Wav2Vec", {**CONTEXT, "conv_norm": "layer"}),
    "wav2vec-recurrent": ("Wav2Vec", {**CONTEXT, **GRU, "conv_norm": "layer"}),
    "vq-wav2vec": ("VQWav2Vec", CODES),
    "vq-wav2vec-kmeans": ("VQWav2Vec", {**CODES, "quantizer_type": "kmeans"}),
    "vq-wav2vec-causal": ("VQWav2Vec", {**CODES, "conv_norm": "layer", "context_padding": "zero"}),
    "discrete-bert": ("DiscreteBert", {"vq_wav2vec_config": CODES, "roberta_config": ROBERTA}),
    "wav2vec2-group": ("Wav2Vec2", SMALL_WAV2VEC2),
    "wav2vec2-layer": ("Wav2Vec2", {**SMALL_WAV2VEC2, "feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "wav2letter": ("Wav2Letter", {**SMALL_WAV2LETTER, "criterion": "ctc"}),
    "wav2letter-mfcc": ("Wav2Letter", {**SMALL_WAV2LETTER, "criterion": "asg", "front_end": "mfcc"}),
    "wav2letter-wav2vec": (
        "Wav2Letter",
        {**SMALL_WAV2LETTER, "front_end": "encoder", "encoder_config": {"model_type": "wav2vec", **CONTEXT}},
    ),
}


def model_of(name: str, head: str = "ForCTC") -> PreTrainedModel:
    """With weights that make every frame another letter, or at least many."""
    prefix, sizes = MODELS[name]
    blank = LETTERS.index("<pad>")
    config = getattr(family, f"{prefix}Config")(**{**sizes, "vocab_size": len(LETTERS), "pad_token_id": blank})
    torch.manual_seed(0)
    model = getattr(family, prefix + head)(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "codevectors" in parameter_name or "lm_head" in parameter_name:
                parameter.normal_()
    return model
