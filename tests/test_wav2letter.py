"""wav2letter: frames of every front end, whatever the padding, CTC and ASG on top, and text from the best path."""

import json
import math
from itertools import pairwise

import pytest
import torch
import transformers
from torch import nn

import hf_wav2vec_family as family
from hf_wav2vec_family.asg import asg_loss
from hf_wav2vec_family.labels import merge_runs
from hf_wav2vec_family.phones import TIMIT_39, WSJ_GRAPHEMES
from hf_wav2vec_family.replabels import decode_path
from hf_wav2vec_family.viterbi import best_paths
from training import finetune
from training.recipe import DataRecipe, OptimizationRecipe, Recipe, RunRecipe

CONVOLUTIONS = {"conv_dim": (8,) * 5, "context_dim": (8, 8), "context_kernel": (2, 3)}
ROBERTA = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CODES = {
    **CONVOLUTIONS,
    "conv_kernel": (10, 8, 4, 4, 4),
    "conv_stride": (5, 4, 2, 2, 2),
    "num_codevectors_per_group": 5,
}
ENCODERS = {
    "cpc": {"conv_dim": (8,) * 5, "hidden_size": 8},
    "wav2vec": {**CONVOLUTIONS, "conv_kernel": (10, 8, 4, 4, 4), "conv_stride": (5, 4, 2, 2, 2)},
    "vq-wav2vec": CODES,
    "discrete-bert": {"vq_wav2vec_config": CODES, "roberta_config": ROBERTA},
    "wav2vec2": {
        "conv_dim": (8,) * 7,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    },
}
LATENTS, WEIGHTED = "extract_features", "weighted_sum"
FRONT_ENDS = ["log_mel", "mfcc", *ENCODERS]
OUTPUTS = [
    *((name, "last_hidden_state") for name in FRONT_ENDS),
    *((name, LATENTS) for name in ("cpc", "wav2vec", "vq-wav2vec", "wav2vec2")),
    *((name, WEIGHTED) for name in ENCODERS),
    ("vq-wav2vec", "quantized_features"),
]
NETWORKS = {
    "prelu": {"conv_dim": (10, 8), "conv_kernel": (5, 4)},
    "glu": {"conv_dim": (10, 8), "conv_kernel": (4, 3), "conv_activation": "glu", "weight_norm": True},
}
NUM_SYMBOLS, VOCABULARY = 6, 8
LABELS = torch.tensor([[1, 2, 3, 4], [5, 0, -100, -100]])


def config(front_end: str = "log_mel", output: str = "last_hidden_state", network: str = "prelu", **fields):
    chosen = {"front_end": front_end}
    if front_end in ENCODERS:
        encoder = {"model_type": front_end, **ENCODERS[front_end]}
        chosen = {"front_end": "encoder", "encoder_config": encoder, "encoder_output": output}
    small = {"vocab_size": VOCABULARY, "pad_token_id": NUM_SYMBOLS, "conv_dropout": 0.0}
    return family.Wav2LetterConfig(**{**chosen, **NETWORKS[network], **small, **fields})


