"""The stages end to end on seeded noise and tiny models: they learn, stop, go on, and leave what they promise."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from accelerate.utils import DistributedType
from interruptions import forget_accelerator, killed_in_batch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_models import TINY_MODELS
from torch._dynamo.testing import CompileCounter

from hf_wav2vec_family import (
    CPCConfig,
    CPCForPreTraining,
    DiscreteBertConfig,
    DiscreteBertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)
from training import engine, evaluate, finetune, loop, pretrain
from training.engine import make_accelerator
from training.gradients import accumulate, apply_gradients
from training.last_good import LastGood
from training.recipe import Recipe, load_recipe
from training.run_log import RunLog
from training.stage import StepOutput
from training.transfer import on_device

# those of discrete_bert that are not of fine-tuning read codes: test_pretrain_bert.py
ROOM = Path(__file__).parents[1] / "training" / "recipes"
RECIPES = sorted([*ROOM.glob("[!d]*/*.yaml"), *ROOM.glob("discrete_bert/finetune*.yaml")])
RATE = 16_000
NO_DROPOUT = {
    **dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0),
    **dict.fromkeys(["final_dropout", "feat_quantizer_dropout", "layerdrop"], 0.0),
}


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Ten clips of noisy tones, the pitch of each telling its letter, and four more to evaluate on."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for split, num_clips in (("train", 10), ("dev", 4)):
        (folder / split).mkdir()
        with (folder / split / "metadata.jsonl").open("w") as metadata:
            for number in range(num_clips):
                text = "".join(rng.choice(list("ABC D"), size=4)).strip() or "A"
                seconds = rng.uniform(0.4, 0.8)
                time = np.arange(int(seconds * RATE)) / RATE
                waveform = 0.3 * np.sin(2 * math.pi * 100 * ord(text[0]) * time) + 0.1 * rng.standard_normal(len(time))
                soundfile.write(folder / split / f"{number}.wav", waveform, RATE)
                row = {"file_name": f"{number}.wav", "text": text, "speaker_id": f"voice-{number % 2}"}
                metadata.write(json.dumps(row) + "\n")
    return folder


def shrunk(path: Path, corpus: Path, folder: Path, *overrides: str) -> Recipe:
    """The recipe at `path` with everything it says, on a tiny model, a second of audio and two steps."""
    recipe = load_recipe(path, [f"data.train={corpus}", f"run.output_dir={folder}", *overrides])
    data, optimization = recipe.data, recipe.optimization
    model = {**recipe.model, **TINY_MODELS[recipe.architecture]}
    if "mask_feature_length" in model:
        model["mask_feature_length"] = 4
    if recipe.vocabulary == "timit39":  # the tones have letters
        recipe, data = replace(recipe, vocabulary="wsj"), replace(data, text_case="lower")
    return replace(
        recipe,
        model=model,
        pretrained=None,
        data=replace(
            data,
            evaluation=str(corpus),
            batch_seconds=2.0,
            min_seconds=0.1,
            max_seconds=min(data.max_seconds, 1.0),
            num_workers=0,
            budget_seconds=data.budget_seconds and 3.0,
        ),
        optimization=replace(
            optimization,
            num_steps=2,
            gradient_accumulation_steps=min(optimization.gradient_accumulation_steps, 2),
            frozen_encoder_steps=min(optimization.frozen_encoder_steps, 1),
        ),
        run=replace(recipe.run, trackers=[], log_every_steps=1),
    )


@pytest.fixture
def tiny(corpus, tmp_path):
    """tiny(name, model={...}, optimization={...}, ...) is a recipe that runs in `tmp_path`/name."""

    def make(name: str = "run", **sections) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text("{}")
        recipe = shrunk(path, corpus, tmp_path / name)
        given = {"optimization": {"learning_rate": 1e-2, "schedule": {"kind": "constant"}}}
        for section in ("data", "optimization", "run"):
            changes = {**given.get(section, {}), **sections.pop(section, {})}
            recipe = replace(recipe, **{section: replace(getattr(recipe, section), **changes)})
        return replace(recipe, model={**recipe.model, **sections.pop("model", {})}, **sections)

    return make


def run_stage(stage, recipe: Recipe) -> dict:
    forget_accelerator()
    return stage.main(recipe)


def log_of(recipe: Recipe) -> list[dict]:
    return [json.loads(line) for line in (Path(recipe.run.output_dir) / "log.jsonl").read_text().splitlines()]


def values(recipe: Recipe, name: str) -> list[float]:
    return [line[name] for line in log_of(recipe) if name in line]


def checkpoint_weights(recipe: Recipe, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.run.output_dir) / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def model_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.run.output_dir) / "model" / "model.safetensors")


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def encoder(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if name.startswith("wav2vec2.")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_shrunk_trains_two_steps(path, corpus, tmp_path):
    stage = finetune if "finetune" in path.stem or path.parent.name == "wav2letter" else pretrain
    recipe = shrunk(path, corpus, tmp_path / "run")
    summary = run_stage(stage, recipe)
    assert summary["steps"] == 2
    assert summary["best_step"] in (1, 2)
    assert all(map(math.isfinite, values(recipe, "loss") + values(recipe, "gradient_norm")))
    assert model_weights(recipe)


def test_two_steps_of_pretraining_lower_the_loss_on_the_data(tiny, corpus):
    def loss_after_two_steps(learning_rate):
        recipe = tiny(
            f"rate-{learning_rate}",
            model=NO_DROPOUT,
            data={"batch_seconds": 8.0, "evaluation": {"path": str(corpus), "split": "train"}},
            optimization={"learning_rate": learning_rate},
        )
        run_stage(pretrain, recipe)
        return values(recipe, "evaluation/loss")[-1]

    assert loss_after_two_steps(3e-3) < loss_after_two_steps(0.0) - 0.01


def test_two_steps_of_finetuning_lower_the_loss_of_a_batch(tiny):
    recipe = tiny(
        model={**NO_DROPOUT, "mask_time_prob": 0.0},
        data={"batch_seconds": 8.0},
        optimization={"num_steps": 3, "learning_rate": 3e-3},
    )
    run_stage(finetune, recipe)
    first, _, third = values(recipe, "loss")
    assert third < first - 0.01


@pytest.mark.parametrize("stage", [pretrain, finetune], ids=["pretraining", "finetuning"])
@pytest.mark.parametrize("kill_in_step", [1, 3])
def test_a_run_killed_and_resumed_ends_in_the_weights_of_one_never_killed(tiny, monkeypatch, stage, kill_in_step):
    changes = {
        "model": {"layerdrop": 0.5, "hidden_dropout": 0.2, "feat_proj_dropout": 0.2, "final_dropout": 0.2},
        "optimization": {"num_steps": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0},
        "run": {"checkpoint_every_steps": 2, "evaluation_every_steps": 2},
        "data": {"batch_seconds": 1.0},
    }
    if stage is finetune:
        changes["optimization"]["frozen_encoder_steps"] = 3
    else:
        changes["optimization"]["gumbel_temperature"] = {"kind": "linear"}
    whole, killed = tiny("whole", **changes), tiny("killed", **changes)
    run_stage(stage, whole)

    # in the second of the two accumulated batches
    with killed_in_batch(2 * kill_in_step + 2, stage, monkeypatch):
        run_stage(stage, killed)
    assert len(list((Path(killed.run.output_dir) / "checkpoints").glob("*"))) == (1 if kill_in_step > 2 else 0)
    summary = run_stage(stage, killed)

    assert same(checkpoint_weights(killed, 4), checkpoint_weights(whole, 4))
    assert same(model_weights(killed), model_weights(whole))
    assert values(killed, "loss") == values(whole, "loss")
    assert values(killed, "gradient_norm") == values(whole, "gradient_norm")
    assert [line["step"] for line in log_of(killed)] == [line["step"] for line in log_of(whole)]
    assert summary["data"] == json.loads((Path(whole.run.output_dir) / "summary.json").read_text())["data"]


def test_how_often_a_run_is_evaluated_changes_nothing_of_what_it_learns(tiny):
    often, seldom = tiny("often", run={"evaluation_every_steps": 1}), tiny("seldom")
    run_stage(pretrain, often)
    run_stage(pretrain, seldom)
    assert len(values(often, "evaluation/loss")) == 2
    assert same(checkpoint_weights(often, 2), checkpoint_weights(seldom, 2))


def test_a_run_that_may_not_resume_starts_anew(tiny):
    first = tiny(optimization={"num_steps": 1}, run={"checkpoint_every_steps": 1})
    run_stage(pretrain, first)
    again = replace(first, run=replace(first.run, resume=False))
    weights = checkpoint_weights(first, 1)
    assert run_stage(pretrain, again)["steps"] == 1
    assert same(weights, checkpoint_weights(again, 1))


def test_a_finished_run_that_is_started_again_trains_no_more(tiny, monkeypatch):
    recipe = tiny()
    run_stage(pretrain, recipe)
    monkeypatch.setattr(pretrain, "compute", None)
    assert run_stage(pretrain, recipe)["steps"] == 2


def test_accumulated_batches_give_the_gradient_of_one_batch_of_all(tiny):
    recipe = tiny()
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def mean_square(model, batch):
        loss = model(batch["input_values"]).square().mean()
        return StepOutput(loss, torch.tensor(len(batch["input_values"])))

    def weights_after(*batches):
        accelerator = make_accelerator(recipe)
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
        source = on_device(({"input_values": batch} for batch in batches), accelerator.device)
        stage = finetune.Stage(compute=mean_square, save=None)
        log = RunLog(recipe, accelerator)
        total = accumulate(accelerator, model, source, stage, log, len(batches))
        assert total == 8
        apply_gradients(accelerator, model, optimizer, total, 0.0)
        return model.weight.detach()

    torch.testing.assert_close(weights_after(inputs[:3], inputs[3:]), weights_after(inputs))


def test_two_processes_learn_what_one_learns_from_the_batches_of_both(tiny, tmp_path):
    changes = {
        "model": {**NO_DROPOUT, "layerdrop": 0.5, "mask_time_prob": 0.0, "feature_gradient_scale": 0.0},
        "optimization": {"num_steps": 3},
        "run": {"checkpoint_every_steps": 2},
    }
    one, two = tiny("one", **changes), tiny("two", **changes)
    run_stage(finetune, replace(one, optimization=replace(one.optimization, gradient_accumulation_steps=2)))

    OmegaConf.save(OmegaConf.structured(two), tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.run(
        [*command, "-m", "training.finetune", str(tmp_path / "two.yaml")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert values(two, "loss") == pytest.approx(values(one, "loss"))
    for name, weight in checkpoint_weights(one, 3).items():
        torch.testing.assert_close(checkpoint_weights(two, 3)[name], weight)
    assert json.loads((Path(two.run.output_dir) / "summary.json").read_text())["processes"] == 2
    left = {path.name for path in (Path(two.run.output_dir) / "checkpoints" / "step-00000003").iterdir()}
    assert {"rank-0.json", "rank-1.json"} < left


def test_gradients_above_the_norm_are_scaled_down_to_it(tiny):
    recipe = tiny()
    accelerator = make_accelerator(recipe)
    model = torch.nn.Linear(2, 1, bias=False)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    for max_norm, expected in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0]), (9.0, [3.0, 4.0])):
        model.weight.data.zero_()
        model.weight.grad = torch.tensor([[6.0, 8.0]])
        norm = apply_gradients(accelerator, model, optimizer, torch.tensor(2), max_norm)
        assert norm == 5.0
        torch.testing.assert_close(-model.weight.detach()[0], torch.tensor(expected))


def test_the_encoder_does_not_move_while_frozen_and_does_afterwards(tiny):
    pretraining = tiny("pretraining", optimization={"num_steps": 1})
    run_stage(pretrain, pretraining)
    before = encoder(model_weights(pretraining))
    recipe = tiny(
        pretrained=str(Path(pretraining.run.output_dir) / "model"),
        optimization={"num_steps": 3, "frozen_encoder_steps": 2},
        run={"checkpoint_every_steps": 1, "keep_checkpoints": 3},
    )
    run_stage(finetune, recipe)
    first, second, third = (checkpoint_weights(recipe, step) for step in (1, 2, 3))
    assert same(encoder(first), before)
    assert same(encoder(second), before)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    changed = {name for name in before if not torch.equal(before[name], encoder(third)[name])}
    assert changed == set(before)


def test_pretraining_goes_on_from_a_model_on_other_speech(tiny):
    before = tiny("before", optimization={"num_steps": 2})
    run_stage(pretrain, before)
    model = Path(before.run.output_dir) / "model"
    still = {"optimization": {"num_steps": 1, "learning_rate": 0.0}, "data": {"evaluation": None}}
    after = replace(tiny("after", **still), pretrained=str(model), model={"num_negatives": 3})
    run_stage(pretrain, after)
    assert same(model_weights(after), model_weights(before))
    assert Wav2Vec2Config.from_pretrained(Path(after.run.output_dir) / "model").num_negatives == 3


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_a_pretrained_model_of_another_architecture_is_refused(tiny, stage, tmp_path):
    CPCConfig().save_pretrained(tmp_path / "cpc")
    with pytest.raises(ValueError, match=r"pretrained must be a wav2vec2, got .*cpc, which is a cpc"):
        run_stage(stage, tiny(pretrained=str(tmp_path / "cpc")))


@pytest.mark.parametrize("freeze_roberta", [False, True])
def test_discrete_bert_learns_from_a_pretrained_folder_and_its_codes_stay(tiny, tmp_path, freeze_roberta):
    roberta = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    before = DiscreteBertModel(DiscreteBertConfig(vq_wav2vec_config=TINY_MODELS["VQWav2Vec"], roberta_config=roberta))
    before.save_pretrained(tmp_path / "pretrained")
    recipe = replace(
        tiny(vocabulary="transcripts"),
        architecture="DiscreteBert",
        pretrained=str(tmp_path / "pretrained"),
        model={"freeze_roberta": freeze_roberta},
    )
    run_stage(finetune, recipe)
    assert values(recipe, "evaluation/cer")
    after = model_weights(recipe)
    for name, value in before.state_dict().items():
        learns = name.startswith("roberta.") and not freeze_roberta
        assert torch.equal(value, after[f"discrete_bert.{name}"]) != learns, name


@pytest.mark.parametrize("frozen_encoder_steps", [0, 1])
def test_convolutions_without_gradient_never_move_and_everything_else_does(tiny, monkeypatch, frozen_encoder_steps):
    learning = {}

    def compute(model, batch):
        learning.update((name, parameter.requires_grad) for name, parameter in model.named_parameters())
        return compute_before(model, batch)

    compute_before = finetune.compute
    monkeypatch.setattr(finetune, "compute", compute)
    recipe = tiny(
        model={"feature_gradient_scale": 0.0},
        optimization={"frozen_encoder_steps": frozen_encoder_steps},
        run={"checkpoint_every_steps": 1},
    )
    run_stage(finetune, recipe)
    # with a gradient that never comes, processes would wait for each other
    still = {name for name, learns in learning.items() if not learns} - {"wav2vec2.masked_spec_embed"}
    assert still == {name for name in learning if name.startswith("wav2vec2.feature_extractor.")}
    first, second = (encoder(checkpoint_weights(recipe, step)) for step in (1, 2))
    still = {name for name in first if torch.equal(first[name], second[name])}
    assert still == {name for name in first if name.startswith("wav2vec2.feature_extractor.")}


@pytest.mark.parametrize("stage", [pretrain, finetune], ids=["pretraining", "finetuning"])
def test_all_batches_of_a_step_skip_the_same_layers(tiny, monkeypatch, stage):
    compute, skipped = stage.compute, []

    def remember(model, batch):
        if model.training:
            skipped.append(model.base_model.encoder.layerdrop.choose().tolist())
        return compute(model, batch)

    monkeypatch.setattr(stage, "compute", remember)
    model = {"num_hidden_layers": 8, "layerdrop": 0.5}
    run_stage(stage, tiny(model=model, data={"batch_seconds": 1.0}, optimization={"gradient_accumulation_steps": 2}))
    assert skipped[0] == skipped[1]
    assert skipped[2] == skipped[3]
    assert skipped[0] != skipped[2]


def test_the_log_and_the_summary_of_pretraining_hold_what_they_promise(tiny):
    recipe = tiny(optimization={"gumbel_temperature": {"kind": "linear"}}, run={"trackers": ["tensorboard"]})
    summary = run_stage(pretrain, recipe)
    folder = Path(recipe.run.output_dir)
    first, second, evaluation = log_of(recipe)
    assert [first["step"], second["step"], evaluation["step"]] == [1, 2, 2]
    parts = {"contrastive_loss", "diversity_loss", "feature_penalty"}
    watched = {"accuracy", "codevector_perplexity", "code_perplexity"}
    of_the_loop = {"learning_rate", "gumbel_temperature", "gradient_norm", "update_ratio", "audio_seconds_per_second"}
    of_the_data = {"data_wait_share", "bad_row_share", "input_rms", "input_offset", "silent_share"}
    of_the_model = {"mask_share", "used_codes", "used_codes_share"}
    assert set(first) == {"step", "loss"} | parts | watched | of_the_loop | of_the_data | of_the_model
    assert set(evaluation) == {"step", "evaluation/loss", *(f"evaluation/{name}" for name in parts | watched)}
    assert first["loss"] == pytest.approx(sum(first[name] for name in parts), abs=1e-5)
    assert [first["gumbel_temperature"], second["gumbel_temperature"]] == pytest.approx([2.0, 2.0 - 1.5 / 1.4])

    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["steps"] == summary["best_step"] == 2
    assert summary["best"] == evaluation["evaluation/contrastive_loss"]
    assert summary["processes"] == 1
    assert summary["device"] == "cpu"
    assert summary["mixed_precision"] == "no"
    assert summary["data"]["rows"] > 0
    assert list(folder.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(("has_bfloat16", "chosen"), [(True, "bf16"), (False, "no")])
def test_a_run_says_which_precision_auto_was_and_records_what_was_asked(
    tiny, monkeypatch, capsys, has_bfloat16, chosen
):
    monkeypatch.setattr(engine, "multiplies_bfloat16", lambda: has_bfloat16)
    recipe = tiny(optimization={"mixed_precision": "auto", "num_steps": 1})
    summary = run_stage(pretrain, recipe)
    said = f"optimization.mixed_precision: auto is {chosen} on cpu"
    assert capsys.readouterr().out.splitlines().count(said) == 1
    assert summary["mixed_precision"] == chosen
    kept = OmegaConf.load(Path(recipe.run.output_dir) / "recipe.yaml")
    assert kept.optimization.mixed_precision == "auto"


def test_the_quantizer_has_the_temperature_of_the_step(tiny, monkeypatch):
    compute, seen = pretrain.compute, []

    def remember(model, batch):
        if model.training:
            seen.append(float(model.gumbel_temperature))
        return compute(model, batch)

    monkeypatch.setattr(pretrain, "compute", remember)
    recipe = tiny(optimization={"gumbel_temperature": {"kind": "linear", "start": 3.0, "share": 1.0}})
    run_stage(pretrain, recipe)
    assert seen == values(recipe, "gumbel_temperature") == [3.0, 1.75]


@pytest.mark.parametrize(("measured", "best_step"), [([3.0, 1.0, 2.0], 2), ([1.0, 1.0, 1.0], 1)])
def test_the_model_that_is_left_is_the_one_with_the_lowest_number(tiny, monkeypatch, measured, best_step):
    numbers = iter(measured)
    monkeypatch.setattr(pretrain, "evaluator", lambda *_: lambda model: {"contrastive_loss": next(numbers)})
    every_step = {"checkpoint_every_steps": 1, "evaluation_every_steps": 1, "keep_checkpoints": 3}
    recipe = tiny(optimization={"num_steps": 3}, run=every_step)
    summary = run_stage(pretrain, recipe)
    assert (summary["best"], summary["best_step"]) == (min(measured), best_step)
    assert same(model_weights(recipe), checkpoint_weights(recipe, best_step))


def test_without_evaluation_the_last_model_is_left(tiny):
    recipe = tiny(data={"evaluation": None}, run={"evaluation_every_steps": 1})
    summary = run_stage(pretrain, recipe)
    assert (summary["best"], summary["best_step"]) == (None, 2)
    assert same(model_weights(recipe), checkpoint_weights(recipe, 2))


def test_a_best_metric_that_is_not_measured_is_named_with_those_that_are(tiny):
    with pytest.raises(ValueError, match=r"run\.best_metric must be one of .*contrastive_loss.*got 'wer'"):
        run_stage(pretrain, tiny(run={"best_metric": "wer"}))


def test_a_source_without_a_split_is_trained_on_in_train_and_evaluated_on_in_dev(tiny, corpus):
    recipe = tiny(data={"train": str(corpus), "evaluation": str(corpus), "batch_seconds": 8.0})
    assert run_stage(finetune, recipe)["data"]["rows"] == 2 * 10
    assert len(utterances_of(Path(recipe.run.output_dir) / "evaluation")) == 4


def utterances_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "utterances.jsonl").read_text().splitlines()]


@pytest.fixture
def finetuned(tiny) -> Recipe:
    """A model of random weights after one step so small that it still babbles."""
    recipe = tiny(optimization={"num_steps": 1, "learning_rate": 1e-6})
    run_stage(finetune, recipe)
    return recipe


def test_the_report_of_an_evaluation_has_every_utterance_and_its_scores(finetuned, corpus):
    folder = Path(finetuned.run.output_dir) / "evaluation"
    utterances = utterances_of(folder)
    metadata = (corpus / "dev" / "metadata.jsonl").read_text().splitlines()
    assert [utterance["reference"] for utterance in utterances] == [json.loads(line)["text"] for line in metadata]
    assert [utterance["id"] for utterance in utterances] == ["0", "1", "2", "3"]
    assert all(0.4 <= utterance["seconds"] <= 0.8 for utterance in utterances)
    scores = json.loads((folder / "scores.json").read_text())
    recomputed = evaluate.score([evaluate.Utterance(**utterance) for utterance in utterances])
    assert {name: scores[name] for name in recomputed} == recomputed
    assert scores["num_utterances"] == 4
    assert scores["wer"] == values(finetuned, "evaluation/wer")[-1]


def test_a_transcript_in_the_other_case_is_not_wrong_for_it(finetuned, corpus, tmp_path):
    lower = tmp_path / "lower" / "dev"
    shutil.copytree(corpus / "dev", lower)
    (lower / "metadata.jsonl").write_text((lower / "metadata.jsonl").read_text().replace("A", "a").replace("B", "b"))
    arguments = [str(Path(finetuned.run.output_dir) / "model"), "--split", "dev", "--device", "cpu"]
    expected, found = (evaluate.main([arguments[0], str(data), *arguments[1:]]) for data in (corpus, lower.parent))
    assert (found["wer"], found["cer"]) == (expected["wer"], expected["cer"])


def test_the_best_model_is_chosen_by_what_its_decoder_writes(tiny, corpus, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    from hf_wav2vec_family.decoding.beam_search import BeamSearchDecoder, BeamSettings
    from hf_wav2vec_family.decoding.decoder_folder import save_decoder
    from hf_wav2vec_family.decoding.lexicon import spell_words

    decoder = tmp_path / "decoder"
    recipe = tiny(optimization={"num_steps": 1, "learning_rate": 1e-6}, run={"decoder": str(decoder)})
    with pytest.raises(ValueError, match=r"expected a decoder, which has a file decoder\.json"):
        run_stage(finetune, recipe)
    tokenizer = finetune.make_tokenizer(recipe, tmp_path / "vocabulary")
    settings = BeamSettings(beam_size=5, word_score=2.0)
    save_decoder(BeamSearchDecoder(tokenizer, settings, lexicon=spell_words(["HM", "OH"], tokenizer)), decoder)
    best = run_stage(finetune, recipe)["best"]
    folder = Path(recipe.run.output_dir)
    heard = [utterance["hypothesis"].split() for utterance in utterances_of(folder / "evaluation")]
    assert {word for words in heard for word in words} <= {"HM", "OH"}
    assert any(heard)
    options = [str(folder / "model"), str(corpus), "--split=dev", "--device=cpu"]
    assert best == evaluate.main([*options, f"--decoder={decoder}"])["wer"] != evaluate.main(options)["wer"]


def test_the_saved_folder_gives_the_same_text_and_scores_in_stock_transformers(finetuned, corpus):
    folder = Path(finetuned.run.output_dir)
    # in one padded batch, which would change the answers of stock Transformers
    options = ["--split=dev", f"--output={folder / 'again'}", "--device=cpu", "--batch-seconds=10"]
    scores = evaluate.main([str(folder / "model"), str(corpus), *options])
    heard = utterances_of(folder / "again")
    assert heard == utterances_of(folder / "evaluation")
    assert any(utterance["hypothesis"] for utterance in heard)
    assert scores["wer"] == values(finetuned, "evaluation/wer")[-1]
    written = json.loads((folder / "again" / "scores.json").read_text())
    assert written["decoding"] == "greedy"
    assert {name: written["source"][name] for name in ("path", "split", "kind")} == {
        "path": str(corpus),
        "split": "dev",
        "kind": "manifest",
    }
    row = (folder / "again" / "scores.md").read_text().splitlines()[-1]
    assert row.startswith(f"| {folder / 'model'}, greedy | {100 * scores['wer']:.2f} (")
    assert row.endswith(") | 4 | 1 |")
    assert scores["num_utterances"] == 4
    assert scores["audio_seconds"] == pytest.approx(sum(utterance["seconds"] for utterance in heard), abs=0.1)

    stock = transformers.AutoModelForCTC.from_pretrained(folder / "model")
    ours = Wav2Vec2ForCTC.from_pretrained(folder / "model")
    assert type(stock) is transformers.Wav2Vec2ForCTC
    processor = transformers.AutoProcessor.from_pretrained(folder / "model")
    waveform, _ = soundfile.read(corpus / "dev" / "0.wav", dtype="float32")
    inputs = processor(waveform, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(**inputs).logits, ours.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_the_english_letters_have_the_ids_of_the_published_models(finetuned):
    tokenizer = transformers.AutoProcessor.from_pretrained(Path(finetuned.run.output_dir) / "model").tokenizer
    assert len(tokenizer) == 32
    assert tokenizer("A TO Z").input_ids == [7, 4, 6, 8, 4, 31]


def test_a_vocabulary_from_transcripts_has_their_letters_and_no_others(tiny, corpus):
    recipe = tiny(vocabulary="transcripts", data={"text_case": "lower"})
    run_stage(finetune, recipe)
    tokenizer = transformers.AutoProcessor.from_pretrained(Path(recipe.run.output_dir) / "model").tokenizer
    symbols = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert symbols == ["<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c", "d"]
    model = Wav2Vec2ForCTC.from_pretrained(Path(recipe.run.output_dir) / "model")
    assert model.lm_head.out_features == model.config.vocab_size == 9


def test_a_vocabulary_of_another_run_can_be_taken_over(tiny, finetuned):
    folder = Path(finetuned.run.output_dir) / "model"
    recipe = tiny("next", vocabulary=str(folder))
    run_stage(finetune, recipe)
    tokenizers = [
        transformers.AutoProcessor.from_pretrained(Path(name) / "model").tokenizer
        for name in (finetuned.run.output_dir, recipe.run.output_dir)
    ]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def test_data_without_transcripts_has_no_vocabulary(tiny, tmp_path, corpus):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "0.wav").write_bytes((corpus / "train" / "0.wav").read_bytes())
    with pytest.raises(ValueError, match=r"data\.train has no transcripts"):
        run_stage(finetune, tiny(vocabulary="transcripts", data={"train": str(tmp_path / "audio")}))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tiny, monkeypatch):
    compute = pretrain.compute

    def poisoned(model, batch):
        output = compute(model, batch)
        return replace(output, loss=output.loss * float("nan"))

    monkeypatch.setattr(pretrain, "compute", poisoned)
    with pytest.raises(FloatingPointError, match="step 1; the last good checkpoint is None"):
        run_stage(pretrain, tiny(run={"log_every_steps": 1}))


@pytest.mark.parametrize("scaler", [None, object()])
def test_a_step_whose_gradient_overflows_is_missed_unless_the_scaler_of_fp16_leaves_it_out_itself(scaler):
    accelerator = SimpleNamespace(distributed_type=DistributedType.NO, scaler=scaler, device=torch.device("cpu"))
    last_good = LastGood(accelerator, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], fused=True))
    last_good.before_step(torch.tensor(math.inf))
    last_good.remember(1, {})
    assert last_good.missed_steps(1) == (1 if scaler is None else 0)


def test_a_run_goes_on_in_another_folder_and_with_other_numbers_of_workers(tiny):
    settings = {"data": {"batch_seconds": 1.0}, "run": {"checkpoint_every_steps": 2}}
    whole = tiny("whole", optimization={"num_steps": 4}, **settings)
    first = tiny("first", optimization={"num_steps": 2}, **settings)
    run_stage(pretrain, whole)
    run_stage(pretrain, first)
    settings = {"data": {"batch_seconds": 1.0, "num_workers": 2}, "run": {"resume": first.run.output_dir}}
    second = tiny("second", optimization={"num_steps": 4}, **settings)
    run_stage(pretrain, second)
    assert same(checkpoint_weights(second, 4), checkpoint_weights(whole, 4))
    assert [line["step"] for line in log_of(second)] == [3, 4, 4]


@pytest.mark.parametrize("wrong", ["best_metric", "evaluation"])
def test_a_run_whose_evaluation_fails_has_saved_what_it_did(tiny, tmp_path, wrong):
    sections = {"optimization": {"num_steps": 4}, "run": {"evaluation_every_steps": 2, "checkpoint_every_steps": 4}}
    recipe = tiny(**sections)
    if wrong == "best_metric":
        broken = replace(recipe, run=replace(recipe.run, best_metric="foo"))
    else:
        (tmp_path / "empty" / "dev").mkdir(parents=True)
        (tmp_path / "empty" / "dev" / "metadata.jsonl").write_text("")
        broken = replace(recipe, data=replace(recipe.data, evaluation=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match=r"best_metric|None of 0 rows"):
        run_stage(pretrain, broken)
    assert [path.name for path in (Path(recipe.run.output_dir) / "checkpoints").iterdir()] == ["step-00000002"]
    assert run_stage(pretrain, recipe)["steps"] == 4


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_an_evaluation_may_have_as_many_bad_clips_as_the_training(tiny, corpus, tmp_path, stage):
    data = tmp_path / "one-bad-in-101"
    shutil.copytree(corpus, data)
    rows = [json.dumps({"file_name": f"{n % 4}.wav", "text": "A"}) for n in range(108)]
    (data / "dev" / "bad.wav").write_bytes(b"no audio")
    rows += [json.dumps({"file_name": "bad.wav", "text": "A"})] * 4
    (data / "dev" / "metadata.jsonl").write_text("\n".join(rows))
    recipe = tiny(data={"evaluation": str(data), "max_bad_fraction": 0.2})
    assert run_stage(stage, recipe)["steps"] == 2
    with pytest.raises(ValueError, match=r"max_bad_fraction is 1\.0%"):
        run_stage(stage, tiny("strict", data={"evaluation": str(data), "max_bad_fraction": 0.01}))


def test_the_best_of_one_metric_is_not_compared_with_that_of_another(tiny, caplog):
    # the lower one first, which the other never gets below
    run_stage(pretrain, tiny(run={"best_metric": "diversity_loss"}))
    recipe = tiny(run={"evaluation_every_steps": 2, "best_metric": "contrastive_loss"}, optimization={"num_steps": 4})
    summary = run_stage(pretrain, recipe)
    assert values(recipe, "evaluation/diversity_loss")[0] < summary["best"]
    assert "run.best_metric is another than before" in caplog.text
    assert summary["best_step"] == 4
    assert summary["best"] == values(recipe, "evaluation/contrastive_loss")[-1]
    run_stage(pretrain, replace(recipe, optimization=replace(recipe.optimization, num_steps=3)))
    assert "done 4 steps and optimization.num_steps is 3" in caplog.text


def test_a_run_to_go_on_from_that_is_nowhere_is_named(tiny):
    with pytest.raises(ValueError, match=r"run\.resume: '/no/such/run' is no folder"):
        run_stage(pretrain, tiny(run={"resume": "/no/such/run"}))


def test_an_evaluation_that_is_no_number_is_worse_than_any(tiny, monkeypatch):
    measured = iter([math.nan, 1.0, math.nan, 0.5])
    monkeypatch.setattr(pretrain, "averages", lambda *_, **__: {"loss": 1.0, "contrastive_loss": next(measured)})
    summary = run_stage(pretrain, tiny(optimization={"num_steps": 4}, run={"evaluation_every_steps": 1}))
    assert (summary["best"], summary["best_step"]) == (0.5, 4)


def test_clips_too_short_for_the_objective_are_counted_and_left_out(tiny, corpus, tmp_path):
    data = tmp_path / "with-a-short-one"
    shutil.copytree(corpus, data)
    soundfile.write(data / "train" / "short.wav", np.zeros(1900), RATE)
    with (data / "train" / "metadata.jsonl").open("a") as metadata:
        metadata.write(json.dumps({"file_name": "short.wav", "text": "A", "speaker_id": "voice-0"}) + "\n")
    path = tmp_path / "cpc.yaml"
    path.write_text("architecture: CPC\nmodel: {num_prediction_steps: 12}")
    recipe = shrunk(path, data, tmp_path / "short")
    model = {**recipe.model, "num_prediction_steps": 12}
    summary = run_stage(
        pretrain, replace(recipe, model=model, optimization=replace(recipe.optimization, num_steps=20))
    )
    assert summary["steps"] == 20
    assert summary["data"]["skipped"]["too_short"] > 0


def test_batches_of_one_clip_do_not_end_a_run_whose_negatives_come_from_other_clips(tiny, corpus, tmp_path):
    path = tmp_path / "cpc.yaml"
    path.write_text("architecture: CPC\nmodel: {negative_sampling: mixed_speaker_excluded}")
    recipe = shrunk(path, corpus, tmp_path / "others")
    model = {**recipe.model, "negative_sampling": "mixed_speaker_excluded"}
    one_clip_at_times = replace(recipe.data, batch_seconds=1.5 * recipe.data.max_seconds, evaluation=str(corpus))
    optimization = replace(recipe.optimization, num_steps=8)
    summary = run_stage(pretrain, replace(recipe, model=model, data=one_clip_at_times, optimization=optimization))
    assert summary["steps"] == 8
    assert summary["data"]["skipped"]["alone"] > 0


def test_a_run_that_goes_on_has_the_options_of_the_optimizer_that_are_asked_for_now(tiny, monkeypatch):
    run_stage(pretrain, tiny())
    seen = []
    monkeypatch.setattr(
        pretrain, "compute", lambda model, batch, compute=pretrain.compute: seen.append(1) or compute(model, batch)
    )
    recipe = tiny(optimization={"num_steps": 3, "weight_decay": 0.5, "betas": (0.1, 0.2), "eps": 1e-3})
    run_stage(pretrain, recipe)
    state = torch.load(
        Path(recipe.run.output_dir) / "checkpoints" / "step-00000003" / "optimizer.bin", weights_only=True
    )
    (group,) = state["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.5, (0.1, 0.2), 1e-3)
    with pytest.raises(ValueError, match=r"optimization\.optimizer \(adamw -> sgd\)"):
        run_stage(pretrain, replace(recipe, optimization=replace(recipe.optimization, optimizer="sgd", num_steps=4)))


def test_a_run_started_anew_leaves_the_one_before_aside(tiny):
    before = tiny()
    run_stage(pretrain, before)
    weights = model_weights(before)
    run_stage(pretrain, replace(before, run=replace(before.run, resume=False, seed=2)))
    folder = Path(before.run.output_dir)
    assert same(load_file(folder / "model-before-1" / "model.safetensors"), weights)
    assert (folder / "checkpoints-before-1" / "step-00000002").is_dir()
    assert not same(model_weights(before), weights)


def test_a_run_is_not_resumed_with_other_letters(tiny, corpus, tmp_path):
    data = tmp_path / "letters"
    shutil.copytree(corpus, data)
    recipe = tiny(vocabulary="transcripts", data={"train": str(data)})
    run_stage(finetune, recipe)
    metadata = data / "train" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"text": "A', '"text": "X'))
    with pytest.raises(ValueError, match=r"has the symbols .* now have .* X"):
        run_stage(finetune, replace(recipe, optimization=replace(recipe.optimization, num_steps=3)))


def test_a_folder_is_the_same_however_its_path_is_written(tiny, corpus, monkeypatch):
    recipe = tiny()
    run_stage(pretrain, recipe)
    monkeypatch.chdir(corpus.parent)
    again = replace(recipe, data=replace(recipe.data, train=corpus.name))
    assert run_stage(pretrain, again)["steps"] == 2


def test_a_folder_is_not_resumed_for_a_run_about_something_else(tiny, corpus):
    run_stage(pretrain, tiny())
    with pytest.raises(ValueError, match=r"another model.*run.resume=false"):
        run_stage(pretrain, tiny(model={"num_negatives": 7}))
    with pytest.raises(ValueError, match=r"another model"):  # before weights of other shapes are loaded
        run_stage(pretrain, tiny(model={"intermediate_size": 24}))
    other = tiny(data={"train": {"path": str(corpus), "split": "dev"}})
    with pytest.raises(ValueError, match=r"another data\.train"):
        run_stage(pretrain, other)


def test_a_best_model_that_cannot_be_written_leaves_the_one_before(tiny, monkeypatch):
    recipe = tiny(data={"evaluation": None})
    run_stage(pretrain, recipe)
    before = model_weights(recipe)
    recipe = replace(recipe, optimization=replace(recipe.optimization, num_steps=3))

    def full(self, folder, **_):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OSError, match=r"model could not be written.*No space left.*untouched"):
        run_stage(pretrain, recipe)
    assert same(model_weights(recipe), before)


def test_a_log_cut_short_in_its_last_line_does_not_stop_a_resume(tiny):
    recipe = tiny()
    run_stage(pretrain, recipe)
    log = Path(recipe.run.output_dir) / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 2, "lo')
    run_stage(pretrain, recipe)
    assert log.read_text() == whole


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_evaluation_data_that_is_not_there_is_named_before_the_first_step(tiny, monkeypatch, stage):
    monkeypatch.setattr(stage, "train", None)
    with pytest.raises(ValueError, match="no-such-corpus"):
        run_stage(stage, tiny(data={"evaluation": "/no-such-corpus"}))


@pytest.mark.parametrize(
    ("stage", "sections", "message"),
    [
        (pretrain, {"encoder": "somewhere"}, "encoder has no effect in pre-training"),
        (pretrain, {"optimization": {"frozen_encoder_steps": 3}}, "frozen_encoder_steps"),
        (pretrain, {"data": {"text_case": "upper"}}, "text_case"),
        (finetune, {"optimization": {"gumbel_temperature": {"kind": "linear"}}}, "gumbel_temperature"),
        (pretrain, {"architecture": "Wave2Vec"}, "architecture must be one of .*Wav2Vec2"),
    ],
)
def test_a_setting_without_effect_is_refused(tiny, stage, sections, message):
    with pytest.raises(ValueError, match=message):
        run_stage(stage, tiny(**sections))


def test_every_length_of_a_model_that_is_compiled_for_each_has_a_graph(tiny, monkeypatch):
    counter, compile_eagerly = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_eagerly, backend=counter))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch._dynamo.reset()
    config = CPCConfig(conv_dim=(4,) * 5, hidden_size=4, num_prediction_steps=2, num_negatives=2)
    recipe = tiny(data={"max_seconds": 1.0, "batch_seconds": 4.0})
    with torch._dynamo.config.patch(recompile_limit=2):
        forward = loop.compiled(CPCForPreTraining(config).train(), recipe)
        for frames in range(8, 12):
            forward(torch.randn(2, 160 * frames))
    assert counter.frame_count == 4
