"""What the documentation says can be done: blocks of Python run, commands parse, links lead somewhere."""

import argparse
import contextlib
import dataclasses
import html
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hf_wav2vec_family
from training import augmentation, schedules
from training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
DOCUMENTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "training/README.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?<!`)`((?:python|accelerate|make|torchrun) [^`]*)`")
PROJECT = (ROOT / "pyproject.toml").read_text()
FORMULA = re.compile(r"\\\(.*?\\\)|\\\[ .*?\\\]", flags=re.DOTALL)
needs_the_site = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "ziamath"))), reason='the site needs pip install ".[docs]"'
)
# what they name is a file or a model that only the reader has
NEEDS_A_MODEL = ("from_pretrained(", "transcriber(", "pipeline(")
LAUNCHERS = ("accelerate", "torchrun")
ELSEWHERE = ("pip", "python3", "ruff", "hf", ".")


class Parsed(Exception):
    """Stands for a command whose arguments were accepted."""


def blocks(language: str) -> list:
    found = []
    for path in DOCUMENTS:
        name = str(path.relative_to(ROOT))
        texts = FENCE.findall(path.read_text())
        found += [pytest.param(text, id=f"{name}-{i}") for i, (kind, text) in enumerate(texts) if kind == language]
    return found


def commands() -> list:
    """Each command of a block of a shell, and those within text, as one line."""
    found = {}
    for path in DOCUMENTS:
        text = path.read_text()
        lines = [block for kind, block in FENCE.findall(text) if kind == "bash"]
        lines = "\n".join(lines).replace("\\\n", " ").splitlines() + COMMAND.findall(FENCE.sub("", text))
        for line in lines:
            line = re.sub(r"\s+#\s.*$", "", line).strip()
            if line and not line.startswith("#"):
                found.setdefault(" ".join(line.split()), path.name)
    return [pytest.param(line, id=f"{name}: {line[:70]}") for line, name in found.items()]


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text):
    if text.startswith("--8<--"):
        assert (ROOT / "docs" / "examples" / shlex.split(text)[1]).is_file()
        return
    if any(word in text for word in NEEDS_A_MODEL):
        # it is Python, and what it imports is there
        compile(text, "block", "exec")
        for line in re.findall(r"^(?:from|import) .*$", text, flags=re.MULTILINE):
            exec(line, {})
        return
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, "block", "exec"), {})


@pytest.mark.parametrize("command", commands())
def test_a_command_is_understood(command, monkeypatch):
    if "…" in command or re.search(r"\b(RECIPE|RUN|MODEL|RUN1|TABLE|N)\b", command):
        pytest.skip("names what the reader puts in")
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if ">" in words:
        words = words[: words.index(">")]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), command
    elif words[0] == "pip" and "install" in words:
        for extras in re.findall(r"\.\[([\w,]+)\]", command):
            assert all(re.search(rf"^{extra} = \[", PROJECT, flags=re.MULTILINE) for extra in extras.split(","))
    elif words[0] == "python" or words[0] in LAUNCHERS:
        dry_run(words, monkeypatch)
    else:
        assert words[0] in ELSEWHERE, command


def dry_run(words: list[str], monkeypatch):
    """Has the program parse its arguments, and end there; recipes are read with their overrides."""
    monkeypatch.chdir(ROOT)
    if "--config_file" in words:
        assert Path(words[words.index("--config_file") + 1]).is_file()
    by_module = "-m" in words
    place = words.index("-m") + 1 if by_module else 1
    if place == len(words) or (words[0] in LAUNCHERS and not by_module):
        return
    program, arguments = words[place], words[place + 1 :]
    if by_module and not arguments:
        # the name of a program, and no command
        assert importlib.util.find_spec(program) is not None
        return
    if program == "pytest":
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, given=None, namespace=None):
        raise Parsed(parse(parser, given, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    run = runpy.run_module if by_module else runpy.run_path
    try:
        run(program, run_name="__main__")
    except Parsed as parsed:
        options = parsed.args[0]
    if hasattr(options, "overrides") and hasattr(options, "recipe"):
        importlib.import_module(program).check(load_recipe(options.recipe, options.overrides))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(path):
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            assert re.fullmatch(r"https://[\w.-]+(/\S*)?", target), target
            continue
        file, _, heading = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if heading:
            slugs = [
                re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
            ]
            assert heading in slugs, f"{path.name}: {target}"


def test_every_page_is_in_the_navigation():
    settings = (ROOT / "docs" / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(ROOT / "docs" / "pages")) in settings, page


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "pages" / "reference").glob("*.md"))
    missing = [name for name in hf_wav2vec_family.__all__ if not re.search(rf"\b{name}\b", pages)]
    assert missing == []


def test_every_key_of_a_recipe_is_in_the_reference():
    pages = (ROOT / "docs" / "pages" / "reference" / "recipes.md").read_text()
    sections = [type(value) for value in vars(Recipe()).values() if dataclasses.is_dataclass(value)]
    named = [*sections, *augmentation.KINDS.values(), Recipe, *schedules.LEARNING_RATES.values()]
    named += schedules.TEMPERATURES.values()
    assert [one.__name__ for one in named if f"::: {one.__module__}.{one.__name__}" not in pages] == []


@needs_the_site
def test_every_formula_is_drawn_no_higher_than_a_formula_is():
    drawing = runpy.run_path(str(ROOT / "docs" / "formulas.py"))["on_page_content"]
    formulas = [tex for page in PAGES for tex in FORMULA.findall(page.read_text())]
    assert len(formulas) > 50
    for tex in formulas:
        tag = "div" if tex.startswith("\\[") else "span"
        drawn = drawing(f'<{tag} class="arithmatex">{html.escape(tex)}</{tag}>')
        height = float(re.search(r'<svg[^>]* height="([\d.]+)em"', drawn)[1])
        assert height < (6 if tag == "div" else 2.5), tex


@pytest.mark.slow
@needs_the_site
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        "docs/mkdocs.yml",
        "-d",
        str(tmp_path / "site"),
    ]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "architectures" / "cpc" / "index.html").read_text()
    assert "<svg" in page
    configurations = (tmp_path / "site" / "reference" / "configurations" / "index.html").read_text()
    assert "*optional*" not in configurations
    assert re.findall(r'<(?:script|link)[^>]* (?:src|href)="(?:https?:)?//', page) == []