def model_of(*args, **fields) -> family.Wav2LetterForCTC:
    """With scores and transitions far enough apart that the best path moves about."""
    torch.manual_seed(0)
    model = family.Wav2LetterForCTC(config(*args, **fields))
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def padded_batch(*lengths: int) -> dict[str, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    waveforms = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    return {"input_values": torch.where(mask, waveforms, 0.0), "attention_mask": mask.long()}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_frames_are_those_of_the_front_end_and_the_lengths_say_how_many(front_end):
    model = model_of(front_end)
    for num_samples in (4000, 5121):
        output = model(torch.randn(2, num_samples))
        total = model.num_frames(num_samples)
        assert output.emissions.shape == (2, total, NUM_SYMBOLS)
        assert output.logits.shape == (2, total, VOCABULARY)
        assert model._get_feat_extract_output_lengths(torch.tensor([num_samples])).tolist() == [total]
    ratio = model.config.inputs_to_logits_ratio
    assert ratio == (320 if front_end == "wav2vec2" else 160)
    assert model.num_frames(4000 + 7 * ratio) == model.num_frames(4000) + 7


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("front_end", "output"), OUTPUTS)
def test_padding_changes_no_score_no_loss_and_no_path(front_end, output, network):
    model = model_of(front_end, output, network)
    lengths = (5000, 3300)
    batch = padded_batch(*lengths)
    together = model(**batch, labels=LABELS)
    losses = []
    for row, length in enumerate(lengths):
        labels = LABELS[row][LABELS[row] >= 0][None]
        alone = model(batch["input_values"][row : row + 1, :length], labels=labels)
        frames = slice(model.num_frames(length))
        torch.testing.assert_close(together.emissions[row, frames], alone.emissions[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(together.logits[row, frames], alone.logits[0])
        losses.append(alone.loss)
    torch.testing.assert_close(together.loss, sum(losses), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("feature_norm", ["utterance", "channel", "none"])
def test_features_have_zero_mean_and_unit_variance_over_the_valid_frames(feature_norm):
    model = model_of(feature_norm=feature_norm)
    batch = padded_batch(6000, 3300)
    features = model.base_model(**batch).extract_features[1, : model.num_frames(3300)]
    dims = {"utterance": (0, 1), "channel": 0}.get(feature_norm)
    if dims is None:
        expected = model.base_model.front_end(batch["input_values"][1:, :3300], None)[0]
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    else:
        mean, variance = features.mean(dims), features.var(dims, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)


@pytest.mark.parametrize("criterion", ["asg", "ctc"])
def test_the_loss_is_that_of_the_criterion_on_the_emissions(criterion):
    batch = padded_batch(5000, 3300)
    counts = torch.tensor([4.0, 2.0])
    for fields, reduced in (
        ({}, lambda losses: losses.sum()),
        ({"ctc_loss_per_utterance": True}, lambda losses: losses.mean()),
        ({"ctc_loss_reduction": "mean"}, lambda losses: (losses / counts).mean()),
        ({"loss_norm": "sqrt_target_length"}, lambda losses: (losses / counts.sqrt()).sum()),
    ):
        model = model_of(criterion=criterion, **fields)
        output = model(**batch, labels=LABELS)
        lengths = model.num_frames(torch.tensor([5000, 3300]))
        if criterion == "asg":
            transitions = model.criterion.transitions
            losses = asg_loss(output.emissions, transitions, LABELS, lengths, counts.long(), reduction="none")
        else:
            log_probs = output.logits.log_softmax(-1).transpose(0, 1)
            targets = LABELS.clamp(min=0)
            losses = nn.functional.ctc_loss(
                log_probs, targets, lengths, counts.long(), blank=NUM_SYMBOLS, reduction="none"
            )
            assert torch.equal(output.logits, output.emissions)
        torch.testing.assert_close(output.loss, reduced(losses), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["ctc", "asg"])
def test_padding_of_labels_may_stand_anywhere(criterion):
    model = model_of(criterion=criterion)
    batch = padded_batch(5000, 3300)
    scattered = torch.tensor([[-100, 1, 2, -100, 3, 4], [-1, 5, -100, 0, -1, -1]])
    assert torch.equal(model(**batch, labels=scattered).loss, model(**batch, labels=LABELS).loss)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_attention_that_is_asked_for_reaches_the_encoder(tmp_path, encoder):
    model_of(encoder).save_pretrained(tmp_path)
    for name in ("sdpa", "eager"):
        model = family.Wav2LetterForCTC.from_pretrained(tmp_path, attn_implementation=name)
        inner = model.wav2letter.front_end.encoder
        inner = inner.roberta if encoder == "discrete-bert" else inner
        assert inner.config._attn_implementation == name
        assert model(torch.randn(1, 4000)).logits.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_under_a_network_in_half_precision_are_those_of_float32(tmp_path, dtype):
    model = model_of("discrete-bert")
    model.save_pretrained(tmp_path)
    waveform = torch.randn(2, 20_000).to(dtype)
    expected = model.wav2letter.front_end.encoder.quantize(waveform.float())
    for halved in (family.Wav2LetterForCTC.from_pretrained(tmp_path, dtype=dtype), model.to(dtype)):
        assert halved.lm_head.weight.dtype == dtype
        assert halved.wav2letter.front_end.encoder.vq_wav2vec.dtype == torch.float32
        assert torch.equal(halved.wav2letter.front_end.encoder.quantize(waveform), expected)


def test_linear_segmentation_costs_what_the_stretched_target_costs():
    model = model_of()
    batch = padded_batch(5000, 3300)
    lengths = model.num_frames(torch.tensor([5000, 3300]))
    model.set_linear_segmentation(True)
    output = model(**batch, labels=LABELS)
    given = (output.emissions, model.criterion.transitions, LABELS, lengths, torch.tensor([4, 2]))
    expected = asg_loss(*given, reduction="sum", linear_segmentation=True)
    torch.testing.assert_close(output.loss, expected)
    assert output.loss > asg_loss(*given, reduction="sum")
    with pytest.raises(ValueError, match=r'linear segmentation needs criterion="asg"'):
        model_of(criterion="ctc").set_linear_segmentation(True)


def test_the_argmax_of_logits_is_the_viterbi_path_and_the_blank_in_padding():
    model = model_of()
    output = model(**padded_batch(9000, 3300))
    lengths = model.num_frames(torch.tensor([9000, 3300]))
    paths = best_paths(output.emissions, model.criterion.transitions, lengths).paths
    found = output.logits.argmax(dim=-1)
    assert torch.equal(found, paths.masked_fill(paths < 0, NUM_SYMBOLS))
    assert not torch.equal(found[0], output.emissions[0].argmax(dim=-1))  # the transitions have a say
    assert len(found[0].unique()) > 2
    assert torch.equal(output.logits.exp().sum(dim=-1), torch.ones_like(found, dtype=torch.float))


def test_the_gradient_of_the_transitions_is_scaled_and_no_other():
    gradients = []
    for scale in (1.0, 0.25):
        model = model_of(transition_gradient_scale=scale).train()
        model(**padded_batch(5000, 3300), labels=LABELS).loss.backward()
        gradients.append((model.criterion.transitions.grad, model.lm_head.weight.grad))
    torch.testing.assert_close(gradients[1][0], 0.25 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1])


@pytest.mark.parametrize("freeze_encoder", [True, False])
@pytest.mark.parametrize("output", ["last_hidden_state", WEIGHTED])
def test_a_frozen_encoder_has_no_gradient_no_dropout_and_cannot_be_thawed(output, freeze_encoder):
    model = model_of("wav2vec2", output, freeze_encoder=freeze_encoder).train()
    model.base_model.requires_grad_(False)
    model.base_model.requires_grad_(True)
    model(**padded_batch(5000, 3300), labels=LABELS).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("wav2letter.front_end.encoder."):
            assert parameter.requires_grad != freeze_encoder, name
            assert not freeze_encoder or parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
    first, second = (model.base_model(torch.ones(1, 8000).cumsum(-1)).extract_features for _ in range(2))
    assert torch.equal(first, second) == freeze_encoder


@pytest.mark.parametrize("name", ["vq-wav2vec", "wav2vec2"])
def test_a_model_on_a_trained_encoder_hears_what_the_encoder_hears(tmp_path, name):
    prefix = {"vq-wav2vec": "VQWav2Vec", "wav2vec2": "Wav2Vec2"}[name]
    torch.manual_seed(0)
    trained = getattr(family, f"{prefix}ForPreTraining")(getattr(family, f"{prefix}Config")(**ENCODERS[name])).eval()
    trained.save_pretrained(tmp_path)
    waveform = torch.randn(1, 4000)
    expected = trained.base_model(waveform).last_hidden_state
    for encoder in (trained, tmp_path):
        model = family.Wav2LetterForCTC.from_encoder(encoder, feature_norm="none", **NETWORKS["prelu"])
        torch.testing.assert_close(model.base_model(waveform).extract_features, expected)
        assert model.config.expects_normalized_input == trained.config.expects_normalized_input
        assert not any(p.requires_grad for p in model.base_model.front_end.encoder.parameters())
    transformers.RobertaConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="'roberta'"):
        family.Wav2LetterForCTC.from_encoder(tmp_path / "other")


@pytest.mark.parametrize(("front_end", "network"), [("log_mel", "glu"), ("discrete-bert", "prelu")])
def test_saved_and_loaded_it_answers_the_same(tmp_path, front_end, network):
    model = model_of(front_end, network=network)
    model.save_pretrained(tmp_path)
    loaded = family.Wav2LetterForCTC.from_pretrained(tmp_path)
    waveform = torch.randn(1, 5000)
    torch.testing.assert_close(loaded(waveform).emissions, model(waveform).emissions, atol=1e-6, rtol=1e-6)
    assert torch.equal(loaded(waveform).logits, model(waveform).logits)
    frozen = [p.requires_grad for name, p in loaded.named_parameters() if ".encoder." in name]
    assert not any(frozen)


def test_a_base_model_gives_its_features_to_new_heads_as_a_new_model_starts_them(tmp_path):
    torch.manual_seed(0)
    family.Wav2LetterModel(config(network="glu")).save_pretrained(tmp_path)
    loaded = family.Wav2LetterForCTC.from_pretrained(tmp_path, initial_diagonal=2.0)
    assert torch.equal(loaded.criterion.transitions, 2.0 * torch.eye(NUM_SYMBOLS))
    norms = loaded.lm_head.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(norms, loaded.lm_head.parametrizations.weight.original0)
    assert 0 < loaded.lm_head.weight.abs().max() <= loaded.config.hidden_size**-0.5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("criterion", ["asg", "ctc"])
def test_two_steps_lower_the_loss(criterion, network):
    model = model_of(criterion=criterion, network=network, conv_dropout=0.0).train()
    batch = {**padded_batch(5000, 3300), "labels": LABELS}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_the_papers_networks_have_their_sizes():
    timit, wsj = family.Wav2LetterConfig(), family.Wav2LetterConfig.gated()
    assert (timit.num_symbols, wsj.num_symbols) == (39, 31)
    assert (timit.hidden_size, wsj.hidden_size, timit.feature_size) == (1000, 500, 80)
    with torch.device("meta"):
        numbers = [family.Wav2LetterForCTC(fields).num_parameters() for fields in (timit, wsj)]
    convolutions = (80 + 6 * 1000) * 1000 * 5 + 7 * (1000 + 1)  # weights, biases, slopes
    assert numbers[0] == convolutions + 1000 * 39 + 39 + 39**2
    assert len(wsj.conv_kernel) + 1 == 17
    assert numbers[1] == 17_166_123


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"front_end": "waveform"}, "front_end must be one of .* got 'waveform'"),
        ({"front_end": "encoder", "encoder_config": {"model_type": "bert"}}, "got 'bert'"),
        ({"front_end": "encoder", "encoder_output": "quantized_features"}, "wav2vec has no quantized_features"),
        ({"encoder_config": family.CPCConfig()}, "encoder_config needs"),
        (
            {"front_end": "encoder", "encoder_output": WEIGHTED, "encoder_config": {"model_type": "cpc"}},
            r"one width, got \[512\] and 256",
        ),
        ({"num_mel_bins": 0}, "num_mel_bins must be at least 1, got 0"),
        ({"front_end": "mfcc", "num_mel_bins": 8}, "num_cepstra must be from 1 to num_mel_bins = 8, got 13"),
        ({"pad_token_id": 0}, "below pad_token_id.* got 0"),
        ({"conv_dim": (8, 8)}, "2 and 7 entries"),
        ({"conv_activation": "glu", "conv_dim": (9,), "conv_kernel": (5,)}, r"even .* got \(9,\)"),
        ({"conv_dropout": 1.5}, r"1\.5"),
        ({"criterion": "hmm"}, "'hmm'"),
        ({"ctc_loss_reduction": "mean", "ctc_loss_per_utterance": True}, "'mean'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):  # huggingface_hub wraps a ValueError in its own error
        family.Wav2LetterConfig(**fields)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 2], [3, 3]], r"rows \[1\] of the batch: a symbol follows itself"),
        ([[1, 2], [3, NUM_SYMBOLS]], r"rows \[1\] of the batch: a symbol is not within 0 and 5"),
        ([[1, 2] * 20, [3, 4] * 20], r"rows \[1\] of the batch: there are more symbols than frames"),
    ],
)
def test_labels_that_no_path_spells_are_refused_and_their_row_is_named(labels, message):
    batch = padded_batch(9000, 3300)
    with pytest.raises(ValueError, match=message):
        model_of()(**batch, labels=torch.tensor(labels))


