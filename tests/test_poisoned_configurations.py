"""A configuration from anywhere costs nothing but an error: sizes that nobody has and values that are none."""

import json
import resource
from pathlib import Path

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from publications import configuration_of

import hf_wav2vec_family as family
from hf_wav2vec_family.model_size import MAX_CHANNELS, MAX_LAYERS, at_most

ARCHITECTURES = ("cpc", "wav2vec", "vq-wav2vec", "discrete-bert", "wav2vec2", "wav2letter")
REFUSALS = (ValueError, StrictDataclassError)
MEBIBYTE = 2**20


def poisoned(folder: Path, name: str, poison: dict) -> Path:
    """The config.json of a small model with some of its fields, dotted where they are nested, set to another value."""
    _, config = configuration_of(name)
    fields = config.to_dict()
    for path, value in poison.items():
        *outer, last = path.split(".")
        inner = fields
        for part in outer:
            inner = inner[part]
        inner[last] = value
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


HUGE = {
    "cpc": [
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_prediction_steps": 10**9},
        {"conv_dim": [60_000] * 5},
        {"num_labels": 10**9},
        {"vocab_size": 10**12},
        {"predictor": "transformer", "conv_dim": [60_000] * 5, "hidden_size": 60_000},
    ],
    "wav2vec": [
        {"conv_dim": [10**9] * 6},
        {"context_dim": [60_000] * 2},
        {"conv_dim": [8] * 100_000, "conv_kernel": [1] * 100_000, "conv_stride": [1] * 100_000},
        {"num_labels": 10**9},
        {"num_negatives": 10**9},
    ],
    "vq-wav2vec": [
        {"num_codevectors_per_group": 10**9},
        {"num_codevector_groups": 10**9, "codevector_dim": 10**9},
        {"quantizer_factor": 10**9},
        {"quantizer_depth": 10**9},
    ],
    "discrete-bert": [
        {"roberta_config.hidden_size": 2 * 10**9},
        {"roberta_config.num_hidden_layers": 10**9},
        {"roberta_config.vocab_size": 10**9},
        {"roberta_config.max_position_embeddings": 10**9},
        {"vq_wav2vec_config.conv_dim": [10**9] * 6},
        {"vq_wav2vec_config.num_codevectors_per_group": 60_000, "roberta_config": None},
        {"num_labels": 10**9},
    ],
    "wav2vec2": [
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 60_000, "num_hidden_layers": 100},
        {"num_codevectors_per_group": 10**9},
        {"vocab_size": 10**12},
        {"num_labels": 10**9},
    ],
    "wav2letter": [
        {"conv_dim": [10**9] * 2},
        {"num_mel_bins": 10**9},
        {"vocab_size": 10**6, "pad_token_id": 10**6 - 2},
        {"num_labels": 10**9},
    ],
}
WRONG = [
    {"conv_dim": "many"},
    {"conv_kernel": [5, "x"]},
    {"vocab_size": "__import__('os').system('true')"},
    {"ctc_zero_infinity": "yes"},
    {"final_dropout": {}},
    {"initializer_range": None},
    {"num_labels": "10"},
]


@pytest.mark.parametrize(
    ("name", "poison"), [(name, poison) for name, poisons in HUGE.items() for poison in poisons], ids=str
)
def test_a_huge_size_is_refused_before_memory_is_taken(tmp_path, name, poison):
    folder = poisoned(tmp_path, name, poison)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(REFUSALS):
        getattr(family, f"{configuration_of(name)[0]}Config").from_pretrained(folder)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert taken < 100 * MEBIBYTE / 1024


@pytest.mark.parametrize("poison", WRONG, ids=str)
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "discrete-bert"])
def test_a_value_of_another_type_is_refused(tmp_path, name, poison):
    with pytest.raises(REFUSALS):
        getattr(family, f"{configuration_of(name)[0]}Config").from_pretrained(poisoned(tmp_path, name, poison))


def test_the_auto_class_refuses_it_too(tmp_path):
    with pytest.raises(REFUSALS, match="hidden_size"):
        transformers.AutoConfig.from_pretrained(poisoned(tmp_path, "cpc", {"hidden_size": 10**9}))


@pytest.mark.parametrize(
    "config",
    [
        family.CPCConfig.modified(),
        family.Wav2VecConfig.large(),
        family.VQWav2VecConfig.published(),
        family.VQWav2VecConfig.published("kmeans"),
        family.DiscreteBertConfig(),
        family.Wav2LetterConfig.gated(),
        family.Wav2Vec2Config(  # of the 2 billion weights of XLS-R
            hidden_size=1920, num_hidden_layers=48, intermediate_size=7680, num_attention_heads=16
        ),
    ],
    ids=lambda config: type(config).__name__,
)
def test_what_was_published_is_far_from_the_limits(config):
    assert config.inputs_to_logits_ratio in (160, 320)


def test_a_limit_names_the_field_and_both_numbers():
    at_most(MAX_LAYERS, num_hidden_layers=MAX_LAYERS, nothing=None, empty=[])
    with pytest.raises(ValueError, match=rf"conv_dim must be .* {MAX_CHANNELS}, got {MAX_CHANNELS + 1}"):
        at_most(MAX_CHANNELS, conv_dim=[8, MAX_CHANNELS + 1])
