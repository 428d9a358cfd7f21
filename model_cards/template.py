"""A card of a recipe's model: the words of its architecture, the header of its recipe, and what was measured."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment
from transformers import RobertaConfig, RobertaModel

import hf_wav2vec_family
from hf_wav2vec_family.configuration_discrete_bert import ORIGINAL_ROBERTA

from .results import ROOT, of_recipe, of_run

HERE = Path(__file__).parent
RECIPES = ROOT / "training" / "recipes"
TO_FILL_IN = "[to fill in]"
SECTIONS = (
    "Intended use",
    "Architecture",
    "Training data",
    "Training",
    "Results",
    "Limits",
    "Example",
    "Licence",
    "Citation",
)
# what the recipes of fine-tuning start from, as the recipes of pre-training describe it
PUBLISHED = {
    "facebook/wav2vec2-base": "wav2vec2/base_ls960",
    "facebook/wav2vec2-large-lv60": "wav2vec2/large_lv60k",
}
STAGES = {"finetune": "CTC", "pretrain": "pre-training", "pretrain_bert": "masked"}
HEADS = {"pre-training": "ForPreTraining", "CTC": "ForCTC", "masked": "ForMaskedLM"}
TASKS = {"pre-training": "feature-extraction", "CTC": "automatic-speech-recognition", "masked": "fill-mask"}
WANTED = {
    "pre-training": ("accuracy of the objective", "phones, linear probe on 1 h"),
    "CTC": ("WER, greedy", "CER, greedy"),
    "masked": ("accuracy of the masked words",),
}
EXAMPLES = {
    "pre-training": """\
import torch
from transformers import AutoFeatureExtractor, AutoModel

feature_extractor = AutoFeatureExtractor.from_pretrained("{repo_id}")
model = AutoModel.from_pretrained("{repo_id}"{trust})
waveform = torch.randn(16_000).numpy()  # a second at 16 kHz, mono
inputs = feature_extractor(waveform, sampling_rate=16_000, return_tensors="pt")
with torch.no_grad():
    features = model(inputs.input_values).last_hidden_state  # [1, frames, channels]
print(features.shape)""",
    "CTC": """\
from transformers import pipeline

transcribe = pipeline("automatic-speech-recognition", model="{repo_id}"{trust})
print(transcribe("{clip}")["text"])""",
    "masked": """\
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}", trust_remote_code=True)
model = AutoModel.from_pretrained("{repo_id}")
codes = tokenizer.convert_ids_to_codes(torch.arange(4, 12))  # [frames, groups], as vq-wav2vec makes them
with torch.no_grad():
    features = model(tokenizer.convert_codes_to_ids(codes)[None]).last_hidden_state  # [1, frames, channels]
print(features.shape)""",
}


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as a card reads it: its fields, and its header in parts."""

    path: Path

    @property
    def key(self) -> str:
        """`architecture/file`, as `measured.yaml` has it."""
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def name(self) -> str:
        """Of the repository."""
        return self.key.replace("/", "-").replace("_", "-")

    @cached_property
    def fields(self) -> dict:
        return yaml.safe_load(self.path.read_text())

    @property
    def stage(self) -> str:
        """pre-training, CTC or masked: what the command in the header runs, or else what the file is called."""
        command = re.search(r"training\.(finetune|pretrain_bert|pretrain)\b", self.header["Run"])
        program = command[1] if command else self.path.stem.rpartition("_")[2]
        return STAGES[program]

    @cached_property
    def header(self) -> dict[str, str]:
        """`about`, `Paper`, `Here`, `Run` and `notes`, as the comment at the head of the file has them."""
        parts, part = {}, "about"
        for line in re.match(r"(?:#.*\n)*", self.path.read_text())[0].splitlines():
            text = line.removeprefix("# ")
            if found := re.match(r"(Paper(?=[:,])(?! against)|Here|Run)\b[:]?", text):
                part = found[1]
                if part != "Paper":
                    text = text[found.end() :].strip()
            elif part == "Run" and not text.startswith("  "):
                part = "notes"
            parts.setdefault(part, []).append(text.lstrip("#"))
        return {name: "\n".join(lines).strip() for name, lines in parts.items()}

    @property
    def sources(self) -> list[dict]:
        """Data sets of the Hub that it trains on; codes are made from one on the spot."""
        if self.stage == "masked":
            return []
        train = (self.fields.get("data") or {}).get("train") or []
        return [source for source in (train if isinstance(train, list) else [train]) if "/" in source["path"]]

    @property
    def wanted(self) -> tuple[str, ...]:
        """What its card has a line for, measured or not."""
        return ("PER, greedy",) if "timit" in self.fields.get("vocabulary", "") else WANTED[self.stage]

    @property
    def config_class(self) -> type:
        if self.stage == "masked":
            return RobertaConfig
        return getattr(hf_wav2vec_family, f"{self.fields['architecture']}Config")

    def config(self):
        """The configuration of the model; of a fine-tuned one with the sizes of what it starts from."""
        fields = self.fields.get("model") or {}
        before = PUBLISHED.get(self.fields.get("pretrained"))
        if before:
            fields = {**RecipeFile(RECIPES / f"{before}.yaml").fields.get("model", {}), **fields}
        return self.config_class(**{**(ORIGINAL_ROBERTA if self.stage == "masked" else {}), **fields})

    def config_of_run(self, run: Path):
        """The configuration of the model that a run left; ValueError if this recipe makes another kind."""
        config = self.config_class.from_pretrained(run / "model")
        if not config.architectures[0].endswith(HEADS[self.stage]):
            raise ValueError(f"{run} has a {config.architectures[0]}, {self.key} makes one {HEADS[self.stage]}.")
        return config