def test_an_utterance_with_more_labels_than_frames_costs_nothing_where_that_is_wanted():
    batch = padded_batch(9000, 3300)
    labels = torch.tensor([[1, 2] * 20, [3, 4] * 20])
    for criterion in ("asg", "ctc"):
        model = model_of(criterion=criterion, ctc_zero_infinity=True)
        alone = model(batch["input_values"][:1], labels=labels[:1]).loss
        torch.testing.assert_close(model(**batch, labels=labels).loss, alone)
    with pytest.raises(ValueError, match=r"below vocab_size = 8, got 8"):
        model_of(criterion="ctc")(**batch, labels=torch.tensor([[8], [1]]))


def test_runs_of_labels_are_merged_where_that_is_wanted():
    repeated = torch.tensor([[1, 1, 2, 3, 3, 3, 1], [4, 4, 4, -100, -100, -100, -100]])
    once = torch.tensor([[1, 2, 3, 1, -100, -100, -100], [4, -100, -100, -100, -100, -100, -100]])
    assert torch.equal(merge_runs(repeated), once)
    batch = padded_batch(5000, 3300)
    expected = model_of()(**batch, labels=once).loss
    assert torch.equal(model_of(merge_repeated_labels=True)(**batch, labels=repeated).loss, expected)


@pytest.fixture
def tokenizer(tmp_path) -> family.Wav2LetterCTCTokenizer:
    recipe = Recipe(vocabulary="wsj", data=DataRecipe(train="nowhere"))
    return finetune.make_tokenizer(recipe, tmp_path / "vocabulary")


