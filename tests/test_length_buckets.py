"""Batches padded to few shapes: a graph for each, and the answers of the plain model."""

import itertools

import pytest
import torch
from tiny_models import TINY_MODELS

import hf_wav2vec_family as family
from hf_wav2vec_family.length_buckets import LengthBuckets, geometric_lengths

ARCHITECTURES = [*TINY_MODELS, "layer norm"]


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch.manual_seed(0)


def ctc_model(architecture: str = "Wav2Vec2", **changes):
    fields = {"vocab_size": 12, **changes}
    if architecture == "layer norm":
        architecture = "Wav2Vec2"
        fields |= {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
    elif architecture == "Wav2Letter":
        fields = {"criterion": "ctc", "pad_token_id": 0, **fields}
    config = getattr(family, f"{architecture}Config")(**TINY_MODELS[architecture], **fields)
    return getattr(family, f"{architecture}ForCTC")(config).eval()


def ragged(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).int()
    return torch.randn(mask.shape) * mask, mask


class Counting:
    """A backend that counts the graphs it is given, each of which gives its result in the same memory every time."""

    def __init__(self):
        self.num_graphs = 0

    def __call__(self, graph, example_inputs):
        self.num_graphs += 1
        kept = []

        def run(*inputs):
            results = graph(*inputs)
            if not kept:
                kept.extend(result.clone() for result in results)
            for memory, result in zip(kept, results, strict=True):
                memory.copy_(result)
            return kept

        return run


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_in_a_bucket_has_the_logits_of_the_plain_model(architecture):
    model, backend = ctc_model(architecture), Counting()
    buckets = LengthBuckets(model, lengths=[8_000, 16_000], batch_sizes=[1, 4], backend=backend)
    waveforms, mask = ragged(12_345, 9_876, 16_000)
    with torch.no_grad():
        expected = model(waveforms, attention_mask=mask).logits
        found = buckets(waveforms, mask)
        assert found.shape == expected.shape
        valid = model.frame_mask(mask, expected.shape[1])
        torch.testing.assert_close(found[valid], expected[valid], atol=1e-4, rtol=1e-4)
        for length in (5_000, 16_000):
            alone = waveforms[2:, :length]
            torch.testing.assert_close(buckets(alone), model(alone).logits, atol=1e-4, rtol=1e-4)
    assert backend.num_graphs == 3


def test_a_graph_lowered_by_autograd_gives_the_same():
    model, (waveforms, mask) = ctc_model(), ragged(12_345, 9_876)
    found = LengthBuckets(model, lengths=[16_000], batch_sizes=[2], backend="aot_eager")(waveforms, mask)
    valid = model.frame_mask(mask, found.shape[1])
    torch.testing.assert_close(found[valid], model(waveforms, attention_mask=mask).logits[valid], atol=1e-4, rtol=1e-4)


def test_each_bucket_is_one_graph_however_many_there_are():
    model, backend = ctc_model("Wav2Letter", num_mel_bins=8), Counting()
    limit = torch._dynamo.config.recompile_limit
    lengths = [1_000 * i for i in range(1, limit + 3)]
    buckets = LengthBuckets(model, lengths=lengths, batch_sizes=[1], backend=backend)
    for less in (0, 300):
        for length in lengths:
            waveforms = torch.randn(1, length - less)
            with torch.no_grad():
                torch.testing.assert_close(buckets(waveforms), model(waveforms).logits, atol=1e-4, rtol=1e-4)
        assert backend.num_graphs == len(lengths) > limit


def test_logits_outlive_the_next_run_of_their_graph():
    buckets = LengthBuckets(ctc_model(), lengths=[8_000], batch_sizes=[1], backend=Counting())
    first = buckets(torch.randn(1, 8_000))
    kept = first.clone()
    second = buckets(torch.randn(1, 8_000))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_graphs_follow_weights_that_change_and_the_type_of_autocast():
    model = ctc_model()
    buckets, waveforms = LengthBuckets(model, lengths=[8_000], batch_sizes=[1], backend="eager"), torch.randn(1, 7_000)
    before = buckets(waveforms)
    model.wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1.data.mul_(torch.rand(16, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(buckets(waveforms), model(waveforms).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(buckets(waveforms), before, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = buckets(waveforms), model(waveforms).logits
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_what_no_bucket_holds_is_refused_with_the_largest_named():
    buckets = LengthBuckets(ctc_model(), lengths=[8_000], batch_sizes=[1, 2], backend="eager")
    with pytest.raises(ValueError, match=r"8001 samples.*8000"):
        buckets(torch.randn(1, 8_001))
    with pytest.raises(ValueError, match=r"3 clips.*2"):
        buckets(torch.randn(3, 8_000))
    with pytest.raises(ValueError, match="399"):
        buckets(torch.randn(1, 399))
    with pytest.raises(ValueError, match="pad on the right"):
        buckets(torch.randn(1, 8_000), (torch.arange(8_000) > 9).long()[None])
    buckets.model.train()
    with pytest.raises(ValueError, match="training mode"):
        buckets(torch.randn(1, 8_000))


def test_models_that_no_bucket_suits_are_refused():
    asg = family.Wav2LetterConfig(**TINY_MODELS["Wav2Letter"], vocab_size=12, pad_token_id=11)
    for model in (family.Wav2LetterForCTC(asg), ctc_model().wav2vec2):
        with pytest.raises(ValueError, match="CTC head"):
            LengthBuckets(model)
    with pytest.raises(ValueError, match="padding_invariant"):
        LengthBuckets(ctc_model(padding_invariant=False))
    for values in ([], [0, 5]):
        with pytest.raises(ValueError, match="lengths"):
            LengthBuckets(ctc_model(), lengths=values)


def test_geometric_lengths_grow_by_no_more_than_their_ratio():
    lengths = geometric_lengths(16_000, 480_000, ratio=1.5)
    assert (lengths[0], lengths[-1]) == (16_000, 480_000)
    assert all(a < b <= 1.5 * a + 1 for a, b in itertools.pairwise(lengths))
    assert geometric_lengths(5, 5) == (5,)
    with pytest.raises(ValueError, match="ratio=1"):
        geometric_lengths(ratio=1)
