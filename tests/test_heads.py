"""Heads: the losses of PyTorch and of Transformers from the same weights, whatever the padding."""

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError
from publications import CONFIGURATIONS, configuration_of
from torch.nn import functional as F

import hf_wav2vec_family as family
from hf_wav2vec_family import (
    Wav2Vec2Config,
    Wav2Vec2ForAudioFrameClassification,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)
from hf_wav2vec_family.heads import ctc_loss

VOCABULARY, CLASSES, BLANK = 7, 5, 2
SAMPLES = [400, 253, 310]
CTC_LABELS = torch.tensor([[1, 3, 3, 6, 0], [4, 5, -100, -100, -100], [6, 1, 0, -100, -100]])
CLIP_LABELS = torch.tensor([4, 0, 2])
CLASSIFIERS = [Wav2Vec2ForSequenceClassification, Wav2Vec2ForAudioFrameClassification]
MODELS = [Wav2Vec2ForCTC, *CLASSIFIERS]
PUBLIC = [getattr(family, name) for name in family.__all__]
ALL_MODELS = [kind for kind in PUBLIC if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)]


def make_model(kind, **options):
    """A tiny model of `kind` in evaluation, all weights seeded, none of them trivial."""
    config = Wav2Vec2Config(
        vocab_size=VOCABULARY,
        pad_token_id=BLANK,
        num_labels=CLASSES,
        classifier_proj_size=6,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=[8, 8],
        conv_kernel=[10, 3],
        conv_stride=[5, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **options,
    )
    torch.manual_seed(0)
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_clips():
    """Waveforms [B, S], zero after the end of each, and the mask that says where that is."""
    mask = torch.arange(max(SAMPLES)) < torch.tensor(SAMPLES)[:, None]
    waveforms = torch.randn(len(SAMPLES), max(SAMPLES), generator=torch.Generator().manual_seed(2))
    return {"input_values": waveforms * mask, "attention_mask": mask.long()}


def make_frame_labels(model):
    """A class for each frame of each clip, -100 after its end."""
    lengths = model.num_frames(torch.tensor(SAMPLES))
    labels = torch.randint(CLASSES, (len(SAMPLES), int(lengths.max())), generator=torch.Generator().manual_seed(3))
    return labels.masked_fill(torch.arange(labels.shape[1]) >= lengths[:, None], -100)


def stock(model, folder):
    """Transformers' class of the same name, loaded from what our model saves."""
    model.save_pretrained(folder)
    loaded = getattr(transformers, type(model).__name__).from_pretrained(folder)
    assert type(loaded).__module__.startswith("transformers.")
    return loaded.eval()


def row_by_row(model, clips):
    for row, length in enumerate(SAMPLES):
        yield row, model(clips["input_values"][row : row + 1, :length])


@pytest.fixture
def ctc_inputs():
    """Logits [B, T, vocabulary], frames of each row, and labels that fit in them; 0 is an ordinary symbol."""
    return torch.randn(3, 12, VOCABULARY, generator=torch.Generator().manual_seed(0)), torch.tensor([12, 7, 9])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ctc_loss_is_pytorch_s_row_by_row(ctc_inputs, dtype):
    logits, num_frames = ctc_inputs[0].to(dtype), ctc_inputs[1]
    losses = [
        F.ctc_loss(
            frames[:length].float().log_softmax(-1),
            labels[labels >= 0],
            length[None],
            (labels >= 0).sum()[None],
            blank=BLANK,
            reduction="sum",
        )
        for frames, length, labels in zip(logits, num_frames, CTC_LABELS, strict=True)
    ]
    options = {"blank": BLANK, "zero_infinity": False}
    total = ctc_loss(logits, num_frames, CTC_LABELS, reduction="sum", **options)
    mean = ctc_loss(logits, num_frames, CTC_LABELS, reduction="mean", **options)
    torch.testing.assert_close(total, sum(losses))
    counts = (CTC_LABELS >= 0).sum(dim=1).tolist()
    torch.testing.assert_close(mean, sum(loss / n for loss, n in zip(losses, counts, strict=True)) / len(losses))


def test_any_negative_label_is_padding(ctc_inputs):
    options = {"blank": BLANK, "zero_infinity": False, "reduction": "sum"}
    expected = ctc_loss(*ctc_inputs, CTC_LABELS, **options)
    assert torch.equal(ctc_loss(*ctc_inputs, CTC_LABELS.clamp(min=-1), **options), expected)


def test_padding_of_labels_may_stand_anywhere(ctc_inputs):
    options = {"blank": BLANK, "zero_infinity": False, "reduction": "sum"}
    scattered = torch.tensor(
        [[-100, 1, 3, -100, 3, 6, 0], [-1, 4, -100, -100, -1, -100, 5], [6, -100, 1, -100, -100, 0, -100]]
    )
    expected = ctc_loss(*ctc_inputs, CTC_LABELS, **options)
    assert torch.equal(ctc_loss(*ctc_inputs, scattered, **options), expected)
    # two threes are neighbours though padding is between them, and need one frame more
    with pytest.raises(ValueError, match=r"rows \[0\] of the batch: they need a frame each"):
        ctc_loss(ctc_inputs[0], torch.tensor([5, 7, 9]), scattered, **options)


def test_labels_that_no_path_spells_are_refused_by_row_or_cost_nothing(ctc_inputs):
    logits, num_frames = ctc_inputs
    arguments = (logits, num_frames.clone(), CTC_LABELS)
    arguments[1][0] = 4
    options = {"blank": BLANK, "reduction": "sum"}
    with pytest.raises(ValueError, match=r"rows \[0\] of the batch: they need a frame each"):
        ctc_loss(*arguments, zero_infinity=False, **options)
    blank = CTC_LABELS.clone()
    blank[1, 0] = BLANK
    with pytest.raises(ValueError, match=rf"rows \[1\] of the batch: they must not be {BLANK}, the blank"):
        ctc_loss(logits, num_frames, blank, zero_infinity=True, **options)
    rest = ctc_loss(logits[1:], num_frames[1:], CTC_LABELS[1:], zero_infinity=False, **options)
    torch.testing.assert_close(ctc_loss(*arguments, zero_infinity=True, **options), rest)


# Transformers' group norm takes padding along, so does ours with `padding_invariant` off
NORMS = {
    "group": {"feat_extract_norm": "group", "padding_invariant": False},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_ctc_equals_transformers_from_the_same_weights(tmp_path, norm, reduction):
    ours = make_model(Wav2Vec2ForCTC, ctc_loss_reduction=reduction, **norm)
    theirs = stock(ours, tmp_path)
    for clips in (make_clips(), {"input_values": make_clips()["input_values"]}):
        mine, reference = ours(**clips, labels=CTC_LABELS), theirs(**clips, labels=CTC_LABELS)
        torch.testing.assert_close(mine.logits, reference.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.loss, reference.loss)


@pytest.mark.parametrize("weighted", [False, True], ids=["last layer", "weighted layers"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_sequence_classification_equals_transformers_from_the_same_weights(tmp_path, norm, weighted):
    ours = make_model(Wav2Vec2ForSequenceClassification, use_weighted_layer_sum=weighted, **norm)
    theirs = stock(ours, tmp_path)
    for clips in (make_clips(), {"input_values": make_clips()["input_values"]}):
        mine, reference = ours(**clips, labels=CLIP_LABELS), theirs(**clips, labels=CLIP_LABELS)
        torch.testing.assert_close(mine.logits, reference.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.loss, reference.loss)


@pytest.mark.parametrize("weighted", [False, True], ids=["last layer", "weighted layers"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_frame_classification_equals_transformers_from_the_same_weights(tmp_path, norm, weighted):
    ours = make_model(Wav2Vec2ForAudioFrameClassification, use_weighted_layer_sum=weighted, **norm)
    theirs = stock(ours, tmp_path)
    one_hot = F.one_hot(make_frame_labels(ours).clamp(min=0), CLASSES)  # Transformers knows no other labels
    for clips in (make_clips(), {"input_values": make_clips()["input_values"]}):
        mine, reference = ours(**clips, labels=one_hot), theirs(**clips, labels=one_hot)
        torch.testing.assert_close(mine.logits, reference.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.loss, reference.loss)


def test_the_ctc_loss_per_utterance_is_the_mean_of_the_utterances():
    clips = make_clips()
    model = make_model(Wav2Vec2ForCTC, ctc_loss_reduction="sum", ctc_loss_per_utterance=True)
    alone = [
        model(clips["input_values"][i : i + 1, :length], labels=CTC_LABELS[i : i + 1]).loss
        for i, length in enumerate(SAMPLES)
    ]
    torch.testing.assert_close(model(**clips, labels=CTC_LABELS).loss, sum(alone) / len(alone))
    model.config.ctc_loss_per_utterance = False
    torch.testing.assert_close(model(**clips, labels=CTC_LABELS).loss, sum(alone))


def test_a_loss_per_utterance_of_a_mean_is_refused():
    with pytest.raises(StrictDataclassClassValidationError, match=r"ctc_loss_per_utterance.*'mean'"):
        make_model(Wav2Vec2ForCTC, ctc_loss_reduction="mean", ctc_loss_per_utterance=True)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", MODELS)
def test_padding_changes_no_logits(kind, norm):
    model, clips = make_model(kind, feat_extract_norm=norm), make_clips()
    together = model(**clips).logits
    for row, alone in row_by_row(model, clips):
        valid = together[row] if together.dim() == 2 else together[row, : alone.logits.shape[1]]
        torch.testing.assert_close(valid, alone.logits[0], rtol=1e-5, atol=1e-5)


def test_padding_changes_no_frame_loss():
    model, clips = make_model(Wav2Vec2ForAudioFrameClassification), make_clips()
    labels = make_frame_labels(model)
    losses = [
        F.cross_entropy(alone.logits[0], labels[row, : alone.logits.shape[1]], reduction="sum")
        for row, alone in row_by_row(model, clips)
    ]
    torch.testing.assert_close(model(**clips, labels=labels).loss, sum(losses) / (labels >= 0).sum())


def test_one_hot_and_integer_frame_labels_cost_the_same():
    model, clips = make_model(Wav2Vec2ForAudioFrameClassification), make_clips()
    labels = make_frame_labels(model).clamp(min=0)
    losses = [model(**clips, labels=form).loss for form in (labels, F.one_hot(labels, CLASSES))]
    assert losses[0] == losses[1]
    assert losses[0] != model(**clips, labels=(labels + 1) % CLASSES).loss


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_layer_weights_begin_alike_and_receive_a_gradient(kind):
    model = kind(make_model(kind, use_weighted_layer_sum=True).config)
    torch.testing.assert_close(model.layer_weights.data, torch.full((3,), 1 / 3))
    model(**make_clips()).logits.square().sum().backward()
    assert model.layer_weights.grad.any()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_layer_that_has_all_the_weight_is_the_only_one_heard(kind):
    model, clips = make_model(kind, use_weighted_layer_sum=True), make_clips()
    model.layer_weights.data = torch.tensor([0.0, 100.0, 0.0])
    frames, outputs = model.encode(clips["input_values"], clips["attention_mask"])
    torch.testing.assert_close(frames, outputs.hidden_states[1])


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_feature_encoder_leaves_out_the_convolutions_and_nothing_else(kind):
    model = make_model(kind)
    model.freeze_feature_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".feature_extractor." in name}
    assert frozen


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_base_model_leaves_the_head_alone_to_train(kind):
    model = make_model(kind, **({} if kind is Wav2Vec2ForCTC else {"use_weighted_layer_sum": True}))
    model.freeze_base_model()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("wav2vec2.")}
    assert trained


def test_a_label_outside_the_vocabulary_is_refused_with_both_numbers_named():
    labels = CTC_LABELS.clone()
    labels[1, 0] = VOCABULARY
    with pytest.raises(ValueError, match=f"vocab_size = {VOCABULARY}, got {VOCABULARY}"):
        make_model(Wav2Vec2ForCTC)(**make_clips(), labels=labels)


def test_a_ctc_head_without_a_vocabulary_is_refused():
    config = make_model(Wav2Vec2ForCTC).config
    config.vocab_size = None
    with pytest.raises(ValueError, match=r"vocab_size.*None"):
        Wav2Vec2ForCTC(config)


@pytest.mark.parametrize("kind", MODELS)
def test_a_tuple_is_returned_when_asked_for(kind):
    model, clips = make_model(kind), make_clips()
    assert torch.equal(model(**clips, return_dict=False)[0], model(**clips).logits)


@pytest.mark.parametrize("kind", ALL_MODELS, ids=lambda kind: kind.__name__)
def test_waveforms_are_heard_without_a_table_of_embeddings_and_codes_are_read_by_one(kind):
    configurations = [configuration_of(name, vocab_size=8)[1] for name in (*CONFIGURATIONS, "wav2vec2")]
    model = kind(next(config for config in configurations if isinstance(config, kind.config_class)))
    table = model.get_input_embeddings()
    if model.config.model_type == "discrete-bert":
        assert table is model.base_model.roberta.embeddings.word_embeddings
    else:
        assert table is None


@pytest.mark.parametrize("name", [*CONFIGURATIONS, "wav2vec2"])
def test_every_model_takes_the_three_flags_of_transformers_and_refuses_what_it_has_not(name):
    prefix, config = configuration_of(name, vocab_size=8)
    waveform = torch.randn(1, 4000)
    for head in ("Model", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"):
        if not hasattr(family, prefix + head):
            continue
        model = getattr(family, prefix + head)(config).eval()
        output = model(waveform, output_hidden_states=True, output_attentions=False, return_dict=True)
        assert len(output.hidden_states) > 1
        assert all(state.shape[1] == model.num_frames(4000) for state in output.hidden_states)
        assert model(waveform).hidden_states is None
        if name != "wav2vec2":
            with pytest.raises(ValueError, match=r"output_attentions: a \w+ gives none"):
                model(waveform, output_attentions=True)


@pytest.mark.parametrize("name", [*CONFIGURATIONS, "wav2vec2"])
def test_the_predictions_of_a_trainer_are_one_array_of_logits(tmp_path, name):
    prefix, config = configuration_of(name, vocab_size=8)
    options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_eval_batch_size": 2}
    rows = [{"input_values": torch.randn(4000), "labels": torch.tensor([1, 2])} for _ in range(2)]
    model = getattr(family, f"{prefix}ForCTC")(config)
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(tmp_path), **options))
    assert trainer.predict(rows).predictions.shape == (2, model.num_frames(4000), 8)


@pytest.mark.parametrize("name", [*CONFIGURATIONS, "wav2vec2"])
def test_the_trainer_of_transformers_fine_tunes_every_head_as_it_is(tmp_path, name):
    prefix, config = configuration_of(name)
    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    options |= {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), **options)
    labels = {"ForCTC": [1, 2], "ForSequenceClassification": 1, "ForAudioFrameClassification": [1] * 100}
    for head, label in labels.items():
        if not hasattr(family, prefix + head):
            continue
        torch.manual_seed(0)
        model = getattr(family, prefix + head)(config)
        frames = int(model._get_feat_extract_output_lengths(4000))
        label = label[:frames] if head == "ForAudioFrameClassification" else label
        rows = [{"input_values": torch.randn(4000), "labels": torch.tensor(label)} for _ in range(2)]
        before = [weight.clone() for weight in model.parameters()]
        found = transformers.Trainer(model, arguments, train_dataset=rows).train()
        assert 0 < found.training_loss < float("inf")
        assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
