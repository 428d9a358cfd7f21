"""Recipes: everything a file or a command line can get wrong is named, and every recipe of the project is right."""

from pathlib import Path

import pytest
import torch
import transformers

import hf_wav2vec_family
from hf_wav2vec_family.configuration_discrete_bert import ORIGINAL_ROBERTA
from training.pretrain import make_feature_extractor
from training.recipe import Recipe, batch_settings, configuration, load_recipe, parse_command

RECIPES = sorted((Path(__file__).parents[1] / "training" / "recipes").rglob("*.yaml"))
PLACES = ("data.train=corpus", "run.output_dir=run")
TASKS = {"pretrain": "ForPreTraining", "pretrain_bert": "ForMaskedLM", "finetune": "ForCTC"}
NUM_PARAMETERS = {
    "wav2vec2/base_ls960": 95_044_608,
    "wav2vec2/large_ls960": 317_380_864,
    "wav2vec2/large_lv60k": 317_390_592,
    "wav2vec/large_ls960_published": 32_537_088,
    "vq_wav2vec/gumbel_ls960_readme": 34_063_488,
    "vq_wav2vec/kmeans_ls960_readme": 33_014_272,
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str = "") -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def stage_of(path: Path) -> str:
    if "bert" in path.parent.name and "finetune" not in path.stem:
        return "pretrain_bert"
    return "finetune" if "finetune" in path.stem or path.parent.name == "wav2letter" else "pretrain"


def model_of(recipe: Recipe, task: str):
    if task == "ForMaskedLM":
        fields = {**ORIGINAL_ROBERTA, "vocab_size": 23_505, **recipe.model}
        with torch.device("meta"):
            return transformers.RobertaForMaskedLM(configuration(transformers.RobertaConfig, fields))
    package = hf_wav2vec_family
    config = configuration(getattr(package, f"{recipe.architecture}Config"), recipe.model)
    with torch.device("meta"):
        return getattr(package, f"{recipe.architecture}{task}")(config)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_parses_and_its_model_section_builds_a_model(path):
    recipe = load_recipe(path, PLACES)
    assert model_of(recipe, TASKS[stage_of(path)]).num_parameters() > 0


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_has_its_command_and_a_papers_recipe_what_it_got_there_and_here(path):
    header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Run: " in header
    if "arXiv" in header:
        assert f"-m training.{stage_of(path)} training/recipes/{path.parent.name}/{path.name}" in header
        assert "Paper" in header
        assert "Here: " in header


@pytest.mark.parametrize(("name", "expected"), NUM_PARAMETERS.items())
def test_the_papers_models_have_as_many_parameters_as_the_published_ones(name, expected):
    path = next(path for path in RECIPES if name_of(path) == name)
    assert model_of(load_recipe(path, PLACES), "ForPreTraining").num_parameters() == expected


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("bogus=1", "bogus"),
        ("data.bogus=1", "bogus"),
        ("optimization.bogus=1", "bogus"),
        ("codes.bogus=1", "bogus"),
        ("masking.bogus=1", "bogus"),
        ("run.bogus=1", "bogus"),
        ("optimization.schedule={kind: polynomial, bogus: 1}", "bogus"),
        ("optimization.gumbel_temperature={kind: linear, bogus: 1}", "bogus"),
    ],
)
def test_an_unknown_key_is_named_at_every_level(recipe_file, key, named):
    with pytest.raises(ValueError, match=named):
        load_recipe(recipe_file(), [*PLACES, key])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.log_every_steps=-1", r"run\.log_every_steps must be at least 0, got -1"),
        ("run.keep_checkpoints=0", r"run\.keep_checkpoints must be at least 1, got 0"),
        ("data.max_bad_fraction=7", r"data\.max_bad_fraction must be at least 0 and at most 1, got 7"),
        ("data.num_streams=0", r"data\.num_streams must be at least 1, got 0"),
        ("data.budget_seconds=0", r"data\.budget_seconds must be above 0"),
        ("optimization.max_grad_norm=-1", r"optimization\.max_grad_norm must be at least 0"),
        ("optimization.schedule={kind: polynomial, warmup_steps: abc}", r"optimization\.schedule: "),
        ("optimization.gumbel_temperature={kind: linear, share: 0}", r"optimization\.gumbel_temperature: "),
        (
            "optimization.gumbel_temperature={kind: linear, end: 0}",
            r"gumbel_temperature must be at least 1e-06 at step",
        ),
        ("run.best_metric=accuracy", r"lowest value is the best, got accuracy"),
        ("model=[1]", "with overrides"),
        ("model={a: [1", "with overrides"),
        ("data.train={path: x, weight: abc}", "weight"),
        ("data.augmentation=[noise]", "with overrides"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_loaded(recipe_file, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(), [*PLACES, override])


def test_a_recipe_that_is_no_yaml_or_no_file_is_named(recipe_file, tmp_path):
    for path in (recipe_file("a: [1,"), tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            load_recipe(path, PLACES)


def test_an_unknown_key_of_a_file_is_named_as_one_of_the_command_line_is(recipe_file):
    with pytest.raises(ValueError, match="learning_rat"):
        load_recipe(recipe_file("optimization: {learning_rat: 1.0}"), PLACES)


def test_an_unknown_field_of_the_model_is_named_with_its_class(recipe_file):
    recipe = load_recipe(recipe_file("model: {hiden_size: 8}"), PLACES)
    with pytest.raises(ValueError, match="Wav2Vec2Config has no field hiden_size"):
        configuration(hf_wav2vec_family.Wav2Vec2Config, recipe.model)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimization.num_steps=many", "num_steps"),
        ("data.batch_seconds=long", "batch_seconds"),
        ("optimization.num_steps=0", r"num_steps must be at least 1, got 0"),
        ("optimization.gradient_accumulation_steps=0", r"gradient_accumulation_steps must be at least 1"),
        ("optimization.mixed_precision=fp8", r"mixed_precision must be one of .*bf16.*got 'fp8'"),
        ("optimization.schedule={kind: round}", r"schedule\.kind must be one of polynomial.*got 'round'"),
        ("optimization.schedule={warmup_steps: 1, kind: null}", r"schedule\.kind"),
        ("optimization.optimizer=lamb", r"optimizer must be adamw or sgd, got 'lamb'"),
        ("optimization.momentum=0.9", r"momentum needs the optimizer sgd, got 'adamw'"),
        ("data.min_seconds=30", r"min_seconds must not be above data\.max_seconds, got 30.* and 20"),
        ("data.train=[]", "source"),
        ("data.train={path: x, subset: y}", "source"),
        ("data.evaluation={path: x, subset: y}", "source"),
        ("codes.tokens_per_sample=4000", r"tokens_per_sample must be .* at most batch_tokens, got 4000 and 3072"),
        ("masking.mask_length=0", r"mask_length must be at least 1 .*got 0"),
        ("masking.random_token_prob=0.95", r"above 1 together, got 0\.95 and 0\.1"),
        ("masking.mask_length_std=-1", r"mask_length_std must not be negative, got -1"),
        ("run.keep_checkpoints=0", r"keep_checkpoints must be at least 1, got 0"),
        ("run.resume=3", r"run.resume must be true, false, a folder or a Hub id, got 3"),
        ("data.evaluation={path: a, weight: 2}", r"data.evaluation takes every row once and no weight, got one for a"),
        ("data.train={path: a, weight: -1}", r"source.weight: expected a number above 0, got -1"),
        ("no equals sign", "key=value"),
    ],
)
def test_a_wrong_value_is_refused_and_named(recipe_file, key, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(), [*PLACES, key])


