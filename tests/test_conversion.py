"""Laws of hf_wav2vec_family.conversion: what is read, what is refused, what the written folder holds."""

import argparse
import builtins
import json
import os
import runpy
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hf_wav2vec_family import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining
from hf_wav2vec_family.conversion import __main__ as command
from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.fairseq_file import parse_conv_layers, read_dictionary

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "fairseq"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the original code's outputs are not at {GOLDEN}")

CONV, WIDTH, FFN, FINAL, CODEBOOK = 6, 16, 24, 8, 5
SYMBOLS = ["|", "E", "T", "'"]
PRETRAINING_OPTIONS = {
    "arch": "wav2vec2",
    "extractor_mode": "default",
    "conv_feature_layers": f"[({CONV}, 10, 5)] + [({CONV},3,2)] * 1",
    "encoder_layers": 1,
    "encoder_embed_dim": WIDTH,
    "encoder_ffn_embed_dim": FFN,
    "encoder_attention_heads": 2,
    "dropout_input": 0.3,
    "dropout_features": 0.2,
    "encoder_layerdrop": 0.05,
    "feature_grad_mult": 0.1,
    "quantize_targets": True,
    "final_dim": FINAL,
    "latent_vars": CODEBOOK,
    "latent_temp": "(1.5,0.5,0.999995)",
    "conv_pos": 4,
    "conv_pos_groups": 2,
    "mask_channel_prob": 0.0,
    "num_negatives": 7,
    "cross_sample_negatives": False,
}
CTC_OPTIONS = {
    "arch": "wav2vec_ctc",
    "apply_mask": True,
    "mask_prob": 0.4,
    "mask_channel_prob": 0.25,
    "mask_channel_length": 64,
    "layerdrop": 0.15,
    "activation_dropout": 0.12,
    "feature_grad_mult": 0.0,
    "final_dropout": 0.02,
}
ERAS = ["namespace", "hydra", "omegaconf"]
HARMFUL = {
    f"{os.system.__module__}.system": (os.system, "touch {marker}"),
    "builtins.eval": (builtins.eval, "__import__('pathlib').Path({marker!r}).touch()"),
    "builtins.exec": (builtins.exec, "__import__('pathlib').Path({marker!r}).touch()"),
    "torch.hub.load_state_dict_from_url": (torch.hub.load_state_dict_from_url, "file://{marker}"),
}


