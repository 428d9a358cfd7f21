"""wav2vec 2.0 against what the original implementation computed from the same checkpoint."""

import pytest
import torch
from golden import Fixture, load_fixture
from torch import Tensor, nn

from hf_wav2vec_family import quantizers
from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.fairseq_wav2vec2 import CONV_NORM_RENAMINGS, ENCODER_PREFIX, RENAMINGS, fairseq_name

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 3e-5


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module", params=["wav2vec2_base", "wav2vec2_large"])
def recorded(request) -> Fixture:
    return load_fixture("fairseq", request.param)


@pytest.fixture
def model(recorded):
    model = convert_checkpoint(recorded.folder / "checkpoint.pt").model
    model.config.padding_invariant = False
    return model


@pytest.fixture(scope="module", params=["wav2vec2_ctc_base", "wav2vec2_ctc_large"])
def recorded_ctc(request) -> Fixture:
    return load_fixture("fairseq", request.param)


@pytest.fixture
def ctc_model(recorded_ctc):
    model = convert_checkpoint(recorded_ctc.folder / "checkpoint.pt").model
    model.config.padding_invariant = False
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """Training mode with nothing random in it but what a test puts there."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_dropout = 0.0
    model.config.mask_feature_prob = 0.0
    model.wav2vec2.encoder.layerdrop.prob = 0.0
    return model.train()


def flat_frames(mask: Tensor) -> Tensor:
    """Indices into B * T of the masked frames, row by row."""
    return mask.flatten().nonzero().flatten()


def negatives_over_frames(recorded: Fixture) -> Tensor:
    """The recorded indices into masked frames [B, M, N] as indices into all frames [B, T, N]."""
    mask, negatives = recorded.tensors["crops.mask_indices"], recorded.tensors["crops.negative_indices"]
    frames = flat_frames(mask)
    own = torch.arange(mask.numel()).view(*mask.shape, 1).expand(-1, -1, negatives.shape[-1]).clone()
    own.view(-1, negatives.shape[-1])[frames] = frames[negatives.flatten(0, 1)]
    return own


def pretraining_pass(model: nn.Module, recorded: Fixture):
    return model(
        recorded.input("crops"),
        mask_time_indices=recorded.tensors["crops.mask_indices"],
        sampled_negative_indices=negatives_over_frames(recorded),
    )


def test_features_and_context_of_a_clip(recorded, model):
    waveform, expected = recorded.input("single"), recorded.tensors
    latents = model.wav2vec2.feature_extractor(waveform).transpose(1, 2)
    outputs = model.wav2vec2(waveform, output_hidden_states=True)
    close(latents, expected["single.conv_features"])
    close(outputs.extract_features, expected["single.features"])
    close(outputs.last_hidden_state, expected["single.x"])
    for i, hidden_states in enumerate(outputs.hidden_states[1:]):
        close(hidden_states, expected[f"single.layer.{i}"])
    features = model.wav2vec2.extract_features(waveform)
    assert features.mean_square.item() == pytest.approx(recorded.scalars["single.features_pen"], rel=1e-5)


def test_codes_and_codevectors_of_a_clip(recorded, model):
    waveform = recorded.input("single")
    assert torch.equal(model.quantize(waveform), recorded.tensors["single.codes"])
    features = model.wav2vec2.extract_features(waveform)
    quantized = model.quantizer(features.normalized, 1.0).quantized
    close(quantized, recorded.tensors["single.quantized"])


def test_padded_batch_with_and_without_a_mask(recorded, model):
    waveforms, expected = recorded.input("padded"), recorded.tensors
    valid = ~expected["padded.frame_mask"]
    found = model.wav2vec2(waveforms, attention_mask=recorded.attention_mask)
    assert torch.equal(model.frame_mask(recorded.attention_mask, valid.shape[1]), valid)
    close(found.last_hidden_state[valid], expected["padded.x"][valid])
    close(model.wav2vec2(waveforms).last_hidden_state, expected["padded.x_without_mask"])


def test_context_under_time_and_channel_masks(recorded, model):
    waveforms, expected = recorded.input("crops"), recorded.tensors
    time_mask, channel_mask = expected["crops.mask_indices"], expected["crops.mask_channel_indices"]
    close(model.wav2vec2(waveforms, mask_time_indices=time_mask).last_hidden_state, expected["crops.x_masked"])
    both = model.wav2vec2(waveforms, mask_time_indices=time_mask, mask_feature_indices=channel_mask)
    close(both.last_hidden_state, expected["crops.x_masked_channels"])


def test_objective_in_evaluation(recorded, model):
    output, expected, mask = (
        pretraining_pass(model, recorded),
        recorded.scalars,
        recorded.tensors["crops.mask_indices"],
    )
    num_targets = expected["crops.sample_size"]
    close(output.projected_states[mask], recorded.tensors["crops.predictions"].flatten(0, 1))
    close(output.projected_quantized_states[mask], recorded.tensors["crops.targets"].flatten(0, 1))
    assert output.num_targets == num_targets
    sums = {"contrastive_loss": output.contrastive_loss, "total_loss": output.loss}
    for name, value in sums.items():
        assert value.item() * num_targets == pytest.approx(expected[f"crops.{name}"], rel=LOSS_TOLERANCE)
    assert output.codevector_perplexity.item() == pytest.approx(expected["crops.prob_perplexity"], rel=1e-5)
    assert output.code_perplexity.item() == pytest.approx(expected["crops.code_perplexity"], rel=1e-5)
    penalty = model.config.feature_penalty_weight * expected["crops.features_pen"]
    assert output.feature_penalty.item() == pytest.approx(penalty, rel=1e-5)
    assert output.accuracy.item() * num_targets == pytest.approx(expected["crops.correct"])


def test_scores_of_every_candidate(recorded, model, monkeypatch):
    kept = {}

    def info_nce(scores, valid):
        kept["scores"] = scores
        return original(scores, valid)

    from hf_wav2vec_family import modeling_wav2vec2

    original = modeling_wav2vec2.info_nce
    monkeypatch.setattr(modeling_wav2vec2, "info_nce", info_nce)
    pretraining_pass(model, recorded)
    mask = recorded.tensors["crops.mask_indices"]
    found = kept["scores"][mask]  # [B * M, 1 + N]
    close(found, recorded.tensors["crops.logits"].flatten(1).T, tolerance=5e-5)


def test_training_loss_and_every_gradient_with_the_recorded_noise(recorded, model, monkeypatch):
    mask, noise = recorded.tensors["crops.mask_indices"], recorded.tensors["train.gumbel_noise"]
    everywhere = torch.zeros(*mask.shape, *noise.shape[2:])
    everywhere[mask] = noise.flatten(0, 1)
    monkeypatch.setattr(quantizers, "sample_gumbel", lambda like, generator=None: everywhere)
    without_dropout(model).set_gumbel_temperature(recorded.scalars["train.temp"])
    output = pretraining_pass(model, recorded)
    output.loss.backward()

    num_targets = recorded.scalars["train.sample_size"]
    assert torch.equal(output.codes[mask], recorded.tensors["train.codes"].flatten(0, 1))
    assert output.loss.item() * num_targets == pytest.approx(recorded.scalars["train.loss"], rel=LOSS_TOLERANCE)
    found = output.contrastive_loss.item() * num_targets
    assert found == pytest.approx(recorded.scalars["train.contrastive_loss"], rel=LOSS_TOLERANCE)
    check_gradients(model, recorded, prefix="")


def check_gradients(model: nn.Module, recorded: Fixture, prefix: str):
    renamings = [*RENAMINGS, CONV_NORM_RENAMINGS[model.config.feat_extract_norm]]
    norms, sums = recorded.scalars["train.grad_norms"], recorded.scalars["train.grad_sums"]
    seen = set()
    for name, parameter in model.named_parameters():
        original = fairseq_name(name, renamings, prefix)
        seen.add(original)
        if norms[original] is None:
            assert parameter.grad is None or parameter.grad.abs().max() == 0, name
            continue
        norm = norms[original]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=GRADIENT_TOLERANCE, abs=1e-6), name
        bound = GRADIENT_TOLERANCE * norm * parameter.numel() ** 0.5 + 1e-6
        assert parameter.grad.sum().item() == pytest.approx(sums[original], abs=bound), name
        full = recorded.tensors.get(f"train.grad.{original}")
        if full is not None:
            assert (parameter.grad - full).norm() <= GRADIENT_TOLERANCE * full.norm() + 1e-7, name
    assert seen == set(norms)


def test_ctc_logits_of_a_clip(recorded_ctc, ctc_model):
    waveform = recorded_ctc.input("single")
    output = ctc_model(waveform, output_hidden_states=True)
    close(output.logits, recorded_ctc.tensors["single.logits"])
    close(ctc_model.wav2vec2(waveform).last_hidden_state, recorded_ctc.tensors["single.x"])


def test_ctc_logits_under_both_masks(recorded_ctc, ctc_model):
    found = ctc_model(
        recorded_ctc.input("crops"),
        mask_time_indices=recorded_ctc.tensors["crops.mask_indices"],
        mask_feature_indices=recorded_ctc.tensors["crops.mask_channel_indices"],
    )
    close(found.logits, recorded_ctc.tensors["crops.logits_masked"])


def test_ctc_loss_and_gradients_of_a_padded_batch(recorded_ctc, ctc_model):
    target = recorded_ctc.tensors["padded.target"]
    labels = target.masked_fill(target == 1, -100)
    ctc_model.config.ctc_zero_infinity = True
    ctc_model.config.ctc_loss_per_utterance = True
    ctc_model.config.mask_time_prob = 0.0
    waveforms, mask = recorded_ctc.input("padded"), recorded_ctc.attention_mask
    output = without_dropout(ctc_model)(waveforms, attention_mask=mask, labels=labels)
    output.loss.backward()
    valid = ~recorded_ctc.tensors["padded.frame_mask"]
    close(output.logits[valid], recorded_ctc.tensors["padded.encoder_out"][valid])
    size = recorded_ctc.scalars["padded.sample_size"]
    assert output.loss.item() * size == pytest.approx(recorded_ctc.scalars["train.loss"], rel=LOSS_TOLERANCE)
    check_gradients(ctc_model, recorded_ctc, prefix=ENCODER_PREFIX)


def test_greedy_transcript_of_a_padded_batch(recorded_ctc):
    converted = convert_checkpoint(
        recorded_ctc.folder / "checkpoint.pt", dictionary=recorded_ctc.folder / "dict.ltr.txt"
    )
    converted.model.config.padding_invariant = False
    logits = converted.model(recorded_ctc.input("padded"), attention_mask=recorded_ctc.attention_mask).logits
    valid = ~recorded_ctc.tensors["padded.frame_mask"]
    best = logits.argmax(dim=-1).masked_fill(~valid, converted.tokenizer.pad_token_id)
    expected = ["".join(row.split()).replace("|", " ").strip() for row in recorded_ctc.scalars["padded.greedy"]]
    assert [" ".join(text.split()) for text in converted.processor.batch_decode(best)] == [
        " ".join(text.split()) for text in expected
    ]
