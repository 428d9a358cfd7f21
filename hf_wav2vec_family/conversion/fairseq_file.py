"""What the checkpoints of all fairseq models share: options in three layouts, layer lists, dictionaries."""

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from hf_wav2vec_family.fairseq_dictionary import DICTIONARY_SPECIALS, read_counts

MAX_CONV_LAYERS = 1000


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a fairseq run by subject.

    Attributes:
        model, task, criterion: Options by name; one and the same dictionary in files from before hydra.
        before_hydra: Whether they come from one flat namespace (to October 2020), whose defaults differ from today's.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    criterion: dict[str, Any]
    before_hydra: bool

    @classmethod
    def from_plain(cls, options: dict[str, Any]) -> "TrainingOptions":
        """Sort the plain form of an `args` namespace or a `cfg` tree."""
        if not isinstance(options.get("model"), dict):
            return cls(options, options, options, before_hydra=True)
        sections = {name: options.get(name) or {} for name in ("model", "task", "criterion")}
        # A criterion without options is recorded by its name alone.
        sections = {name: value if isinstance(value, dict) else {} for name, value in sections.items()}
        return cls(**sections, before_hydra=False)


@dataclass(frozen=True)
class FairseqCheckpoint:
    """The two parts of a fairseq checkpoint that a converter needs; `weights` are float32."""

    weights: dict[str, torch.Tensor]
    options: TrainingOptions

    @classmethod
    def from_file(cls, checkpoint: dict[str, Any]) -> "FairseqCheckpoint":
        """Take them from what `read_checkpoint` returned."""
        weights = {name: weight.float() for name, weight in checkpoint["model"].items()}
        # The years in between wrote both keys, with `args` empty or outdated.
        options = checkpoint.get("cfg") or checkpoint.get("args")
        if not isinstance(options, dict):
            raise ValueError("The checkpoint has no training options: both `cfg` and `args` are missing or empty.")
        return cls(weights, TrainingOptions.from_plain(options))


def is_fairseq(checkpoint: dict[str, Any]) -> bool:
    """Whether what `read_checkpoint` returned has fairseq's layout: weights under `model`, options beside them."""
    weights = checkpoint.get("model")
    holds_weights = isinstance(weights, dict) and all(isinstance(w, torch.Tensor) for w in weights.values())
    return holds_weights and ("cfg" in checkpoint or "args" in checkpoint)


@dataclass(frozen=True)
class Options:
    """Typed look-up in recorded options, with the defaults of the code that recorded them.

    Over the years fairseq recorded the same option as a number or a string, a tuple, a list or a string of one.
    """

    recorded: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        value = self.recorded.get(name)
        return self.defaults[name] if value is None else value

    def number(self, name: str) -> float:
        try:
            return float(self[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"Option {name} is {self[name]!r}, expected a number.") from error

    def integer(self, name: str) -> int:
        number = self.number(name)
        if not number.is_integer():
            raise ValueError(f"Option {name} is {self[name]!r}, expected a whole number.")
        return int(number)

    def flag(self, name: str) -> bool:
        value = self[name]
        if value in (True, "True", "true"):
            return True
        if value in (False, "False", "false"):
            return False
        raise ValueError(f"Option {name} is {value!r}, expected True or False.")

    def numbers(self, name: str) -> list[float]:
        """A list of numbers; a single number is a list of one."""
        value = self[name]
        try:
            value = ast.literal_eval(value) if isinstance(value, str) else value
            return [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]
        except (TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f"Option {name} is {self[name]!r}, expected a list of numbers.") from error

    def choice(self, name: str, accepted: Mapping[str, Any]) -> Any:
        """What `accepted` translates the option to."""
        value = self[name]
        if value not in list(accepted):
            raise ValueError(f"Option {name} is {value!r}, which is not supported; supported: {list(accepted)}.")
        return accepted[value]

    def differing(self, expected: Mapping[str, Any]) -> dict[str, Any]:
        """The recorded options that have another value than `expected`; a missing option does not differ."""
        recorded = {name: self.recorded.get(name) for name in expected}
        return {name: value for name, value in recorded.items() if value is not None and value != expected[name]}

    def require(self, expected: Mapping[str, Any]) -> None:
        """Refuse options that the converted model has no counterpart of."""
        if differing := self.differing(expected):
            found = ", ".join(f"{name}={value!r}" for name, value in differing.items())
            accepted = ", ".join(f"{name}={expected[name]!r}" for name in differing)
            raise ValueError(f"The checkpoint was trained with {found}; only {accepted} can be converted.")


@dataclass(frozen=True)
class ConvLayers:
    """A stack of convolutions: one channel count, kernel size and stride per layer."""

    dims: list[int]
    kernel_sizes: list[int]
    strides: list[int]


def parse_conv_layers(expression: str | list, option: str = "conv_feature_layers") -> ConvLayers:
    """Read the list of (channels, kernel size, stride) of an `option`, such as `[(512, 10, 5)] + [(512, 3, 2)] * 4`.

    fairseq evaluates this option as Python code; here it may consist of integers, tuples, lists, `+` and `*` only.

    Raises:
        ValueError: It contains anything else or does not describe at least one layer of three positive integers.
    """
    layers = expression
    if isinstance(expression, str):
        try:
            layers = _arithmetic(ast.parse(expression.strip(), mode="eval").body)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"Option {option} is {expression!r}: {error}") from error
    if not (isinstance(layers, list) and layers and all(_is_conv_layer(layer) for layer in layers)):
        raise ValueError(f"Option {option} is {expression!r}, expected a list of (channels, kernel size, stride).")
    return ConvLayers(*(list(column) for column in zip(*layers, strict=True)))