@pytest.mark.parametrize("text", ["hello", "ann bee", "a", "aaa b", "aaaa", "it's mr. hill", ""])
def test_text_becomes_labels_without_repetition_and_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert all(left != right for left, right in pairwise(ids))
    assert ids[0] == ids[-1] == WSJ_GRAPHEMES.index("|")
    path = [i for i in ids for _ in range(3)]
    assert tokenizer.decode(path) == text
    assert tokenizer.decode(ids, group_tokens=False) == text
    replabels = [WSJ_GRAPHEMES.index(symbol) for symbol in "12"]
    spelled = decode_path(path, replabels, surround=WSJ_GRAPHEMES.index("|"))
    assert "".join(WSJ_GRAPHEMES[i] for i in spelled).replace("|", " ") == text


def test_graphemes_are_the_papers_31_and_have_frames(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(WSJ_GRAPHEMES)) == list(range(31))
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, len(tokenizer)) == (31, 32, 33)
    symbols = [*"||nn1e|i", "<pad>", "<pad>"]
    found = tokenizer.decode(
        tokenizer.convert_tokens_to_ids(symbols), output_char_offsets=True, output_word_offsets=True
    )
    assert found.text == "nne i"
    frames = [(o["char"], o["start_offset"], o["end_offset"]) for o in found.char_offsets]
    assert frames == [(" ", 0, 2), ("n", 2, 4), ("n", 4, 5), ("e", 5, 6), (" ", 6, 7), ("i", 7, 8)]
    words = [(o["word"], o["start_offset"], o["end_offset"]) for o in found.word_offsets]
    assert words == [("nne", 2, 6), ("i", 7, 8)]


