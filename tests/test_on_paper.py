"""What the papers' recipes cost: counted as PyTorch counts the models, and written down as it is counted."""

from pathlib import Path

import pytest
import torch
import transformers
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import on_paper
from benchmarks.flop import bert_flop, cpc_flop, wav2vec2_flop, wav2vec_flop
from hf_wav2vec_family import (
    CPCConfig,
    CPCForPreTraining,
    VQWav2VecConfig,
    VQWav2VecForPreTraining,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2VecConfig,
    Wav2VecForPreTraining,
)
from training.masked_lm import RobertaForMaskedLM

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "reference" / "cost.md"
# The counter takes the gradient of a grouped weight for that of one without groups. On the meta device models run in
# PyTorch's plain forms; those of fused.py, fast_conv.py and wide_conv.py count otherwise, and do the same. Attention
# is products here, which some of its kernels take a second time in the backward pass.
PLAIN = {"layerdrop": 0.0, "attn_implementation": "eager"}
ONE_GROUP = {**PLAIN, "num_conv_pos_embedding_groups": 1}


def counted_by_pytorch(make, loss_of) -> tuple[int, int]:
    """Operations of the forward pass, and of forward and backward pass."""
    with torch.device("meta"):
        model = make().train()
    with FlopCounterMode(display=False) as forward:
        loss_of(model)
    with FlopCounterMode(display=False) as both:
        loss_of(model).backward()
    return forward.get_total_flops(), both.get_total_flops()


def waveforms(num_clips: int, seconds: float) -> torch.Tensor:
    return torch.empty(num_clips, int(16_000 * seconds), device="meta")


@pytest.mark.parametrize(
    ("model_class", "config", "count", "seconds", "tolerance"),
    [
        (Wav2Vec2ForPreTraining, Wav2Vec2Config(**ONE_GROUP), wav2vec2_flop, 15.6, 5e-3),
        (Wav2VecForPreTraining, Wav2VecConfig(), wav2vec_flop, 9.375, 2e-3),
        (Wav2VecForPreTraining, Wav2VecConfig.large(), wav2vec_flop, 9.375, 2e-3),
        (VQWav2VecForPreTraining, VQWav2VecConfig(), wav2vec_flop, 9.375, 2e-3),
        (CPCForPreTraining, CPCConfig(), cpc_flop, 1.28, 2e-3),
    ],
    ids=["wav2vec 2.0", "wav2vec", "wav2vec large", "vq-wav2vec", "CPC"],
)
def test_a_clip_is_as_many_operations_as_pytorch_counts(model_class, config, count, seconds, tolerance):
    found = count(config, seconds)
    forward, both = counted_by_pytorch(lambda: model_class(config), lambda model: model(waveforms(4, seconds)).loss)
    assert 4 * found.forward == pytest.approx(forward, rel=tolerance)
    assert 4 * found.training == pytest.approx(both, rel=tolerance)


def test_positions_in_groups_are_as_many_operations_as_pytorch_counts_forward():
    config = Wav2Vec2Config(**PLAIN)
    with torch.device("meta"):
        model = Wav2Vec2ForPreTraining(config).train()
    with FlopCounterMode(display=False) as forward:
        model(waveforms(1, 15.6))
    assert wav2vec2_flop(config, 15.6).forward == pytest.approx(forward.get_total_flops(), rel=5e-3)


def test_frozen_convolutions_have_no_backward_pass():
    config = Wav2Vec2Config(**ONE_GROUP, feature_gradient_scale=0.0)

    def make():
        model = Wav2Vec2ForCTC(config)
        model.freeze_feature_encoder()
        return model

    forward, both = counted_by_pytorch(make, lambda model: model(waveforms(1, 12.5)).logits.sum())
    found = wav2vec2_flop(config, 12.5)
    assert (found.forward, found.training) == pytest.approx((forward, both), rel=5e-3)


def test_a_sequence_of_codes_is_as_many_operations_as_pytorch_counts():
    config = transformers.RobertaConfig(
        vocab_size=1000, max_position_embeddings=514, num_hidden_layers=3, attn_implementation="eager"
    )
    tokens = torch.ones(1, 512, dtype=torch.long, device="meta")
    places = torch.zeros(128, dtype=torch.long, device="meta")
    found = bert_flop(config, 512, 0.25)
    both = counted_by_pytorch(
        lambda: RobertaForMaskedLM(config), lambda model: model(tokens, places=places).logits.float().sum()
    )
    assert (found.forward, found.training) == pytest.approx(both, rel=5e-3)


@pytest.mark.parametrize(
    ("count", "config", "named"),
    [
        (cpc_flop, CPCConfig.modified(), "predictor.*'transformer'"),
        (wav2vec_flop, VQWav2VecConfig(quantizer_type="kmeans"), "quantizer_type.*'kmeans'"),
        (wav2vec_flop, Wav2VecConfig(context_type="gru", context_dim=[512], context_kernel=[]), "context_type.*'gru'"),
    ],
)
def test_what_is_not_counted_is_refused(count, config, named):
    with pytest.raises(ValueError, match=named):
        count(config, 2.0)


@pytest.mark.parametrize("name", ["wav2vec 2.0 BASE", "wav2vec 2.0 LARGE"])
def test_a_step_has_no_more_audio_than_the_paper_says(name):
    hours = on_paper.counted(name).seconds / 3600
    limit = {"wav2vec 2.0 BASE": 1.6, "wav2vec 2.0 LARGE": 2.7}[name]
    assert 0.95 * limit < hours <= limit


@pytest.mark.parametrize("exchange", [0.1, 1.0, 3.0])
def test_what_is_exposed_is_what_a_pipeline_of_two_stages_takes_longer(exchange):
    parts, compute = 7, 1.0
    computed = sent = 0.0
    for _ in range(parts):
        computed += compute / parts
        sent = max(sent, computed) + exchange / parts  # a bucket waits to be made, and for the one before it
    assert on_paper.exposed_seconds(exchange, compute, parts) == pytest.approx(sent - compute)


def test_nothing_but_whole_gradients_in_buckets_is_sent_by_ddp():
    given = DistributedDataParallelKwargs()  # as training/engine.py gives them
    assert given.comm_hook == DDPCommunicationHookType.NO
    assert given.bucket_cap_mb * 2**20 == on_paper.BUCKET_BYTES


def test_accumulated_batches_leave_less_of_the_step_to_hide_an_exchange_in():
    step = {"weights": 10**8, "compute": 0.1, "processes": 64, "rate": 5e9}
    assert on_paper.ddp_exposed(**step, batches=8) > on_paper.ddp_exposed(**step, batches=1) > 0.08
    # of split weights every batch gathers its own
    assert on_paper.fsdp_exposed(**step, layers=13, batches=2) > 1.5 * on_paper.fsdp_exposed(
        **step, layers=13, batches=1
    )


def test_the_page_has_the_tables_that_are_printed():
    page = PAGE.read_text()
    for title, table in on_paper.tables([on_paper.measured_share(), on_paper.TARGET_SHARE], {}).items():
        assert table in page, title
