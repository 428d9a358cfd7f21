"""One step of several processes is the step of one with all their rows, for every architecture."""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    ParallelismConfig,
)
from interruptions import forget_accelerator
from torch.distributed.tensor import DTensor

import hf_wav2vec_family
from training import engine, finetune, pretrain
from training.engine import (
    keeps_gradients,
    mixed_precision,
    refuse_with_deepspeed,
    refuse_with_fsdp,
    tell_deepspeed,
)
from training.gradients import accumulate, apply_gradients
from training.recipe import OptimizationRecipe, Recipe, RunRecipe
from training.run_log import RunLog
from training.stage import Stage
from training.transfer import on_device

NUM_ROWS = 12
MAX_NORM = 100.0  # above the norms here: scaled down, a gradient that is too small by a factor would pass
CONVOLUTIONS = {"conv_dim": [8] * 5, "conv_kernel": [10, 8, 4, 4, 4], "conv_stride": [5, 4, 2, 2, 2]}
CAUSAL = {**CONVOLUTIONS, "context_dim": [8, 8], "context_kernel": [2, 3], "num_negatives": 5}
TRANSFORMER = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "mask_time_prob": 0.0,
    "layerdrop": 0.5,
    **dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0),
    "final_dropout": 0.0,
}
ROBERTA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    **dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob"], 0.0),
}
CODES = {**CAUSAL, "num_codevectors_per_group": 4}
LETTERS = {"conv_dim": [8, 8], "conv_kernel": [5, 3], "conv_dropout": 0.0, "criterion": "ctc", "pad_token_id": 0}
CASES = {
    "CPC": ("CPCForCTC", {**CONVOLUTIONS, "hidden_size": 16}),
    "wav2vec": ("Wav2VecForCTC", CAUSAL),
    "vq-wav2vec": ("VQWav2VecForCTC", {**CODES, "quantizer_type": "kmeans"}),
    "wav2vec 2.0": ("Wav2Vec2ForCTC", TRANSFORMER),
    "wav2vec 2.0 without LayerDrop": ("Wav2Vec2ForCTC", {**TRANSFORMER, "layerdrop": 0.0}),
    "Discrete BERT": ("DiscreteBertForCTC", {"vq_wav2vec_config": CODES, "roberta_config": ROBERTA}),
    "wav2letter": ("Wav2LetterForCTC", LETTERS),
    "wav2letter on an inner output": (
        "Wav2LetterForCTC",
        {
            **LETTERS,
            "front_end": "encoder",
            "encoder_config": {"model_type": "wav2vec", **CAUSAL},
            "encoder_output": "extract_features",
            "freeze_encoder": False,
        },
    ),
    "CPC's objective": ("CPCForPreTraining", {**CONVOLUTIONS, "hidden_size": 16, "num_negatives": 5}),
    "wav2vec's objective": ("Wav2VecForPreTraining", CAUSAL),
    # its codebook's loss is a mean over frames, which count as targets do where all clips have one length
    "vq-wav2vec's objective, one length": ("VQWav2VecForPreTraining", {**CODES, "quantizer_type": "kmeans"}),
}


