"""A saved folder carries its code: it loads where this package is not, and is still whole after others saved it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import hf_wav2vec_family as family

CONVOLUTIONS = {"conv_dim": (8,) * 5, "context_dim": (8, 8), "context_kernel": (2, 3), "num_negatives": 5}
ENCODER = {"conv_dim": (8,) * 6, "conv_kernel": (10, 8, 4, 4, 4, 1), "conv_stride": (5, 4, 2, 2, 2, 1)}
CODES = {**CONVOLUTIONS, **ENCODER, "num_codevectors_per_group": 5}
CONFIGURATIONS = {
    "cpc": ("CPC", {"conv_dim": (8,) * 5, "hidden_size": 8, "num_negatives": 5}),
    "wav2vec": ("Wav2Vec", CONVOLUTIONS),
    "vq-wav2vec": ("VQWav2Vec", CODES),
    "vq-wav2vec-kmeans": ("VQWav2Vec", {**CODES, "quantizer_type": "kmeans"}),
}
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForPreTraining": "ForPreTraining",
    "AutoModelForCTC": "ForCTC",
    "AutoModelForAudioClassification": "ForSequenceClassification",
    "AutoModelForAudioFrameClassification": "ForAudioFrameClassification",
}
WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_wav2vec_family"] = None
import torch, transformers
waveforms, expected = torch.load({expected!r})
for auto_class, answer in expected.items():
    folder = {folder!r} + "/" + auto_class
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    model, info = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not any(info.values()), info
    found = model.eval()(waveforms)
    torch.testing.assert_close(found[next(iter(answer))], next(iter(answer.values())), atol=1e-6, rtol=1e-6)
    model.save_pretrained({again!r} + "/" + auto_class)
"""


def model_of(name: str, head: str):
    prefix, fields = CONFIGURATIONS[name]
    torch.manual_seed(0)
    return getattr(family, f"{prefix}{head}")(getattr(family, f"{prefix}Config")(**fields)).eval()


def answer_of(model, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of a model that nothing random goes into."""
    outputs = model(waveforms)
    name = "logits" if "logits" in outputs else "last_hidden_state"
    return {name: outputs[name].detach()}


def load_without_the_package(folder: Path, expected: Path, again: Path, cache: Path):
    code = WITHOUT_THE_PACKAGE.format(expected=str(expected), folder=str(folder), again=str(again))
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_auto_class_loads_a_folder_without_the_package_and_so_it_does_after_a_second_save(tmp_path, name):
    waveforms, expected = torch.randn(2, 4000), {}
    for auto_class, head in AUTO_CLASSES.items():
        model = model_of(name, head)
        expected[auto_class] = answer_of(model, waveforms)
        model.save_pretrained(tmp_path / "first" / auto_class)
        named = json.loads((tmp_path / "first" / auto_class / "config.json").read_text())["auto_map"]
        assert set(named) == {"AutoConfig", *AUTO_CLASSES}
        for file in {reference.split(".")[0] for reference in named.values()}:
            assert (tmp_path / "first" / auto_class / f"{file}.py").exists()
    torch.save((waveforms, expected), tmp_path / "expected.pt")
    for folder, again in (("first", "second"), ("second", "third")):
        load_without_the_package(
            tmp_path / folder, tmp_path / "expected.pt", tmp_path / again, tmp_path / f"modules of {folder}"
        )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_folder_of_one_head_serves_the_others(tmp_path, name):
    model = model_of(name, "ForPreTraining")
    model.save_pretrained(tmp_path)
    waveforms = torch.randn(1, 4000)
    base = transformers.AutoModel.from_pretrained(tmp_path).eval()
    found, expected = (encoder(waveforms).last_hidden_state for encoder in (base, model.base_model))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert type(base).__name__ == f"{CONFIGURATIONS[name][0]}Model"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_with_the_package_its_own_classes_load_and_a_new_copy_has_the_code_too(tmp_path, name):
    for auto_class, head in AUTO_CLASSES.items():
        model_of(name, head).save_pretrained(tmp_path / "first")
        loaded = getattr(transformers, auto_class).from_pretrained(tmp_path / "first")
        assert type(loaded).__module__.startswith("hf_wav2vec_family.")
        loaded.save_pretrained(tmp_path / auto_class)
        first = {path.name for path in (tmp_path / "first").glob("*.py")}
        assert {path.name for path in (tmp_path / auto_class).glob("*.py")} == first
        assert {"heads.py", "conv.py"} <= first
