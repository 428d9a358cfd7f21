"""Small models of every architecture, as runs that are ready to go up."""

import json
from pathlib import Path

import torch
import transformers

import hf_wav2vec_family as family
from hf_wav2vec_family.phones import WSJ_GRAPHEMES
from model_cards.template import RECIPES, RecipeFile, card_of

CONVOLUTIONS = {"conv_dim": (8,) * 5, "context_dim": (8, 8), "context_kernel": (2, 3), "num_negatives": 5}
ENCODER = {"conv_dim": (8,) * 6, "conv_kernel": (10, 8, 4, 4, 4, 1), "conv_stride": (5, 4, 2, 2, 2, 1)}
CODES = {**CONVOLUTIONS, **ENCODER, "num_codevectors_per_group": 5}
ROBERTA = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
SMALL_WAV2LETTER = {"conv_dim": (8, 8), "conv_kernel": (5, 4), "vocab_size": 8, "pad_token_id": 6}
CONFIGURATIONS = {
    "cpc": ("CPC", {"conv_dim": (8,) * 5, "hidden_size": 8, "num_negatives": 5}),
    "wav2vec": ("Wav2Vec", CONVOLUTIONS),
    "vq-wav2vec": ("VQWav2Vec", CODES),
    "vq-wav2vec-kmeans": ("VQWav2Vec", {**CODES, "quantizer_type": "kmeans"}),
    "discrete-bert": ("DiscreteBert", {"vq_wav2vec_config": CODES, "roberta_config": ROBERTA}),
    "wav2letter": ("Wav2Letter", {**SMALL_WAV2LETTER, "conv_activation": "glu", "weight_norm": True}),
    "wav2letter-encoder": (
        "Wav2Letter",
        {**SMALL_WAV2LETTER, "front_end": "encoder", "encoder_config": {"model_type": "vq-wav2vec", **CODES}},
    ),
}
# with the replabels of wav2letter, which the others take for two more letters
LETTERS = [*WSJ_GRAPHEMES, "<pad>", "<unk>"]
SMALL_WAV2VEC2 = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 5,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "num_negatives": 5,
    "mask_time_length": 2,
}
# the recipe whose card a model gets
RECIPE_OF = {
    "cpc": "cpc/small_clean5",
    "wav2vec": "wav2vec/small_clean5",
    "vq-wav2vec": "vq_wav2vec/small_clean5",
    "discrete-bert": "discrete_bert/small_clean5",
    "wav2vec2": "wav2vec2/small_clean5_finetune",
    "wav2letter": "wav2letter/small_clean5",
}


def configuration_of(name: str, **fields):
    prefix, sizes = ("Wav2Vec2", SMALL_WAV2VEC2) if name == "wav2vec2" else CONFIGURATIONS[name]
    return prefix, getattr(family, f"{prefix}Config")(**{**sizes, **fields})


def save_processor(folder: Path, architecture: str):
    """Feature extractor and letters, with the replabels that ASG needs where it is wav2letter's."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate(LETTERS)}))
    kind = family.Wav2LetterCTCTokenizer if architecture == "wav2letter" else transformers.Wav2Vec2CTCTokenizer
    tokenizer = kind(str(vocabulary), bos_token=None, eos_token=None)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


def save_ctc_run(run: Path, name: str) -> Path:
    """A run of fine-tuning with random weights that hears many letters in noise; the folder of its model."""
    folder, blank = run / "model", LETTERS.index("<pad>")
    prefix, config = configuration_of(name, vocab_size=len(LETTERS), pad_token_id=blank)
    torch.manual_seed(0)
    model = getattr(family, f"{prefix}ForCTC")(config).eval()
    head = model.lm_head
    with torch.no_grad():
        weight_norm = getattr(head, "parametrizations", None)
        (weight_norm.weight.original0 if weight_norm else head.weight).mul_(100)
        # scores around 0, or the letter that random weights like best is all there is
        frames = model.encode(torch.rand(1, 16_000) - 0.5, None)[0]
        head.bias.sub_(head(frames).mean(dim=(0, 1)))
        if name != "wav2letter":
            head.bias[blank:] = -1000.0
    model.save_pretrained(folder)
    save_processor(folder, name)
    return folder


def write_card(run: Path, name: str, repo_id: str):
    """The card of the nearest recipe, said to be of noise."""
    recipe = RecipeFile(RECIPES / f"{RECIPE_OF[name]}.yaml")
    if recipe.stage != "CTC":
        # cards of fine-tuning are made for those that recipes fine-tune; a person writes the others
        text = card_of(recipe, repo_id=repo_id, training_data="noise", license="mit")
    else:
        text = card_of(recipe, repo_id=repo_id, run=run, training_data="noise", license="mit")
    (run / "model" / "README.md").write_text(text)
