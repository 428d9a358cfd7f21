"""The wheel: the package alone, and no dependency that a user of Transformers does not have, but for audio."""

import ast
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_wav2vec_family"
OF_TRANSFORMERS = {"huggingface-hub", "numpy", "safetensors", "torch", "transformers"}
OF_AUDIO = {"soundfile", "soxr"}
MAX_ADDED_SHARE = 0.2


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, which builds the wheel, is missing")
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return zipfile.ZipFile(built)


def metadata_of(wheel: zipfile.ZipFile, file: str = "METADATA"):
    """A file of the wheel's dist-info, whose lines are those of the head of a mail."""
    (name,) = [name for name in wheel.namelist() if name.endswith(f".dist-info/{file}")]
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert {Path(name).suffix for name in names} <= {".py", ".typed"}
    assert "hf_wav2vec_family/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert sum(info.file_size for info in wheel.infolist()) < 2**20


def test_its_dependencies_are_those_of_transformers_and_audio(wheel):
    required = metadata_of(wheel).get_all("Requires-Dist")
    always = {re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line}
    assert always == OF_TRANSFORMERS | OF_AUDIO


def test_the_package_is_imported_without_what_only_files_and_training_need_and_adds_little_to_transformers():
    """In processor time, which a busy machine stretches for both alike."""
    code = (
        "import sys, time\n"
        "for name in ('soundfile', 'soxr', 'flashlight', 'datasets', 'accelerate', 'jiwer'):\n"
        "    sys.modules[name] = None  # which makes its import an error\n"
        "from transformers import PreTrainedModel, RobertaModel, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining\n"
        "before = time.process_time()\n"
        "import hf_wav2vec_family\n"
        "print(time.process_time() / before - 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert float(done.stdout) < MAX_ADDED_SHARE


def test_it_is_for_every_python_from_3_10_on(wheel):
    assert metadata_of(wheel)["Requires-Python"] == ">=3.10"
    assert metadata_of(wheel, "WHEEL").get_all("Tag") == ["py3-none-any"]
    for path in PACKAGE.rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))
