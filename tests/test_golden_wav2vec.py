"""wav2vec and vq-wav2vec against what the original implementation computed from the same checkpoint."""

import pytest
import torch
from golden import Fixture, load_fixture
from torch import Tensor

from hf_wav2vec_family import quantizers
from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.fairseq_wav2vec import (
    CODEVECTOR_RENAMINGS,
    PREDICTION_BIAS,
    RENAMINGS,
    fairseq_name,
    in_own_layout,
)

ACTIVATION_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 3e-5

WAV2VEC = ["wav2vec_base", "wav2vec_large", "wav2vec_options"]
GUMBEL = ["vq_wav2vec_gumbel", "vq_wav2vec_gumbel_combined"]
KMEANS = ["vq_wav2vec_kmeans", "vq_wav2vec_kmeans_combined"]


def close(found: Tensor, expected: Tensor, tolerance: float = ACTIVATION_TOLERANCE):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def channels_last(expected: Tensor) -> Tensor:
    return expected.transpose(1, 2)


@pytest.fixture(scope="module", params=WAV2VEC + GUMBEL + KMEANS)
def recorded(request) -> Fixture:
    return load_fixture("fairseq", request.param)


@pytest.fixture
def model(recorded):
    return convert_checkpoint(recorded.folder / "checkpoint.pt").model


def of_kind(recorded: Fixture, names: list[str]) -> bool:
    return recorded.folder.name in names


def pretraining_pass(model, recorded: Fixture):
    waveforms, negatives = recorded.inputs["crops"], recorded.tensors["crops.negative_indices"]
    return model(waveforms, sampled_negative_indices=negatives)


def scores_of_crops(model, recorded: Fixture):
    """The record of the objective alone, from the features of an evaluation pass."""
    outputs = model.base_model(recorded.inputs["crops"])
    features = outputs.extract_features if of_kind(recorded, WAV2VEC) else outputs.quantized_features
    return model.prediction(
        outputs.last_hidden_state,
        model.targets(features),
        sampled_negative_indices=recorded.tensors["crops.negative_indices"],
    )


def in_fairseqs_order(values: Tensor, candidates_first: bool) -> Tensor:
    """Scores [B, T', 1 + N, K] -> fairseq's rows: per step, of the frames that the step reaches."""
    steps = []
    for k in range(values.shape[-1]):
        reached = values[:, k:, :, k]  # [B, frames, 1 + N]
        # binary: candidate, clip, frame; InfoNCE: frame, clip and a column for each candidate
        steps.append(reached.permute(2, 0, 1).flatten() if candidates_first else reached.transpose(0, 1).flatten(0, 1))
    return torch.cat(steps)


def test_latent_frames_and_context_of_a_clip(recorded, model):
    outputs = model.base_model(recorded.inputs["single"], output_hidden_states=True)
    close(outputs.extract_features, channels_last(recorded.tensors["single.z"]))
    close(outputs.last_hidden_state, channels_last(recorded.tensors["single.c"]))
    layers = [name for name in recorded.tensors if name.startswith("single.agg_layer.")]
    assert bool(layers) == of_kind(recorded, ["wav2vec_large"])
    for name in layers:
        layer = outputs.hidden_states[1 + int(name.rpartition(".")[2])]
        close(layer, channels_last(recorded.tensors[name]))


def test_every_block_of_the_encoder(recorded, model):
    found = []
    encoder = model.base_model.feature_extractor
    encoder.log_compression = False
    blocks = list(encoder.conv_layers)
    for depth in range(1, len(blocks) + 1):
        encoder.conv_layers = torch.nn.ModuleList(blocks[:depth])
        output = encoder(recorded.inputs["single"])
        found.append([output.mean().item(), output.std().item(), output.shape[-1]])
    close(torch.tensor(found), recorded.tensors["single.encoder_layer_stats"], tolerance=2e-5)


def test_codes_and_codevectors_of_a_clip(recorded, model):
    if of_kind(recorded, WAV2VEC):
        assert not hasattr(model, "quantize")
        return
    waveform, expected = recorded.inputs["single"], recorded.tensors
    outputs = model.base_model(waveform)
    assert torch.equal(model.quantize(waveform), expected["single.codes"])
    assert torch.equal(outputs.codes, expected["single.codes"])
    close(outputs.quantized_features, channels_last(expected["single.zq"]))
    quantizer = model.base_model.quantizer
    assert outputs.code_perplexity.item() == pytest.approx(recorded.scalars["single.code_perplexity"], rel=1e-5)
    if of_kind(recorded, KMEANS):
        close(quantizer.project(outputs.extract_features).flatten(-2), channels_last(expected["single.ze"]))
        found = outputs.codebook_loss + outputs.commitment_loss
        assert found.item() == pytest.approx(recorded.scalars["single.kmeans_loss"], rel=LOSS_TOLERANCE)
    else:
        logits = quantizer.weight_proj(outputs.extract_features).view(expected["single.logits"].shape)
        # sums of hundreds of terms with weights of deviation 1: rounding goes with the largest, not with the sum
        largest = expected["single.logits"].abs().max()
        close(logits / largest, expected["single.logits"] / largest)
        found = outputs.codevector_perplexity.item()
        assert found == pytest.approx(recorded.scalars["single.prob_perplexity"], rel=1e-5)


