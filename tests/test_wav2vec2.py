"""wav2vec 2.0 against Transformers' own classes, and laws of its own."""

import copy
import subprocess
import sys
from functools import reduce
from itertools import pairwise

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

import hf_wav2vec_family as family
from hf_wav2vec_family.contrastive import sample_negatives
from hf_wav2vec_family.masking import masked_frames

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (24,) * 7,
    "num_codevectors_per_group": 20,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "num_negatives": 10,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
    "classifier_proj_size": 8,
}
QUIET = dict.fromkeys(
    (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "feat_quantizer_dropout",
        "layerdrop",
    ),
    0.0,
)
VARIANTS = {
    "group-post": {},
    "group-pre": {"do_stable_layer_norm": True},
    "layer-post": {"feat_extract_norm": "layer", "conv_bias": True},
    "layer-pre": {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
}
BASE_AND_LARGE = ("group-post", "layer-pre")


def config(variant: str = "group-post", **fields) -> family.Wav2Vec2Config:
    return family.Wav2Vec2Config(**{**TINY, **QUIET, **VARIANTS[variant], **fields})


def pretraining_model(variant: str = "group-post", **fields) -> family.Wav2Vec2ForPreTraining:
    torch.manual_seed(0)
    return family.Wav2Vec2ForPreTraining(config(variant, **fields))


def ragged_batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of different lengths, padded with zeros, and the mask."""
    generator = torch.Generator().manual_seed(7)
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator) * 0.3
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return waveforms * mask, mask


def masks_and_negatives_of_transformers(model, attention_mask: torch.Tensor):
    total = model.num_frames(attention_mask.shape[1])
    shape = (len(attention_mask), total)
    frame_mask = model.frame_mask(attention_mask, total).long()
    mask = _compute_mask_indices(shape, 0.65, 10, attention_mask=frame_mask, min_masks=2)
    negatives = _sample_negative_indices(shape, model.config.num_negatives, mask)
    return torch.tensor(mask), torch.tensor(negatives)


@pytest.mark.parametrize("variant", BASE_AND_LARGE)
def test_folders_are_interchangeable_with_transformers_in_both_directions(tmp_path, variant):
    ours = pretraining_model(variant).eval()
    ours.save_pretrained(tmp_path / "ours")
    theirs, info = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(theirs) is transformers.Wav2Vec2ForPreTraining
    assert not any(info.values())
    theirs.save_pretrained(tmp_path / "theirs")
    again, info = family.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert again.config.feature_penalty_weight == ours.config.feature_penalty_weight
    assert again.gumbel_temperature == 2.0


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("variant", BASE_AND_LARGE)
def test_states_and_losses_equal_those_of_transformers(tmp_path, variant, padded):
    ours = pretraining_model(variant, padding_invariant=False).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path).eval()
    waveforms, attention_mask = ragged_batch(20_000, 15_000 if padded else 20_000)
    mask, negatives = masks_and_negatives_of_transformers(ours, attention_mask)
    given = {"mask_time_indices": mask, "sampled_negative_indices": negatives}
    if padded:
        given["attention_mask"] = attention_mask
    with torch.no_grad():
        found = ours(waveforms, output_hidden_states=True, **given)
        expected = theirs(waveforms, output_hidden_states=True, **given)
    num_targets = found.num_targets
    torch.testing.assert_close(found.contrastive_loss * num_targets, expected.contrastive_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.code_perplexity, expected.codevector_perplexity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.projected_states, expected.projected_states, rtol=1e-5, atol=1e-5)
    targets = expected.projected_quantized_states[mask]
    torch.testing.assert_close(found.projected_quantized_states[mask], targets, rtol=1e-5, atol=1e-5)
    assert len(found.hidden_states) == len(expected.hidden_states)
    pairs = list(zip(found.hidden_states, expected.hidden_states, strict=True))
    last = theirs.wav2vec2(waveforms, attention_mask=given.get("attention_mask"), mask_time_indices=mask)
    if torch.equal(expected.hidden_states[-1], last.last_hidden_state) and variant == "layer-pre":
        pairs = pairs[:-1]  # Transformers before 5.16 lists the last layer after the final norm
    for layer, (a, b) in enumerate(pairs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=f"hidden state {layer}")


@pytest.mark.parametrize("variant", BASE_AND_LARGE)
def test_training_loss_and_gradients_equal_those_of_transformers(tmp_path, variant, monkeypatch):
    ours = pretraining_model(variant, feature_penalty_weight=0.0, feature_gradient_scale=1.0)
    ours.save_pretrained(tmp_path)
    theirs = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path)
    waveforms, attention_mask = ragged_batch(16_000, 16_000)
    mask, negatives = masks_and_negatives_of_transformers(ours, attention_mask)
    noise = -torch.empty(mask.numel() * 2, 20).exponential_().log()
    monkeypatch.setattr("hf_wav2vec_family.quantizers.sample_gumbel", lambda like, generator=None: noise.view_as(like))
    monkeypatch.setattr(nn.functional, "gumbel_softmax", lambda x, tau, hard: straight_through(x + noise, tau))
    found = ours.train()(waveforms, mask_time_indices=mask, sampled_negative_indices=negatives)
    expected = theirs.train()(waveforms, mask_time_indices=mask, sampled_negative_indices=negatives)
    torch.testing.assert_close(found.loss * found.num_targets, expected.loss, rtol=1e-5, atol=1e-4)
    found.loss.backward()
    (expected.loss / found.num_targets).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    # a softmax does not feel the bias of keys: what is left of its gradient is rounding
    floor = 1e-5 * max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp(min=floor)
        assert difference < 1e-4, f"{name}: {difference:.1e}"


def straight_through(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    soft = torch.softmax(logits / temperature, dim=-1)
    hard = nn.functional.one_hot(soft.argmax(dim=-1), soft.shape[-1])
    return hard - soft.detach() + soft


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_answer(variant):
    model = pretraining_model(variant).eval()
    lengths = (16_000, 9_876, 4_000)
    waveforms, attention_mask = ragged_batch(*lengths)
    waveforms = torch.where(attention_mask.bool(), waveforms, float("nan"))  # nothing of the padding may be read
    together = model.wav2vec2(waveforms, attention_mask=attention_mask)
    for row, length in enumerate(lengths):
        alone = model.wav2vec2(waveforms[row : row + 1, :length])
        valid = model.num_frames(length)
        for name in ("last_hidden_state", "extract_features"):
            torch.testing.assert_close(together[name][row, :valid], alone[name][0], atol=1e-5, rtol=1e-5)


def plainly(monkeypatch):
    """Turns the fast forms off."""
    for name in ("fast_conv.eager", *(f"{name}.eager_on_cpu" for name in ("modeling_wav2vec2", "wide_conv", "fused"))):
        monkeypatch.setattr(f"hf_wav2vec_family.{name}", lambda values: False)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_fast_forms_equal_the_plain_ones_down_to_every_gradient(variant, seed, monkeypatch):
    model = pretraining_model(variant, feature_penalty_weight=1.0).train()
    model.quantizer.eval()  # no noise, which would be drawn anew
    torch.manual_seed(seed)
    lengths = torch.randint(8_000, 20_000, (3,)).tolist()
    waveforms, attention_mask = ragged_batch(*lengths)
    mask, negatives = masks_and_negatives_of_transformers(model, attention_mask)
    found = model(waveforms, attention_mask, mask, negatives)
    found.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    plainly(monkeypatch)
    expected = model(waveforms, attention_mask, mask, negatives)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    expected.loss.backward()
    for name, parameter in model.named_parameters():
        # a bias of the keys has a gradient of rounding alone, around 1e-10
        difference = (gradients[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-5)
        assert difference < 1e-4, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("variant", BASE_AND_LARGE)
def test_a_padded_batch_read_row_by_row_answers_the_same(variant, monkeypatch):
    torch.manual_seed(0)
    model = family.Wav2Vec2ForCTC(config(variant, num_conv_pos_embeddings=64)).eval()
    waveforms, attention_mask = ragged_batch(30_000, 9_876, 16_000)
    with torch.no_grad():
        found = model(waveforms, attention_mask=attention_mask, output_hidden_states=True)
        plainly(monkeypatch)
        assert not model.wav2vec2.gains_from_single_rows(waveforms, attention_mask)
        expected = model(waveforms, attention_mask=attention_mask, output_hidden_states=True)
    assert found.logits.shape == expected.logits.shape
    valid = model.frame_mask(attention_mask, found.logits.shape[1])
    for a, b in zip((found.logits, *found.hidden_states), (expected.logits, *expected.hidden_states), strict=True):
        torch.testing.assert_close(a[valid], b[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_do_not_depend_on_how_rows_are_batched(variant):
    model = pretraining_model(variant, diversity_loss_weight=0.0, feature_penalty_weight=0.0).eval()
    waveforms, attention_mask = ragged_batch(16_000, 11_000)
    mask, negatives = masks_and_negatives_of_transformers(model, attention_mask)
    together = model(waveforms, attention_mask, mask, negatives)
    gradient = torch.autograd.grad(together.loss, model.project_hid.weight)[0]
    loss, summed = 0.0, torch.zeros_like(gradient)
    for row, length in enumerate((16_000, 11_000)):
        frames = model.num_frames(length)
        first = negatives[row : row + 1, :frames] - row * mask.shape[1]
        alone = model(waveforms[row : row + 1, :length], None, mask[row : row + 1, :frames], first)
        share = alone.num_targets / together.num_targets
        loss = loss + alone.loss * share
        summed = summed + torch.autograd.grad(alone.loss, model.project_hid.weight)[0] * share
    torch.testing.assert_close(together.loss, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, summed, atol=1e-5, rtol=1e-4)


def test_feature_penalty_leaves_padding_out():
    model = pretraining_model().eval()
    waveforms, attention_mask = ragged_batch(16_000, 8_000)
    rows = [
        model.wav2vec2.extract_features(waveforms[i : i + 1, : attention_mask[i].sum()]).mean_square for i in (0, 1)
    ]
    frames = [model.num_frames(n) for n in (16_000, 8_000)]
    expected = sum(r * n for r, n in zip(rows, frames, strict=True)) / sum(frames)
    torch.testing.assert_close(model.wav2vec2.extract_features(waveforms, attention_mask).mean_square, expected)


def test_forward_samples_its_masks_and_distractors_and_always_returns_a_loss():
    model = pretraining_model()
    waveforms, attention_mask = ragged_batch(16_000, 12_000)
    for mode in (model.train(), model.eval()):
        output = mode(waveforms, attention_mask)
        assert output.loss.isfinite()
        parts = output.contrastive_loss + output.diversity_loss + output.feature_penalty
        torch.testing.assert_close(output.loss, parts)
        assert output.num_targets == output.target_mask.sum() > 0
    valid = model.frame_mask(attention_mask, model.num_frames(16_000))
    assert valid.gather(1, output.target_index)[output.target_mask].all()


def test_the_same_generator_draws_the_same_step():
    model = pretraining_model().train()
    waveforms, _ = ragged_batch(16_000, 16_000)
    losses = [model(waveforms, generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_only_masked_frames_are_quantized():
    model = pretraining_model().eval()
    waveforms, _ = ragged_batch(64_000, 64_000)
    output = model(waveforms)
    total = model.num_frames(64_000)
    assert output.codes.shape[1] < total
    assert output.target_index.max() < total


def test_every_parameter_gets_a_gradient():
    for variant in VARIANTS:
        model = pretraining_model(variant).train()
        waveforms, attention_mask = ragged_batch(16_000, 12_000)
        model(waveforms, attention_mask).loss.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # softmax takes the same from every score, so a bias of the keys moves nothing but rounding
        assert [name for name in without if "k_proj.bias" not in name] == [], variant


def test_forty_steps_on_one_batch_lower_the_loss():
    model = pretraining_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    waveforms, _ = ragged_batch(8_000, 8_000)
    mask, negatives = masks_and_negatives_of_transformers(model, torch.ones_like(waveforms).long())
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        loss = model(waveforms, mask_time_indices=mask, sampled_negative_indices=negatives).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2


def test_cross_sample_distractors_come_from_other_clips_too():
    model = pretraining_model(num_cross_sample_negatives=50)
    output = model(ragged_batch(16_000, 16_000)[0])
    assert output.loss.isfinite()
    mask = torch.zeros(2, 30, dtype=torch.bool)
    mask[:, 5:15] = True
    valid = masked_frames(mask, 12).valid
    negatives = sample_negatives(valid, 200, across_batch=True)
    assert set((negatives[valid] // 12).unique().tolist()) == {0, 1}


def test_given_distractors_of_other_clips_need_the_option():
    model = pretraining_model()
    waveforms, attention_mask = ragged_batch(16_000, 16_000)
    mask, negatives = masks_and_negatives_of_transformers(model, attention_mask)
    with pytest.raises(ValueError, match="num_cross_sample_negatives"):
        model(waveforms, None, mask, negatives.flip(0))
    with pytest.raises(ValueError, match="mask_time_indices must be"):
        model(waveforms, None, mask[:, :-1], negatives)
    with pytest.raises(ValueError, match="without mask_time_indices"):
        model(waveforms, sampled_negative_indices=negatives)


def test_gradient_scale_multiplies_the_gradient_of_the_convolutions_alone():
    gradients = {}
    for scale in (1.0, 0.1, 0.0):
        model = pretraining_model(feature_gradient_scale=scale).eval()
        torch.manual_seed(0)
        model(ragged_batch(16_000)[0]).loss.backward()
        gradients[scale] = {name: p.grad for name, p in model.named_parameters()}
    for name, full in gradients[1.0].items():
        tenth, none = gradients[0.1][name], gradients[0.0][name]
        if "feature_extractor" in name:
            torch.testing.assert_close(tenth, 0.1 * full, rtol=1e-4, atol=1e-7)
            assert none is None
        else:
            torch.testing.assert_close(tenth, full)


def test_positional_convolution_starts_with_the_paper_scale():
    wide = {"hidden_size": 256, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    model = family.Wav2Vec2Model(config(**wide))
    weight = model.encoder.pos_conv_embed.conv.weight
    assert weight.std().item() == pytest.approx((4 / (128 * 256)) ** 0.5, rel=0.05)
    convolutions = model.feature_extractor.conv_layers
    assert convolutions[1].conv.weight.std().item() == pytest.approx((2 / (3 * 24)) ** 0.5, rel=0.1)


def test_a_folder_with_the_old_names_of_weight_norm_is_the_same_model(tmp_path):
    model = pretraining_model().eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {reduce(lambda n, pair: n.replace(*pair), old.items(), name): w for name, w in weights.items()}
    assert sum(name.endswith(tuple(old.values())) for name in renamed) == 2
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = family.Wav2Vec2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=0, atol=0)


def test_weights_missing_from_a_folder_are_initialised(tmp_path):
    model = pretraining_model()
    model.wav2vec2.save_pretrained(tmp_path)  # neither quantizer nor projections
    loaded, info = family.Wav2Vec2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert "quantizer.codevectors" in info["missing_keys"]
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in loaded.parameters())
    assert loaded.project_q.weight.std().item() == pytest.approx(1 / 16**0.5 / 3**0.5, rel=0.2)


def test_the_same_layerdrop_seed_skips_the_same_layers():
    model = pretraining_model(layerdrop=0.5, num_hidden_layers=8).train()
    waveforms, _ = ragged_batch(8_000)

    def skipped(seed: int) -> list[bool]:
        model.set_layerdrop_seed(seed)
        states = model.wav2vec2(
            waveforms,
            mask_time_indices=torch.zeros(1, model.num_frames(8_000), dtype=torch.bool),
            output_hidden_states=True,
        ).hidden_states
        return [torch.equal(a, b) for a, b in pairwise(states)]

    torch.manual_seed(1)
    first = skipped(5)
    torch.manual_seed(2)
    assert skipped(5) == first
    assert any(first)
    assert not all(first)
    assert any(skipped(seed) != first for seed in range(5))


def test_a_skipped_layer_has_a_gradient_of_zero():
    model = pretraining_model(layerdrop=0.5, num_hidden_layers=8).train()
    model.set_layerdrop_seed(5)
    model(ragged_batch(16_000)[0]).loss.backward()
    gradients = [layer.feed_forward.output_dense.weight.grad for layer in model.wav2vec2.encoder.layers]
    kept = model.wav2vec2.encoder.layerdrop.kept
    assert [bool(g.abs().sum() > 0) for g in gradients] == kept.tolist()


@pytest.mark.parametrize("variant", BASE_AND_LARGE)
def test_training_forward_compiles_to_one_graph(variant):
    torch._dynamo.reset()
    model = pretraining_model(variant, layerdrop=0.3, hidden_dropout=0.1).train()
    waveforms, attention_mask = ragged_batch(16_000, 12_000)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for given in ({"attention_mask": attention_mask}, {}):
        output = compiled(waveforms, **given)
        output.loss.backward()
        assert output.loss.isfinite()
    # another temperature is another value, not another graph
    frames_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model.set_gumbel_temperature(0.7)
    compiled(waveforms)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames_before


def test_one_dynamic_graph_takes_clips_of_every_length():
    torch._dynamo.reset()
    model = pretraining_model().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for samples in (16_000, 12_345):
        output = compiled(ragged_batch(samples, samples)[0])
        output.loss.backward()
        assert output.loss.isfinite()


def test_a_compiled_forward_equals_the_plain_one():
    torch._dynamo.reset()
    model = pretraining_model().eval()
    waveforms, attention_mask = ragged_batch(16_000, 12_000)
    mask, negatives = masks_and_negatives_of_transformers(model, attention_mask)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(waveforms, attention_mask, mask, negatives).loss,
        model(waveforms, attention_mask, mask, negatives).loss,
    )


def test_gradient_checkpointing_changes_no_gradient():
    model = pretraining_model(hidden_dropout=0.1).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for each in (model, checkpointed):
        torch.manual_seed(3)
        each(ragged_batch(16_000)[0]).loss.backward()
    for (name, a), b in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_kernels_agree(attention):
    model = pretraining_model("layer-pre").eval()
    waveforms, attention_mask = ragged_batch(16_000, 8_000)
    expected = model.wav2vec2(waveforms, attention_mask=attention_mask).last_hidden_state
    model.set_attn_implementation(attention)
    found = model.wav2vec2(waveforms, attention_mask=attention_mask, output_attentions=attention == "eager")
    torch.testing.assert_close(found.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    if attention == "eager":
        assert len(found.attentions) == 3
        torch.testing.assert_close(found.attentions[0].sum(dim=-1), torch.ones_like(found.attentions[0][..., 0]))


def test_bfloat16_autocast_trains():
    model = pretraining_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*ragged_batch(16_000, 12_000))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


def test_quantizer_depth_adds_hidden_layers_that_load_again(tmp_path):
    model = pretraining_model(quantizer_depth=2).eval()
    model.save_pretrained(tmp_path)
    loaded = family.Wav2Vec2ForPreTraining.from_pretrained(tmp_path).eval()
    waveforms, _ = ragged_batch(8_000)
    assert torch.equal(model.quantize(waveforms), loaded.quantize(waveforms))
    assert "quantizer.weight_proj.0.0.weight" in model.state_dict()


def test_language_adapters_of_published_models_have_their_place(tmp_path):
    theirs = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            **{**TINY, **VARIANTS["layer-pre"]}, adapter_attn_dim=4, add_adapter=True, output_hidden_size=32
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours, info = family.Wav2Vec2ForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    waveforms, _ = ragged_batch(16_000)
    torch.testing.assert_close(ours.eval()(waveforms).logits, theirs(waveforms).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("samples", "message"), [(0, "at least 400 samples"), (1, "at least 400"), (399, r"\(1, 399\)")]
)
def test_audio_without_a_frame_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        pretraining_model()(torch.zeros(1, samples))


def test_a_row_without_a_frame_is_refused_by_number():
    with pytest.raises(ValueError, match="row 1 marks 300"):
        pretraining_model()(*ragged_batch(16_000, 300))


def test_masks_that_cannot_be_meant_are_refused():
    model = pretraining_model()
    waveforms, attention_mask = ragged_batch(16_000, 12_000)
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 16000\)"):
        model(waveforms, attention_mask[:, :-1])
    with pytest.raises(ValueError, match="row 1 begins with padding"):
        model(waveforms, attention_mask.flip(1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float32])
def test_a_mask_of_any_type_counts_the_same(dtype):
    model = pretraining_model().eval()
    waveforms, attention_mask = ragged_batch(90_000, 70_001)
    expected = model.wav2vec2(waveforms, attention_mask=attention_mask).last_hidden_state
    assert torch.equal(model.wav2vec2(waveforms, attention_mask=attention_mask.to(dtype)).last_hidden_state, expected)


def test_padding_changes_no_answer_behind_the_adapter():
    fields = {"add_adapter": True, "output_hidden_size": 16, "num_adapter_layers": 2}
    torch.manual_seed(0)
    model = family.Wav2Vec2ForCTC(config("layer-pre", **fields)).eval()
    waveforms, attention_mask = ragged_batch(16_000, 9_876)
    together = model(waveforms, attention_mask=attention_mask).logits[1]
    alone = model(waveforms[1:, :9_876]).logits[0]
    torch.testing.assert_close(together[: len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_attentions_are_refused_where_the_kernel_does_not_keep_them():
    model = pretraining_model()
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        model.wav2vec2(ragged_batch(16_000)[0], output_attentions=True)


def test_the_shortest_clip_has_one_frame():
    assert family.Wav2Vec2Model(config()).eval()(torch.randn(1, 400)).last_hidden_state.shape[1] == 1


def test_the_wrong_sampling_rate_is_refused_by_the_feature_extractor():
    extractor = transformers.Wav2Vec2FeatureExtractor()
    with pytest.raises(ValueError, match="16000"):
        extractor(torch.zeros(800).numpy(), sampling_rate=8_000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feat_extract_norm": "batch"}, "feat_extract_norm"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"codevector_dim": 15}, "codevector_dim"),
        ({"quantizer_depth": 0}, "quantizer_depth"),
        ({"gumbel_temperature": 0.0}, "gumbel_temperature"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"ctc_loss_reduction": "mean", "ctc_loss_per_utterance": True}, "ctc_loss_per_utterance"),
        ({"conv_kernel": (10, 3)}, "conv_kernel"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        config(**fields)


@pytest.mark.parametrize(
    "head", [family.Wav2Vec2ForSequenceClassification, family.Wav2Vec2ForAudioFrameClassification]
)
def test_classification_refuses_the_adapter(head):
    with pytest.raises(ValueError, match="add_adapter"):
        head(config(add_adapter=True))


def test_pretraining_without_masks_is_refused():
    for fields in ({"mask_time_prob": 0.0}, {"apply_spec_augment": False}):
        with pytest.raises(ValueError, match="to pre-train"):
            pretraining_model(**fields)


def test_sizes_are_those_of_the_paper():
    large = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "codevector_dim": 768,
        "proj_codevector_dim": 768,
        **VARIANTS["layer-pre"],
    }
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in family.Wav2Vec2ForPreTraining(family.Wav2Vec2Config(**fields)).parameters())
            for fields in ({}, large)
        ]
    assert sizes == [95_044_608, 317_390_592]


def test_saved_folders_load_in_a_process_without_this_package(tmp_path):
    model = family.Wav2Vec2ForCTC(config()).eval()
    model.save_pretrained(tmp_path)
    waveforms, _ = ragged_batch(8_000)
    torch.save((waveforms, model(waveforms).logits), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["hf_wav2vec_family"] = None
import torch
from transformers import AutoModelForCTC
waveforms, expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCTC.from_pretrained({str(tmp_path)!r}).eval()
assert type(model).__module__.startswith("transformers.")
torch.testing.assert_close(model(waveforms).logits, expected, atol=1e-5, rtol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
