"""The documentation done from top to bottom: every page's blocks in a row, with tiny recipes and a corpus of noise.

What a page takes for granted, such as a run of its reader, is there; what only a person or another test does (install,
serve, measure for hours) is in NOT_HERE.
"""

import contextlib
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from golden import GOLDEN
from interruptions import forget_accelerator
from loopback_hub import LoopbackHub
from test_docs import FENCE, ROOT
from tiny_models import TINY_MODELS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
# of pictures.md, whose commands stand in a table
CELL = re.compile(r"^\|.*\| `(python [^`]*)` \|$", flags=re.MULTILINE)
FAIRSEQ = GOLDEN / "fairseq"
NOT_HERE = re.compile(
    r"pip |make |MALLOC_|python3? -m venv|ruff |hf upload|python -m pytest|"
    r"python -m benchmarks.exported (--output|runs/digits)"  # minutes each, on models of the papers' sizes
)
RATE = 16_000
# what a page says -> what is there
STAND_INS = {
    "data.budget_seconds=600": "data.budget_seconds=3",
    "facebook/wav2vec2-base": "runs/healthy/model",
    "owner/name": "runs/cpc",
    "optimization.num_steps=50_000": "optimization.num_steps=2",
    "--layers 0 5 11": "--layers 0 1",
    "WHAT WAS SAID": "AB CAB",
}
# of Python alone: what a shell pushes to the Hub has its name there
NEITHER_HUB_NOR_GPU = {'"me/mine"': '"runs/mine-ctc/model"', ".cuda()": "", 'device="cuda"': 'device="cpu"'}
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PREPARATIONS = """
python -m training.pretrain training/recipes/wav2vec2/base_ls960.yaml data.train=/my/corpus data.evaluation=/my/corpus run.output_dir=runs/healthy
python -m training.pretrain training/recipes/cpc/small_clean5.yaml data.train=/my/corpus data.evaluation=/my/corpus run.output_dir=runs/cpc
python -m training.pretrain training/recipes/wav2vec/base_ls960.yaml data.train=/my/corpus data.evaluation=/my/corpus run.output_dir=runs/wav2vec
python -m training.pretrain training/recipes/vq_wav2vec/gumbel_ls960.yaml data.train=/my/corpus data.evaluation=/my/corpus run.output_dir=runs/vq
python -m training.extract_codes runs/vq/model /my/corpus --split train --output codes
python -m training.pictures codebook codes/train --output codebook.png
python -m training.pictures phones runs/vq/model /my/corpus --split dev --output phones.png
python -m training.finetune training/recipes/wav2vec2/finetune_base_10h.yaml pretrained=runs/healthy/model vocabulary=transcripts data.budget_seconds=null data.train=/my/corpus data.evaluation=/my/corpus run.output_dir=runs/mine-ctc
python -m training.evaluate runs/mine-ctc/model /my/corpus --split test --output runs/mine-ctc/test
"""  # noqa: E501
COPIES = {
    "runs/healthy": ("runs/mine", "runs/a", "runs/b", "runs/quickstart/pretraining"),
    "runs/mine-ctc": ("runs/seed0", "runs/seed1", "runs/seed2", "runs/quickstart/finetuning"),
    "corpus": ("runs/quickstart/speech",),
}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_accelerator")]


def write_corpus(folder: Path):
    """Clips of noise, of two speakers, with words and the phones of a probe."""
    rng = np.random.default_rng(0)
    for split, num_clips in (("train", 12), ("dev", 4), ("test", 4)):
        (folder / split).mkdir(parents=True)
        rows = []
        for number in range(num_clips):
            seconds = rng.uniform(0.6, 0.9)
            soundfile.write(folder / split / f"{number}.flac", 0.1 * rng.standard_normal(int(seconds * RATE)), RATE)
            phones = ["SIL", *rng.choice(["AA", "B", "K"], size=3), "SIL"]
            rows.append(
                {
                    "file_name": f"{number}.flac",
                    "text": " ".join(rng.choice(["AB", "BA", "CAB"], size=2)),
                    "speaker_id": f"voice-{number % 2}",
                    "phones": phones,
                    "phone_start_s": [0.0, 0.1, 0.25, 0.4, 0.5],
                }
            )
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentences() -> str:
    """Sentences some of which come again, so that n-grams of all orders come once, twice, three and four times."""
    rng = np.random.default_rng(0)
    words = ["".join(letters) for letters in itertools.product("ABC", repeat=6)]
    drawn = [" ".join(rng.choice(words, size=8)) + "\n" for _ in range(100)]
    return "".join(sentence * times for sentence, times in zip(drawn, rng.zipf(2, size=100) % 7, strict=True))


