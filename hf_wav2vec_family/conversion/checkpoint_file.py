"""Reads checkpoint files of other code bases: nothing in the file is executed, nothing of those code bases is needed.

torch's restricted unpickler does the reading. Of the classes a file may name besides torch's own, the few that the
original training programs are known to leave behind become inert stand-ins; every other one is refused.
"""

import argparse
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from typing import Any

import torch

# Meters, option classes and enums of fairseq, and omegaconf's containers: many names, all of them records of values.
RECORD_PACKAGES = ("fairseq", "omegaconf")
RECORD_NAMES = {
    *(f"builtins.{kind.__name__}" for kind in (bool, bytes, complex, dict, float, frozenset, int)),
    *(f"builtins.{kind.__name__}" for kind in (list, object, set, str, tuple)),
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    *(f"numpy.{name}" for name in ("core.multiarray.scalar", "_core.multiarray.scalar", "dtype")),
    # Python pickles a type such as List[int] as getitem(List, int).
    "_operator.getitem",
    "operator.getitem",
}
READ_BY_TORCH = ("torch", "collections.OrderedDict", "collections.Counter", "builtins.bytearray", "_codecs.encode")

# A file of torch before 1.6 begins with its magic number, protocol version, system information and the saved object.
NUM_PICKLES_BEFORE_ZIP = 4


class StandIn:
    """An object of a foreign class: keeps what the file says about it and does nothing."""

    def __new__(cls, *arguments):
        stand_in = super().__new__(cls)
        stand_in.arguments = arguments
        stand_in.state = {}
        return stand_in

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the checkpoint at `path` into plain dictionaries, lists, numbers, strings and tensors.

    Option objects (`argparse.Namespace`, omegaconf's `DictConfig`) become dictionaries. The state of the optimizer,
    two thirds of a usual file, is left out.

    Raises:
        ValueError: The file names a class that is not known to be harmless, is no torch checkpoint, or holds
            something else than a dictionary.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    is_zip = zipfile.is_zipfile(path)
    stand_ins = [(StandIn, name) for name in _foreign_names(path, is_zip)]
    # A defaultdict is filled after it was made, which torch's reader does for plain dictionaries only.
    stand_ins += [(argparse.Namespace, "argparse.Namespace"), (_empty_dict, "collections.defaultdict")]
    try:
        with torch.serialization.safe_globals(stand_ins):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    except Exception as error:  # a broken file can make the reader fail in any way
        # The rest of torch's message advises to load the file unsafely.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{path} cannot be read safely as a torch checkpoint: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected the dictionary of a checkpoint.")
    return _plain({name: value for name, value in checkpoint.items() if name != "last_optimizer_state"})


def _foreign_names(path: Path, is_zip: bool) -> list[str]:
    """Names in the file that stand-ins take the place of, as `module.name`; refuses the file for any unknown one."""
    names = _named_globals(path, is_zip) - {"argparse.Namespace", "collections.defaultdict"}
    foreign = [name for name in names if name not in READ_BY_TORCH and not name.startswith("torch.")]
    refused = [n for n in foreign if n.split(".")[0] not in RECORD_PACKAGES and n not in RECORD_NAMES]
    if refused:
        raise ValueError(
            f"{path} names {', '.join(sorted(refused))}, which no known training program leaves in a checkpoint;"
            " the file was not loaded."
        )
    return foreign


def _named_globals(path: Path, is_zip: bool) -> set[str]:
    """Every class or function the pickles of a checkpoint name, with Python 2's module names translated."""
    names = set()
    try:
        for operations in _pickles(path, is_zip):
            for opcode, argument, _ in operations:
                if opcode.name in ("GLOBAL", "INST"):
                    module, name = argument.split(" ", 1)
                    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                    names.add(f"{module}.{name}")
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a torch checkpoint: {error}") from error
    return names


def _pickles(path: Path, is_zip: bool):
    """One iterator over pickle operations for each pickle in the file."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if member.endswith(".pkl"):
                    with archive.open(member) as stream:
                        yield pickletools.genops(stream)
    else:
        with path.open("rb") as stream:
            for _ in range(NUM_PICKLES_BEFORE_ZIP):
                yield pickletools.genops(stream)


def _empty_dict(*_) -> dict:
    return {}


def _plain(value: Any) -> Any:
    """The dictionaries, lists and leaves inside option objects and stand-ins."""
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value))
    if isinstance(value, StandIn):
        for field in ("_content", "_val"):  # of omegaconf's containers and leaves
            if field in value.state:
                return _plain(value.state[field])
        # A member of an enum is pickled as its class called with its value.
        return value.arguments[0] if len(value.arguments) == 1 and isinstance(value.arguments[0], str) else value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
