"""Cards: one per model that a recipe makes, true to its recipe, and every number in them that of a run."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from publications import RECIPE_OF, save_ctc_run

from model_cards import __main__ as command
from model_cards.results import MEASURED, RESULTS, WAY, follow
from model_cards.template import HERE, RECIPES, SECTIONS, TO_FILL_IN, RecipeFile, card_of, recipes
from publishing.folder import faults_of_card

ALL = recipes()
BY_NAME = {recipe.name: recipe for recipe in ALL}
ROW = re.compile(r"^\| (?P<what>.+?) \| (?P<data>.*?) \| (?P<value>.+?) \| (?P<source>.*?) \|$", re.MULTILINE)


def rows_of(card: str) -> list[re.Match]:
    table = card.partition("| --- | --- | --- | --- |\n")[2].partition("\n\n")[0]
    return list(ROW.finditer(table))


def test_every_recipe_has_a_card_and_every_card_a_recipe():
    written = {path.stem for path in HERE.glob("*.md")} - {"template"}
    assert written == set(BY_NAME)
    assert len(BY_NAME) == len(ALL)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_card_is_what_the_template_makes_of_its_recipe_today(name):
    assert (HERE / f"{name}.md").read_text() == card_of(BY_NAME[name]), "python -m model_cards writes them anew"


@pytest.mark.parametrize("name", BY_NAME)
def test_a_card_is_complete_and_its_metadata_are_of_the_kind_the_hub_knows(name):
    card = (HERE / f"{name}.md").read_text()
    assert faults_of_card(card) == []
    data = ModelCard(card).data
    stage = BY_NAME[name].stage
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == {"CTC": "automatic-speech-recognition", "masked": "fill-mask"}.get(
        stage, "feature-extraction"
    )
    assert data.eval_results is None
    assert all("/" in name for name in data.datasets or [])
    for section in SECTIONS:
        assert card.partition(f"## {section}\n")[2].split("\n## ")[0].strip(), f"{section} is empty"
    assert "{{" not in card
    assert "None" not in card.replace("[None]", "")


@pytest.mark.parametrize("name", BY_NAME)
def test_every_number_of_a_card_is_found_in_the_results_of_the_repository(name):
    rows = rows_of((HERE / f"{name}.md").read_text())
    assert rows
    for row in rows:
        if row["value"] == "not measured":
            assert row["source"] == row["data"] == ""
            continue
        file, _, way = row["source"].partition(": ")
        content = json.loads((RESULTS / file.strip("`")).read_text())
        assert row["value"] == f"{100 * follow(content, way.split(WAY)):.2f} %"


def test_what_was_measured_is_of_recipes_that_exist_and_of_the_step_that_was_kept():
    for key, measured in yaml.safe_load(MEASURED.read_text()).items():
        assert (RECIPES / f"{key}.yaml").exists(), key
        content = json.loads((RESULTS / measured["file"]).read_text())
        assert measured["training_data"].count("4.4 h of 20 speakers") == content["what"].count("4.4 h of 20 speakers")
        for way in measured["rows"].values():
            if "series" in way:
                kept = content["runs"][way[1]]["summary"]["best_step"]
                assert way[3] == f"step {kept}", key


@pytest.mark.parametrize("way", [["runs", "nothing"], ["runs", "cpc/small_clean5", "series", "step 7", "loss"]])
def test_a_way_that_leads_nowhere_is_an_error(way):
    content = json.loads((RESULTS / "future_prediction_small_clean5.json").read_text())
    with pytest.raises(ValueError, match="there is no"):
        follow(content, way)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_recipe_header_is_read_whole(name):
    recipe = BY_NAME[name]
    header = re.match(r"(?:#.*\n)*", recipe.path.read_text())[0]
    words = re.sub(r"Here:.*|Run:|[#\s]+", " ", header).split()
    read = " ".join(recipe.header.get(part, "") for part in ("about", "Paper", "Run", "notes")).split()
    assert sorted(words) == sorted(read)
    assert recipe.path.name in recipe.header["Run"] or recipe.header["Run"] == "make quickstart"


def test_the_card_of_a_run_has_its_sizes_and_its_scores_and_leaves_what_it_cannot_know_to_be_filled_in(tmp_path):
    run = tmp_path / "run"
    save_ctc_run(run, "wav2vec2")
    (run / "test").mkdir()
    source = {"path": "owner/speech", "name": None, "split": "test", "kind": "hub"}
    (run / "test" / "scores.json").write_text(
        json.dumps({"wer": 0.5, "cer": 0.25, "source": source, "decoding": "greedy"})
    )
    (run / "evaluation").mkdir()  # of an evaluation during training, perhaps of another step than the one kept
    (run / "evaluation" / "scores.json").write_text(json.dumps({"wer": 0.1, "cer": 0.1}))
    recipe = RecipeFile(RECIPES / f"{RECIPE_OF['wav2vec2']}.yaml")
    card = card_of(recipe, repo_id="me/mine", run=run, license="mit", language="de")
    assert "3 convolutions of 8 channels" in card
    assert recipe.header["about"] not in card  # which tells of other data
    assert [(row["what"], row["data"], row["value"]) for row in rows_of(card)] == [
        ("WER, greedy", "owner/speech test", "50.00 %"),
        ("CER, greedy", "owner/speech test", "25.00 %"),
    ]
    (fault,) = faults_of_card(card)
    assert TO_FILL_IN in fault
    assert 'model="me/mine"' in card
    with pytest.raises(ValueError, match="makes one ForPreTraining"):
        card_of(RecipeFile(RECIPES / "wav2vec2/small_clean5.yaml"), repo_id="me/mine", run=run)


def test_the_command_writes_all_cards_or_that_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setattr(command, "recipes", lambda: ALL[:2])
    command.main([])
    assert [path.read_text() for path in sorted(tmp_path.glob("*.md"))] == [card_of(recipe) for recipe in ALL[:2]]
    save_ctc_run(tmp_path / "run", "wav2vec2")
    recipe = str(RECIPES / f"{RECIPE_OF['wav2vec2']}.yaml")
    given = ["--run", str(tmp_path / "run"), "--repo", "me/mine", "--license", "mit", "--language", "de"]
    command.main([recipe, *given, "--data", "noise"])
    assert faults_of_card(capsys.readouterr().out) == []
    with pytest.raises(SystemExit):
        command.main([recipe, "--run", str(tmp_path / "run")])


def example_of(card: str) -> str:
    return re.search(r"## Example\n```python\n(.*?)```", card, re.DOTALL)[1]


def test_examples_of_cards_run(tmp_path):
    """One process runs the code of a card of each kind, on small models in the place of the repositories."""
    import numpy as np
    import soundfile
    import transformers
    from publications import configuration_of

    import hf_wav2vec_family as family

    soundfile.write(tmp_path / "clip.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    save_ctc_run(tmp_path / "ctc", "wav2letter")
    prefix, config = configuration_of("cpc")
    getattr(family, f"{prefix}ForPreTraining")(config).save_pretrained(tmp_path / "features")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "features")
    tokenizer = family.SpeechCodesTokenizer.with_all_codes(2, 3)
    tokenizer.save_pretrained(tmp_path / "codes")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    roberta = transformers.RobertaConfig(vocab_size=len(tokenizer), **sizes)
    transformers.RobertaForMaskedLM(roberta).save_pretrained(tmp_path / "codes")
    folders = {
        "cpc-small-clean5": tmp_path / "features",
        "discrete-bert-small-clean5": tmp_path / "codes",
        "wav2letter-small-clean5": tmp_path / "ctc" / "model",
    }
    programs = [
        example_of((HERE / f"{name}.md").read_text()).replace(f"OWNER/{name}", str(folder))
        for name, folder in folders.items()
    ]
    code = "import sys\nsys.modules['hf_wav2vec_family'] = None\n" + "\n".join(programs)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, _ = done.stdout.splitlines()
    assert (first, second) == ("torch.Size([1, 100, 8])", "torch.Size([1, 8, 8])")
