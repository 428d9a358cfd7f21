"""A saved folder carries its code: it loads where this package is not, and is still whole after others saved it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from publications import CONFIGURATIONS, SMALL_WAV2LETTER, save_ctc_run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hf_wav2vec_family as family
from hf_wav2vec_family.decoding.pipeline import transcriber
from hf_wav2vec_family.replabels import decode_path
from hf_wav2vec_family.viterbi import best_paths

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

PIPELINE_WITHOUT_THE_PACKAGE = """
import sys
for name in ("hf_wav2vec_family", "soundfile", "soxr", "datasets"):
    sys.modules[name] = None
import numpy, transformers
transcribe = transformers.pipeline("automatic-speech-recognition", {folder!r}, trust_remote_code=True)
assert type(transcribe.model).__module__.startswith("transformers_modules."), type(transcribe.model)
waveform = numpy.load({waveform!r})
print(transcribe(waveform)["text"])
print(float(transcribe(waveform, return_timestamps="char")["chunks"][-1]["timestamp"][1]))
"""
FILES_WITHOUT_THE_PACKAGE = """
import sys
NOT_BEFORE_THERE_IS_A_FILE = ("soundfile", "soxr", "flashlight")
for name in ("hf_wav2vec_family", *NOT_BEFORE_THERE_IS_A_FILE):
    sys.modules[name] = None
import json, pathlib, transformers
trust = {{"trust_remote_code": True}}
for folder in pathlib.Path({folders!r}).iterdir():
    expected = json.loads((folder / "expected.json").read_text())
    transcribe = transformers.pipeline("automatic-speech-recognition", str(folder), **trust)
    assert type(transcribe).__name__ == "SpeechRecognitionPipeline", type(transcribe)
    for part in ("AutoFeatureExtractor", "AutoTokenizer", "AutoProcessor"):
        loaded = getattr(transformers, part).from_pretrained(folder, **trust)
        assert type(loaded).__name__ == expected[part], (folder, loaded)
    for name in NOT_BEFORE_THERE_IS_A_FILE:
        sys.modules.pop(name, None)
    assert transcribe({clip!r})["text"] == expected["text"], folder
    again = pathlib.Path({again!r}) / folder.name
    transcribe.save_pretrained(again)
    for file in [*folder.glob("*.py")]:
        assert (again / file.name).read_bytes() == file.read_bytes(), file
    second = transformers.pipeline("automatic-speech-recognition", str(again), **trust)
    assert second({clip!r})["text"] == expected["text"], again
    for name in NOT_BEFORE_THERE_IS_A_FILE:
        sys.modules[name] = None
"""
TOKENIZER_WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_wav2vec_family"] = None
import torch, transformers
for folder in ({folder!r}, {again!r}):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert type(tokenizer).__module__.startswith("transformers_modules."), type(tokenizer)
    batch = tokenizer(["2-0 4-4", "1-1"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["2-0 4-4", "1-1"]
    codes = torch.tensor([[[2, 0], [4, 4]]])
    assert torch.equal(tokenizer.convert_codes_to_ids(codes), batch["input_ids"][:1, 1:3])
    tokenizer.save_pretrained({again!r})  # what the second turn reads
"""


def auto_classes_of(name: str) -> dict[str, str]:
    """The heads that an architecture has, by the Auto class that finds each."""
    prefix = CONFIGURATIONS[name][0]
    return {auto_class: head for auto_class, head in AUTO_CLASSES.items() if hasattr(family, prefix + head)}


def model_of(name: str, head: str):
    prefix, fields = CONFIGURATIONS[name]
    torch.manual_seed(0)
    return getattr(family, f"{prefix}{head}")(getattr(family, f"{prefix}Config")(**fields)).eval()