def recipes() -> list[RecipeFile]:
    return [RecipeFile(path) for path in sorted(RECIPES.glob("*/*.yaml"))]


def num_weights(recipe: RecipeFile, config) -> str:
    """How many numbers the model learns, in words; what depends on a vocabulary of the data is left out."""
    with torch.device("meta"):
        if recipe.stage == "masked":
            model, left_out = RobertaModel(config).encoder, " without the words"
        elif recipe.stage == "CTC":
            model = getattr(hf_wav2vec_family, f"{recipe.fields['architecture']}Model")(config)
            left_out = " without the output layer"
        else:
            model, left_out = getattr(hf_wav2vec_family, f"{recipe.fields['architecture']}ForPreTraining")(config), ""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights{left_out}."


def card_of(
    recipe: RecipeFile,
    *,
    repo_id: str | None = None,
    run: Path | None = None,
    license: str = "apache-2.0",
    language: str = "en",
    training_data: str | None = None,
) -> str:
    """The card of a recipe's model; with `run`, of the model in it, with that run's numbers and no other.

    Args:
        training_data: in words; by default the data sets of the Hub that the recipe names.

    Raises:
        ValueError: the run has a model of another kind than the recipe makes.
    """
    repo_id, stage = repo_id or f"OWNER/{recipe.name}", recipe.stage
    config = recipe.config_of_run(run) if run else recipe.config()
    is_stock = recipe.fields["architecture"] == "Wav2Vec2"
    facts = yaml.safe_load((HERE / "architectures.yaml").read_text())[recipe.fields["architecture"]]
    hop = getattr(config, "inputs_to_logits_ratio", None)
    filled = {
        name: " ".join(Environment().from_string(facts[name]).render(config=config, stage=stage, hop=hop).split())
        for name in ("words", "use")
    }
    named = [f"`{s['path']}`, {' '.join(filter(None, (s.get('name'), s.get('split'))))}" for s in recipe.sources]
    own = TO_FILL_IN if run else "What is given as `data.train`."
    measured = of_run(run, recipe.wanted) if run else of_recipe(recipe.key, recipe.wanted)
    described = training_data or measured.training_data or ("; ".join(named) + "." if named and not run else own)
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=TASKS[stage],
        tags=["speech", "hf_wav2vec_family", recipe.path.parent.name.replace("_", "-")],
        datasets=sorted({source["path"] for source in recipe.sources}) or None if not run else None,
        metrics=["wer", "cer"] if stage == "CTC" else None,
        base_model=recipe.fields.get("pretrained") if not run else None,
    )
    summary = f"A model of the recipe `{recipe.key}`, trained on other data." if run else recipe.header["about"]
    trust = "" if is_stock or stage == "masked" else ", trust_remote_code=True"
    return (
        ModelCard.from_template(
            data,
            template_str=(HERE / "template.md").read_text(),
            name=repo_id.rpartition("/")[2],
            summary=summary,
            facts={**facts, **filled},
            words=filled["words"],
            num_weights=num_weights(recipe, config),
            training_data=described,
            recipe=f"{recipe.path.parent.name}/{recipe.path.name}",
            command=recipe.header["Run"],
            notes=recipe.header.get("notes"),
            paper=recipe.header.get("Paper"),
            hardware=measured.hardware,
            results=measured.rows,
            example=EXAMPLES[stage].format(repo_id=repo_id, trust=trust, clip="clip.flac"),
            is_stock=is_stock,
            license=f"`{license}`",
        ).content.rstrip()
        + "\n"
    )
