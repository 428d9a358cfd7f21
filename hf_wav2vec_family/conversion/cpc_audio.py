"""Checkpoints of CPC_audio (Rivière et al., 2020): as its training leaves them, and as the published ones are.

The shapes of the weights say almost everything about a model. Recorded options are read for the rest, and have to
agree with the weights.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from hf_wav2vec_family.configuration_cpc import CPCConfig
from hf_wav2vec_family.conversion.converted_checkpoint import ConvertedCheckpoint
from hf_wav2vec_family.modeling_cpc import CPCForPreTraining, CPCModel

TRAINING = "cpc-audio-training"
PUBLISHED = "cpc-audio"
OPTIONS_FILE = "checkpoint_args.json"
ENCODER, CRITERION = "gEncoder", "cpcCriterion"
PREDICTORS = "wPrediction.predictors"

STRIDES, PADDINGS = (5, 4, 2, 2, 2), (3, 2, 1, 1, 1)
NORMS = {"ID": "none", "layerNorm": "channel", "batchNorm": "batch", "instanceNorm": "instance"}
CONTEXT_NETWORKS = {"GRU": "gru", "LSTM": "lstm", "RNN": "rnn"}
GATES = {1: "RNN", 3: "GRU", 4: "LSTM"}  # matrices of a recurrent layer
PREDICTOR_KINDS = {"linear": "linear", "ffd": "feed_forward", "transformer": "transformer"}
PREDICTOR_KINDS |= dict.fromkeys(("conv4", "conv8", "conv12"), "conv")
NUM_HEADS = 8  # of CPC_audio's Transformer layers, always
# What the models here have no counterpart of, with the values that mean its absence.
REQUIRED = {
    "cpc_mode": (None, "reverse"),
    "encoder_type": ("cpc",),
    "speakerEmbedding": (0, None),
    "supervised": (False, None),
}

# Names of our stacked parameters and of their parts in the file.
TRANSFORMER_PARTS = {
    "query": "0.multihead.Wq.weight",
    "key": "0.multihead.Wk.weight",
    "value": "0.multihead.Wv.weight",
    "attention_output": "0.multihead.Wo.weight",
    "relative_positions": "0.multihead.Att.Krelpos",
    "attention_norm_weight": "0.ln_multihead.weight",
    "attention_norm_bias": "0.ln_multihead.bias",
    "intermediate_weight": "0.ffnetwork.lin1.weight",
    "intermediate_bias": "0.ffnetwork.lin1.bias",
    "output_weight": "0.ffnetwork.lin2.weight",
    "output_bias": "0.ffnetwork.lin2.bias",
    "final_norm_weight": "0.ln_ffnetwork.weight",
    "final_norm_bias": "0.ln_ffnetwork.bias",
}
PREDICTOR_PARTS = {
    "linear": {"weight": "weight"},
    "feed_forward": {
        "input_weight": "lin1.module.weight",
        "input_bias": "lin1.module.bias",
        "output_weight": "lin2.module.weight",
        "output_bias": "lin2.module.bias",
    },
    "conv": {"weight": "module.module.weight", "bias": "module.module.bias"},
    "transformer": TRANSFORMER_PARTS,
}
# Tables of zeros, ones and infinities that the original saves beside the parameters of attention.
CONSTANTS = re.compile(rf"{re.escape(PREDICTORS)}\.\d+\.0\.multihead\.Att\.(z|mask)")


def is_training_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a checkpoint of CPC_audio's training."""
    return all(_is_state(checkpoint.get(name)) for name in (ENCODER, CRITERION))


def is_published(checkpoint: dict[str, Any]) -> bool:
    """Whether a file's contents are a model in the layout of the published CPC checkpoints."""
    weights = checkpoint.get("weights")
    return "config" in checkpoint and _is_state(weights) and any(name.startswith("gEncoder.") for name in weights)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(weight, Tensor) for weight in value.values())


