"""CPC against what CPC_audio computed from the same checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from hf_wav2vec_family import CPCForPreTraining, CPCModel
from hf_wav2vec_family.conversion import convert_checkpoint
from hf_wav2vec_family.conversion.checkpoint_file import read_checkpoint
from hf_wav2vec_family.conversion.cpc_audio import CRITERION, ENCODER, own_state
from hf_wav2vec_family.modeling_cpc import future_scores

CASES = (
    "gru_layernorm_linear",
    "lstm2_batchnorm_ffd_sequential",
    "lstm_layernorm_transformer",
    "paper_gru_id_linear",
)
SAMPLES_PER_FRAME = 160


@dataclass
class Case:
    """One recorded model: its checkpoint file, what is said of it, and the tensors the original computed."""

    checkpoint: Path
    description: dict
    tensors: dict[str, Tensor]

    @property
    def waveforms(self) -> Tensor:
        return self.tensors["waveform"][:, 0]

    @property
    def negatives(self) -> Tensor:
        return self.tensors["neg_ext_idx"].long()


def load_case(name: str) -> Case:
    folder = GOLDEN / "cpc" / name
    if not folder.exists():
        pytest.skip(f"needs the recorded outputs in {GOLDEN}, which are not part of the repository")
    description = json.loads((folder / "case.json").read_text())
    return Case((folder / description["checkpoint"]).resolve(), description, load_file(folder / "io.safetensors"))


def close(found: Tensor, expected: Tensor, share: float = 1e-4):
    """Equal within `share` of the largest absolute value expected."""
    assert found.shape == expected.shape
    difference = (found - expected).abs().max()
    assert difference <= share * expected.abs().max(), f"{difference:.1e} of {expected.abs().max():.1e}"


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return load_case(request.param)


@pytest.fixture
def model(case, tmp_path) -> CPCForPreTraining:
    """Converted, saved and loaded again."""
    convert_checkpoint(case.checkpoint).save_pretrained(tmp_path)
    return CPCForPreTraining.from_pretrained(tmp_path).eval()


def objective(model: CPCForPreTraining, case: Case):
    return model(case.waveforms, sampled_negative_indices=case.negatives)


def recorded(case: Case, kind: str) -> dict[str, Tensor]:
    """The recorded tensors `<kind>.<section>/<parameter>` by parameter."""
    start = f"{kind}."
    return {
        name.removeprefix(start).partition("/")[2]: tensor
        for name, tensor in case.tensors.items()
        if name.startswith(start) and "/" in name
    }


def under_original_names(model: CPCForPreTraining, case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of our parameters, cut back into the parts that have a name in the file.

    Each element of the file is numbered and the numbers are converted: they say where it went.
    """
    weights = original_weights(case)
    sizes = [weight.numel() for weight in weights.values()]
    ends = torch.tensor(sizes).cumsum(0)
    numbers = {
        name: torch.arange(end - size, end, dtype=torch.float64).view(weight.shape)
        for (name, weight), end, size in zip(weights.items(), ends.tolist(), sizes, strict=True)
    }
    model = model.to(torch.float64)
    flat = torch.full((int(ends[-1]),), float("nan"), dtype=torch.float64)
    for name, places in own_state(numbers, model).items():
        if name in tensors:
            flat[places.long().flatten()] = tensors[name].detach().double().flatten()
    return {name: flat[places.long()] for name, places in numbers.items()}


def original_weights(case: Case) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(case.checkpoint)
    return checkpoint[ENCODER] | checkpoint[CRITERION]


def test_frames_and_context(case, model):
    output = model.cpc(case.waveforms)
    close(output.extract_features, case.tensors["z"])
    close(output.last_hidden_state, case.tensors["c"])


def test_a_length_that_is_no_multiple_of_the_hop(case, model):
    waveform = case.tensors["waveform_odd"][:, 0]
    output = model.cpc(waveform)
    assert model.num_frames(waveform.shape[1]) == (waveform.shape[1] + 1) // SAMPLES_PER_FRAME
    close(output.extract_features, case.tensors["z_odd"])
    close(output.last_hidden_state, case.tensors["c_odd"])


def test_losses_and_accuracies_of_every_step(case, model):
    output = objective(model, case)
    torch.testing.assert_close(output.step_losses, case.tensors["losses"][0], atol=1e-4, rtol=0)
    tolerance = case.description["suggested_tolerance"]["accuracies"]
    torch.testing.assert_close(output.step_accuracies, case.tensors["accuracies"][0], atol=tolerance, rtol=0)
    steps, contexts = case.description["K"], case.description["W"]
    assert output.num_targets == len(case.waveforms) * contexts * steps
    torch.testing.assert_close(output.loss * steps, case.tensors["losses"].sum(), atol=1e-3, rtol=0)


def test_scores_of_the_first_and_the_last_step(case, model):
    output = objective(model, case)
    contexts = output.last_hidden_state[:, : case.description["W"]]
    predictions = model.predictors(contexts) / output.extract_features.shape[-1]
    scores = future_scores(predictions, output.extract_features, case.negatives)
    for step, name in ((0, "logits_step_first"), (-1, "logits_step_last")):
        found = torch.cat([scores.positive[:, :, step, None], scores.negative[:, :, step]], dim=-1)
        close(found.transpose(1, 2), case.tensors[name])


def test_recorded_draws_give_the_recorded_negatives(case):
    frames, contexts = case.description["frames"], case.description["W"]
    shape = case.negatives.shape
    clip, offset = (case.tensors[name].long().view(shape) for name in ("neg_batch_idx", "neg_seq_idx_raw"))
    found = clip * frames + (offset + torch.arange(contexts)) % frames
    assert torch.equal(found, case.negatives)