def rows() -> list[dict]:
    """Clips of very different lengths, with labels and, for CPC, where in a clip its negatives are."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(NUM_ROWS):
        num_samples = 4_000 + 900 * number
        labels = torch.randint(5, 20, (3 + number % 4,), generator=generator)
        frames = torch.randint(0, 20, (5, 200), generator=generator)
        made.append({"clip": torch.randn(num_samples, generator=generator), "labels": labels, "negatives": frames})
    return made


def batch_of(rows: list[dict]) -> dict:
    def pad(name, value=0):
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    lengths = torch.tensor([len(row["clip"]) for row in rows])
    clips = pad("clip")
    mask = (torch.arange(clips.shape[1]) < lengths[:, None]).long()
    negatives = torch.stack([row["negatives"] for row in rows])
    return {"input_values": clips, "attention_mask": mask, "labels": pad("labels", -100), "negatives": negatives}


def compute_objective(model, batch: dict):
    """An objective with negatives that are those of the row, whatever batch it is in."""
    bare = model.module if hasattr(model, "module") else model
    num_frames = bare.num_frames(batch["input_values"].shape[1])
    # CPC draws for its contexts, wav2vec for all frames
    num_drawn = num_frames - bare.config.num_prediction_steps if bare.config.model_type == "cpc" else num_frames
    begins = num_frames * torch.arange(len(batch["negatives"]))
    indices = batch["negatives"][:, :, :num_drawn] + begins[:, None, None]
    output = model(batch["input_values"], batch["attention_mask"], sampled_negative_indices=indices)
    return pretrain.StepOutput(output.loss, output.num_targets)


def make_accelerator(rank: int = 0, world_size: int = 1) -> Accelerator:
    forget_accelerator()
    return Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs()])


def make_accelerator_of_deepspeed(rank: int, world_size: int, *, stage: int) -> Accelerator:
    """With ZeRO's `stage`. Accelerate starts DeepSpeed's processes on a CPU, but counts them only with a GPU."""
    forget_accelerator()
    del os.environ["ACCELERATE_USE_CPU"]
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    plugin = DeepSpeedPlugin(zero_stage=stage)
    tell_deepspeed(plugin.deepspeed_config, max_grad_norm=MAX_NORM, num_processes=world_size)
    accelerator = Accelerator(deepspeed_plugin=plugin)
    for state in (AcceleratorState, PartialState):
        state._shared_state |= {"num_processes": world_size, "process_index": rank}
    assert accelerator.distributed_type == DistributedType.DEEPSPEED
    return accelerator


def make_accelerator_of_fsdp(rank: int, world_size: int, *, layers: list[str] | None = None) -> Accelerator:
    """With FSDP2 as in training/accelerate/fsdp2.yaml, for one model. Accelerate counts it only with a GPU."""
    accelerator = make_accelerator()
    wrapping = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": layers}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, cpu_ram_efficient_loading=False, **wrapping
    )
    parallelism = ParallelismConfig(dp_shard_size=world_size)
    AcceleratorState._shared_state |= {
        "fsdp_plugin": plugin,
        "parallelism_config": parallelism,
        "device_mesh": parallelism.build_device_mesh("cpu"),
    }
    for state in (AcceleratorState, PartialState):
        state._shared_state |= {"distributed_type": DistributedType.FSDP}
    assert accelerator.is_fsdp2
    return accelerator


def with_letters(class_name: str, fields: dict) -> dict:
    """Fields of the configuration, with those that fine-tuning adds for CTC."""
    of_ctc = {"vocab_size": 20, "final_dropout": 0.0, "ctc_loss_reduction": "sum", "ctc_loss_per_utterance": True}
    return {**of_ctc, **fields} if class_name.endswith("CTC") else fields


def step_of(case: str, accelerator: Accelerator, num_batches: int) -> dict[str, torch.Tensor]:
    """The weights after one step of this rank's `num_batches` of all the batches."""
    class_name, fields = CASES[case]
    torch.manual_seed(0)
    model_class = getattr(hf_wav2vec_family, class_name)
    model = model_class(model_class.config_class(**with_letters(class_name, fields))).train()
    if class_name.endswith("CTC"):
        finetune.expect_unused_parameters(accelerator)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    if hasattr(bare, "set_layerdrop_seed"):
        bare.set_layerdrop_seed(1)  # two of four layers run
    all_rows = [row | {"clip": row["clip"][:4_000]} for row in rows()] if case.endswith("one length") else rows()
    pieces = np.array_split(all_rows, accelerator.num_processes * num_batches)
    batches = iter([batch_of(list(piece)) for piece in pieces[accelerator.process_index :: accelerator.num_processes]])
    stage = Stage(compute=finetune.compute if class_name.endswith("CTC") else compute_objective, save=None)
    clipping = OptimizationRecipe(max_grad_norm=MAX_NORM)
    log = RunLog(Recipe(run=RunRecipe(output_dir="nowhere"), optimization=clipping), accelerator)
    source = on_device(batches, accelerator.device)
    total = accumulate(accelerator, model, source, stage, log, num_batches)
    log.add_gradient(apply_gradients(accelerator, model, optimizer, total, max_norm=MAX_NORM))
    log.vitals.read()  # what a line of the log asks of a gradient
    if keeps_gradients(accelerator):
        whole = accelerator.get_state_dict(model)
        return {name: whole[name] for name, _ in bare.named_parameters()} if accelerator.is_main_process else {}
    found = {n.removeprefix("module."): p.detach() for n, p in model.named_parameters()}
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in found.items()}