def convert_training_checkpoint(checkpoint: dict[str, Any], dictionary: Any) -> ConvertedCheckpoint:
    """Contents of a training checkpoint to `CPCForPreTraining`; errors as `convert_checkpoint` describes."""
    options = checkpoint.get(OPTIONS_FILE)
    if options is None:
        warnings.warn(
            f"There is no {OPTIONS_FILE} beside the checkpoint, and its weights do not say which way in time the"
            " model runs and how many negatives it was trained with: forward and the default are assumed.",
            stacklevel=2,
        )
    weights = checkpoint[ENCODER] | checkpoint[CRITERION]
    fields = _encoder_fields(weights, options or {}) | _objective_fields(weights, options or {})
    return _converted(CPCForPreTraining, fields, weights, dictionary, TRAINING)


def convert_published(checkpoint: dict[str, Any], dictionary: Any) -> ConvertedCheckpoint:
    """Contents of a published checkpoint, which has no predictors, to `CPCModel`."""
    weights, options = checkpoint["weights"], checkpoint["config"]
    if not isinstance(options, dict):
        raise ValueError(f"config of the checkpoint is a {type(options).__name__}, expected a dictionary of options.")
    return _converted(CPCModel, _encoder_fields(weights, options), weights, dictionary, PUBLISHED)


def _converted(
    model_class: type[PreTrainedModel], fields: dict[str, Any], weights: dict[str, Tensor], dictionary: Any, kind: str
) -> ConvertedCheckpoint:
    if dictionary is not None:
        raise ValueError(f"dictionary is {dictionary}, but a CPC checkpoint has no output layer over symbols.")
    try:
        model = model_class(CPCConfig(**fields))
    except StrictDataclassError as error:
        raise ValueError(f"The checkpoint makes no valid configuration: {error}") from error
    model.load_state_dict(own_state(weights, model))
    # the original code takes waveforms between -1 and 1 as they are
    feature_extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return ConvertedCheckpoint(model.eval(), feature_extractor, None, kind)