def encoder_weights() -> dict[str, torch.Tensor]:
    """Half-precision weights under fairseq's names, as its group norm model with one layer has them."""
    shapes = {
        "mask_emb": (WIDTH,),
        "feature_extractor.conv_layers.0.0.weight": (CONV, 1, 10),
        "feature_extractor.conv_layers.0.2.weight": (CONV,),
        "feature_extractor.conv_layers.0.2.bias": (CONV,),
        "feature_extractor.conv_layers.1.0.weight": (CONV, CONV, 3),
        "layer_norm.weight": (CONV,),
        "layer_norm.bias": (CONV,),
        "post_extract_proj.weight": (WIDTH, CONV),
        "post_extract_proj.bias": (WIDTH,),
        "encoder.pos_conv.0.bias": (WIDTH,),
        "encoder.pos_conv.0.weight_g": (1, 1, 4),
        "encoder.pos_conv.0.weight_v": (WIDTH, WIDTH // 2, 4),
        "encoder.layer_norm.weight": (WIDTH,),
        "encoder.layer_norm.bias": (WIDTH,),
        "encoder.layers.0.fc1.weight": (FFN, WIDTH),
        "encoder.layers.0.fc1.bias": (FFN,),
        "encoder.layers.0.fc2.weight": (WIDTH, FFN),
        "encoder.layers.0.fc2.bias": (WIDTH,),
    }
    for norm in ("self_attn_layer_norm", "final_layer_norm"):
        shapes |= {f"encoder.layers.0.{norm}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes[f"encoder.layers.0.self_attn.{projection}.weight"] = (WIDTH, WIDTH)
        shapes[f"encoder.layers.0.self_attn.{projection}.bias"] = (WIDTH,)
    return random_weights(shapes)


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def pretrained_weights() -> dict[str, torch.Tensor]:
    head = {
        "quantizer.vars": (1, 2 * CODEBOOK, FINAL // 2),
        "quantizer.weight_proj.weight": (2 * CODEBOOK, CONV),
        "quantizer.weight_proj.bias": (2 * CODEBOOK,),
        "project_q.weight": (FINAL, FINAL),
        "project_q.bias": (FINAL,),
        "final_proj.weight": (FINAL, WIDTH),
        "final_proj.bias": (FINAL,),
    }
    return encoder_weights() | random_weights(head)


def ctc_weights() -> dict[str, torch.Tensor]:
    vocab_size = 4 + len(SYMBOLS)
    head = {"w2v_encoder.proj.weight": (vocab_size, WIDTH), "w2v_encoder.proj.bias": (vocab_size,)}
    encoder = {f"w2v_encoder.w2v_model.{name}": weight for name, weight in encoder_weights().items()}
    return encoder | random_weights(head)


@pytest.fixture
def fairseq_meters(monkeypatch):
    """A module under fairseq's name, so that its contents are pickled under fairseq's names."""
    module = types.ModuleType("fairseq.meters")
    module.AverageMeter = type("AverageMeter", (), {"__module__": "fairseq.meters"})
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    return module


@pytest.fixture
def without_original_code(monkeypatch):
    """Called, makes every import of the original code fail from then on."""

    def block():
        for name in [n for n in sys.modules if n.split(".")[0] in ("fairseq", "omegaconf")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "fairseq", None)
        monkeypatch.setitem(sys.modules, "omegaconf", None)

    return block


def write_checkpoint(
    path: Path,
    weights: dict[str, torch.Tensor],
    model: dict,
    *,
    nested: dict | None = None,
    task: dict | None = None,
    criterion: dict | None = None,
    era: str = "hydra",
    extra_state: dict | None = None,
) -> Path:
    """A checkpoint with fairseq's entries: flat `args` in torch's old container, or a `cfg` tree in the new one."""
    task, criterion = task or {}, criterion or {}
    rest = {"model": weights, "extra_state": extra_state or {}, "last_optimizer_state": {"moment": torch.ones(3)}}
    if era == "namespace":
        extra = {} if nested is None else {"w2v_args": argparse.Namespace(**nested)}
        options = argparse.Namespace(**model, **task, **criterion, **extra)
        torch.save({"args": options} | rest, path, _use_new_zipfile_serialization=False)
        return path
    cfg = {"model": dict(model), "task": task, "criterion": criterion}
    if nested is not None:
        cfg["model"]["w2v_args"] = {"model": nested, "task": {}}
    if era == "omegaconf":
        cfg = pytest.importorskip("omegaconf").OmegaConf.create(cfg)
    torch.save({"args": None, "cfg": cfg} | rest, path)
    return path


def write_pretrained(path: Path, weights: dict | None = None, *, era: str = "hydra", drop=(), **options) -> Path:
    model = {name: value for name, value in (PRETRAINING_OPTIONS | options).items() if name not in drop}
    criterion = {"loss_weights": "[0.1, 10]" if era == "namespace" else [0.1, 10]}
    return write_checkpoint(
        path, pretrained_weights() if weights is None else weights, model, criterion=criterion, era=era
    )


def write_ctc(path: Path, weights: dict | None = None, *, era: str = "hydra", **options) -> Path:
    return write_checkpoint(
        path,
        ctc_weights() if weights is None else weights,
        CTC_OPTIONS | options,
        nested=PRETRAINING_OPTIONS | {"activation_dropout": 0.9, "mask_prob": 0.9},
        task={"normalize": True},
        criterion={"zero_infinity": True},
        era=era,
    )


@pytest.fixture
def dictionary(tmp_path):
    path = tmp_path / "dict.ltr.txt"
    path.write_text("".join(f"{symbol} {100 - i}\n" for i, symbol in enumerate(SYMBOLS)))
    return path


def test_a_layer_list_is_read_as_python_would():
    layers = parse_conv_layers("[(512, 10, 5)] + [(512, 3, 2)] * 4 + 2 * [(512,2,2)]")
    assert layers.dims == [512] * 7
    assert layers.kernel_sizes == [10, 3, 3, 3, 3, 2, 2]
    assert layers.strides == [5, 2, 2, 2, 2, 2, 2]


def test_a_layer_list_that_is_a_list_already_is_taken_as_it_is():
    assert parse_conv_layers([[8, 10, 5], (8, 3, 2)]).kernel_sizes == [10, 3]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "[(512, 10, 5) for _ in range(2)]",
        "[(512, 10, open('x'))]",
        "layers",
        "[(512, 10, 5)][0]",
        "[(512, 10, 5)] ** 2",
        "[(512, 10, -5)]",
        "[(512, 10)]",
        "[(512, 10, 5.0)]",
        "[(512, 10, True)]",
        "[(512, 10, 5)] * 10 ** 9",
        "[(512, 10, 5)] * 1000000000",
        "[[(512, 10, 5)] * 1000] * 1000",
        "[]",
        "512",
        "[(512, 10, 5)",
        "",
        None,
    ],
)
def test_a_layer_list_of_anything_but_integers_lists_tuples_plus_and_times_is_refused(expression):
    with pytest.raises(ValueError, match="conv_feature_layers"):
        parse_conv_layers(expression)


@pytest.mark.parametrize("era", ERAS)
def test_a_pretrained_file_of_every_era_converts_without_the_original_code(tmp_path, era, without_original_code):
    path = write_pretrained(tmp_path / "checkpoint.pt", era=era)
    without_original_code()
    converted = convert_checkpoint(path)
    config = converted.model.config

    assert converted.kind == "wav2vec2-pretraining"
    assert type(converted.model) is Wav2Vec2ForPreTraining
    assert not converted.model.training
    assert converted.tokenizer is None
    assert converted.processor is None
    assert converted.feature_extractor.do_normalize is False
    assert converted.feature_extractor.return_attention_mask is True
    assert (list(config.conv_kernel), list(config.conv_stride)) == ([10, 3], [5, 2])
    assert (config.feat_extract_norm, config.do_stable_layer_norm) == ("group", False)
    assert (config.codevector_dim, config.proj_codevector_dim) == (FINAL, FINAL)
    assert (config.feat_proj_dropout, config.feat_quantizer_dropout, config.layerdrop) == (0.3, 0.2, 0.05)
    assert (config.num_negatives, config.num_cross_sample_negatives) == (7, 0)
    assert (config.diversity_loss_weight, config.feature_penalty_weight) == (0.1, 10.0)
    assert (config.feature_gradient_scale, config.gumbel_temperature) == (0.1, 1.5)
    assert config.padding_invariant is True


@pytest.mark.parametrize("era", ERAS)
def test_a_fine_tuned_file_takes_shape_from_the_nested_options_and_regularization_from_its_own(tmp_path, era):
    converted = convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt", era=era))
    config = converted.model.config

    assert converted.kind == "wav2vec2-ctc"
    assert type(converted.model) is Wav2Vec2ForCTC
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (WIDTH, FFN, 4 + len(SYMBOLS))
    assert (config.mask_time_prob, config.mask_feature_prob, config.mask_feature_length) == (0.4, 0.25, 64)
    assert (config.layerdrop, config.activation_dropout, config.final_dropout) == (0.15, 0.12, 0.02)
    assert config.feature_gradient_scale == 0
    assert config.apply_spec_augment is True
    assert config.ctc_zero_infinity is True
    assert converted.feature_extractor.do_normalize is True
    assert converted.tokenizer is None
    assert converted.processor is None


def test_meters_in_a_file_are_read_over(tmp_path, fairseq_meters, without_original_code):
    path = tmp_path / "checkpoint.pt"
    meter = fairseq_meters.AverageMeter()
    meter.sum = 3.0
    state = {"train_meters": {"loss": meter}}
    write_checkpoint(path, pretrained_weights(), PRETRAINING_OPTIONS, era="namespace", extra_state=state)
    assert b"fairseq.meters" in path.read_bytes()
    without_original_code()
    assert convert_checkpoint(path).kind == "wav2vec2-pretraining"


def test_half_precision_weights_become_single_precision_of_the_same_value(tmp_path):
    model = convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt")).model
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    source = pretrained_weights()
    pairs = {
        "wav2vec2.masked_spec_embed": "mask_emb",
        "wav2vec2.feature_extractor.conv_layers.0.layer_norm.bias": "feature_extractor.conv_layers.0.2.bias",
        "wav2vec2.encoder.layers.0.layer_norm.weight": "encoder.layers.0.self_attn_layer_norm.weight",
        "wav2vec2.encoder.layers.0.feed_forward.output_dense.bias": "encoder.layers.0.fc2.bias",
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
        "quantizer.codevectors": "quantizer.vars",
        "project_hid.weight": "final_proj.weight",
    }
    for name, fairseq_name in pairs.items():
        assert torch.equal(model.state_dict()[name], source[fairseq_name].float()), name


@pytest.mark.parametrize(("era", "kernels"), [("namespace", [10, 8, 4, 4, 4, 1]), ("hydra", [10, 3, 3, 3, 3, 2, 2])])
def test_a_missing_option_has_the_default_of_its_era(tmp_path, era, kernels):
    weights = {name: w for name, w in pretrained_weights().items() if "conv_layers" not in name}
    for i, kernel in enumerate(kernels):
        weights[f"feature_extractor.conv_layers.{i}.0.weight"] = torch.zeros(512, 512 if i else 1, kernel)
    for name in ("0.2.weight", "0.2.bias"):
        weights[f"feature_extractor.conv_layers.{name}"] = torch.zeros(512)
    for name in ("layer_norm.weight", "layer_norm.bias"):
        weights[name] = torch.zeros(512)
    weights["post_extract_proj.weight"] = torch.zeros(WIDTH, 512)
    weights["quantizer.weight_proj.weight"] = torch.zeros(2 * CODEBOOK, 512)
    drop = ("conv_feature_layers", "mask_channel_prob", "encoder_layerdrop", "mask_prob")
    config = convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt", weights, era=era, drop=drop)).model.config
    assert list(config.conv_kernel) == kernels
    assert config.mask_feature_prob == (0.65 if era == "namespace" else 0.0)
    assert (config.layerdrop, config.mask_time_prob) == (0.0, 0.65)


@pytest.mark.parametrize("value", ["(1.5,0.5,0.999995)", (1.5, 0.5, 0.999995), [1.5, 0.5, 0.999995]])
def test_a_temperature_schedule_may_be_a_string_a_tuple_or_a_list(tmp_path, value):
    path = write_pretrained(tmp_path / "checkpoint.pt", latent_temp=value)
    assert convert_checkpoint(path).model.config.gumbel_temperature == 1.5


def test_a_deep_quantizer_keeps_the_names_of_its_layers(tmp_path):
    weights = pretrained_weights()
    del weights["quantizer.weight_proj.weight"], weights["quantizer.weight_proj.bias"]
    weights["quantizer.weight_proj.0.0.weight"] = torch.ones(2 * CONV, CONV)
    weights["quantizer.weight_proj.0.0.bias"] = torch.ones(2 * CONV)
    weights["quantizer.weight_proj.1.weight"] = torch.ones(2 * CODEBOOK, 2 * CONV)
    weights["quantizer.weight_proj.1.bias"] = torch.ones(2 * CODEBOOK)
    path = write_pretrained(tmp_path / "checkpoint.pt", weights, quantizer_depth=2, quantizer_factor=2)
    state = convert_checkpoint(path).model.state_dict()
    assert torch.equal(state["quantizer.weight_proj.1.weight"], torch.ones(2 * CODEBOOK, 2 * CONV))


def test_a_model_without_a_projection_gets_the_identity(tmp_path):
    weights = pretrained_weights()
    del weights["post_extract_proj.weight"], weights["post_extract_proj.bias"]
    weights["feature_extractor.conv_layers.1.0.weight"] = torch.zeros(WIDTH, CONV, 3)
    weights["layer_norm.weight"] = weights["layer_norm.bias"] = torch.zeros(WIDTH)
    weights["quantizer.weight_proj.weight"] = torch.zeros(2 * CODEBOOK, WIDTH)
    layers = f"[({CONV}, 10, 5), ({WIDTH}, 3, 2)]"
    model = convert_checkpoint(write_pretrained(tmp_path / "c.pt", weights, conv_feature_layers=layers)).model
    assert torch.equal(model.wav2vec2.feature_projection.projection.weight, torch.eye(WIDTH))
    assert not model.wav2vec2.feature_projection.projection.bias.any()


class Payload:
    """Pickled as a call that would leave a trace."""

    def __init__(self, function, argument):
        self.call = (function, (argument,))

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("name", HARMFUL)
def test_a_file_that_names_another_class_is_refused_by_name_and_nothing_runs(tmp_path, name, zip_container):
    marker = tmp_path / "ran"
    function, argument = HARMFUL[name]
    options = argparse.Namespace(**PRETRAINING_OPTIONS, payload=Payload(function, argument.format(marker=str(marker))))
    path = tmp_path / "checkpoint.pt"
    checkpoint = {"args": options, "model": pretrained_weights()}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zip_container)
    with pytest.raises(ValueError, match=name) as refusal:
        convert_checkpoint(path)
    assert not marker.exists()
    assert "weights_only" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_call_in_a_newer_pickle_protocol_is_refused_and_does_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "checkpoint.pt"
    torch.save({"model": Payload(os.system, f"touch {marker}")}, path, pickle_protocol=4)
    with pytest.raises(ValueError, match="cannot be read safely"):
        convert_checkpoint(path)
    assert not marker.exists()


