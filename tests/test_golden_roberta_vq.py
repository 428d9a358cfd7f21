"""RoBERTa on codes against what the original implementation computed from the same checkpoint, in both key layouts."""

import pytest
import torch
import torch.nn.functional as F
from golden import Fixture, load_fixture
from torch import Tensor

from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.fairseq_roberta import TOKEN_TYPES, fairseq_name

ACTIVATION_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
LAYOUTS = ["checkpoint.pt", "checkpoint_legacy.pt"]


def close(found: Tensor, expected: Tensor, tolerance: float = ACTIVATION_TOLERANCE):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def recorded() -> Fixture:
    return load_fixture("fairseq", "roberta_vq")


@pytest.fixture(params=LAYOUTS)
def converted(request, recorded):
    return convert_checkpoint(recorded.folder / request.param, dictionary=recorded.folder / "dict.txt")


def test_a_line_of_codes_has_the_ids_of_the_original(recorded, converted):
    tokenizer, line = converted.tokenizer, recorded.scalars["line"]
    expected = recorded.tensors["single.tokens"]
    assert torch.equal(tokenizer(line, return_tensors="pt")["input_ids"], expected)
    codes = load_fixture("fairseq", "vq_wav2vec_kmeans_combined").tensors["single.codes"]
    assert tokenizer.convert_codes_to_string(codes[0]) == line
    assert torch.equal(tokenizer.convert_codes_to_ids(codes), expected[:, 1:-1])
    assert tokenizer.vocab_size == len(tokenizer) == recorded.scalars["vocab_size"]
    specials = {token: tokenizer.convert_tokens_to_ids(token) for token in recorded.scalars["special_ids"]}
    assert specials == recorded.scalars["special_ids"]


def test_a_dictionary_is_written_as_it_was_read(recorded, converted, tmp_path):
    (written,) = converted.tokenizer.save_vocabulary(str(tmp_path))
    assert (tmp_path / "dict.txt").samefile(written)
    assert (tmp_path / "dict.txt").read_bytes() == (recorded.folder / "dict.txt").read_bytes()


@pytest.mark.parametrize("source", ["ids", "codes"])
def test_features_of_every_layer_and_logits(recorded, converted, source):
    inputs = {"input_ids": recorded.tensors["single.tokens"]}
    if source == "codes":
        inputs = converted.tokenizer(recorded.scalars["line"], return_tensors="pt")
    outputs = converted.model(**inputs, output_hidden_states=True)
    close(outputs.logits, recorded.tensors["single.lm_logits"])
    close(outputs.hidden_states[-1], recorded.tensors["single.features"])
    assert len(outputs.hidden_states) == 13
    for layer, state in enumerate(outputs.hidden_states):
        close(state, recorded.tensors[f"single.hidden.{layer}"])


def test_features_of_a_padded_batch(recorded, converted):
    tokens = recorded.tensors["batch.tokens"]
    valid = tokens != converted.tokenizer.pad_token_id
    assert not valid.all()
    features = converted.model.roberta(tokens, attention_mask=valid.long()).last_hidden_state
    close(features[valid], recorded.tensors["batch.features"][valid])


def test_masked_language_model_loss_and_every_gradient(recorded, converted):
    tokens, target = recorded.tensors["mlm.src_tokens"], recorded.tensors["mlm.target"]
    padding, size = converted.tokenizer.pad_token_id, recorded.scalars["mlm.sample_size"]
    logits = converted.model(tokens, attention_mask=(tokens != padding).long()).logits[target != padding]
    close(logits, recorded.tensors["mlm.logits"])
    loss = F.cross_entropy(logits, target[target != padding], reduction="sum")
    assert loss.item() == pytest.approx(recorded.scalars["mlm.loss"], rel=LOSS_TOLERANCE)
    (loss / size).backward()
    expected, seen = recorded.scalars["train.grad_norms"], {TOKEN_TYPES}
    for name, parameter in converted.model.named_parameters():
        original = fairseq_name(name)
        seen.add(original)
        if original != TOKEN_TYPES:
            norm = parameter.grad.norm().item()
            assert norm == pytest.approx(expected[original], rel=GRADIENT_TOLERANCE, abs=1e-6), name
    assert seen == {*expected, TOKEN_TYPES}
    bias = recorded.tensors["train.grad.encoder.lm_head.bias"]
    assert (converted.model.lm_head.bias.grad - bias).norm() <= GRADIENT_TOLERANCE * bias.norm()


def test_a_waveform_has_the_features_of_its_codes(recorded, tmp_path):
    codes_of = load_fixture("fairseq", "vq_wav2vec_kmeans_combined")
    convert_checkpoint(codes_of.folder / "checkpoint.pt").save_pretrained(tmp_path)
    paths = {"dictionary": recorded.folder / "dict.txt", "vq_wav2vec": tmp_path}
    converted = convert_checkpoint(recorded.folder / "checkpoint.pt", **paths)
    assert converted.kind == "discrete-bert"
    outputs = converted.model(codes_of.inputs["single"], output_hidden_states=True)
    assert torch.equal(outputs.codes, codes_of.tensors["single.codes"])
    close(outputs.last_hidden_state, recorded.tensors["single.features"][:, 1:-1])
    for layer, state in enumerate(outputs.hidden_states):
        close(state, recorded.tensors[f"single.hidden.{layer}"][:, 1:-1])
