"""The two commands and the code of the README, made small enough to run in every test."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training import quickstart

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "model.conv_dim=[8,8,8,8,8,8,8]",
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=16",
    "model.num_conv_pos_embeddings=8",
    "model.num_conv_pos_embedding_groups=2",
    "optimization.num_steps=2",
    "data.batch_seconds=16",
    "data.num_workers=0",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the quickstart has run, as the repository is after `make quickstart`."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "NUM_UTTERANCES", 30)
        patch.setattr(quickstart, "NUM_VOICES", 20)
        patch.chdir(folder)
        quickstart.main(["--output", "runs/quickstart", *TINY])
    return folder


def test_quickstart_leaves_a_model_scores_a_table_and_curves(finished):
    run = finished / "runs" / "quickstart"
    summary = json.loads((run / "quickstart.json").read_text())
    assert summary["num_utterances"] == 3
    assert {"wer", "cer", "reference", "transcript"} <= set(summary)
    assert len((run / "test" / "utterances.jsonl").read_text().splitlines()) == 3
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_quickstart_model_gives_the_same_text_without_this_package(finished):
    run = finished / "runs" / "quickstart"
    expected = json.loads((run / "quickstart.json").read_text())
    row = json.loads((run / "speech" / "test" / "metadata.jsonl").read_text().splitlines()[0])
    code = f"""
import sys
sys.modules["hf_wav2vec_family"] = None
import soundfile, transformers
waveform, rate = soundfile.read({str(run / "speech" / "test" / row["file_name"])!r}, dtype="float32")
folder = {str(run / "finetuning" / "model")!r}
model = transformers.AutoModelForCTC.from_pretrained(folder)
processor = transformers.AutoProcessor.from_pretrained(folder)
logits = model(**processor(waveform, sampling_rate=rate, return_tensors="pt")).logits
assert processor.batch_decode(logits.argmax(-1))[0] == {expected["transcript"]!r}
pipe = transformers.pipeline("automatic-speech-recognition", model=folder)
for options in ({{}}, {{"chunk_length_s": 5}}):
    assert pipe(waveform.copy(), **options)["text"] == {expected["transcript"]!r}
assert "chunks" in pipe(waveform.copy(), return_timestamps="word")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_second_quickstart_goes_on_from_the_first(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(quickstart, "write_corpus", None)  # would fail if it were called again
    before = json.loads(Path("runs/quickstart/quickstart.json").read_text())
    after = quickstart.main(["--output", "runs/quickstart", *TINY])
    assert after["transcript"] == before["transcript"]
    assert after["cer"] == before["cer"]


def test_every_python_block_of_the_readme_runs(finished, monkeypatch):
    monkeypatch.chdir(finished)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readme_names_only_files_and_modules_that_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"training/recipes/[\w/]+\.yaml", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for target in re.findall(r"make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