def test_a_function_of_the_original_packages_is_not_called_even_where_it_is_installed(tmp_path, fairseq_meters):
    calls = []

    def record(argument):
        calls.append(argument)

    record.__module__, record.__qualname__, fairseq_meters.record = "fairseq.meters", "record", record
    path = tmp_path / "checkpoint.pt"
    state = {"call": Payload(record, "argument")}
    write_checkpoint(path, pretrained_weights(), PRETRAINING_OPTIONS, extra_state=state)
    assert convert_checkpoint(path).kind == "wav2vec2-pretraining"
    assert calls == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02}."])
def test_a_file_that_is_no_checkpoint_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        convert_checkpoint(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": torch.ones(2)}, {"model": {"a": torch.ones(2)}, "args": None}]
)
def test_a_checkpoint_of_an_unknown_kind_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt (holds a list|is of no kind)"):
        convert_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_without_options_is_refused(tmp_path):
    torch.save({"model": pretrained_weights(), "args": None, "cfg": None}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="`cfg` and `args`"):
        convert_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("name", sorted(pretrained_weights()))
def test_a_missing_weight_is_named(tmp_path, name):
    weights = pretrained_weights()
    del weights[name]
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt", weights))


@pytest.mark.parametrize(
    "name", ["w2v_encoder.proj.weight", "w2v_encoder.proj.bias", "w2v_encoder.w2v_model.layer_norm.bias"]
)
def test_a_missing_weight_of_a_fine_tuned_file_is_named(tmp_path, name):
    weights = ctc_weights()
    del weights[name]
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt", weights))