def answer_of(model, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of a model that nothing random goes into."""
    outputs = model(waveforms)
    name = "logits" if "logits" in outputs else "last_hidden_state"
    return {name: outputs[name].detach()}


def run_apart(code: str, cache: Path, **paths: Path) -> str:
    """Runs a program in a process of its own; returns what it prints."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    code = code.format(**{name: str(path) for name, path in paths.items()})
    return subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


def load_without_the_package(folder: Path, expected: Path, again: Path, cache: Path):
    run_apart(WITHOUT_THE_PACKAGE, cache, expected=expected, folder=folder, again=again)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_auto_class_loads_a_folder_without_the_package_and_so_it_does_after_a_second_save(tmp_path, name):
    waveforms, expected = torch.randn(2, 4000), {}
    auto_classes = auto_classes_of(name)
    for auto_class, head in auto_classes.items():
        model = model_of(name, head)
        expected[auto_class] = answer_of(model, waveforms)
        model.save_pretrained(tmp_path / "first" / auto_class)
        named = json.loads((tmp_path / "first" / auto_class / "config.json").read_text())["auto_map"]
        assert set(named) == {"AutoConfig", *auto_classes}
        for file in {reference.split(".")[0] for reference in named.values()}:
            assert (tmp_path / "first" / auto_class / f"{file}.py").exists()
    torch.save((waveforms, expected), tmp_path / "expected.pt")
    for folder, again in (("first", "second"), ("second", "third")):
        load_without_the_package(
            tmp_path / folder, tmp_path / "expected.pt", tmp_path / again, tmp_path / f"modules of {folder}"
        )


def test_a_model_whose_weights_are_split_is_saved_as_it_was_before(tmp_path):
    model = model_of("cpc", "ForCTC")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "whole")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        model.save_pretrained(tmp_path / "split", state_dict=weights)
        assert type(model).__name__ == "FSDPCPCForCTC"
    finally:
        torch.distributed.destroy_process_group()
    whole, split = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "split"))
    assert split == whole


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_folder_of_one_head_serves_the_others(tmp_path, name):
    model = model_of(name, auto_classes_of(name).get("AutoModelForPreTraining", "ForCTC"))
    model.save_pretrained(tmp_path)
    waveforms = torch.randn(1, 4000)
    base = transformers.AutoModel.from_pretrained(tmp_path).eval()
    found, expected = (encoder(waveforms).last_hidden_state for encoder in (base, model.base_model))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert type(base).__name__ == f"{CONFIGURATIONS[name][0]}Model"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_with_the_package_its_own_classes_load_and_a_new_copy_has_the_code_too(tmp_path, name):
    for auto_class, head in auto_classes_of(name).items():
        model_of(name, head).save_pretrained(tmp_path / "first")
        loaded = getattr(transformers, auto_class).from_pretrained(tmp_path / "first")
        assert type(loaded).__module__.startswith("hf_wav2vec_family.")
        loaded.save_pretrained(tmp_path / auto_class)
        first = {path.name for path in (tmp_path / "first").glob("*.py")}
        assert {path.name for path in (tmp_path / auto_class).glob("*.py")} == first
        assert {"heads.py", "conv.py"} <= first


def test_a_discrete_bert_folder_transcribes_in_the_pipeline_without_the_package(tmp_path):
    folder, vocabulary = tmp_path / "model", tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate(["<pad>", "<unk>", "|", *"ABCDE"])}))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": None, "eos_token": None}
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary), **special)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    prefix, fields = CONFIGURATIONS["discrete-bert"]
    torch.manual_seed(0)
    model = getattr(family, f"{prefix}ForCTC")(family.DiscreteBertConfig(**fields, vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
        model.lm_head.bias[:3] = -100.0
    for part in (model, processor):
        part.save_pretrained(folder)
    waveform = torch.randn(8000)
    np.save(tmp_path / "waveform.npy", waveform.numpy())
    expected = tokenizer.decode(model(waveform[None]).logits.argmax(dim=-1)[0])
    assert len(expected) > 5
    paths = {"folder": folder, "waveform": tmp_path / "waveform.npy"}
    text, last = run_apart(PIPELINE_WITHOUT_THE_PACKAGE, tmp_path / "modules", **paths).splitlines()
    assert text == expected
    assert float(last) == pytest.approx(0.5, abs=0.03)  # seconds, which need the hop of the convolutions


def test_folders_bring_a_pipeline_for_files_of_any_rate_and_after_a_second_save_they_still_do(tmp_path):
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)), 8000)  # stereo, a second
    for name in ("cpc", "wav2vec", "vq-wav2vec", "discrete-bert", "wav2letter"):
        folder = save_ctc_run(tmp_path / "runs" / name, name)
        tokenizer = "Wav2LetterCTCTokenizer" if name == "wav2letter" else "Wav2Vec2CTCTokenizer"
        parts = {"AutoFeatureExtractor": "Wav2Vec2FeatureExtractor", "AutoProcessor": "Wav2Vec2Processor"}
        text = transcriber(folder)(clip)["text"]
        assert len(text) > 1
        expected = {**parts, "AutoTokenizer": tokenizer, "text": text}
        (folder / "expected.json").write_text(json.dumps(expected))
        (tmp_path / "folders").mkdir(exist_ok=True)
        folder.rename(tmp_path / "folders" / name)
    paths = {"folders": tmp_path / "folders", "clip": clip, "again": tmp_path / "again"}
    run_apart(FILES_WITHOUT_THE_PACKAGE, tmp_path / "modules", **paths)