def test_gradients(case, model):
    objective(model, case).step_losses.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = under_original_names(model, case, gradients)
    expected = recorded(case, "grad")
    assert len(expected) >= 5
    for name, gradient in expected.items():
        close(found[name], gradient.double(), share=1e-3)


def test_a_step_of_adam_from_the_recorded_state(case, model):
    checkpoint = torch.load(case.checkpoint, weights_only=True)
    settings = checkpoint["optimizer"]["param_groups"][0]
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings["lr"], betas=settings["betas"], eps=settings["eps"], foreach=False
    )
    weights = original_weights(case)
    # the order of the file: the criterion first, and no buffers
    buffers = ("running_mean", "running_var", "num_batches_tracked", "Att.z", "Att.mask")
    names = [name for section in (CRITERION, ENCODER) for name in checkpoint[section] if not name.endswith(buffers)]
    moments = {}
    for moment in ("exp_avg", "exp_avg_sq"):
        values = {name: checkpoint["optimizer"]["state"][i][moment] for i, name in enumerate(names)}
        moments[moment] = own_state(weights | values, model)
    for name, parameter in model.named_parameters():
        step = checkpoint["optimizer"]["state"][0]["step"].clone()
        optimizer.state[parameter] = {"step": step} | {moment: moments[moment][name].clone() for moment in moments}
    objective(model, case).step_losses.sum().backward()
    optimizer.step()
    torch.testing.assert_close(
        objective(model, case).step_losses, case.tensors["after_step.losses"][0], atol=1e-4, rtol=0
    )
    found = under_original_names(model, case, dict(model.named_parameters()))
    for name, parameter in recorded(case, "after_step").items():
        torch.testing.assert_close(found[name], parameter.double(), atol=0.02 * settings["lr"], rtol=0)


def test_the_state_that_is_kept_after_a_call():
    case = load_case("lstm2_batchnorm_ffd_sequential")
    model = convert_checkpoint(case.checkpoint).model
    hidden, cell = model.cpc.stream(case.waveforms, carry_convolutions=False).state.recurrent
    close(hidden, case.tensors["hidden_h"])
    close(cell, case.tensors["hidden_c"])


def test_the_published_layout_gives_the_encoder(tmp_path):
    case = load_case("lstm_layernorm_transformer")
    converted = convert_checkpoint(GOLDEN / "cpc" / "hub_checkpoint.pt")
    converted.save_pretrained(tmp_path)
    output = CPCModel.from_pretrained(tmp_path).eval()(case.waveforms)
    close(output.extract_features, case.tensors["z"])
    close(output.last_hidden_state, case.tensors["c"])


@pytest.fixture(scope="module")
def streamed() -> tuple[CPCModel, Tensor, dict[str, Tensor]]:
    case = load_case("streaming")
    return convert_checkpoint(case.checkpoint).model.cpc, case.waveforms, case.tensors


CHUNK = 16_000


def recurrent_chunks(model: CPCModel, waveform: Tensor, *, keep: bool, strict: bool, state=None, encoded=False):
    """Features of chunks that each are encoded alone, as `buildFeature` cuts them, and the last state."""
    total = waveform.shape[1]
    outputs = []
    for begin in range(0, total, CHUNK):
        rest = total - begin
        short = rest < CHUNK
        chunk = waveform[:, -CHUNK:] if short and strict else waveform[:, begin : begin + CHUNK]
        output = model.stream(chunk, state if keep else None, carry_convolutions=False)
        features = output.extract_features if encoded else output.last_hidden_state
        outputs.append((features, rest // SAMPLES_PER_FRAME if short and strict else features.shape[1]))
        state = output.state
    return outputs, state


def joined(outputs, normalize: bool = False) -> Tensor:
    if normalize:
        outputs = [
            ((features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True) + 1e-8).sqrt(), kept)
            for features, kept in outputs
        ]
    return torch.cat([features[:, -kept:] for features, kept in outputs], dim=1)


def test_one_pass_and_exact_streaming_of_a_long_waveform(streamed):
    model, waveform, expected = streamed
    close(model(waveform).last_hidden_state, expected["whole"])
    state, found = None, []
    for chunk in waveform.split(CHUNK, dim=1):
        output = model.stream(chunk, state)
        state = output.state
        found.append(output.last_hidden_state)
    found.append(model.stream(waveform[:, :0], state, final=True).last_hidden_state)
    close(torch.cat(found, dim=1), expected["whole"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chunked_reset", {"keep": False, "strict": False}),
        ("chunked_keep", {"keep": True, "strict": False}),
        ("chunked_keep_strict", {"keep": True, "strict": True}),
        ("chunked_strict_encoded", {"keep": False, "strict": True, "encoded": True}),
    ],
)
def test_chunks_that_carry_the_recurrent_state_alone(streamed, name, options):
    model, waveform, expected = streamed
    close(joined(recurrent_chunks(model, waveform, **options)[0]), expected[name])


def test_chunks_normalised_over_time(streamed):
    model, waveform, expected = streamed
    outputs, _ = recurrent_chunks(model, waveform, keep=True, strict=True)
    close(joined(outputs, normalize=True), expected["chunked_keep_strict_seqnorm"])


def test_a_state_of_the_file_before_has_to_be_given_to_be_there(streamed):
    model, waveform, expected = streamed
    _, state = recurrent_chunks(model, waveform, keep=True, strict=True)
    leaked, _ = recurrent_chunks(model, waveform, keep=True, strict=True, state=state)
    close(joined(leaked), expected["second_file_without_reset"])
    fresh, _ = recurrent_chunks(model, waveform, keep=True, strict=True)
    close(joined(fresh), expected["chunked_keep_strict"])