@pytest.mark.parametrize("name", ["label_embs_concat", "encoder.layers.1.fc1.weight", "target_glu.0.weight"])
def test_an_unknown_weight_is_named(tmp_path, name):
    weights = pretrained_weights() | {name: torch.zeros(2)}
    with pytest.raises(ValueError, match=f"not of the model: {name}"):
        convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt", weights))


def test_a_weight_of_another_shape_than_the_options_say_is_named_with_both_shapes(tmp_path):
    weights = pretrained_weights() | {"final_proj.weight": torch.zeros(FINAL + 1, WIDTH)}
    with pytest.raises(ValueError, match=r"final_proj\.weight has shape \(9, 16\).*\(8, 16\)"):
        convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt", weights))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("quantize_input", True),
        ("quantize_targets", False),
        ("target_glu", True),
        ("layer_type", "conformer"),
        ("codebook_negatives", 10),
        ("negatives_from_everywhere", True),
        ("pos_conv_depth", 5),
        ("crop_seq_to_multiple", 2),
        ("extractor_mode", "batch_norm"),
        ("activation_fn", "linear"),
        ("encoder_layers", "many"),
        ("encoder_layers", 1.5),
        ("layer_norm_first", "perhaps"),
        ("latent_temp", "(2, x)"),
        ("encoder_attention_heads", 3),
    ],
)
def test_an_option_the_model_has_no_counterpart_of_is_named(tmp_path, option, value):
    names = {"encoder_attention_heads": "num_attention_heads"}
    with pytest.raises(ValueError, match=names.get(option, option)):
        convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt", **{option: value}))


