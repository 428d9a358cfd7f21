"""Programs of the round trip, each run as a process of its own whose Hub is on this machine.

train:    somebody with this package: data up, models down, pre-training and fine-tuning on streamed data, models up
stranger: somebody without it: a model down, the pipeline, two steps on streamed data, the model up
reader:   somebody else without it: what the stranger put up

Each takes a folder to work in and the names of models, and leaves what it heard in a JSON there.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np

SAMPLING_RATE = 16_000
STEPS = 2
TEXTS = ["one two", "three", "four five six", "seven"]


def noise(seed: int, seconds: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * SAMPLING_RATE)).astype(np.float32)


def write(folder: Path, name: str, heard: dict[str, str]):
    (folder / f"{name}.json").write_text(json.dumps(heard))


def push_data():
    import soundfile
    from datasets import Dataset

    rows = []
    for i, text in enumerate(TEXTS):
        file = io.BytesIO()
        soundfile.write(file, noise(i, 1 + i / 4), SAMPLING_RATE, format="FLAC")
        audio = {"bytes": file.getvalue(), "path": f"clip{i}.flac"}
        rows.append({"audio": audio, "text": text, "speaker_id": f"voice-{i % 2}"})
    Dataset.from_list(rows).push_to_hub("user/data")


def run_stage(stage, recipe: dict, output: Path):
    import yaml
    from interruptions import forget_accelerator

    from training.recipe import load_recipe

    forget_accelerator()
    recipe |= {"data": {"train": "user/data", "batch_seconds": 4.0, "max_seconds": 4.0, "num_workers": 0}}
    recipe |= {"run": {"output_dir": str(output), "trackers": []}}
    file = output.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe))
    stage.main(load_recipe(file))


def train(folder: Path, names: list[str]):
    from huggingface_hub import HfApi
    from publications import configuration_of, write_card

    import hf_wav2vec_family as family
    from hf_wav2vec_family.decoding.pipeline import transcriber
    from publishing.folder import files_of
    from publishing.upload import Publication, publish
    from training import finetune, pretrain

    push_data()
    optimization = {"num_steps": STEPS, "learning_rate": 1e-3, "schedule": {"kind": "constant"}}
    heard = {}
    for name in names:
        prefix, config = configuration_of(name)
        if hasattr(family, f"{prefix}ForPreTraining"):
            sizes = {key: value for key, value in config.to_diff_dict().items() if key in type(config).__annotations__}
            sizes |= {key: list(getattr(config, key)) for key in ("conv_dim", "conv_kernel", "conv_stride")}
            recipe = {"architecture": prefix, "model": sizes, "optimization": optimization}
            run_stage(pretrain, recipe, folder / f"{name}-pretraining")
        recipe = {"architecture": prefix, "pretrained": f"user/{name}", "optimization": optimization}
        recipe["vocabulary"] = "wsj" if name == "wav2letter" else f"user/{name}"
        run_stage(finetune, recipe, folder / name)
        write_card(folder / name, name, f"user/{name}-2")
        files = files_of(folder / name / "model")
        publish(Publication(f"user/{name}-2", files, "v1", name == "cpc", "fine-tuned"), HfApi())
        heard[name] = transcriber(f"user/{name}-2")(noise(9, 1.5))["text"]
    write(folder, "train", heard)


def load(name: str):
    """A pipeline: of wav2vec 2.0 with nobody's code, of the others not before their code is trusted."""
    import transformers

    if name.startswith("user/wav2vec2"):
        return transformers.pipeline("automatic-speech-recognition", model=name)
    for task in (
        lambda: transformers.pipeline("automatic-speech-recognition", model=name, trust_remote_code=False),
        lambda: transformers.AutoModelForCTC.from_pretrained(name, trust_remote_code=False),
    ):
        try:
            task()
        except ValueError as error:
            assert "trust_remote_code" in str(error), error  # noqa: PT017
        else:
            raise AssertionError(f"{name} was loaded without consent")
    assert not [module for module in sys.modules if module.startswith("transformers_modules.user")]
    transcribe = transformers.pipeline("automatic-speech-recognition", model=name, trust_remote_code=True)
    for part in (transcribe, transcribe.model):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    return transcribe


def stranger(folder: Path, names: list[str]):
    import torch
    from datasets import Audio, load_dataset

    from_hub, own = {}, {}
    for name in names:
        transcribe = load(f"user/{name}-2")
        from_hub[name] = transcribe(noise(9, 1.5))["text"]
        model, extractor, tokenizer = transcribe.model.train(), transcribe.feature_extractor, transcribe.tokenizer
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        data = load_dataset("user/data", split="train", streaming=True)
        assert not isinstance(data.features["audio"], Audio)
        import soundfile

        for row in data.take(STEPS):
            waveform, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
            inputs = extractor(waveform, sampling_rate=rate, return_tensors="pt")
            loss = model(inputs.input_values, labels=torch.tensor([tokenizer(row["text"]).input_ids])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for part in (model.eval(), extractor, tokenizer):
            part.push_to_hub(f"user/{name}-3")
        own[name] = transcribe(noise(9, 1.5))["text"]
        for module in [m for m in sys.modules if m.startswith("transformers_modules.user")]:
            del sys.modules[module]  # the next one is asked for consent again
    write(folder, "stranger", from_hub)
    write(folder, "stranger-fine-tuned", own)


def reader(folder: Path, names: list[str]):
    heard = {}
    for name in names:
        heard[name] = load(f"user/{name}-3")(noise(9, 1.5))["text"]
        for module in [m for m in sys.modules if m.startswith("transformers_modules.user")]:
            del sys.modules[module]
    write(folder, "reader", heard)


if __name__ == "__main__":
    program, folder, *names = sys.argv[1:]
    if program == "train":
        sys.path.insert(0, str(Path(__file__).parents[1]))
    else:
        sys.modules["hf_wav2vec_family"] = None
    {"train": train, "stranger": stranger, "reader": reader}[program](Path(folder), names)
