"""Recorded outputs of the original implementations, which lie beside the repository and not in it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"


@dataclass
class Fixture:
    """One recorded model: its checkpoint, the inputs all fixtures share, tensors and numbers the original computed."""

    folder: Path
    inputs: dict[str, Tensor]
    tensors: dict[str, Tensor]
    scalars: dict

    def input(self, name: str) -> Tensor:
        return self.inputs[f"{name}_normalized" if self.scalars["normalize"] else name]

    @property
    def attention_mask(self) -> Tensor:
        return (~self.inputs["padded_mask"]).long()


def load_fixture(family: str, name: str) -> Fixture:
    folder = GOLDEN / family / name
    if not folder.exists():
        pytest.skip(f"needs the recorded outputs in {GOLDEN}, which are not part of the repository")
    description = json.loads((folder / "fixture.json").read_text())
    return Fixture(
        folder=folder,
        inputs=load_file(GOLDEN / family / "inputs.safetensors"),
        tensors=load_file(folder / "reference.safetensors"),
        scalars={key: entry["value"] for key, entry in description["scalars"].items()},
    )


def real_speech(name: str) -> Path:
    folder = SHARED / "data" / name
    if not folder.exists():
        pytest.skip(f"needs the corpus in {folder}, which is not part of the repository")
    return folder