def test_symbols_outside_the_alphabet_are_unknown(tokenizer):
    assert tokenizer.tokenize("a2b") == ["|", "a", "<unk>", "b", "|"]
    assert tokenizer("é").input_ids == [0, tokenizer.unk_token_id, 0]
    # nothing is left to say what they repeat
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["1", "a", "1", "2"])) == "aa"


def test_special_and_added_symbols_stand_within_a_word_as_letters_do(tokenizer):
    assert tokenizer.tokenize("a<unk>b") == ["|", "a", "<unk>", "b", "|"]
    tokenizer.add_tokens(["x"])
    assert tokenizer.tokenize("axxb c") == ["|", "a", "x", "1", "b", "|", "c", "|"]
    assert tokenizer.decode(tokenizer("axxb c").input_ids) == "axxb c"


def test_replabels_that_the_vocabulary_lacks_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"|": 0, "a": 1, "1": 2, "<pad>": 3, "<unk>": 4}))
    with pytest.raises(ValueError, match=r"replabels: 2 of .* are missing"):
        family.Wav2LetterCTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None)


@pytest.mark.parametrize("vocabulary", ["timit39", "cmu39"])
def test_phones_are_read_between_blanks_and_written_so(tmp_path, vocabulary):
    recipe = Recipe(vocabulary=vocabulary, data=DataRecipe(train="nowhere"))
    tokenizer = finetune.make_tokenizer(recipe, tmp_path)
    text = "sil sh iy sil hh ae" if vocabulary == "timit39" else "SIL SH IY SIL HH AE"
    ids = tokenizer(text).input_ids
    assert len(ids) == 6
    assert tokenizer.decode([i for i in ids for _ in range(2)]) == text
    assert tokenizer("sil shh").input_ids[-1] == tokenizer.unk_token_id == tokenizer.pad_token_id + 1
    if vocabulary == "timit39":
        assert tokenizer.convert_ids_to_tokens(list(range(39))) == list(TIMIT_39)