def shrink(recipe: Path):
    """Leaves of a recipe what it says, on a tiny model, seconds of audio or few codes, and two steps."""
    header = re.match(r"(?:#.*\n)*", recipe.read_text())[0]
    said = yaml.safe_load(recipe.read_text())
    sections = {name: said.setdefault(name, {}) for name in ("model", "data", "optimization", "run")}
    sections["optimization"] |= {"num_steps": 2, "gradient_accumulation_steps": 1, "mixed_precision": "no"}
    sections["run"] |= {"trackers": [], "log_every_steps": 1}
    if "codes" in said:
        said["codes"] = {"tokens_per_sample": 128, "batch_tokens": 256}
        sections["model"] |= {**TINY_BERT, "max_position_embeddings": 130}
    else:
        sections["data"] |= {"batch_seconds": 2.0, "min_seconds": 0.1, "max_seconds": 1.0, "num_workers": 0}
        architecture = said.get("architecture", "Wav2Vec2")
        # those of a Discrete BERT are of the model it is made of
        sections["model"] |= {} if architecture == "DiscreteBert" else TINY_MODELS[architecture]
        if "mask_feature_length" in sections["model"]:
            sections["model"]["mask_feature_length"] = 4
        if "frozen_encoder_steps" in sections["optimization"]:
            sections["optimization"]["frozen_encoder_steps"] = 1
    recipe.write_text(header + yaml.safe_dump(said))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with what the pages take for granted."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(ROOT / "training" / "recipes", folder / "training" / "recipes")
    for recipe in (folder / "training" / "recipes").rglob("*.yaml"):
        shrink(recipe)
    write_corpus(folder / "corpus")
    shutil.copy(folder / "corpus" / "test" / "0.flac", folder / "clip.flac")
    (folder / "text.txt").write_text(sentences())
    for name, (fixture, dictionary) in {
        "wav2vec_small_960h.pt": ("wav2vec2_ctc_base", "dict.ltr.txt"),
        "vq-wav2vec_kmeans.pt": ("vq_wav2vec_kmeans_combined", None),
        "bert_kmeans.pt": ("roberta_vq", "dict.txt"),
    }.items():
        if FAIRSEQ.exists():
            shutil.copy(FAIRSEQ / fixture / "checkpoint.pt", folder / name)
            if dictionary:
                shutil.copy(FAIRSEQ / fixture / dictionary, folder / dictionary)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in PREPARATIONS.strip().splitlines():
            do(line.replace("/my/corpus", str(folder / "corpus")), patch)
    for source, copies in COPIES.items():
        for copy in copies:
            shutil.copytree(folder / source, folder / copy)
    return folder


def do(line: str, monkeypatch: pytest.MonkeyPatch):
    """A line of a shell, in this process: launchers start what they would start once."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    output = Path(words.pop(words.index(">") + 1)) if ">" in words else None
    words = [word for word in words if word != ">"]
    by_module = "-m" in words
    place = words.index("-m") + 1 if by_module else 1
    program, arguments = words[place], words[place + 1 :]
    for argument in arguments:
        # a page begins its runs; the ones of the same name are another page's
        if argument.startswith("run.output_dir="):
            shutil.rmtree(argument.removeprefix("run.output_dir="), ignore_errors=True)
    if program == "push_to_hub.py":
        return push(arguments)
    if program.startswith("benchmarks."):  # they begin anew with an allocator of their own
        return subprocess.run([sys.executable, *words[1:]], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    forget_accelerator()
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with contextlib.ExitStack() as stack:
        if output is not None:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(output.open("w"))))
        code = 0
        try:
            (runpy.run_module if by_module else runpy.run_path)(program, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    # the doctor ends with 1 where it finds something
    assert code in ((0, 1) if program == "training.doctor" else (0,)), f"{line} ended with {code}"


def push(arguments: list[str]):
    with LoopbackHub(user="me") as hub:
        command = [sys.executable, str(ROOT / "push_to_hub.py"), *arguments]
        environment = {**os.environ, **hub.environment(HF_TOKEN=hub.token)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("--push" in arguments) == bool(hub.repositories)


def steps_of(page: Path) -> list[tuple[str, str]]:
    """(kind, text) of the blocks that are done, in their order; a command for each line of a shell."""
    text, steps = page.read_text(), []
    if page.name == "pictures.md":
        steps = [("bash", command) for command in CELL.findall(text)]
    for kind, block in FENCE.findall(text):
        if kind == "bash":
            lines = block.replace("\\\n", " ").splitlines()
            lines = [re.sub(r"\s+#\s.*$", "", line).strip() for line in lines]
            steps += [("bash", " ".join(line.split())) for line in lines if line and not line.startswith("#")]
        elif kind == "python" and not block.startswith("--8<--"):
            steps.append(("python", block))
    return [(kind, text) for kind, text in steps if kind == "python" or not NOT_HERE.match(text)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if steps_of(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_can_be_done_from_top_to_bottom(page, prepared, tmp_path, monkeypatch):
    if page.name == "convert.md" and not FAIRSEQ.exists():
        pytest.skip("the shared folder with the original checkpoints is not here")
    folder = shutil.copytree(prepared, tmp_path / "folder")
    monkeypatch.chdir(folder)
    served = []
    monkeypatch.setattr("hf_wav2vec_family.demo.app.launch", lambda page, **options: served.append(page))
    for kind, text in steps_of(page):
        text = re.sub("/my/(corpus|audio)", str(prepared / "corpus"), text)
        for said, there in STAND_INS.items():
            text = text.replace(said, there)
        if kind == "bash":
            do(text, monkeypatch)
        else:
            for said, there in NEITHER_HUB_NOR_GPU.items():
                text = text.replace(said, there)
            exec(compile(text, str(page), "exec"), {})
    assert bool(served) == (page.name == "demo.md")
