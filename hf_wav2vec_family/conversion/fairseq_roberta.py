"""RoBERTa on the codes of vq-wav2vec: checkpoints of fairseq to `RobertaForMaskedLM` and to `DiscreteBertModel`."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, RobertaConfig, RobertaForMaskedLM, Wav2Vec2FeatureExtractor

from hf_wav2vec_family.configuration_discrete_bert import ORIGINAL_ROBERTA
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint
from hf_wav2vec_family.conversion.fairseq_file import FairseqCheckpoint, Options, fill, is_fairseq
from hf_wav2vec_family.modeling_discrete_bert import DiscreteBertModel
from hf_wav2vec_family.modeling_vq_wav2vec import VQWav2VecModel
from hf_wav2vec_family.tokenization_vq_wav2vec import SpeechCodesTokenizer

ROBERTA = "roberta-masked-lm"
DISCRETE_BERT = "discrete-bert"

# roberta_base; the numbers of rows, layers and channels are read from the weights
DEFAULTS = {
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new"}
# What Transformers' RoBERTa has no counterpart of, with the only value that can be converted.
REQUIRED = {"encoder_normalize_before": False, "no_token_positional_embeddings": False}
# Forms of dropout that no answer of the trained model depends on.
USUAL_DROPOUT = {"activation_dropout": 0.0, "encoder_layerdrop": 0.0}

# In September 2019 the encoder was called a decoder, its first norm had another name, and queries, keys and values one
# matrix.
OLD_PREFIX, PREFIX = "decoder.", "encoder."
ENCODER = PREFIX + "sentence_encoder."
OLD_NORM, NORM = ENCODER + "emb_layer_norm.", ENCODER + "layernorm_embedding."
PACKED = re.compile(r"(.+\.self_attn\.)in_proj_(weight|bias)")

# Weight names of Transformers and where their values are in the file, in fairseq's words of today.
EMBEDDINGS = r"roberta\.embeddings\."
LAYER, FAIRSEQ_LAYER = r"roberta\.encoder\.layer\.(\d+)\.", ENCODER + r"layers.\1."
TOKEN_TYPES = ENCODER + "token_type_embeddings"  # not in fairseq
RENAMINGS = [
    (EMBEDDINGS + r"word_embeddings\.weight", ENCODER + "embed_tokens.weight"),
    (EMBEDDINGS + r"position_embeddings\.weight", ENCODER + "embed_positions.weight"),
    (EMBEDDINGS + r"token_type_embeddings\.weight", TOKEN_TYPES),
    (EMBEDDINGS + r"LayerNorm\.(\w+)", NORM + r"\1"),
    (LAYER + r"attention\.self\.query\.(\w+)", FAIRSEQ_LAYER + r"self_attn.q_proj.\2"),
    (LAYER + r"attention\.self\.key\.(\w+)", FAIRSEQ_LAYER + r"self_attn.k_proj.\2"),
    (LAYER + r"attention\.self\.value\.(\w+)", FAIRSEQ_LAYER + r"self_attn.v_proj.\2"),
    (LAYER + r"attention\.output\.dense\.(\w+)", FAIRSEQ_LAYER + r"self_attn.out_proj.\2"),
    (LAYER + r"attention\.output\.LayerNorm\.(\w+)", FAIRSEQ_LAYER + r"self_attn_layer_norm.\2"),
    (LAYER + r"intermediate\.dense\.(\w+)", FAIRSEQ_LAYER + r"fc1.\2"),
    (LAYER + r"output\.dense\.(\w+)", FAIRSEQ_LAYER + r"fc2.\2"),
    (LAYER + r"output\.LayerNorm\.(\w+)", FAIRSEQ_LAYER + r"final_layer_norm.\2"),
    (r"lm_head\.(?:decoder\.)?(bias|weight)", PREFIX + r"lm_head.\1"),
    (r"lm_head\.(dense|layer_norm)\.(\w+)", PREFIX + r"lm_head.\1.\2"),
]


def is_roberta(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a RoBERTa of fairseq, of either layout."""
    endings = tuple(f"{prefix}sentence_encoder.embed_tokens.weight" for prefix in (OLD_PREFIX, PREFIX))
    return is_fairseq(checkpoint) and any(name in checkpoint["model"] for name in endings)


def convert_roberta(checkpoint: dict[str, Any], dictionary: str | Path | None) -> ConvertedCheckpoint:
    """Contents of a file to `RobertaForMaskedLM` and `dict.txt` to its tokenizer; errors as `convert_checkpoint`."""
    file = FairseqCheckpoint.from_file(checkpoint)
    weights = in_todays_layout(file.weights)
    config = roberta_config(Options(file.options.model, DEFAULTS), weights)
    tokenizer = None if dictionary is None else codes_tokenizer(dictionary, config)
    weights[TOKEN_TYPES] = torch.zeros(1, config.hidden_size)
    model = RobertaForMaskedLM(config)
    sources = {name: fairseq_name(name) for name in model.state_dict()}
    return ConvertedCheckpoint(fill(model, weights, sources), None, tokenizer, ROBERTA)