def test_an_encoder_of_a_recipe_is_built_upon(tmp_path, tokenizer):
    torch.manual_seed(0)
    trained = family.Wav2VecForPreTraining(family.Wav2VecConfig(**ENCODERS["wav2vec"])).eval()
    trained.save_pretrained(tmp_path / "encoder")
    recipe = Recipe(
        architecture="Wav2Letter",
        encoder=str(tmp_path / "encoder"),
        model={**NETWORKS["prelu"], "encoder_output": LATENTS, "feature_norm": "none"},
        data=DataRecipe(train="nowhere"),
        optimization=OptimizationRecipe(linear_segmentation_steps=2),
        run=RunRecipe(output_dir="nowhere"),
    )
    model = finetune.make_model(recipe, tokenizer)
    waveform = torch.randn(1, 4000)
    expected = trained.base_model(waveform).extract_features
    torch.testing.assert_close(model.base_model(waveform).extract_features, expected)
    assert (model.config.num_symbols, model.config.vocab_size) == (31, 33)

    before_step = finetune.hooks_of(recipe, model)
    found = []
    for step in range(3):
        before_step(model, step)
        found.append(model.linear_segmentation)
    assert found == [True, True, False]
    with pytest.raises(
        ValueError, match="linear_segmentation_steps needs a model with ASG, got Wav2VecForPreTraining"
    ):
        finetune.hooks_of(recipe, trained)

    recipe.model["conv_dims"] = [8]
    with pytest.raises(ValueError, match="Wav2LetterConfig has no field conv_dims"):
        finetune.make_model(recipe, tokenizer)
    recipe.architecture = "Wav2Vec"
    with pytest.raises(ValueError, match=r"encoder is for an architecture .* Wav2Vec"):
        finetune.make_model(recipe, tokenizer)


def test_the_loss_of_an_uninformed_model_is_the_log_of_the_number_of_paths():
    model = model_of()
    with torch.no_grad():
        for parameter in (*model.lm_head.parameters(), model.criterion.transitions):
            parameter.zero_()
    output = model(torch.randn(1, 4000), labels=torch.tensor([[1, 2, 3]]))
    total = model.num_frames(4000)
    expected = total * math.log(NUM_SYMBOLS) - math.log(math.comb(total - 1, 2))
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
