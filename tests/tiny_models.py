"""Fields of models of which a recipe trains two steps in a moment, by architecture."""

TINY_MODEL = {
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "num_negatives": 5,
}
TINY_CPC = {
    "conv_dim": [16] * 5,
    "hidden_size": 16,
    "num_negatives": 5,
    "predictor_intermediate_size": 16,
    "predictor_attention_heads": 2,
}
TINY_WAV2VEC = {
    "conv_dim": [8] * 5,
    "conv_kernel": [10, 8, 4, 4, 4],
    "conv_stride": [5, 4, 2, 2, 2],
    "context_dim": [8, 8],
    "context_kernel": [2, 3],
    "num_negatives": 5,
}
TINY_MODELS = {
    "Wav2Vec2": TINY_MODEL,
    "CPC": TINY_CPC,
    "Wav2Vec": TINY_WAV2VEC,
    "VQWav2Vec": {**TINY_WAV2VEC, "num_codevectors_per_group": 4},
    "Wav2Letter": {"conv_dim": [8, 8], "conv_kernel": [5, 3]},
}
TINY_MODELS["DiscreteBert"] = {
    "vq_wav2vec_config": TINY_MODELS["VQWav2Vec"],
    "roberta_config": {
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        "vocab_size": 4 + 4**2 + 1,
    },
}
