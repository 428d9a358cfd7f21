"""Conversion of RoBERTa on codes: both layouts, alone and with its vq-wav2vec, and what is refused."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

from hf_wav2vec_family import DiscreteBertModel, SpeechCodesTokenizer, VQWav2VecConfig, VQWav2VecForPreTraining
from hf_wav2vec_family.conversion import __main__ as command
from hf_wav2vec_family.conversion import convert_checkpoint
from training import finetune
from training.recipe import load_recipe

WIDTH, INNER, LAYERS, ROWS, POSITIONS = 8, 12, 2, 17, 30
WORDS = ["1-2", "0-0", "3-1", "2-2", "0-3"]
OPTIONS = {"encoder_attention_heads": 2, "activation_fn": "gelu", "dropout": 0.2, "attention_dropout": 0.3}
CODES = {
    "conv_dim": (6, 6),
    "conv_kernel": (10, 4),
    "conv_stride": (5, 2),
    "context_dim": (6,),
    "context_kernel": (2,),
    "num_codevectors_per_group": 4,
}


def weights_of() -> dict[str, torch.Tensor]:
    """Half-precision weights under fairseq's names of today."""
    encoder = "encoder.sentence_encoder."
    shapes = {
        f"{encoder}version": (1,),
        f"{encoder}embed_tokens.weight": (ROWS, WIDTH),
        f"{encoder}embed_positions.weight": (POSITIONS, WIDTH),
        "encoder.lm_head.bias": (ROWS,),
        "encoder.lm_head.dense.weight": (WIDTH, WIDTH),
        "encoder.lm_head.dense.bias": (WIDTH,),
    }
    norms = [f"{encoder}layernorm_embedding", "encoder.lm_head.layer_norm"]
    for layer in (f"{encoder}layers.{i}." for i in range(LAYERS)):
        norms += [f"{layer}self_attn_layer_norm", f"{layer}final_layer_norm"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (WIDTH, WIDTH), f"{layer}self_attn.{name}.bias": (WIDTH,)}
        shapes |= {f"{layer}fc1.weight": (INNER, WIDTH), f"{layer}fc1.bias": (INNER,)}
        shapes |= {f"{layer}fc2.weight": (WIDTH, INNER), f"{layer}fc2.bias": (WIDTH,)}
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    return weights | {"encoder.lm_head.weight": weights[f"{encoder}embed_tokens.weight"]}


def in_the_layout_of_2019(weights: dict) -> dict:
    old = {}
    for name, weight in weights.items():
        name = "decoder." + name.removeprefix("encoder.")
        name = name.replace("layernorm_embedding", "emb_layer_norm")
        if ".q_proj." in name:
            packed = [
                weights["encoder." + name.removeprefix("decoder.").replace("q_proj", f"{p}_proj")] for p in "qkv"
            ]
            old[name.replace("q_proj.", "in_proj_")] = torch.cat(packed)
        elif not name.endswith(".version") and ".k_proj." not in name and ".v_proj." not in name:
            old[name] = weight
    return old


def write(path: Path, weights: dict, *, hydra: bool = False, **options) -> Path:
    options = OPTIONS | options
    if hydra:
        torch.save(
            {"args": None, "cfg": {"model": options, "task": {}, "criterion": "masked_lm"}, "model": weights}, path
        )
    else:
        torch.save({"args": argparse.Namespace(**options), "model": weights}, path)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "bert.pt"


@pytest.fixture
def dictionary(tmp_path) -> Path:
    words = [f"{word} {9 - i}" for i, word in enumerate(WORDS)]
    fillers = [f"madeupword{i:04d} 0" for i in range(ROWS - 5 - len(WORDS))]
    (tmp_path / "dict.txt").write_text("\n".join([*words, *fillers]) + "\n")
    return tmp_path / "dict.txt"


@pytest.fixture
def vq_wav2vec(tmp_path) -> Path:
    torch.manual_seed(0)
    VQWav2VecForPreTraining(VQWav2VecConfig(**CODES)).save_pretrained(tmp_path / "vq")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


