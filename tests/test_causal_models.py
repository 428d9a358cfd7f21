"""Laws of wav2vec and vq-wav2vec alike: padding, causality, streams, gradients, folders, heads, refusals."""

import pytest
import torch
from causal_models import (
    FIELD,
    SHALLOW,
    VARIANTS,
    WAV2VEC,
    close,
    config,
    negatives_of,
    pretraining_model,
    ragged_batch,
    samples,
)

import hf_wav2vec_family as family
from hf_wav2vec_family.causal_conv import FrameGroupNorm

CAUSAL = ("causal", "recurrent", "gumbel-causal", "kmeans-causal")
ONE_OF_EACH = ("base", "gumbel", "kmeans")


def head(variant: str, name: str, **fields):
    torch.manual_seed(0)
    prefix = "Wav2Vec" if variant in WAV2VEC else "VQWav2Vec"
    return getattr(family, f"{prefix}{name}")(config(variant, **fields))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_the_causal_norm_is_a_group_norm_of_each_frame(groups, affine):
    norm = FrameGroupNorm(groups, 6, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    frames = torch.randn(2, 6, 5)
    alone = [
        torch.nn.functional.group_norm(frames[..., t], groups, norm.weight, norm.bias, norm.eps) for t in range(5)
    ]
    close(norm(frames), torch.stack(alone, dim=-1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_padded_batch_equals_its_clips_alone(variant):
    model = pretraining_model(variant).base_model.eval()
    lengths = (samples(15), samples(6) + 77, FIELD)
    waveforms, mask = ragged_batch(*lengths, total=samples(15) + 1000)
    with torch.no_grad():
        together = model(waveforms, mask, output_hidden_states=True)
        for row, length in enumerate(lengths):
            alone = model(waveforms[row : row + 1, :length], output_hidden_states=True)
            frames = model.num_frames(length)
            close(together.extract_features[row, :frames], alone.extract_features[0])
            for a, b in zip(together.hidden_states, alone.hidden_states, strict=True):
                close(a[row, :frames], b[0])
            if "codes" in together:
                assert torch.equal(together.codes[row, :frames], alone.codes[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_padding_changes_no_number_of_the_objective(variant):
    model = pretraining_model(variant).eval()
    frames, scalars = [14, 11], []
    drawn = negatives_of(model, frames, 14)
    for total in (14, 17):
        waveforms, mask = ragged_batch(*map(samples, frames), total=samples(total))
        negatives = torch.zeros(*drawn.shape[:2], total, dtype=torch.long) + torch.tensor([0, total])[:, None, None]
        negatives[:, :, :14] = drawn // 14 * total + drawn % 14
        output = model(waveforms, mask, negatives)
        scalars.append({n: v.item() for n, v in output.items() if isinstance(v, torch.Tensor) and v.dim() == 0})
    assert scalars[0] == pytest.approx(scalars[1], rel=1e-4)


@pytest.mark.parametrize("variant", CAUSAL)
def test_with_the_causal_norm_no_prefix_sees_its_future(variant):
    model = pretraining_model(variant).base_model.eval()
    waveforms, _ = ragged_batch(samples(12), samples(12))
    with torch.no_grad():
        whole = model(waveforms)
        for frames in range(1, 12):
            prefix = model(waveforms[:, : samples(frames)])
            close(prefix.extract_features, whole.extract_features[:, :frames])
            close(prefix.last_hidden_state, whole.last_hidden_state[:, :frames])
            if "codes" in whole:
                assert torch.equal(prefix.codes, whole.codes[:, :frames])


@pytest.mark.parametrize("variant", [*CAUSAL, "large", "options"])
def test_chunks_one_behind_the_other_equal_one_pass(variant):
    model = pretraining_model(variant, conv_norm="layer").base_model.eval()
    waveforms, _ = ragged_batch(samples(30), samples(30))
    with torch.no_grad():
        whole = model(waveforms)
    sizes = torch.randint(0, 700, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    past, answers, begin, kept = None, [], 0, []
    for size in [1, 0, *sizes]:
        past = model.stream(waveforms[:, begin : begin + size], past)
        begin += size
        answers.append(past)
        kept.append(sum(x.numel() for x in [*past.encoder_state, *(past.context_state or [])]))
    assert begin >= waveforms.shape[1]
    for name in ("last_hidden_state", "extract_features", "codes"):
        if hasattr(past, name):
            close(torch.cat([getattr(answer, name) for answer in answers], dim=1), whole[name])
    assert max(kept) <= 2 * (sum(12 * kernel for kernel in model.config.conv_kernel) + 16 * 9)


@pytest.mark.parametrize("variant", ["base", "gumbel"])
def test_the_published_norm_does_not_stream(variant):
    with pytest.raises(ValueError, match='conv_norm="layer"'):
        pretraining_model(variant).base_model.stream(torch.zeros(1, 800))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    model = pretraining_model(variant).train()
    model(*ragged_batch(samples(40), samples(30))).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("variant", "fields"), [("base", {}), ("base", {"objective": "info_nce"}), ("gumbel", {}), ("kmeans", {})]
)
def test_forty_steps_on_one_batch_lower_the_loss(variant, fields):
    model = pretraining_model(variant, **fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    waveforms, _ = ragged_batch(samples(40), samples(40))
    losses = []
    for _ in range(40):
        loss = model(waveforms, generator=torch.Generator().manual_seed(0)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < (0.9 if variant == "base" else 0.95) * losses[0]


@pytest.mark.parametrize("variant", ["base", "gumbel"])
def test_the_same_generator_draws_the_same_step(variant):
    model = pretraining_model(variant).train()
    waveforms, _ = ragged_batch(samples(20), samples(20))
    losses = [model(waveforms, generator=torch.Generator().manual_seed(seed)).loss.item() for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_answers_the_same(tmp_path, variant):
    model = pretraining_model(variant).eval()
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    waveforms, _ = ragged_batch(samples(20))
    found, expected = (m(waveforms, generator=torch.Generator().manual_seed(1)) for m in (loaded.eval(), model))
    assert torch.equal(found.loss, expected.loss)
    if "codes" in expected:
        assert torch.equal(found.codes, expected.codes)
        assert loaded.vq_wav2vec.gumbel_temperature == 2.0
    origin = {"_name_or_path": None}
    assert loaded.config.to_dict() | origin == model.config.to_dict() | origin


@pytest.mark.parametrize("variant", [*ONE_OF_EACH, "causal"])
def test_training_forward_compiles_to_one_graph(variant):
    torch._dynamo.reset()
    model = pretraining_model(variant, **SHALLOW).train()
    waveforms, mask = ragged_batch(samples(20), samples(15))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for given in ({"attention_mask": mask}, {}):
        output = compiled(waveforms, **given)
        output.loss.backward()
        assert output.loss.isfinite()
    if variant == "gumbel":  # another temperature is another value, not another graph
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        model.set_gumbel_temperature(0.7)
        compiled(waveforms)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    if variant in WAV2VEC:  # the noise of a quantizer would be another
        frames = [model.num_frames(samples(n)) for n in (20, 15)]
        negatives = negatives_of(model, frames, max(frames))
        close(compiled(waveforms, mask, negatives).loss, model(waveforms, mask, negatives).loss)


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_bfloat16_autocast_trains(variant):
    model = pretraining_model(variant).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*ragged_batch(samples(20), samples(15)))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


@pytest.mark.parametrize("variant", ONE_OF_EACH)
@pytest.mark.parametrize("weighted", [False, True])
def test_heads_answer_for_clips_and_frames(variant, weighted):
    fields = {"use_weighted_layer_sum": weighted, "num_labels": 3}
    waveforms, mask = ragged_batch(samples(12), samples(7))
    ctc = head(variant, "ForCTC", **fields)
    output = ctc(waveforms, mask, labels=torch.tensor([[1, 2, 3], [4, 5, -100]]))
    assert output.logits.shape == (2, 12, 7)
    assert output.loss.isfinite()
    clips = head(variant, "ForSequenceClassification", **fields).eval()
    logits = clips(waveforms, mask, labels=torch.tensor([0, 2])).logits
    close(logits[1:], clips(waveforms[1:, : samples(7)]).logits)
    frames = head(variant, "ForAudioFrameClassification", **fields)
    assert frames(waveforms, mask, labels=torch.zeros(2, 12, dtype=torch.long)).logits.shape == (2, 12, 3)
    ctc.freeze_feature_encoder()
    still = {name for name, parameter in ctc.named_parameters() if not parameter.requires_grad}
    assert still == {name for name, _ in ctc.named_parameters() if ".feature_extractor." in name} != set()


@pytest.mark.parametrize("variant", ["base", "gumbel"])
@pytest.mark.parametrize(("shape", "message"), [((1, 0), "at least 465"), ((1, 464), r"\(1, 464\)"), ((800,), "B, S")])
def test_audio_without_a_frame_is_refused(variant, shape, message):
    model = pretraining_model(variant)
    asked = [model.base_model] if variant == "base" else [model.base_model, model.quantize]
    for answer in asked:
        with pytest.raises(ValueError, match=message):
            answer(torch.zeros(shape))


@pytest.mark.parametrize("variant", ["base", "gumbel"])
def test_clips_too_short_for_a_frame_or_all_steps_are_refused_by_number(variant):
    model = pretraining_model(variant)
    with pytest.raises(ValueError, match="row 1 marks 300"):
        model(*ragged_batch(samples(20), 300))
    with pytest.raises(ValueError, match="shortest has 5"):
        model(torch.randn(1, samples(5)))