def with_vq_wav2vec(converted: ConvertedCheckpoint, folder: str | Path) -> ConvertedCheckpoint:
    """A converted RoBERTa with its tokenizer and the vq-wav2vec in `folder`, whose codes it reads, as one model.

    Raises:
        ValueError: Something else was converted, or without its dictionary; the folder has another model, or one
            whose codes are not those of the dictionary.
        OSError: The folder or a file in it cannot be opened.
    """
    if converted.kind != ROBERTA:
        raise ValueError(f"vq_wav2vec is {folder}, but the checkpoint is of the kind {converted.kind}, not {ROBERTA}.")
    if converted.tokenizer is None:
        raise ValueError(f"vq_wav2vec is {folder}, but dictionary is None; the dict.txt tells which codes an id is.")
    found = AutoConfig.from_pretrained(folder).model_type
    if found != VQWav2VecModel.config_class.model_type:
        raise ValueError(f"vq_wav2vec must be a folder of {VQWav2VecModel.config_class.model_type}, got {found!r}.")
    vq_wav2vec = VQWav2VecModel.from_pretrained(folder)
    model = DiscreteBertModel.from_parts(vq_wav2vec, converted.model, converted.tokenizer)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    return ConvertedCheckpoint(model, extractor, converted.tokenizer, DISCRETE_BERT)


def roberta_config(options: Options, weights: dict[str, torch.Tensor]) -> RobertaConfig:
    """Configuration of a RoBERTa; sizes are those of its `weights`, whose names are today's.

    Raises:
        ValueError: An option is malformed or asks for something the model cannot do, or there are no layers.
    """
    options.require(REQUIRED)
    if unusual := options.differing(USUAL_DROPOUT):
        found = ", ".join(f"{name}={value!r}" for name, value in unusual.items())
        warnings.warn(
            f"The checkpoint was trained with {found}; further training of the converted model has none of it.",
            stacklevel=2,
        )
    names = ("embed_tokens.weight", "embed_positions.weight", "layers.0.fc1.weight")
    if missing := [ENCODER + name for name in names if ENCODER + name not in weights]:
        raise ValueError(f"The checkpoint lacks weights of the model: {', '.join(missing)}.")
    tokens, positions, inner = (weights[ENCODER + name] for name in names)
    layers = {match[1] for name in weights if (match := re.match(re.escape(ENCODER) + r"layers\.(\d+)\.", name))}
    return RobertaConfig(
        **ORIGINAL_ROBERTA
        | {
            "vocab_size": len(tokens),
            "hidden_size": tokens.shape[1],
            "max_position_embeddings": len(positions),
            "num_hidden_layers": len(layers),
            "intermediate_size": len(inner),
            "num_attention_heads": options.integer("encoder_attention_heads"),
            "hidden_act": options.choice("activation_fn", ACTIVATIONS),
            "hidden_dropout_prob": options.number("dropout"),
            "attention_probs_dropout_prob": options.number("attention_dropout"),
        }
    )


def codes_tokenizer(dictionary: str | Path, config: RobertaConfig) -> SpeechCodesTokenizer:
    """Tokenizer of a `dict.txt`, whose ids are the rows of an embedding.

    Raises:
        ValueError: The dictionary has another number of symbols, or is not one of codes.
    """
    tokenizer = SpeechCodesTokenizer(str(dictionary))
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"The dictionary {dictionary} makes {tokenizer.vocab_size} symbols, fairseq's four and <mask> included,"
            f" but the embedding of the checkpoint has {config.vocab_size} rows."
        )
    return tokenizer


def in_todays_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of either layout under the names of today's, without its version number."""
    renamed = {}
    for name, weight in weights.items():
        if name.startswith(OLD_PREFIX):
            name = PREFIX + name.removeprefix(OLD_PREFIX)
        name = name.replace(OLD_NORM, NORM)
        if packed := PACKED.fullmatch(name):
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                renamed[f"{packed[1]}{part}_proj.{packed[2]}"] = rows
        elif name != ENCODER + "version":
            renamed[name] = weight
    output, tokens = renamed.get(PREFIX + "lm_head.weight"), renamed.get(ENCODER + "embed_tokens.weight")
    if output is not None and tokens is not None and not torch.equal(output, tokens):
        raise ValueError(
            "The output layer of the checkpoint is not its embedding; only tied weights can be converted."
        )
    return renamed


def fairseq_name(name: str) -> str:
    """What fairseq calls the weight that is `name` here."""
    for pattern, replacement in RENAMINGS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise AssertionError(f"no fairseq name is known for {name}")
