"""Conversion of wav2vec and vq-wav2vec: eras, defaults, kinds of quantizer, and what is refused."""

import argparse
from pathlib import Path

import pytest
import torch

from hf_wav2vec_family import VQWav2VecForPreTraining, Wav2VecForPreTraining
from hf_wav2vec_family.conversion import __main__ as command
from hf_wav2vec_family.conversion import convert_checkpoint

WIDTH, STEPS, ENTRIES = 6, 3, 4
OPTIONS = {
    "conv_feature_layers": f"[({WIDTH}, 10, 5)] + [({WIDTH}, 4, 2)]",
    "conv_aggregator_layers": f"[({WIDTH}, 2, 1), ({WIDTH}, 3, 1)]",
    "prediction_steps": STEPS,
    "skip_connections_agg": True,
    "offset": "auto",
}
VQ_OPTIONS = {"vq_vars": ENTRIES, "vq_groups": 2, "vq_depth": 2, "activation": "gelu", "vq_temp": "(1.5,0.5,0.999995)"}
QUANTIZERS = {
    "gumbel": {
        "vars": (1, 2 * ENTRIES, WIDTH // 2),
        "weight_proj.0.0.weight": (2 * WIDTH, WIDTH),
        "weight_proj.0.0.bias": (2 * WIDTH,),
        "weight_proj.1.weight": (2 * ENTRIES, 2 * WIDTH),
        "weight_proj.1.bias": (2 * ENTRIES,),
    },
    "kmeans": {
        "embedding": (ENTRIES, 2, WIDTH // 2),
        "projection.0.weight": (WIDTH, WIDTH // 2, 1),
        "projection.1.weight": (WIDTH,),
        "projection.1.bias": (WIDTH,),
    },
}


def weights_of(kind: str = "none", *, shared: bool = False) -> dict[str, torch.Tensor]:
    """Half-precision weights under fairseq's names."""
    shapes = {
        "feature_extractor.conv_layers.0.0.weight": (WIDTH, 1, 10),
        "feature_extractor.conv_layers.1.0.weight": (WIDTH, WIDTH, 4),
        "wav2vec_predictions.project_to_steps.weight": (WIDTH, WIDTH, 1, STEPS),
        "wav2vec_predictions.project_to_steps.bias": (WIDTH,),
    }
    for i, kernel_size in enumerate((2, 3)):
        shapes[f"feature_aggregator.conv_layers.{i}.1.weight"] = (WIDTH, WIDTH, kernel_size)
        shapes[f"feature_aggregator.conv_layers.{i}.1.bias"] = (WIDTH,)
        for part in ("weight", "bias"):
            shapes[f"feature_extractor.conv_layers.{i}.2.{part}"] = (WIDTH,)
            shapes[f"feature_aggregator.conv_layers.{i}.3.{part}"] = (WIDTH,)
    shapes |= {f"vector_quantizer.{name}": shape for name, shape in QUANTIZERS.get(kind, {}).items()}
    if shared:
        shapes |= {"vector_quantizer.vars": (1, ENTRIES, WIDTH // 2)} if kind == "gumbel" else {}
        shapes |= {"vector_quantizer.embedding": (ENTRIES, 1, WIDTH // 2)} if kind == "kmeans" else {}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def write(path: Path, weights: dict, options: dict, *, hydra: bool = False, criterion: dict | None = None) -> Path:
    if hydra:
        cfg = {"model": options, "task": {"sample_rate": 16000}, "criterion": criterion or {}}
        torch.save({"args": None, "cfg": cfg, "model": weights}, path)
    else:
        args = argparse.Namespace(**options, **(criterion or {}))
        torch.save({"args": args, "model": weights}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("hydra", [False, True])
def test_a_wav2vec_file_of_either_era_converts(path, hydra):
    weights = weights_of()
    converted = convert_checkpoint(write(path, weights, OPTIONS, hydra=hydra))
    assert converted.kind == "wav2vec-pretraining"
    assert type(converted.model) is Wav2VecForPreTraining
    assert not converted.model.training
    assert converted.feature_extractor.do_normalize is False
    assert converted.tokenizer is None
    predictor = converted.model.prediction.predictor
    for k in range(STEPS):
        transposed = weights["wav2vec_predictions.project_to_steps.weight"][:, :, 0, k].float()
        assert torch.equal(predictor.weight[k], transposed.T)
    assert predictor.weight.dtype == torch.float32
    layer = converted.model.wav2vec.context_network.conv_layers[1]
    assert torch.equal(layer.conv.weight, weights["feature_aggregator.conv_layers.1.1.weight"].float())
    assert converted.model.config.first_predicted_frame == 3  # 25 samples of one frame, 10 of its hop


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_vq_wav2vec_file_converts_with_shared_and_separate_codebooks(path, kind, shared):
    weights = weights_of(kind, shared=shared)
    options = OPTIONS | VQ_OPTIONS | {"vq_type": kind, "combine_groups": shared}
    converted = convert_checkpoint(write(path, weights, options, criterion={"loss_weights": "[0.3]"}))
    assert converted.kind == "vq-wav2vec-pretraining"
    assert type(converted.model) is VQWav2VecForPreTraining
    config, quantizer = converted.model.config, converted.model.vq_wav2vec.quantizer
    assert (config.quantizer_type, config.share_codevectors) == (kind, shared)
    assert (config.hidden_act, config.gumbel_temperature) == ("gelu", 1.5)
    if kind == "kmeans":
        assert (config.quantizer_loss_weight, config.diversity_loss_weight) == (0.3, 0.0)
        expected = weights["vector_quantizer.embedding"].float()
        for group in range(1 if shared else 2):
            assert torch.equal(quantizer.codevectors[group], expected[:, group])
    else:
        assert config.diversity_loss_weight == 0.3
        assert torch.equal(quantizer.codevectors, weights["vector_quantizer.vars"].float())


def test_an_option_that_a_file_lacks_has_the_default_of_its_time(path):
    layers = {name: OPTIONS[name] for name in ("conv_feature_layers", "conv_aggregator_layers", "prediction_steps")}
    old = convert_checkpoint(write(path, weights_of(), layers)).model.config
    assert (old.log_compression, old.context_skip_connections, old.num_negatives) == (False, False, 1)
    new = convert_checkpoint(write(path, weights_of(), layers, hydra=True)).model.config
    assert (new.log_compression, new.context_skip_connections, new.num_negatives) == (True, True, 10)
    assert old.hidden_act == new.hidden_act == "relu"
    assert old.objective == new.objective == "binary_nce"


def test_a_bool_of_2019_counts_negatives_of_other_clips(path):
    options = OPTIONS | {"cross_sample_negatives": False, "infonce": True, "offset": "2"}
    config = convert_checkpoint(write(path, weights_of(), options)).model.config
    assert config.num_cross_sample_negatives == 0
    assert config.objective == "info_nce"
    assert config.first_predicted_frame == 2


def test_targets_through_the_aggregator_itself_are_stored_twice_and_read_once(path):
    weights = weights_of()
    doubled = {
        name.replace("feature_aggregator", "project_features"): w for name, w in weights.items() if "agg" in name
    }
    options = OPTIONS | {"project_features": "same"}
    model = convert_checkpoint(write(path, weights | doubled, options)).model
    assert model.config.project_features == "same"
    assert not any(name.startswith("project_features") for name in model.state_dict())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("aggregator", "gru", "aggregator='gru'"),
        ("sample_distance", 5, "sample_distance=5"),
        ("activation", "tanh", "activation"),
        ("conv_aggregator_layers", "[(6, 2, 2), (6, 3, 1)]", "conv_aggregator_layers has strides"),
        ("conv_aggregator_layers", "open('x')", "Option conv_aggregator_layers"),
        ("prediction_steps", "many", "prediction_steps"),
        ("residual_scale", "half", "residual_scale"),
    ],
)
def test_an_option_that_cannot_be_converted_is_named(path, option, value, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write(path, weights_of(), OPTIONS | {option: value}))


def test_two_loss_weights_are_refused(path):
    options = OPTIONS | VQ_OPTIONS | {"vq_type": "gumbel"}
    with pytest.raises(ValueError, match="loss_weights has 2 entries"):
        convert_checkpoint(write(path, weights_of("gumbel"), options, criterion={"loss_weights": [0.1, 10]}))


def test_missing_unknown_and_misshapen_weights_are_named(path):
    weights = weights_of()
    name = "feature_aggregator.conv_layers.1.3.bias"
    with pytest.raises(ValueError, match=f"lacks weights of the model: {name}"):
        convert_checkpoint(write(path, {n: w for n, w in weights.items() if n != name}, OPTIONS))
    with pytest.raises(ValueError, match=r"not of the model: classifier\.weight"):
        convert_checkpoint(write(path, weights | {"classifier.weight": torch.ones(2)}, OPTIONS))
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\).*\(6,\)"):
        convert_checkpoint(write(path, weights | {name: torch.ones(2)}, OPTIONS))
    with pytest.raises(ValueError, match="vq_type is 'none'"):
        convert_checkpoint(write(path, weights_of("kmeans"), OPTIONS))


def test_a_dictionary_is_refused_and_the_command_writes_a_folder(path, tmp_path, capsys):
    write(path, weights_of(), OPTIONS)
    with pytest.raises(ValueError, match="no output layer"):
        convert_checkpoint(path, dictionary=tmp_path / "dict.ltr.txt")
    assert command.main([str(path), str(tmp_path / "out")]) == 0
    assert "wav2vec-pretraining" in capsys.readouterr().out
    loaded = Wav2VecForPreTraining.from_pretrained(tmp_path / "out")
    for name, weight in convert_checkpoint(path).model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