@pytest.mark.parametrize("alphabet", ["letters", "phones"])
def test_a_wav2letter_folder_transcribes_in_the_pipeline_without_the_package(tmp_path, alphabet):
    folder, vocabulary = tmp_path / "model", tmp_path / "vocab.json"
    symbols = [*"|ABC12"] if alphabet == "letters" else ["sil", "aa", "b", "sh", "t", "iy"]
    vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate([*symbols, "<pad>", "<unk>"])}))
    special = {"bos_token": None, "eos_token": None}
    if alphabet == "letters":
        tokenizer = family.Wav2LetterCTCTokenizer(str(vocabulary), **special)
    else:
        tokenizer = transformers.Wav2Vec2PhonemeCTCTokenizer(str(vocabulary), do_phonemize=False, **special)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    torch.manual_seed(0)
    model = family.Wav2LetterForCTC(family.Wav2LetterConfig(**SMALL_WAV2LETTER)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(300)
        model.criterion.transitions.normal_()
    for part in (model, processor):
        part.save_pretrained(folder)
    waveform = torch.randn(8000)
    np.save(tmp_path / "waveform.npy", waveform.numpy())
    output = model(waveform[None])
    lengths = torch.tensor([model.num_frames(8000)])
    path = best_paths(output.emissions, model.criterion.transitions, lengths).paths[0]
    if alphabet == "letters":
        expected = "".join(symbols[i] for i in decode_path(path.tolist(), [4, 5])).replace("|", " ").strip()
    else:
        expected = " ".join(symbols[i] for i in decode_path(path.tolist()))
    assert len(path.unique()) > 3
    paths = {"folder": folder, "waveform": tmp_path / "waveform.npy"}
    text, last = run_apart(PIPELINE_WITHOUT_THE_PACKAGE, tmp_path / "modules", **paths).splitlines()
    assert text == expected
    assert float(last) == pytest.approx(0.5, abs=0.1)  # seconds
    both = [waveform.numpy(), waveform[:5000].numpy()]
    alone, short = (transcriber(folder)(clip)["text"] for clip in both)
    assert alone == expected
    assert [result["text"] for result in transcriber(folder)(both, batch_size=2)] == [alone, short]


def test_a_tokenizer_of_codes_loads_without_the_package_and_so_it_does_after_a_second_save(tmp_path):
    counts = {"2-0": 3, "1-1": 2, "4-4": 1}
    tokenizer = family.SpeechCodesTokenizer.from_counts(counts, 5)
    tokenizer.save_pretrained(tmp_path / "first")
    # a folder as pre-training leaves it, with the configuration of a model of Transformers' own
    transformers.RobertaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "first")
    run_apart(
        TOKENIZER_WITHOUT_THE_PACKAGE, tmp_path / "modules", folder=tmp_path / "first", again=tmp_path / "second"
    )
    with_package = transformers.AutoTokenizer.from_pretrained(tmp_path / "first")
    assert type(with_package) is family.SpeechCodesTokenizer
    assert with_package.num_codevectors_per_group == 5