@pytest.mark.parametrize("hydra", [False, True])
def test_both_layouts_of_either_era_become_one_masked_language_model(path, dictionary, hydra):
    weights = weights_of()
    new = convert_checkpoint(write(path, weights, hydra=hydra), dictionary=dictionary)
    old = convert_checkpoint(write(path, in_the_layout_of_2019(weights), hydra=hydra))
    assert new.kind == old.kind == "roberta-masked-lm"
    assert type(new.model) is transformers.RobertaForMaskedLM
    assert not new.model.training
    for name, weight in new.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, old.model.state_dict()[name]), name
    key = new.model.roberta.encoder.layer[1].attention.self.key.weight
    assert torch.equal(key, weights["encoder.sentence_encoder.layers.1.self_attn.k_proj.weight"].float())
    config = new.model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.hidden_act) == (0.2, 0.3, "gelu")
    assert (config.num_hidden_layers, config.max_position_embeddings, config.vocab_size) == (LAYERS, POSITIONS, ROWS)
    assert isinstance(new.tokenizer, SpeechCodesTokenizer)
    assert old.tokenizer is new.feature_extractor is new.processor is None


def test_with_a_vq_wav2vec_folder_it_becomes_a_discrete_bert_that_hears(
    path, dictionary, vq_wav2vec, tmp_path, capsys
):
    write(path, weights_of())
    arguments = [str(path), str(tmp_path / "out"), "--dictionary", str(dictionary), "--vq-wav2vec", str(vq_wav2vec)]
    assert command.main(arguments) == 0
    assert "discrete-bert" in capsys.readouterr().out
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model) is DiscreteBertModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    waveform = torch.randn(300)
    inputs = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    found = model(**inputs)
    codes = VQWav2VecForPreTraining.from_pretrained(vq_wav2vec).eval().quantize(waveform[None])
    assert torch.equal(found.codes, codes)
    tokens = tokenizer(tokenizer.convert_codes_to_string(codes[0][: model.config.max_frames]), return_tensors="pt")
    roberta = convert_checkpoint(path).model.roberta
    expected = roberta(**tokens).last_hidden_state[:, 1:-1]
    torch.testing.assert_close(found.last_hidden_state[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("fresh_accelerator")
def test_converted_and_fine_tuned_it_writes_in_the_pipeline(path, dictionary, vq_wav2vec, tmp_path):
    write(path, weights_of())
    converted, corpus = tmp_path / "converted", tmp_path / "corpus"
    arguments = [str(path), str(converted), "--dictionary", str(dictionary), "--vq-wav2vec", str(vq_wav2vec)]
    assert command.main(arguments) == 0
    (corpus / "train").mkdir(parents=True)
    rows = [{"file_name": f"{number}.wav", "text": text} for number, text in enumerate(("AB", "BA C"))]
    for number, row in enumerate(rows):
        noise = np.random.default_rng(number).normal(0, 0.1, 8_000)
        soundfile.write(corpus / "train" / row["file_name"], noise, 16_000)
    (corpus / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = f"""
        pretrained={converted} vocabulary=transcripts data.train={corpus} data.evaluation=null data.budget_seconds=null
        data.num_workers=0 optimization.num_steps=2 optimization.gradient_accumulation_steps=1
        optimization.mixed_precision=no run.trackers=[] run.output_dir={tmp_path / "run"}
    """
    room = Path(__file__).parents[1] / "training" / "recipes" / "discrete_bert"
    recipe = load_recipe(room / "finetune_10h.yaml", changes.split())
    assert finetune.main(recipe)["steps"] == 2
    model = str(tmp_path / "run" / "model")
    transcribe = transformers.pipeline("automatic-speech-recognition", model=model, trust_remote_code=True)
    heard = transcribe(str(corpus / "train" / "0.wav"))["text"]
    assert set(heard) <= set("ABC ")


def test_the_masked_language_model_is_written_with_its_tokenizer(path, dictionary, tmp_path):
    write(path, weights_of())
    assert command.main([str(path), str(tmp_path / "out"), "--dictionary", str(dictionary)]) == 0
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("1-2 <mask> 3-1 3-3", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [[0, 4, ROWS - 1, 6, 3, 2]]
    expected = convert_checkpoint(path).model(**tokens).logits
    torch.testing.assert_close(model(**tokens).logits, expected, atol=1e-6, rtol=1e-6)


def test_a_dictionary_and_a_checkpoint_that_disagree_are_named_with_both_sizes(path, dictionary):
    write(path, weights_of())
    dictionary.write_text(dictionary.read_text() + "3-3 0\n")
    with pytest.raises(ValueError, match=r"makes 18 symbols.*has 17 rows"):
        convert_checkpoint(path, dictionary=dictionary)
    dictionary.write_text("| 5\nE 4\n")
    with pytest.raises(ValueError, match="has the word"):
        convert_checkpoint(path, dictionary=dictionary)


def test_codes_that_the_vq_wav2vec_does_not_have_are_refused(path, dictionary, vq_wav2vec):
    write(path, weights_of())
    text = dictionary.read_text()
    dictionary.write_text(text.replace("0-3", "0-4"))
    with pytest.raises(ValueError, match="the code 4, but there are 4 codes per group"):
        convert_checkpoint(path, dictionary=dictionary, vq_wav2vec=vq_wav2vec)
    dictionary.write_text("".join(f"{word}-0 1\n" for word in WORDS) + text.split("\n", len(WORDS))[-1])
    with pytest.raises(ValueError, match="words of 3 codes, but vq-wav2vec has 2 groups"):
        convert_checkpoint(path, dictionary=dictionary, vq_wav2vec=vq_wav2vec)


def test_a_vq_wav2vec_without_dictionary_or_for_something_else_is_refused(path, dictionary, vq_wav2vec, tmp_path):
    write(path, weights_of())
    with pytest.raises(ValueError, match="dictionary is None"):
        convert_checkpoint(path, vq_wav2vec=vq_wav2vec)
    transformers.RobertaConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="must be a folder of vq-wav2vec, got 'roberta'"):
        convert_checkpoint(path, dictionary=dictionary, vq_wav2vec=tmp_path / "text")
    with pytest.raises(OSError, match="nowhere"):
        convert_checkpoint(path, dictionary=dictionary, vq_wav2vec=tmp_path / "nowhere")


def test_a_vq_wav2vec_for_a_checkpoint_of_another_kind_is_refused(path, vq_wav2vec):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "feature_extractor.conv_layers.0.0.weight": (4, 1, 10),
        "feature_extractor.conv_layers.0.2.weight": (4,),
        "feature_extractor.conv_layers.0.2.bias": (4,),
        "feature_aggregator.conv_layers.0.1.weight": (4, 4, 2),
        "feature_aggregator.conv_layers.0.1.bias": (4,),
        "feature_aggregator.conv_layers.0.3.weight": (4,),
        "feature_aggregator.conv_layers.0.3.bias": (4,),
        "wav2vec_predictions.project_to_steps.weight": (4, 4, 1, 2),
        "wav2vec_predictions.project_to_steps.bias": (4,),
    }
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    layers = {"conv_feature_layers": "[(4, 10, 5)]", "conv_aggregator_layers": "[(4, 2, 1)]"}
    args = argparse.Namespace(**layers, prediction_steps=2)
    torch.save({"args": args, "model": weights}, path)
    with pytest.raises(ValueError, match="of the kind wav2vec-pretraining, not roberta-masked-lm"):
        convert_checkpoint(path, vq_wav2vec=vq_wav2vec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.lm_head.dense.bias": None}, r"lacks weights of the model: encoder\.lm_head\.dense\.bias"),
        ({"encoder.sentence_encoder.layers.0.fc1.weight": None}, r"lacks weights.*layers\.0\.fc1\.weight"),
        ({"encoder.classification_heads.x": torch.ones(1)}, r"not of the model: encoder\.classification_heads\.x"),
        ({"encoder.lm_head.weight": torch.ones(ROWS, WIDTH)}, "only tied weights"),
        ({"encoder.lm_head.dense.bias": torch.ones(3)}, r"dense\.bias has shape \(3,\).*\(8,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(path, changes, message):
    weights = {name: weight for name, weight in (weights_of() | changes).items() if weight is not None}
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(write(path, weights))


def test_options_without_counterpart_are_refused_or_warned_of(path):
    with pytest.raises(ValueError, match="encoder_normalize_before=True"):
        convert_checkpoint(write(path, weights_of(), encoder_normalize_before=True))
    with pytest.raises(ValueError, match="activation_fn"):
        convert_checkpoint(write(path, weights_of(), activation_fn="sine"))
    with pytest.warns(UserWarning, match=r"activation_dropout=0\.1"):
        convert_checkpoint(write(path, weights_of(), activation_dropout=0.1))
