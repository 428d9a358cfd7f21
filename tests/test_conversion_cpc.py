"""Conversion of CPC_audio checkpoints: what weights say is read from them, what they cannot say is asked for."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.__main__ import main
from hf_wav2vec_family.modeling_cpc import CPCForPreTraining, CPCModel

KERNELS = (10, 8, 4, 4, 4)
WIDTH, HIDDEN, STEPS = 8, 6, 2
OPTIONS = {
    "hiddenEncoder": WIDTH,
    "hiddenGar": HIDDEN,
    "nLevelsGRU": 1,
    "arMode": "GRU",
    "normMode": "layerNorm",
    "rnnMode": "linear",
    "nPredicts": STEPS,
    "negativeSamplingExt": 7,
    "cpc_mode": None,
    "encoder_type": "cpc",
    "speakerEmbedding": 0,
    "supervised": False,
    "dropout": False,
}
NORM_SHAPES = {"layerNorm": (1, WIDTH, 1), "batchNorm": (WIDTH,), "instanceNorm": (WIDTH,)}


def encoder_weights(*, norm: str = "layerNorm", network: str = "GRU", levels: int = 1) -> dict[str, torch.Tensor]:
    """Random weights under the names that CPC_audio saves."""
    torch.manual_seed(0)
    weights = {}
    for i, kernel in enumerate(KERNELS):
        weights[f"gEncoder.conv{i}.weight"] = torch.randn(WIDTH, 1 if i == 0 else WIDTH, kernel) / math.sqrt(kernel)
        weights[f"gEncoder.conv{i}.bias"] = torch.randn(WIDTH)
        if norm != "ID":
            weights |= {f"gEncoder.batchNorm{i}.{name}": torch.rand(NORM_SHAPES[norm]) for name in ("weight", "bias")}
        if norm == "batchNorm":
            weights |= {f"gEncoder.batchNorm{i}.running_{name}": torch.rand(WIDTH) for name in ("mean", "var")}
            weights[f"gEncoder.batchNorm{i}.num_batches_tracked"] = torch.tensor(3)
    recurrent = getattr(nn, network)(WIDTH, HIDDEN, levels)
    return weights | {f"gAR.baseNet.{name}": value.detach() for name, value in recurrent.named_parameters()}


def predictor_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        f"wPrediction.predictors.{step}.{name}": torch.randn(shape)
        for step in range(STEPS)
        for name, shape in shapes.items()
    }


LINEAR = {"weight": (WIDTH, HIDDEN)}
CONV = {"module.module.weight": (WIDTH, HIDDEN, 4), "module.module.bias": (WIDTH,)}


def write(folder: Path, encoder: dict, criterion: dict, options: dict | None = None) -> Path:
    if options is not None:
        (folder / "checkpoint_args.json").write_text(json.dumps(options))
    path = folder / "checkpoint_3.pt"
    torch.save({"gEncoder": encoder, "cpcCriterion": criterion, "optimizer": {"state": {}}, "best": encoder}, path)
    return path


def write_published(folder: Path, encoder: dict, **options) -> Path:
    path = folder / "60k_epoch4.pt"
    torch.save({"config": {**OPTIONS, "pathDB": "somewhere", **options}, "weights": encoder}, path)
    return path


@pytest.mark.parametrize("network", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize(
    ("norm", "expected"),
    [("ID", "none"), ("layerNorm", "channel"), ("batchNorm", "batch"), ("instanceNorm", "instance")],
)
def test_norm_network_and_levels_are_read_from_the_weights(tmp_path, norm, expected, network):
    path = write_published(
        tmp_path, encoder_weights(norm=norm, network=network, levels=2), normMode=norm, arMode=network, nLevelsGRU=2
    )
    converted = convert_checkpoint(path)
    config = converted.model.config
    assert type(converted.model) is CPCModel
    assert converted.kind == "cpc-audio"
    assert (config.feat_extract_norm, config.context_network) == (expected, network.lower())
    assert (config.num_hidden_layers, config.score) == (2, "mean")
    assert converted.feature_extractor.do_normalize is False
    assert converted.model(torch.randn(1, 4_000)).last_hidden_state.shape == (1, 25, HIDDEN)


def test_every_weight_goes_where_it_belongs(tmp_path):
    weights = encoder_weights()
    state = convert_checkpoint(write_published(tmp_path, weights)).model.state_dict()
    assert torch.equal(state["encoder.layers.3.conv.weight"], weights["gEncoder.conv3.weight"])
    assert torch.equal(state["encoder.layers.3.norm.bias"], weights["gEncoder.batchNorm3.bias"].flatten())
    assert torch.equal(state["context_network.weight_hh_l0"], weights["gAR.baseNet.weight_hh_l0"])


def test_convolutional_predictors_predict_as_the_formula_says(tmp_path):
    criterion = predictor_weights(CONV)
    options = {**OPTIONS, "rnnMode": "conv4", "dropout": True}
    model = convert_checkpoint(write(tmp_path, encoder_weights(), criterion, options)).model
    assert (model.config.predictor, model.config.predictor_kernel_size, model.config.predictor_dropout) == (
        "conv",
        4,
        0.5,
    )
    context = torch.randn(1, 9, HIDDEN)
    found = model.predictors(context)
    padded = nn.functional.pad(context.transpose(1, 2), (3, 0))
    for step in range(STEPS):
        name = f"wPrediction.predictors.{step}.module.module"
        expected = nn.functional.conv1d(padded, criterion[f"{name}.weight"], criterion[f"{name}.bias"])
        torch.testing.assert_close(found[:, :, step], (expected * math.sqrt(2 / (HIDDEN * 4))).transpose(1, 2))


def test_the_options_beside_a_training_checkpoint_are_read(tmp_path):
    options = {**OPTIONS, "cpc_mode": "reverse"}
    converted = convert_checkpoint(write(tmp_path, encoder_weights(), predictor_weights(LINEAR), options))
    assert type(converted.model) is CPCForPreTraining
    assert converted.kind == "cpc-audio-training"
    assert (converted.model.config.reversed_time, converted.model.config.num_negatives) == (True, 7)
    assert converted.model.config.num_prediction_steps == STEPS


def test_without_them_what_weights_cannot_say_is_assumed_aloud(tmp_path):
    path = write(tmp_path, encoder_weights(), predictor_weights(LINEAR))
    with pytest.warns(UserWarning, match="no checkpoint_args.json.*which way in time.*how many negatives"):
        config = convert_checkpoint(path).model.config
    assert (config.reversed_time, config.num_negatives, config.num_prediction_steps) == (False, 128, STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normMode": "batchNorm"}, "normMode is 'batchNorm', but the weights .* 'layerNorm'"),
        ({"arMode": "LSTM"}, "arMode is 'LSTM', but the weights .* 'GRU'"),
        ({"hiddenGar": 256}, "hiddenGar is 256, but the weights .* 6"),
        ({"nLevelsGRU": 4}, "nLevelsGRU is 4"),
        ({"nPredicts": 12}, "nPredicts is 12, but the weights .* 2"),
        ({"rnnMode": "transformer"}, "rnnMode is 'transformer', but the weights .* 'linear'"),
        ({"cpc_mode": "none"}, "cpc_mode is 'none', which is not supported"),
        ({"encoder_type": "mfcc"}, "encoder_type is 'mfcc'"),
        ({"speakerEmbedding": 8}, "speakerEmbedding is 8"),
        ({"negativeSamplingExt": 0}, "num_negatives must be at least 1"),
        ({"negativeSamplingExt": "many"}, "num_negatives"),
    ],
)
def test_options_that_contradict_or_cannot_be_converted_are_named(tmp_path, options, message):
    path = write(tmp_path, encoder_weights(), predictor_weights(LINEAR), {**OPTIONS, **options})
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_options_file_that_holds_no_options_is_named(tmp_path, text):
    path = write(tmp_path, encoder_weights(), predictor_weights(LINEAR))
    (tmp_path / "checkpoint_args.json").write_text(text)
    with pytest.raises(ValueError, match=r"checkpoint_args\.json"):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("gEncoder.conv2.weight", "lacks weights of the model: gEncoder.conv2.weight"),
        ("gEncoder.conv2.bias", "lacks weights of the model: gEncoder.conv2.bias"),
        ("gAR.baseNet.weight_hh_l0", "lacks weights of the model: gAR.baseNet.weight_hh_l0"),
        ("gAR.baseNet.bias_hh_l0", "lacks weights of the model: gAR.baseNet.bias_hh_l0"),
    ],
)
def test_a_missing_weight_is_named(tmp_path, lost, message):
    weights = encoder_weights()
    del weights[lost]
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write_published(tmp_path, weights))


def test_an_unknown_weight_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"not of the model: gEncoder\.lfb\.weight"):
        convert_checkpoint(write_published(tmp_path, encoder_weights() | {"gEncoder.lfb.weight": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("name", "shape"), [("gAR.baseNet.weight_ih_l0", (2 * HIDDEN, WIDTH)), ("gEncoder.conv3.bias", (WIDTH + 1,))]
)
def test_a_shape_that_fits_nothing_is_named(tmp_path, name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape \({shape[0]}"):
        convert_checkpoint(write_published(tmp_path, encoder_weights() | {name: torch.zeros(shape)}))


def test_predictors_of_another_kind_are_refused(tmp_path):
    criterion = predictor_weights({"weight_ih_l0": (4 * WIDTH, HIDDEN)})
    with pytest.raises(ValueError, match="no kind that can be converted"):
        convert_checkpoint(write(tmp_path, encoder_weights(), criterion, OPTIONS))


def test_predictors_that_differ_in_shape_are_refused(tmp_path):
    criterion = predictor_weights(LINEAR)
    criterion["wPrediction.predictors.1.weight"] = torch.zeros(WIDTH, HIDDEN + 1)
    with pytest.raises(ValueError, match=r"predictors\.0\.weight has shape \(8, 6\)"):
        convert_checkpoint(write(tmp_path, encoder_weights(), criterion, OPTIONS))


def test_a_dictionary_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match=r"dictionary is dict\.txt"):
        convert_checkpoint(write_published(tmp_path, encoder_weights()), dictionary="dict.txt")


def test_the_command_writes_a_folder_that_loads(tmp_path, capsys):
    path = write(tmp_path, encoder_weights(), predictor_weights(LINEAR), OPTIONS)
    assert main([str(path), str(tmp_path / "converted")]) == 0
    assert "cpc-audio-training" in capsys.readouterr().out
    assert type(CPCForPreTraining.from_pretrained(tmp_path / "converted")) is CPCForPreTraining