def test_a_padded_batch_gives_each_clip_what_it_gets_alone(recorded, model):
    waveforms, attention_mask = recorded.inputs["padded"], recorded.attention_mask
    together = model.base_model(waveforms, attention_mask=attention_mask)
    for row, length in enumerate(recorded.inputs["padded_lengths"].tolist()):
        alone = model.base_model(waveforms[row : row + 1, :length])
        frames = model.num_frames(length)
        close(together.extract_features[row, :frames], alone.extract_features[0])
        close(together.last_hidden_state[row, :frames], alone.last_hidden_state[0])


@pytest.mark.parametrize("kind", ["bce", "bce_balanced", "infonce"])
def test_each_objective_step_by_step(recorded, model, kind):
    prediction = model.prediction
    prediction.objective = "info_nce" if kind == "infonce" else "binary_nce"
    prediction.negative_weight = 1 / model.config.num_negatives if kind == "bce_balanced" else 1.0
    assert prediction.offset == recorded.scalars["offset"]
    assert prediction.num_steps == recorded.scalars["steps"]
    found = scores_of_crops(model, recorded)
    size = recorded.scalars[f"crops.{kind}.sample_size"]
    counts = recorded.tensors["crops.step_count"]
    assert found.num_targets == size
    assert torch.equal(found.valid.sum(dim=(0, 1)), counts)
    assert found.loss.item() * size == pytest.approx(recorded.scalars[f"crops.{kind}.loss"], rel=LOSS_TOLERANCE)
    expected = recorded.tensors[f"crops.{kind}.step_loss"]
    torch.testing.assert_close(found.step_losses * counts, expected, rtol=LOSS_TOLERANCE, atol=1e-3)
    if kind != "bce_balanced":
        scores = in_fairseqs_order(found.scores, candidates_first=kind == "bce")
        close(scores, recorded.tensors[f"crops.{kind}.logits"], tolerance=5e-5)
    if kind == "infonce":
        assert found.accuracy.item() * size == pytest.approx(recorded.scalars["crops.infonce.correct"], abs=0.01)


def test_loss_with_the_quantizers_part_in_evaluation(recorded, model):
    output = pretraining_pass(model, recorded)
    name = "crops.bce_balanced.loss" if model.config.balanced_classes else "crops.bce.loss"
    size = output.num_targets.item()
    assert output.contrastive_loss.item() * size == pytest.approx(recorded.scalars[name], rel=LOSS_TOLERANCE)
    total = recorded.scalars.get("crops.total_loss", recorded.scalars[name])
    assert output.loss.item() * size == pytest.approx(total, rel=LOSS_TOLERANCE)
    if of_kind(recorded, KMEANS):
        expected = model.config.quantizer_loss_weight * recorded.scalars["crops.kmeans_loss"]
        assert output.quantizer_loss.item() == pytest.approx(expected, rel=LOSS_TOLERANCE)
    if of_kind(recorded, GUMBEL):
        expected = recorded.scalars["crops.prob_perplexity"]
        assert output.codevector_perplexity.item() == pytest.approx(expected, rel=1e-5)
        spread = model.config.num_codevector_groups * model.config.num_codevectors_per_group - expected
        assert output.diversity_loss.item() == pytest.approx(model.config.diversity_loss_weight * spread, rel=1e-5)
        assert recorded.scalars["crops.num_vars"] == spread + expected
    if not of_kind(recorded, WAV2VEC):
        expected = recorded.scalars["crops.code_perplexity"]
        assert output.code_perplexity.item() == pytest.approx(expected, rel=1e-5)


def test_training_loss_and_every_gradient_with_the_recorded_noise(recorded, model, monkeypatch):
    model.train()
    if of_kind(recorded, GUMBEL):
        noise = recorded.tensors["train.gumbel_noise"]
        monkeypatch.setattr(quantizers, "sample_gumbel", lambda like, generator=None: noise)
        model.set_gumbel_temperature(recorded.scalars["train.temp"])
    output = pretraining_pass(model, recorded)
    output.loss.backward()
    assert output.num_targets == recorded.scalars["train.sample_size"]
    found = output.loss.item() * recorded.scalars["train.sample_size"]
    assert found == pytest.approx(recorded.scalars["train.loss"], rel=LOSS_TOLERANCE)
    if of_kind(recorded, GUMBEL):
        assert torch.equal(output.codes, recorded.tensors["train.codes"])
    check_gradients(model, recorded)


def check_gradients(model, recorded: Fixture):
    renamings = [*RENAMINGS, CODEVECTOR_RENAMINGS["kmeans" if of_kind(recorded, KMEANS) else "gumbel"]]
    norms, sums = recorded.scalars["train.grad_norms"], recorded.scalars["train.grad_sums"]
    prefix = "train.grad."
    full = {name.removeprefix(prefix): grad for name, grad in recorded.tensors.items() if name.startswith(prefix)}
    full = in_own_layout(full)
    assert PREDICTION_BIAS in full
    seen = set()
    for name, parameter in model.named_parameters():
        original = fairseq_name(name, renamings)
        seen.add(original)
        norm = norms[original]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=GRADIENT_TOLERANCE, abs=1e-6), name
        bound = GRADIENT_TOLERANCE * norm * parameter.numel() ** 0.5 + 1e-6
        assert parameter.grad.sum().item() == pytest.approx(sums[original], abs=bound), name
        if original in full:
            difference = (parameter.grad - full[original]).norm()
            assert difference <= GRADIENT_TOLERANCE * full[original].norm() + 1e-7, name
    assert seen == set(norms)
    assert set(full) <= seen
