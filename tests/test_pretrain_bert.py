"""BERT on codes: span masks have the promised statistics and the recorded places; the stage learns and resumes."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from golden import load_fixture
from interruptions import forget_accelerator, killed_in_batch
from safetensors.torch import load_file

from hf_wav2vec_family import (
    DiscreteBertModel,
    SpeechCodesTokenizer,
    VQWav2VecConfig,
    VQWav2VecForPreTraining,
)
from training import pretrain_bert
from training.code_batches import CodeBatches
from training.extract_codes import Shards
from training.masked_lm import RobertaForMaskedLM
from training.pretrain import make_feature_extractor
from training.recipe import Recipe, load_recipe
from training.span_masking import SpanMasking

RECIPES = sorted((Path(__file__).parents[1] / "training" / "recipes" / "discrete_bert").glob("[!f]*.yaml"))
MASK = 99
WORDS = np.arange(4, 90)
CODEBOOK = 5
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_VQ = {
    "conv_dim": [8] * 5,
    "conv_kernel": [10, 8, 4, 4, 4],
    "conv_stride": [5, 4, 2, 2, 2],
    "context_dim": [8],
    "context_kernel": [2],
    "num_codevectors_per_group": CODEBOOK,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> Path:
    """Shards of a language of 8 words, two in turn in every row, 12 rows and 3 more, and their vocabularies."""
    folder = tmp_path_factory.mktemp("codes")
    rng = np.random.default_rng(0)
    for split, num_rows in (("train", 12), ("dev", 3)):
        rows = []
        for number in range(num_rows):
            words = (number + np.arange(rng.integers(20, 70)) % 2) % 8
            frames = np.stack([words % CODEBOOK, words // 2], axis=1)
            rows.append({"id": str(number), "codes": frames, "duration": 1.0, "text": None, "speaker_id": None})
        Shards(folder / split, 0, 2, {}).write(rows, position={}, finished=True)
        learned = SpeechCodesTokenizer.from_codes([torch.from_numpy(row["codes"]) for row in rows], CODEBOOK)
        learned.save_pretrained(folder / split / "vocabulary")
    return folder


@pytest.fixture
def tiny(codes, tmp_path):
    """tiny(name, optimization={...}, ...) is a recipe that runs in `tmp_path`/name."""

    def make(name: str = "run", path: Path | None = None, **sections) -> Recipe:
        if path is None:
            path = tmp_path / "recipe.yaml"
            path.write_text("architecture: DiscreteBert\nvocabulary: codes\n")
        recipe = load_recipe(path, [f"data.train={codes}", f"run.output_dir={tmp_path / name}"])
        optimization = {"num_steps": 2, "gradient_accumulation_steps": 1}
        given = {
            "data": {"evaluation": str(codes), "num_workers": 0},
            "codes": {"tokens_per_sample": 34, "batch_tokens": 136},
            "optimization": {**optimization, "schedule": {"kind": "constant"}, "learning_rate": 1e-2},
            "run": {"trackers": [], "log_every_steps": 1},
        }
        for section, changes in given.items():
            changes = {**changes, **sections.pop(section, {})}
            recipe = replace(recipe, **{section: replace(getattr(recipe, section), **changes)})
        model = {**recipe.model, **TINY_BERT, "max_position_embeddings": 36, **sections.pop("model", {})}
        return replace(recipe, model=model, **sections)

    return make


@pytest.fixture(scope="module")
def vq_wav2vec(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    torch.manual_seed(0)
    config = VQWav2VecConfig(**TINY_VQ)
    VQWav2VecForPreTraining(config).save_pretrained(folder)
    make_feature_extractor(Recipe(), config).save_pretrained(folder)
    return folder


def run(recipe: Recipe) -> dict:
    forget_accelerator()
    return pretrain_bert.main(recipe)


def values(recipe: Recipe, name: str) -> list[float]:
    lines = map(json.loads, (Path(recipe.run.output_dir) / "log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def weights(recipe: Recipe, *folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.run.output_dir).joinpath(*folder, "model.safetensors"))


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def runs_of(places: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], places.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def masked(masking: SpanMasking, total: int, seed: int = 0):
    ids = np.random.default_rng(1).choice(WORDS, total)
    return ids, masking(ids, mask_id=MASK, words=WORDS, generator=np.random.default_rng(seed))


def original_generator(*key: int) -> np.random.Generator:
    """As the original seeds it with (seed, epoch, index)."""
    return np.random.default_rng(int(hash(key) % 1e6))


@pytest.mark.parametrize("row", [0, 1])
def test_masks_are_those_recorded_from_the_original(row):
    recorded = load_fixture("fairseq", "roberta_vq")
    padded = recorded.tensors["batch.tokens"][row].numpy()
    ids, specials = padded[padded != 1], recorded.scalars["special_ids"]
    read, asked = (recorded.tensors[f"mlm.{name}"][row].numpy()[: len(ids)] for name in ("src_tokens", "target"))
    words = np.arange(4, 35)
    found = SpanMasking(mask_length_std=10.0)(
        ids, mask_id=specials["<mask>"], words=words, generator=original_generator(7, 0, row)
    )
    assert np.array_equal(found.labels, np.where(asked == 1, -100, asked))
    at_random = (read != ids) & (read != specials["<mask>"])
    assert at_random.any()
    assert np.array_equal(found.input_ids[~at_random], read[~at_random])
    assert np.isin(found.input_ids[at_random], words).all()


def test_spans_of_the_paper_have_their_length_and_cover_what_independent_starts_cover():
    masking, total = SpanMasking(), 1000
    rng = np.random.default_rng(0)
    places = [masking.places(total, rng) for _ in range(400)]
    expected = 1 - (1 - 0.05) ** 10  # a place is masked where one of the ten before it is a start
    assert np.mean([p[10:].mean() for p in places]) == pytest.approx(expected, abs=0.005)
    # spans melt together: so many runs begin as there are starts with no start among the ten before
    assert np.mean([len(runs_of(p)) for p in places]) == pytest.approx(50 * 0.95**10, rel=0.03)
    assert min(length for p in places for length in runs_of(p)[:-1]) == 10


def test_the_number_of_starts_is_a_share_rounded_at_random_and_none_is_drawn_twice():
    masking = SpanMasking(mask_prob=0.25, mask_length=1)
    counts = [masking.places(6, np.random.default_rng(seed)).sum() for seed in range(400)]
    assert set(counts) == {1, 2}
    assert np.mean(counts) == pytest.approx(1.5, abs=0.1)
    assert SpanMasking(mask_prob=1.0, mask_length=1).places(50, np.random.default_rng(0)).all()


def test_drawn_lengths_are_normal_rounded_and_never_negative():
    masking = SpanMasking(mask_prob=0.02, mask_length=10, mask_length_std=10.0)
    rng = np.random.default_rng(0)
    # 2 spans in 1000 places seldom meet
    lengths = [length for _ in range(1500) for length in runs_of(masking.places(1000, rng)[:900])]
    draws = np.maximum(np.rint(np.random.default_rng(1).normal(10, 10, 100_000)), 0)
    draws = draws[draws > 0]
    assert np.mean(lengths) == pytest.approx(draws.mean(), rel=0.05)
    assert np.std(lengths) == pytest.approx(draws.std(), rel=0.08)


def test_of_masked_places_some_are_left_some_random_and_the_rest_the_mask():
    ids, result = masked(SpanMasking(random_token_prob=0.2, leave_unmasked_prob=0.1), 20_000)
    places = result.labels != -100
    assert np.array_equal(result.labels[places], ids[places])
    assert np.array_equal(result.input_ids[~places], ids[~places])
    assert (result.input_ids[places] == MASK).mean() == pytest.approx(0.7, abs=0.02)
    replaced = places & (result.input_ids != MASK) & (result.input_ids != ids)
    assert replaced.sum() / places.sum() == pytest.approx(0.2 * (1 - 1 / len(WORDS)), abs=0.015)
    assert set(result.input_ids[replaced]) == set(WORDS)
    only_masks = masked(SpanMasking(random_token_prob=0.0, leave_unmasked_prob=0.0), 500)[1]
    assert (only_masks.input_ids[only_masks.labels != -100] == MASK).all()


def batches_of(codes: Path, split: str = "train", **settings) -> CodeBatches:
    tokenizer = settings.pop("tokenizer", None) or SpeechCodesTokenizer.from_pretrained(codes / "train" / "vocabulary")
    given = {"masking": SpanMasking(), "tokens_per_sample": 34, "batch_tokens": 136, "seed": 0, "num_epochs": 1}
    return CodeBatches({"path": str(codes), "split": split}, tokenizer, **{**given, **settings})


def originals(batch: dict) -> torch.Tensor:
    return torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])


def test_codes_that_the_vocabulary_cannot_have_name_their_row_and_a_frame_must_fit(codes):
    few = SpeechCodesTokenizer.with_all_codes(2, 2)
    with pytest.raises(ValueError, match=r"^\S+: codes must be from 0 to 1, got"):
        list(batches_of(codes, tokenizer=few))
    with pytest.raises(ValueError, match="tokens_per_sample: expected at least 4, a frame, got 3"):
        batches_of(codes, tokenizer=SpeechCodesTokenizer.per_group(2, 5), tokens_per_sample=3)


def test_batches_hold_every_code_once_in_pieces_that_fit(codes):
    tokenizer = SpeechCodesTokenizer.from_pretrained(codes / "train" / "vocabulary")
    rows = {
        row.id: torch.tensor(row.extra["codes"])
        for row in batches_of(codes, tokens_per_sample=9, batch_tokens=9).sources[0].rows()
    }
    assert len(rows) > 12
    found = {}
    for batch in batches_of(codes):
        assert batch["input_ids"].numel() <= 136
        assert batch["input_ids"].shape[1] <= 34
        for name, ids, valid in zip(batch["ids"], originals(batch), batch["attention_mask"].bool(), strict=True):
            assert (ids[~valid] == tokenizer.pad_token_id).all()
            ids = ids[valid]
            assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            row, _, place = name.partition("[")
            begin = int(place.partition(":")[0] or 0)
            found.setdefault(row, {})[begin] = tokenizer.convert_ids_to_codes(ids[1:-1])
    whole = {
        row.id: torch.from_numpy(row.extra["codes"]).long()
        for row in batches_of(codes, tokens_per_sample=100, batch_tokens=100).sources[0].rows()
    }
    assert sorted(found) == sorted(whole)
    for row, pieces in found.items():
        assert torch.equal(torch.cat([pieces[begin] for begin in sorted(pieces)]), whole[row])


def test_masks_depend_on_seed_epoch_and_row_and_not_on_what_else_is_in_the_batch(codes):
    def inputs(**settings) -> dict:
        found = {}
        for batch in batches_of(codes, shuffle_window=0, **settings):
            for name, ids, length in zip(
                batch["ids"], batch["input_ids"], batch["attention_mask"].sum(1), strict=True
            ):
                found[batch["epoch"], name] = ids[:length].tolist()
        return found

    first = inputs(num_epochs=2)
    assert first == inputs(num_epochs=2, batch_tokens=60)
    assert first != inputs(num_epochs=2, seed=1)
    names = {name for _, name in first}
    assert sum(first[0, name] != first[1, name] for name in names) > len(names) / 2


def test_a_vocabulary_per_group_is_two_tokens_a_frame(codes):
    tokenizer = SpeechCodesTokenizer.per_group(2, CODEBOOK)
    batch = next(iter(batches_of(codes, tokenizer=tokenizer, tokens_per_sample=30)))
    assert batch["input_ids"].shape[1] <= 30
    assert (batch["attention_mask"].sum(1) % 2 == 0).all()
    assert (originals(batch)[:, 0] == tokenizer.bos_token_id).all()


def test_rows_without_codes_or_with_those_of_another_model_are_refused(codes):
    with pytest.raises(ValueError, match=r"expected a column codes \[T, 3\].*got \(\d+, 2\)"):
        next(iter(batches_of(codes, tokenizer=SpeechCodesTokenizer.with_all_codes(3, 3))))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_loss_and_gradient_of_masked_places_are_those_of_the_head_on_all_places(share):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = RobertaForMaskedLM(config).eval()
    input_ids = torch.randint(5, 40, (3, 20))
    labels = torch.where(torch.rand(3, 20) < share, input_ids, -100)
    mask = (torch.arange(20) < torch.tensor([[20], [20], [11]])).long()
    places = (labels.flatten() != -100).nonzero().squeeze(1)
    found = pretrain_bert.compute(
        model, {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "places": places}
    )
    logits = model(input_ids, attention_mask=mask).logits
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / max(len(places), 1)
    assert found.num_targets == len(places)
    torch.testing.assert_close(found.loss, expected)
    for a, b in zip(*(torch.autograd.grad(x, model.parameters()) for x in (found.loss, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_every_dropout_is_the_fast_one_and_changes_nothing_else(monkeypatch):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    theirs = transformers.RobertaForMaskedLM(config).eval()
    ours = RobertaForMaskedLM(config)
    ours.load_state_dict(theirs.state_dict())
    drawn = []

    def draw_all(values, prob):
        drawn.append(prob)
        return torch.ones_like(values, dtype=torch.bool), 1.0

    monkeypatch.setattr("hf_wav2vec_family.fused.draw_kept", draw_all)
    input_ids = torch.randint(5, 40, (3, 20))
    mask = (torch.arange(20) < torch.tensor([[20], [20], [11]])).long()
    found = ours.train()(input_ids, attention_mask=mask).logits
    # the embedding's, and of each layer that of the attention, of its output and of the layer's
    assert drawn == [0.1] * (1 + 3 * 2)
    torch.testing.assert_close(found[mask == 1], theirs(input_ids, attention_mask=mask).logits[mask == 1])


def test_a_configuration_that_made_one_makes_transformers_own_with_its_own_attention():
    config = transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    ours = RobertaForMaskedLM(config)
    theirs = transformers.RobertaForMaskedLM(config)
    assert ours.config._attn_implementation == "sdpa_with_dropout"
    assert theirs.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_shrunk_trains_two_steps(tiny, path):
    recipe = tiny(path=path)
    assert run(recipe)["steps"] == 2
    assert all(map(math.isfinite, values(recipe, "loss") + values(recipe, "gradient_norm")))
    assert values(recipe, "evaluation/perplexity")[-1] == pytest.approx(
        math.exp(values(recipe, "evaluation/loss")[-1])
    )
    assert 0 <= values(recipe, "evaluation/accuracy")[-1] <= 1


def test_training_lowers_the_loss(tiny):
    masking = SpanMasking(mask_prob=0.15, mask_length=1)
    recipe = tiny(model=NO_DROPOUT, optimization={"num_steps": 40}, masking=masking)
    run(recipe)
    losses = values(recipe, "loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


@pytest.mark.parametrize("kill_in_step", [1, 3])
def test_a_run_killed_and_resumed_ends_in_the_weights_of_one_never_killed(tiny, monkeypatch, kill_in_step):
    changes = {
        "optimization": {"num_steps": 4, "gradient_accumulation_steps": 2},
        "run": {"checkpoint_every_steps": 2, "evaluation_every_steps": 2},
    }
    whole, killed = tiny("whole", **changes), tiny("killed", **changes)
    run(whole)
    # in the second of the two accumulated batches
    with killed_in_batch(2 * kill_in_step + 2, pretrain_bert, monkeypatch):
        run(killed)
    run(killed)
    assert same(weights(killed, "checkpoints", "step-00000004"), weights(whole, "checkpoints", "step-00000004"))
    assert same(weights(killed, "model"), weights(whole, "model"))
    assert values(killed, "loss") == values(whole, "loss")
    assert values(killed, "evaluation/loss") == values(whole, "evaluation/loss")


def test_the_model_folder_is_transformers_own_and_the_other_one_hears(tiny, vq_wav2vec, codes):
    recipe = tiny(codes={"vq_wav2vec": str(vq_wav2vec)})
    run(recipe)
    folder = Path(recipe.run.output_dir)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder / "model").eval()
    assert type(model) is transformers.RobertaForMaskedLM
    tokenizer = SpeechCodesTokenizer.from_pretrained(folder / "model")
    assert tokenizer.word_counts == SpeechCodesTokenizer.from_pretrained(codes / "train" / "vocabulary").word_counts
    assert model.config.vocab_size == tokenizer.vocab_size

    hears = DiscreteBertModel.from_pretrained(folder / "discrete_bert").eval()
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = hears(waveform)
        ids = tokenizer.build_inputs_with_special_tokens(tokenizer.convert_codes_to_ids(output.codes)[0].tolist())
        features = model.roberta(torch.tensor([ids])).last_hidden_state[:, 1:-1]
    torch.testing.assert_close(output.last_hidden_state, features)
    assert transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder / "discrete_bert").do_normalize is False


def test_the_vocabulary_of_several_corpora_is_that_of_all_their_words(tiny, codes):
    both = [{"path": str(codes), "split": split} for split in ("train", "dev")]
    recipe = tiny()
    found = pretrain_bert.load_tokenizer(replace(recipe, data=replace(recipe.data, train=both))).word_counts
    train, dev = (SpeechCodesTokenizer.from_pretrained(codes / s / "vocabulary").word_counts for s in ("train", "dev"))
    assert dev != train
    assert {word: count for word, count in found.items() if count} == dict(+(Counter(train) + Counter(dev)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "Wav2Vec2"}, "architecture must be DiscreteBert"),
        ({"vocabulary": "letters"}, r"vocabulary must be \"codes\".*none in letters"),
        ({"data": {"batch_seconds": 10.0}}, "batch_seconds has no effect"),
        ({"optimization": {"codebook": {"initialize": True}}}, "codebook has no effect"),
        ({"model": {"max_position_embeddings": 35}}, "tokens_per_sample must be at most 33.*got 34"),
        ({"model": {"hiden_size": 8}}, "RobertaConfig has no field hiden_size"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(**changes))


def test_a_model_of_other_codes_is_refused_before_a_step_is_trained(tiny, tmp_path):
    config = VQWav2VecConfig(**{**TINY_VQ, "num_codevectors_per_group": 3})
    VQWav2VecForPreTraining(config).save_pretrained(tmp_path / "other")
    make_feature_extractor(Recipe(), config).save_pretrained(tmp_path / "other")
    recipe = tiny(codes={"vq_wav2vec": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="the code 4, but there are 3 codes per group"):
        run(recipe)
    assert not (Path(recipe.run.output_dir) / "log.jsonl").exists()