def _is_conv_layer(layer: Any) -> bool:
    return isinstance(layer, (list, tuple)) and len(layer) == 3 and all(type(n) is int and n > 0 for n in layer)


def _arithmetic(node: ast.expr) -> Any:
    """Value of an expression of integers, tuples and lists joined by `+` and `*`."""
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.List(elts=items):
            return [_arithmetic(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_arithmetic(item) for item in items)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _arithmetic(left) + _arithmetic(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(_arithmetic(left), _arithmetic(right))
    raise ValueError(f"`{ast.unparse(node)}` is not made of integers, tuples, lists, + and *.")


def _product(left: Any, right: Any) -> Any:
    length = max(len(side) if isinstance(side, (list, tuple)) else 1 for side in (left, right))
    count = min((side for side in (left, right) if isinstance(side, int)), default=1)
    # Refused before a few characters fill the memory.
    if length * count > MAX_CONV_LAYERS and not (isinstance(left, int) and isinstance(right, int)):
        raise ValueError(f"it has more than {MAX_CONV_LAYERS} layers.")
    return left * right


def fill(
    model: PreTrainedModel,
    weights: Mapping[str, torch.Tensor],
    sources: Mapping[str, str],
    *,
    optional: Collection[str] = (),
) -> PreTrainedModel:
    """Copy the file's `weights` into `model`, whose own weights come from those that `sources` names.

    Args:
        optional: Names in the file that the model may have no place for.

    Raises:
        ValueError: A weight of the model is not in the file, one of the file is not in the model, or shapes differ.
    """
    own = model.state_dict()
    if missing := sorted(set(sources.values()) - weights.keys()):
        raise ValueError(f"The checkpoint lacks weights of the model: {', '.join(missing)}.")
    if unknown := sorted(weights.keys() - set(sources.values()) - set(optional)):
        raise ValueError(f"The checkpoint has weights that are not of the model: {', '.join(unknown)}.")
    for name, source in sources.items():
        if own[name].shape != weights[source].shape:
            raise ValueError(
                f"Weight {source} has shape {tuple(weights[source].shape)}, but the recorded options make it"
                f" {tuple(own[name].shape)}."
            )
    model.load_state_dict({name: weights[source] for name, source in sources.items()})
    return model.eval()


def feature_extractor(options: TrainingOptions) -> Wav2Vec2FeatureExtractor:
    """What prepares waveforms as the recorded task did."""
    # The model section repeats the task's setting.
    defaults = {"normalize": options.model.get("normalize") or False, "sample_rate": 16000}
    task = Options(options.task, defaults)
    return Wav2Vec2FeatureExtractor(
        sampling_rate=task.integer("sample_rate"), do_normalize=task.flag("normalize"), return_attention_mask=True
    )


def read_dictionary(path: str | Path) -> list[str]:
    """Symbols of a fairseq dictionary in order, behind fairseq's four specials; raises as `read_counts`."""
    return [*DICTIONARY_SPECIALS, *read_counts(path)]