@pytest.mark.parametrize("missing", ["data.train", "run.output_dir"])
def test_what_no_recipe_can_know_has_to_be_given(recipe_file, missing):
    with pytest.raises(ValueError, match=missing.split(".")[1]):
        load_recipe(recipe_file(), [place for place in PLACES if not place.startswith(missing)])


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(recipe_file):
    file = recipe_file("optimization: {num_steps: 7, eps: 1.0e-3}\ndata: {train: there}")
    recipe = load_recipe(file, ["optimization.num_steps=9", "run.output_dir=run", "model.conv_dim=[1,2]"])
    assert (recipe.optimization.num_steps, recipe.optimization.eps) == (9, 1e-3)
    assert recipe.optimization.weight_decay == Recipe().optimization.weight_decay
    assert recipe.data.train == "there"
    assert recipe.model == {"conv_dim": [1, 2]}


@pytest.mark.parametrize("written", ["no", "'no'", "false"])
def test_no_precision_may_be_written_without_the_quotes_that_yaml_wants(recipe_file, written):
    file = recipe_file(f"optimization: {{mixed_precision: {written}}}")
    for recipe in (load_recipe(file, PLACES), load_recipe(file, [*PLACES, f"optimization.mixed_precision={written}"])):
        assert recipe.optimization.mixed_precision == "no"


def test_another_kind_of_schedule_brings_its_own_options_only(recipe_file):
    recipe = load_recipe(recipe_file("optimization: {schedule: {kind: tri_stage, hold: 0.2}}"), PLACES)
    assert recipe.optimization.schedule == {"kind": "tri_stage", "hold": 0.2}


def test_an_option_of_a_schedule_can_be_changed_alone(recipe_file):
    file = recipe_file("optimization: {schedule: {kind: polynomial, warmup_steps: 5, power: 2.0}}")
    recipe = load_recipe(file, [*PLACES, "optimization.schedule.warmup_steps=6"])
    assert recipe.optimization.schedule == {"kind": "polynomial", "warmup_steps": 6, "power": 2.0}


@pytest.mark.parametrize(("compiled", "step"), [("true", 0.25), ("false", 0.0)])
def test_a_model_that_is_compiled_gets_batches_of_few_lengths(recipe_file, compiled, step):
    recipe = load_recipe(recipe_file(""), [*PLACES, f"optimization.compile={compiled}"])
    assert batch_settings(recipe, rank=0, world_size=1)["length_step_seconds"] == step


@pytest.mark.parametrize(("norm", "right"), [("group", False), ("layer", True)])
def test_a_recipe_that_normalizes_against_the_extractor_it_trains_is_refused(recipe_file, norm, right):
    def feature_extractor(do_normalize):
        file = recipe_file(f"do_normalize: {do_normalize}\nmodel: {{feat_extract_norm: {norm}}}")
        recipe = load_recipe(file, PLACES)
        return make_feature_extractor(recipe, configuration(hf_wav2vec_family.Wav2Vec2Config, recipe.model))

    assert feature_extractor(str(right).lower()).do_normalize == right
    assert feature_extractor("null").do_normalize == right
    with pytest.raises(ValueError, match=rf"do_normalize must be {right}.*got {not right}"):
        feature_extractor(str(not right).lower())


@pytest.mark.parametrize("arguments", [["run.bogus=1"], ["novalue"]])
def test_a_wrong_command_line_ends_with_code_2_and_the_cause_last(recipe_file, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        parse_command("stage", [str(recipe_file()), *PLACES, *arguments])
    assert exit_.value.code == 2
    assert arguments[0].split("=")[0].split(".")[-1] in capsys.readouterr().err.splitlines()[-1]


def test_a_recipe_that_is_not_there_ends_with_code_2_and_its_name(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_command("stage", ["nowhere.yaml", *PLACES])
    assert exit_.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err
