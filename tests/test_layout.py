"""The plan of the house: who may import whom, how files that travel import, how long things may get."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_wav2vec_family"
ARCHITECTURES = ("cpc", "wav2vec", "vq_wav2vec", "discrete_bert", "wav2vec2", "wav2letter")
COMPOSITES = ("discrete_bert", "wav2letter")
KINDS = ("configuration", "modeling", "tokenization", "processing", "feature_extraction")
TRAVELLING_DEPENDENCIES = {"torch", "transformers", "numpy", "huggingface_hub"}
# in a `try` alone, where Transformers does not ask for them before they are used
OPTIONAL_DEPENDENCIES = {"soundfile", "soxr"}
FLAT_FILES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
OUTSIDE = ("training", "tests", "benchmarks", "push_to_hub", "publishing", "model_cards")
PYTHON_FILES = sorted(
    path
    for folder in ("hf_wav2vec_family", "training", "benchmarks", "publishing", "model_cards")
    for path in (ROOT / folder).rglob("*.py")
)


def architecture_of(path: Path) -> str | None:
    """The architecture that a flat file belongs to, or None if it is shared."""
    for kind in KINDS:
        if path.stem.startswith(f"{kind}_"):
            return path.stem.removeprefix(f"{kind}_")
    return None


def imports(path: Path):
    """(level, module, names) of every import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.name)
def test_a_file_that_travels_imports_its_neighbours_by_one_dot_and_one_name(path):
    optional = OPTIONAL_DEPENDENCIES - set(get_imports(path))
    for level, module, _ in imports(path):
        if level == 0:
            assert module.split(".")[0] in TRAVELLING_DEPENDENCIES | optional | set(sys.stdlib_module_names), module
        else:
            assert level == 1
            assert module is not None, "`from . import x` loses the file"
            assert "." not in module
            assert (PACKAGE / f"{module}.py").exists(), f"{module} does not travel"
    # Transformers reads relative imports with a regular expression, docstrings included
    relative = {module for level, module, _ in imports(path) if level == 1}
    read = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(), flags=re.MULTILINE))
    assert read == relative


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.name)
def test_arrows_go_one_way(path):
    architecture = architecture_of(path)
    for level, module, _ in imports(path):
        other = architecture_of(PACKAGE / f"{module}.py") if level == 1 else None
        if architecture is None:
            assert other is None, "a shared file knows no architecture"
        elif architecture not in COMPOSITES:
            assert other in (None, architecture), "what two encoders need is a shared file"


@pytest.mark.parametrize("path", FLAT_FILES, ids=lambda path: path.name)
def test_a_flat_file_belongs_to_a_known_architecture_or_is_shared_and_short(path):
    architecture = architecture_of(path)
    if architecture is not None:
        assert architecture in ARCHITECTURES
    else:
        assert len(path.read_text().splitlines()) < 250
        assert "config." not in re.sub(r"self\.config\.\w+", "", path.read_text()), "shared files take numbers"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_the_eye(path):
    limit = 65 if PACKAGE in path.parents else 100
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= limit, f"{node.name} has {length} lines"


def test_the_package_does_not_know_training_nor_tests():
    for path in PACKAGE.rglob("*.py"):
        for _, module, _ in imports(path):
            assert (module or "").split(".")[0] not in OUTSIDE, path


def test_publishing_knows_the_cards_and_neither_knows_training():
    for folder, known in (("publishing", {"model_cards", "publishing"}), ("model_cards", {"model_cards"})):
        for path in (ROOT / folder).glob("*.py"):
            imported = {(module or "").split(".")[0] for level, module, _ in imports(path) if level == 0}
            assert imported & {*OUTSIDE} <= known, path


def test_importing_the_package_needs_nothing_but_what_travels():
    code = """
import sys
for name in ("soundfile", "soxr", "datasets", "accelerate", "evaluate", "jiwer", "omegaconf", "fairseq", "flashlight"):
    sys.modules[name] = None
import hf_wav2vec_family
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_those_of_the_design():
    import hf_wav2vec_family

    assert set(hf_wav2vec_family.__all__) <= set(dir(hf_wav2vec_family))
    for head in ("Model", "ForPreTraining", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification"):
        for architecture in ("CPC", "Wav2Vec", "VQWav2Vec", "Wav2Vec2"):
            assert f"{architecture}{head}" in hf_wav2vec_family.__all__
        if head != "ForPreTraining":
            assert f"DiscreteBert{head}" in hf_wav2vec_family.__all__


def test_top_level_holds_what_the_readme_says():
    assert 'packages = ["hf_wav2vec_family"]' in (ROOT / "pyproject.toml").read_text()
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "training", "tests"):
        assert (ROOT / name).exists(), name


def test_readme_says_what_every_module_of_the_package_is_for():
    rooms = (ROOT / "README.md").read_text().split("## The rooms")[1]
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" and not re.match(r"(configuration|modeling)_|__init__", path.name):
            assert f" {path.name}" in rooms, path.name
        elif (path / "__init__.py").is_file():
            assert f" {path.name}/" in rooms, path.name