def _process(rank: int, world_size: int, port: int, num_batches: int, cases: list[str], make: Callable, answers):
    try:
        os.environ.update(ACCELERATE_USE_CPU="true", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
        os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1")
        accelerator = make(rank, world_size)
        assert accelerator.num_processes == world_size
        for case in cases:
            weights = step_of(case, accelerator, num_batches)
            if rank == 0:
                answers.put((case, {name: value.numpy().copy() for name, value in weights.items()}))
        accelerator.wait_for_everyone()
    except BaseException:
        answers.put(("error", traceback.format_exc()))
        raise


def steps(
    world_size: int,
    port: int,
    num_batches: int,
    cases: list[str],
    make: Callable[[int, int], Accelerator] = make_accelerator,
) -> dict[str, dict]:
    """The weights after a step of `world_size` processes, per case; `make` makes the accelerator of each."""
    fork = multiprocessing.get_context("fork")
    answers, found = fork.Queue(), {}
    arguments = [(rank, world_size, port, num_batches, cases, make, answers) for rank in range(world_size)]
    processes = [fork.Process(target=_process, args=a) for a in arguments]
    for process in processes:
        process.start()
    try:
        for _ in cases:
            case, weights = answers.get(timeout=300)
            assert case != "error", weights
            found[case] = {name: torch.from_numpy(value) for name, value in weights.items()}
    except queue.Empty:
        pytest.fail("processes wait for each other")
    finally:
        for process in processes:
            process.join(timeout=60)
            process.kill()
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    """The weights after one step of one process on one batch of all rows, per case."""
    forget_accelerator()
    found = {case: step_of(case, make_accelerator(), 1) for case in CASES}
    forget_accelerator()
    return found


def assert_same(found: dict[str, dict], expected: dict[str, dict]):
    for case, weights in found.items():
        assert weights.keys() == expected[case].keys()
        for name, weight in weights.items():
            difference = (weight - expected[case][name]).abs().max().item()
            assert difference < 1e-6, f"{case}, {name}: {difference}"


@pytest.mark.parametrize(("world_size", "num_batches"), [(1, 3), (2, 1), (2, 3), (4, 1)])
def test_the_step_depends_on_the_rows_and_not_on_who_has_them(alone, free_port, world_size, num_batches):
    assert_same(steps(world_size, free_port, num_batches, list(CASES)), alone)


def test_the_step_moves_what_learns(alone):
    for case, after in alone.items():
        class_name, fields = CASES[case]
        torch.manual_seed(0)
        model_class = getattr(hf_wav2vec_family, class_name)
        before = dict(model_class(model_class.config_class(**with_letters(class_name, fields))).named_parameters())
        moved = [not torch.equal(before[name], value) for name, value in after.items()]
        assert sum(moved) > 0.3 * len(after), case


@pytest.mark.parametrize(
    ("case", "layers"),
    [
        # a skipped layer stays in the graph by its weights, which are nobody's while it is not called
        ("wav2vec 2.0 without LayerDrop", None),
        ("wav2vec", None),
        ("CPC's objective", None),
        ("wav2letter", None),
        ("Discrete BERT", ["RobertaLayer"]),
    ],
)
def test_split_weights_take_the_same_step(alone, free_port, case, layers):
    assert_same(steps(2, free_port, 2, [case], partial(make_accelerator_of_fsdp, layers=layers)), alone)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_takes_the_same_step(alone, free_port, stage):
    pytest.importorskip("deepspeed")
    make = partial(make_accelerator_of_deepspeed, stage=stage)
    assert_same(steps(2, free_port, 1, ["wav2vec 2.0", "wav2vec", "CPC's objective"], make), alone)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gradient_accumulation_steps", 2, "only 1 is exact, got 2; raise data.batch_seconds"),
        ("mixed_precision", "bf16", r"takes no, and\s.*fsdp2.yaml"),
        ("compile", True, "optimization.compile"),
    ],
)
def test_what_does_not_go_with_deepspeed_is_refused_with_what_does(name, value, words):
    refuse_with_deepspeed(Recipe(), stage=2, precision="no")
    asked = OptimizationRecipe(**{name: value})
    with pytest.raises(ValueError, match=words):
        refuse_with_deepspeed(Recipe(optimization=asked), stage=2, precision=asked.mixed_precision)
    with pytest.raises(ValueError, match="zero_stage"):
        refuse_with_deepspeed(Recipe(), stage=3, precision="no")


@pytest.mark.parametrize(
    ("architecture", "fields", "codebook", "words"),
    [
        ("Wav2Vec2", {"layerdrop": 0.1}, None, r"model\.layerdrop: .* got 0\.1; it is 0, or\s.*ddp.yaml"),
        ("VQWav2Vec", {}, {"initialize": True}, r"optimization\.codebook: .*ddp.yaml"),
    ],
)
def test_what_does_not_go_with_split_weights_is_refused_with_what_does(architecture, fields, codebook, words):
    config = getattr(hf_wav2vec_family, f"{architecture}Config")
    refuse_with_fsdp(Recipe(), config(layerdrop=0.0) if fields else config())
    with pytest.raises(ValueError, match=words):
        refuse_with_fsdp(Recipe(optimization=OptimizationRecipe(codebook=codebook)), config(**fields))


def test_split_weights_are_rounded_by_autocast_alone(monkeypatch):
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")  # as Accelerate does
    state = SimpleNamespace(fsdp_plugin=plugin)
    split = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state, num_processes=1)
    monkeypatch.setattr(engine, "Accelerator", lambda **_: split)
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    engine.make_accelerator(Recipe(run=RunRecipe(output_dir="nowhere")))
    assert plugin.mixed_precision_policy is None


def test_processes_that_accelerate_did_not_join_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(engine, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match=r"WORLD_SIZE: 2 processes were launched.*ACCELERATE_USE_CPU=true"):
        engine.make_accelerator(Recipe(run=RunRecipe(output_dir="nowhere")))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it_and_float32_elsewhere(monkeypatch, has_bfloat16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    asked = {name: Recipe(optimization=OptimizationRecipe(mixed_precision=name)) for name in ("auto", "no", "bf16")}
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    found = {name: mixed_precision(recipe) for name, recipe in asked.items()}
    assert found == {"auto": "bf16" if has_bfloat16 else "no", "no": "no", "bf16": "bf16"}