@pytest.mark.parametrize(("option", "value"), [("layer_type", "conformer"), ("blank_weight", 2.0)])
def test_an_option_a_fine_tuned_model_has_no_counterpart_of_is_named(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt", **{option: value}))


def test_masking_that_cannot_be_repeated_is_reported_and_converted(tmp_path):
    path = write_ctc(tmp_path / "checkpoint.pt", mask_channel_selection="uniform")
    with pytest.warns(UserWarning, match="mask_channel_selection='uniform'"):
        convert_checkpoint(path)


def test_a_fine_tuned_file_without_the_options_of_its_encoder_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "checkpoint.pt", ctc_weights(), CTC_OPTIONS)
    with pytest.raises(ValueError, match="w2v_args"):
        convert_checkpoint(path)


def test_the_tokenizer_numbers_symbols_by_the_rows_of_the_output_layer(tmp_path, dictionary):
    tokenizer = convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt"), dictionary=dictionary).tokenizer
    expected = ["<pad>", "<s>", "</s>", "<unk>", *SYMBOLS]
    assert tokenizer.get_vocab() == {symbol: index for index, symbol in enumerate(expected)}
    assert (tokenizer.pad_token_id, tokenizer.word_delimiter_token) == (0, "|")
    assert tokenizer("TE T").input_ids == [6, 5, 4, 6]
    assert tokenizer.decode([0, 6, 6, 0, 6, 4, 5, 0]) == "TT E"


