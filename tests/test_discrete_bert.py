"""Discrete BERT: the features of its parts, whatever the padding and the length, and what learns and what does not."""

import pytest
import torch
import transformers
from torch import nn

import hf_wav2vec_family as family

FIELD, HOP, ENTRIES = 465, 160, 5
CODES = {
    "conv_dim": (8,) * 6,
    "conv_kernel": (10, 8, 4, 4, 4, 1),
    "conv_stride": (5, 4, 2, 2, 2, 1),
    "context_dim": (8, 8),
    "context_kernel": (2, 3),
    "num_codevectors_per_group": ENTRIES,
}
ROBERTA = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
POSITIONS = 22  # two before the first position, two for the marks: 18 frames
HEADS = ("ForCTC", "ForSequenceClassification", "ForAudioFrameClassification")


def samples(num_frames: int) -> int:
    return FIELD + HOP * (num_frames - 1)


def config(roberta: dict | None = None, codes: dict | None = None, **fields) -> family.DiscreteBertConfig:
    nested = {"vq_wav2vec_config": {**CODES, **(codes or {})}, "roberta_config": {**ROBERTA, **(roberta or {})}}
    return family.DiscreteBertConfig(**nested, **fields)


def stir(model: nn.Module) -> nn.Module:
    """Norms and biases away from 1 and 0, where they would hide what padding does."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def model_of(head: str = "Model", **options):
    torch.manual_seed(0)
    return stir(getattr(family, f"DiscreteBert{head}")(config(**options)))


def padded_batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    waveforms = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    return {"input_values": torch.where(mask, waveforms, 0.0), "attention_mask": mask.long()}


def parts() -> tuple:
    """A vq-wav2vec, a RoBERTa and a vocabulary in which words are missing."""
    torch.manual_seed(0)
    tokenizer = family.SpeechCodesTokenizer.from_codes([torch.randint(ENTRIES, (12, 2))], ENTRIES)
    vq_wav2vec = stir(family.VQWav2VecForPreTraining(family.VQWav2VecConfig(**CODES)))
    roberta = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            **ROBERTA, vocab_size=len(tokenizer), type_vocab_size=1, max_position_embeddings=POSITIONS
        )
    )
    return vq_wav2vec, stir(roberta), tokenizer


@pytest.mark.parametrize("num_frames", [1, 18])
def test_features_are_those_of_roberta_on_the_tokens_of_the_codes(num_frames):
    vq_wav2vec, roberta, tokenizer = parts()
    model = family.DiscreteBertModel.from_parts(vq_wav2vec, roberta, tokenizer)
    waveform = torch.randn(2, samples(num_frames))
    outputs = model(waveform, output_hidden_states=True)
    codes = vq_wav2vec.quantize(waveform)
    assert torch.equal(outputs.codes, codes)
    assert outputs.codes.shape == (2, num_frames, 2)
    texts = [tokenizer.convert_codes_to_string(row) for row in codes]
    tokens = tokenizer(texts, return_tensors="pt")
    if num_frames > 1:
        assert (tokens["input_ids"] == tokenizer.unk_token_id).any()
    expected = roberta(**tokens, output_hidden_states=True).hidden_states
    assert len(outputs.hidden_states) == len(expected) == 3
    for found, state in zip(outputs.hidden_states, expected, strict=True):
        torch.testing.assert_close(found, state[:, 1:-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])


@pytest.mark.parametrize("positions", [60, POSITIONS])
@pytest.mark.parametrize("head", ["Model", *HEADS])
def test_a_padded_batch_equals_its_clips_alone(head, positions):
    model = model_of(head, roberta={"max_position_embeddings": positions})
    lengths = [samples(45), samples(3), samples(18), samples(19) + 7]
    batch = padded_batch(lengths)
    together = model(**batch)
    for row, length in enumerate(lengths):
        alone = model(batch["input_values"][row : row + 1, :length])
        for name in ("codes", "last_hidden_state", "logits"):
            if name in alone:
                per_clip = name == "logits" and head == "ForSequenceClassification"
                frames = slice(None) if per_clip else slice(model.num_frames(length))
                torch.testing.assert_close(together[name][row, frames], alone[name][0], atol=1e-5, rtol=1e-5)


def test_a_clip_of_more_frames_than_positions_is_read_in_pieces():
    model = model_of(roberta={"max_position_embeddings": POSITIONS})
    assert model.config.max_frames == 18
    outputs = model(torch.randn(1, samples(40)))
    assert outputs.last_hidden_state.shape == (1, 40, 12)
    ids = model.token_ids(outputs.codes)
    for begin, end in ((0, 18), (18, 36), (36, 40)):
        piece = torch.nn.functional.pad(ids[:, begin:end], (1, 0), value=0)
        piece = torch.nn.functional.pad(piece, (0, 1), value=2)
        expected = model.roberta(piece).last_hidden_state[:, 1:-1]
        torch.testing.assert_close(outputs.last_hidden_state[:, begin:end], expected, atol=1e-5, rtol=1e-5)


def test_all_words_are_the_vocabulary_of_a_model_that_has_room_for_them():
    model = model_of()
    tokenizer = family.SpeechCodesTokenizer.with_all_codes(2, ENTRIES)
    assert model.config.roberta_config.vocab_size == len(tokenizer)
    codes = torch.cartesian_prod(torch.arange(ENTRIES), torch.arange(ENTRIES))[None]
    assert torch.equal(model.token_ids(codes), tokenizer.convert_codes_to_ids(codes))
    without = family.DiscreteBertModel(config(roberta={"vocab_size": 20})).eval()
    with pytest.raises(ValueError, match=r"no vocabulary.*room for all 25 words, got 20"):
        without(torch.randn(1, samples(3)))


@pytest.mark.parametrize("freeze_roberta", [False, True])
def test_what_is_frozen_has_no_gradient_no_dropout_and_cannot_be_thawed(freeze_roberta):
    model = model_of("ForCTC", freeze_roberta=freeze_roberta).train()
    model.base_model.requires_grad_(False)
    model.base_model.requires_grad_(True)
    model(torch.randn(2, samples(9)), labels=torch.ones(2, 3, dtype=torch.long)).loss.backward()
    for name, parameter in model.named_parameters():
        learns = not name.startswith("discrete_bert.vq_wav2vec.")
        learns &= not (freeze_roberta and name.startswith("discrete_bert.roberta."))
        assert parameter.requires_grad == learns == (parameter.grad is not None), name
    waveform = torch.randn(1, samples(9))
    first, second = (model.base_model(waveform) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.last_hidden_state, second.last_hidden_state) == freeze_roberta


def test_twenty_steps_on_one_batch_lower_the_loss():
    model = model_of("ForCTC", vocab_size=7).train()
    batch = {**padded_batch([samples(30), samples(12)]), "labels": torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_codes_are_those_of_float32_under_autocast():
    model = model_of()
    waveform = torch.randn(2, samples(200))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(waveform)
        rounded = model.vq_wav2vec.quantize(waveform)
    assert torch.equal(found.codes, model.vq_wav2vec.quantize(waveform))
    assert not torch.equal(found.codes, rounded)


def test_codes_are_those_of_float32_in_a_model_that_is_loaded_in_half_precision(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    halved = family.DiscreteBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    waveform = torch.randn(2, samples(200)).bfloat16()
    assert halved.roberta.dtype == torch.bfloat16
    assert torch.equal(halved(waveform).codes, model.quantize(waveform.float()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_attention_that_is_asked_for_is_robertas(tmp_path, attention):
    model_of().save_pretrained(tmp_path)
    model = family.DiscreteBertModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.roberta.config._attn_implementation == attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_are_those_of_float32_in_a_model_that_is_turned_into_half_precision(dtype):
    model = model_of()
    waveform = torch.randn(2, samples(200)).to(dtype)
    expected = model.quantize(waveform.float())
    assert model.to(dtype).roberta.dtype == dtype
    assert torch.equal(model(waveform).codes, expected)


def test_parts_of_another_kind_are_refused_by_name():
    other = family.Wav2VecConfig()
    with pytest.raises(ValueError, match="vq_wav2vec_config must be a VQWav2VecConfig, got Wav2VecConfig"):
        family.DiscreteBertConfig(vq_wav2vec_config=other)
    with pytest.raises(ValueError, match="vq_wav2vec must be a VQWav2VecModel, got Wav2VecModel"):
        family.DiscreteBertModel.from_parts(family.Wav2VecModel(other), model_of().roberta, None)


@pytest.mark.parametrize("head", ["Model", *HEADS])
def test_saved_and_loaded_it_answers_the_same_with_its_vocabulary(tmp_path, head):
    vq_wav2vec, roberta, tokenizer = parts()
    whole = family.DiscreteBertModel.from_parts(vq_wav2vec, roberta, tokenizer, use_weighted_layer_sum=True)
    whole.save_pretrained(tmp_path / "base")
    kind = getattr(family, f"DiscreteBert{head}")
    model = kind.from_pretrained(tmp_path / "base").eval()
    assert torch.equal(model.base_model.code_ids, whole.code_ids)
    assert not any(p.requires_grad for p in model.base_model.vq_wav2vec.parameters())
    model.save_pretrained(tmp_path / "head")
    loaded = kind.from_pretrained(tmp_path / "head").eval()
    waveform = torch.randn(1, samples(20))
    for name, value in model(waveform).items():
        torch.testing.assert_close(loaded(waveform)[name], value, atol=1e-6, rtol=1e-6)
    assert loaded.config.roberta_config.to_dict() == model.config.roberta_config.to_dict()
    assert type(loaded.config.vq_wav2vec_config) is family.VQWav2VecConfig


def test_the_context_network_stays_behind():
    assert not any("context_network" in name for name in model_of().state_dict())


def test_defaults_are_bert_base_on_the_codes_of_the_paper():
    defaults = family.DiscreteBertConfig()
    assert (defaults.hidden_size, defaults.num_hidden_layers, defaults.max_frames) == (768, 12, 2046)
    assert (defaults.roberta_config.type_vocab_size, defaults.roberta_config.layer_norm_eps) == (1, 1e-5)
    assert defaults.num_possible_words == 320**2
    assert defaults.inputs_to_logits_ratio == HOP
    assert defaults.expects_normalized_input is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roberta": {"pad_token_id": 0}}, r"ids 0, 1, 2, got \[0, 0, 2\]"),
        ({"roberta": {"max_position_embeddings": 4}}, "max_position_embeddings .* got 4"),
        (
            {"codes": {"num_codevector_groups": 8, "num_codevectors_per_group": 320}, "roberta": {"vocab_size": 50}},
            "320",
        ),
        ({"ctc_loss_reduction": "none"}, "'none'"),
        ({"ctc_loss_reduction": "mean", "ctc_loss_per_utterance": True}, "'mean'"),
        ({"final_dropout": 1.5}, r"1\.5"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):  # huggingface_hub wraps a ValueError in its own error
        config(**fields)


def test_a_vocabulary_that_does_not_fit_is_refused_with_both_numbers_named():
    model = model_of()
    made = family.SpeechCodesTokenizer
    for tokenizer, message in (
        (made.with_all_codes(3, 2), "words of 3 codes, but vq-wav2vec has 2 groups"),
        (made.with_all_codes(2, 3), "17 tokens, but the embedding has 33 rows"),
        (made.from_counts({f"{i}-{i + 1}": 1 for i in range(28)}), "the code 28, but there are 5 codes per group"),
        (made.per_group(2, ENTRIES), "2 tokens per frame"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_vocabulary(tokenizer)


def test_audio_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="at least 465 samples"):
        model_of()(torch.randn(1, 464))
