"""From one person to the next over the Hub: trained with this package, trained on without it, read by a third.

A model of every architecture goes the whole way through the real clients: published, fetched by its name, trained on a
streamed data set, published again, fetched by a process that does not have the package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from loopback_hub import LoopbackHub
from publications import RECIPE_OF, save_ctc_run, write_card

from publishing.folder import files_of, older_layout
from publishing.upload import Publication, publish

PROGRAMS = Path(__file__).with_name("round_trip.py")
NAMES = tuple(RECIPE_OF)

pytestmark = pytest.mark.slow


def visit(program: str, folder: Path, hub: LoopbackHub, names=NAMES):
    """Runs a program of round_trip.py as a person with a cache of their own; what they heard is in `folder`."""
    environment = {**os.environ, **hub.environment(HF_HOME=str(folder / f"home of {program}"), HF_TOKEN=hub.token)}
    environment |= {"PYTHONPATH": str(PROGRAMS.parent), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS), program, str(folder), *names],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{program}: {done.stderr[-4000:]}"
    assert hub.token not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as server:
        yield server


@pytest.fixture(scope="module")
def trip(hub, tmp_path_factory) -> Path:
    """The whole way of all models; a folder with what everybody heard."""
    folder = tmp_path_factory.mktemp("trip")
    api = HfApi(endpoint=hub.url, token=hub.token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in NAMES:
            model = save_ctc_run(folder / "first" / name, name)
            write_card(folder / "first" / name, name, f"user/{name}")
            files = {**files_of(model), **older_layout(model)}
            publish(Publication(f"user/{name}", files, "v1", False, "first"), api)
    for program in ("train", "stranger", "reader"):
        visit(program, folder, hub)
    return folder


def heard(trip: Path, who: str) -> dict[str, str]:
    return json.loads((trip / f"{who}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_hears_what_was_heard_where_it_was_trained(trip, name):
    text = heard(trip, "train")[name]
    assert len(text) > 3
    assert heard(trip, "stranger")[name] == text


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stranger_trained_on_and_put_up_is_whole_for_the_next(trip, name):
    text = heard(trip, "stranger-fine-tuned")[name]
    assert len(text) > 3
    assert heard(trip, "reader")[name] == text


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_round_trip_have_learned_and_code_travels_unless_none_is_needed(hub, trip, name):
    weights = [hub.repository(f"user/{name}{turn}").head.files["model.safetensors"] for turn in ("", "-2", "-3")]
    assert len(set(weights)) == 3
    for turn in ("", "-2", "-3"):
        code = [path for path in hub.repository(f"user/{name}{turn}").head.files if path.endswith(".py")]
        assert bool(code) == (name != "wav2vec2")
        assert ("speech_recognition_pipeline.py" in code) == (name != "wav2vec2")


def test_data_were_streamed_from_the_hub_and_a_private_model_is_nobody_elses(hub, trip):
    assert any(request.startswith("GET /datasets/user/data/resolve/") for request in hub.requests)
    assert hub.repository("user/cpc-2").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("user/cpc-2")