def test_a_dictionary_of_another_size_than_the_output_layer_is_refused_with_both_numbers(tmp_path, dictionary):
    dictionary.write_text(dictionary.read_text() + "Q 1\n")
    with pytest.raises(ValueError, match=r"9 symbols.* has 8"):
        convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt"), dictionary=dictionary)


def test_a_dictionary_for_a_model_without_output_layer_is_refused(tmp_path, dictionary):
    with pytest.raises(ValueError, match="dictionary"):
        convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt"), dictionary=dictionary)


def test_a_dictionary_without_word_boundary_is_refused(tmp_path, dictionary):
    dictionary.write_text(dictionary.read_text().replace("|", "A"))
    with pytest.raises(ValueError, match="no word boundary"):
        convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt"), dictionary=dictionary)


@pytest.mark.parametrize(
    ("text", "message"), [("A 1\nB\n", "Line 2"), ("A one\n", "Line 1"), ("A 1\nA 2\n", "A more than once")]
)
def test_a_malformed_dictionary_is_refused(tmp_path, text, message):
    (tmp_path / "dict.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_dictionary(tmp_path / "dict.txt")


def load_stock(model_class: type, folder: Path) -> transformers.PreTrainedModel:
    """Load with Transformers' own class and require that every weight found its place."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert type(model).__module__.startswith("transformers.")
    return model.eval()


def test_the_command_writes_a_folder_that_stock_transformers_loads(tmp_path, dictionary, capsys):
    folder = tmp_path / "new" / "folder"
    path = write_ctc(tmp_path / "checkpoint.pt", era="namespace")
    assert command.main([str(path), str(folder), "--dictionary", str(dictionary)]) == 0
    assert "wav2vec2-ctc" in capsys.readouterr().out

    own = convert_checkpoint(path).model
    stock = load_stock(transformers.Wav2Vec2ForCTC, folder)
    waveform = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stock(waveform).logits, own(waveform).logits, atol=1e-5, rtol=1e-4)
    assert all(weight.dtype == torch.float32 for weight in load_file(folder / "model.safetensors").values())

    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.get_vocab()["<pad>"] == 0
    assert processor.feature_extractor.do_normalize is True


def test_the_processor_is_written_in_both_layouts(tmp_path, dictionary):
    converted = convert_checkpoint(write_ctc(tmp_path / "checkpoint.pt"), dictionary=dictionary)
    converted.save_pretrained(tmp_path / "out")
    (tmp_path / "old").mkdir()
    for name in ("preprocessor_config.json", "tokenizer_config.json", "vocab.json", "config.json"):
        shutil.copy(tmp_path / "out" / name, tmp_path / "old" / name)
    for folder, other in (("out", "processor_config.json"), ("old", "preprocessor_config.json")):
        assert (tmp_path / folder / other).is_file()
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / folder)
        assert processor.feature_extractor.return_attention_mask is True
        assert processor.tokenizer.decode([6, 5]) == "TE"
    assert str(tmp_path) not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_a_pretrained_folder_has_a_feature_extractor_and_no_tokenizer(tmp_path):
    convert_checkpoint(write_pretrained(tmp_path / "checkpoint.pt")).save_pretrained(tmp_path / "out")
    assert load_stock(transformers.Wav2Vec2ForPreTraining, tmp_path / "out")
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out").do_normalize is False
    assert not list((tmp_path / "out").glob("*token*"))


@pytest.mark.parametrize("mistake", ["missing file", "unknown kind", "output is a file"])
def test_a_mistake_ends_the_command_with_code_2_and_one_line(tmp_path, mistake, monkeypatch, capsys):
    checkpoint, folder = tmp_path / "checkpoint.pt", tmp_path / "out"
    if mistake == "unknown kind":
        torch.save({"weights": 1}, checkpoint)
    if mistake == "output is a file":
        write_pretrained(checkpoint)
        folder.write_text("taken")
    monkeypatch.setattr(sys, "argv", ["conversion", str(checkpoint), str(folder)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(command.__file__, run_name="__main__")
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(tmp_path) in error


@pytest.fixture(scope="module")
def waveforms():
    return load_file(GOLDEN / "inputs.safetensors")


def converted_folder(tmp_path: Path, fixture: str, name: str = "checkpoint.pt") -> Path:
    dictionary = GOLDEN / fixture / "dict.ltr.txt"
    converted = convert_checkpoint(GOLDEN / fixture / name, dictionary=dictionary if dictionary.exists() else None)
    converted.save_pretrained(tmp_path)
    return tmp_path


def single_input(fixture: str, waveforms: dict[str, torch.Tensor]) -> torch.Tensor:
    scalars = json.loads((GOLDEN / fixture / "fixture.json").read_text())["scalars"]
    return waveforms["single_normalized" if scalars["normalize"]["value"] else "single"]


@needs_golden
@pytest.mark.parametrize("fixture", ["wav2vec2_base", "wav2vec2_large"])
def test_stock_transformers_repeats_the_original_context_vectors(tmp_path, fixture, waveforms):
    folder = converted_folder(tmp_path, fixture)
    model = load_stock(transformers.Wav2Vec2ForPreTraining, folder)
    with torch.no_grad():
        context = model.wav2vec2(single_input(fixture, waveforms)).last_hidden_state
    expected = load_file(GOLDEN / fixture / "reference.safetensors")["single.x"]
    torch.testing.assert_close(context, expected, atol=1e-5, rtol=0)


@needs_golden
@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("wav2vec2_ctc_base", "checkpoint.pt"),
        ("wav2vec2_ctc_large", "checkpoint.pt"),
        ("wav2vec2_ctc_large", "checkpoint_dictconfig.pt"),
    ],
)
def test_stock_transformers_repeats_the_original_logits_and_text(
    tmp_path, fixture, name, waveforms, without_original_code
):
    without_original_code()
    folder = converted_folder(tmp_path, fixture, name)
    model = load_stock(transformers.Wav2Vec2ForCTC, folder)
    expected = load_file(GOLDEN / fixture / "reference.safetensors")
    with torch.no_grad():
        logits = model(single_input(fixture, waveforms)).logits
    torch.testing.assert_close(logits, expected["single.logits"], atol=1e-5, rtol=0)

    processor = transformers.AutoProcessor.from_pretrained(folder)
    scalars = json.loads((GOLDEN / fixture / "fixture.json").read_text())["scalars"]
    spelled = scalars["padded.greedy"]["value"]
    texts = [text.replace(" ", "").replace("|", " ").strip() for text in spelled]
    assert processor.batch_decode(expected["padded.logits"].argmax(dim=-1)) == texts
