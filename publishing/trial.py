"""A stranger's first minute with a model folder: a process without this package loads it and gives it something.

Run as a program it is that process, and says what it found as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

# what a process has to do without: this package, and what it needs for nothing but files of audio and beam search
ABSENT = ("hf_wav2vec_family", "soundfile", "soxr", "flashlight", "datasets")
SAMPLING_RATE = 16_000


@dataclass(frozen=True)
class Trial:
    """What came of it: the class that each Auto class found, and what the model made of the sample."""

    classes: dict[str, str]
    answer: str


def try_apart(folder: Path) -> Trial:
    """Loads a folder in a process that has Transformers and the folder alone, and no token.

    Raises:
        ValueError: it does not load, or gives no answer; the end of what the process said is in the message.
    """
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in secrets}
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"HF_MODULES_CACHE": cache, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        done = subprocess.run(
            [sys.executable, __file__, str(folder.resolve())],
            env=environment,
            cwd=cache,
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise ValueError(f"{folder} does not load without this package: {done.stderr.strip()[-1500:]}")
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


def auto_classes_of(config) -> list[str]:
    """The Auto classes that a folder promises: those its code is listed under, or Transformers' own for its class."""
    import transformers

    if getattr(config, "auto_map", None):
        return sorted(name for name in config.auto_map if name.startswith("AutoModel"))
    name = config.architectures[0]
    found = [
        auto_class
        for auto_class in dir(transformers)
        if auto_class.startswith("AutoModelFor")
        and type(config) in getattr(transformers, auto_class)._model_mapping
        and getattr(transformers, auto_class)._model_mapping[type(config)].__name__ == name
    ]
    return ["AutoModel", *found]


def load(folder: str) -> Trial:
    """Loads a folder through all that it promises and gives it a second of noise.

    Raises:
        ValueError: no Auto class finds the class that the weights are of, they do not fit it, or it answers with NaN.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    classes, answering = {}, None
    for auto_class in auto_classes_of(config):
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder, trust_remote_code=True, output_loading_info=True
        )
        classes[auto_class] = type(model).__name__
        if type(model).__name__ in config.architectures:
            answering = model.eval()
            if any(info.values()):
                raise ValueError(f"weights and {type(model).__name__} do not fit: {info}")
    if answering is None:
        raise ValueError(f"no Auto class finds {config.architectures}; they find {classes}")

    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(SAMPLING_RATE, generator=generator)
    if "AutoModelForCTC" in classes and type(answering).__name__ == classes["AutoModelForCTC"]:
        for loader in ("AutoProcessor", "AutoTokenizer", "AutoFeatureExtractor"):
            part = getattr(transformers, loader).from_pretrained(folder, trust_remote_code=True)
            classes[loader] = type(part).__name__
        transcribe = transformers.pipeline("automatic-speech-recognition", folder, trust_remote_code=True)
        classes["pipeline"] = type(transcribe).__name__
        return Trial(classes, f"text {transcribe(waveform.numpy())['text']!r}")
    if answering.main_input_name == "input_ids":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        classes["AutoTokenizer"] = type(tokenizer).__name__
        inputs = torch.arange(min(16, len(tokenizer)))[None]
    else:
        if (Path(folder) / "preprocessor_config.json").exists():
            part = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
            classes["AutoFeatureExtractor"] = type(part).__name__
        inputs = waveform[None]
    with torch.no_grad():
        features = answering.base_model(inputs).last_hidden_state
    if not features.isfinite().all():
        raise ValueError("the features have infinite or NaN values")
    return Trial(classes, f"features {list(features.shape)}")


if __name__ == "__main__":
    for name in ABSENT:
        sys.modules[name] = None
    print(json.dumps(asdict(load(sys.argv[1]))))