def _encoder_fields(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that shape convolutions and context network.

    Raises:
        ValueError: The weights are of another kind of model, or the options say something else than they.
    """
    for name, accepted in REQUIRED.items():
        if name in options and options[name] not in accepted:
            raise ValueError(f"Option {name} is {options[name]!r}, which is not supported; supported: {accepted}.")
    convolutions = [_take(weights, f"gEncoder.conv{i}.weight") for i in range(len(STRIDES))]
    input_matrix, hidden_matrix = (_take(weights, f"gAR.baseNet.weight_{kind}_l0") for kind in ("ih", "hh"))
    hidden_size = hidden_matrix.shape[1]
    gates = GATES.get(input_matrix.shape[0] // hidden_size)
    if gates is None or input_matrix.shape[0] % hidden_size:
        raise ValueError(
            f"Weight gAR.baseNet.weight_ih_l0 has shape {tuple(input_matrix.shape)}, which is neither a GRU's, an"
            f" LSTM's nor an RNN's of hidden size {hidden_size}."
        )
    num_layers = sum(re.fullmatch(r"gAR\.baseNet\.weight_hh_l\d+", name) is not None for name in weights)
    norm = _norm_of(weights)
    found = {
        "hiddenEncoder": convolutions[0].shape[0],
        "hiddenGar": hidden_size,
        "nLevelsGRU": num_layers,
        "arMode": gates,
        "normMode": norm,
    }
    _refuse_contradictions(found, options)
    return {
        "conv_dim": [len(weight) for weight in convolutions],
        "conv_kernel": [weight.shape[-1] for weight in convolutions],
        "conv_stride": STRIDES,
        "conv_padding": PADDINGS,
        "feat_extract_norm": NORMS[norm],
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "context_network": CONTEXT_NETWORKS[gates],
        "reversed_time": options.get("cpc_mode") == "reverse",
        "score": "mean",
    }


def _norm_of(weights: Mapping[str, Tensor]) -> str:
    """CPC_audio's word for the norm, whose weights are called batchNorm whatever it is."""
    weight = weights.get("gEncoder.batchNorm0.weight")
    if weight is None:
        return "ID"
    if weight.dim() == 3:
        return "layerNorm"
    return "batchNorm" if "gEncoder.batchNorm0.running_mean" in weights else "instanceNorm"


def _objective_fields(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of predictors and objective."""
    first = f"{PREDICTORS}.0."
    kinds = {
        "transformer": f"{first}0.multihead.Wq.weight",
        "ffd": f"{first}lin1.module.weight",
        "linear": f"{first}weight",
    }
    kind = next((kind for kind, name in kinds.items() if name in weights), None)
    fields = {}
    convolution = weights.get(f"{first}module.module.weight")
    if convolution is not None:
        kind, fields["predictor_kernel_size"] = f"conv{convolution.shape[-1]}", convolution.shape[-1]
    if kind not in PREDICTOR_KINDS:
        known = ", ".join(PREDICTOR_KINDS)
        raise ValueError(f"The predictors of the checkpoint are of no kind that can be converted ({known}).")
    if kind == "transformer":
        fields["predictor_max_positions"] = _take(weights, f"{first}0.multihead.Att.Krelpos").shape[-1]
        fields["predictor_intermediate_size"] = len(_take(weights, f"{first}0.ffnetwork.lin1.weight"))
        fields["predictor_attention_heads"] = NUM_HEADS
    num_steps = len({name.split(".")[2] for name in weights if name.startswith(f"{PREDICTORS}.")})
    _refuse_contradictions({"nPredicts": num_steps, "rnnMode": kind}, options)
    if options.get("negativeSamplingExt") is not None:
        fields["num_negatives"] = options["negativeSamplingExt"]
    return fields | {
        "predictor": PREDICTOR_KINDS[kind],
        "num_prediction_steps": num_steps,
        "predictor_dropout": 0.5 if options.get("dropout") else 0.0,
    }


def _refuse_contradictions(found: Mapping[str, Any], options: Mapping[str, Any]):
    for name, value in found.items():
        recorded = options.get(name)
        if recorded is not None and recorded != value:
            raise ValueError(f"Option {name} is {recorded!r}, but the weights of the checkpoint make it {value!r}.")


def _take(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise ValueError(f"The checkpoint lacks weights of the model: {name}.")
    return weights[name]


def own_state(weights: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors under CPC_audio's names to the state of `model`, which is `CPCModel` or `CPCForPreTraining`.

    Any other tensors that belong to the parameters, such as gradients, may be given in place of the weights.

    Raises:
        ValueError: A weight of the model is not in the file, one of the file is not in the model, or shapes differ.
    """
    unused = {name for name in weights if not CONSTANTS.fullmatch(name)}
    missing, state = [], {}
    for name, own in model.state_dict().items():
        sources = _sources(name.removeprefix("cpc."), model.config)
        unused -= set(sources)
        if lacking := [source for source in sources if source not in weights]:
            missing += lacking
            continue
        tensors = [weights[source] for source in sources]
        merged = _merged(tensors, own)
        if merged is None:
            raise ValueError(
                f"Weight {sources[0]} has shape {tuple(tensors[0].shape)}, which does not make the"
                f" {tuple(own.shape)} of {name} that the other weights ask for."
            )
        state[name] = merged
    if missing:
        raise ValueError(f"The checkpoint lacks weights of the model: {', '.join(sorted(missing))}.")
    if unused:
        raise ValueError(f"The checkpoint has weights that are not of the model: {', '.join(sorted(unused))}.")
    return state


def _sources(name: str, config: CPCConfig) -> list[str]:
    """The names in the file of what is `name` here: one, or one for each prediction step."""
    module, _, rest = name.partition(".")
    if module == "context_network":
        return [f"gAR.baseNet.{rest}"]
    if module == "encoder":
        index, part, tensor = rest.removeprefix("layers.").split(".")
        return [f"gEncoder.{'conv' if part == 'conv' else 'batchNorm'}{index}.{tensor}"]
    part = PREDICTOR_PARTS[config.predictor][rest]
    return [f"{PREDICTORS}.{step}.{part}" for step in range(config.num_prediction_steps)]


def _merged(tensors: list[Tensor], own: Tensor) -> Tensor | None:
    """One tensor, or those of all steps stacked or joined, in the shape of `own`; None if they do not fit."""
    first = tensors[0]
    if any(tensor.shape != first.shape for tensor in tensors):
        return None
    # the original's channel norm has weights [1, C, 1]
    forms = [first, first.flatten()] if len(tensors) == 1 else []
    forms.append(torch.stack(tensors))
    if first.dim():
        forms.append(torch.cat(tensors))
    return next((form.to(own.dtype) for form in forms if form.shape == own.shape), None)
