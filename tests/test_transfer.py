"""Batches that come to a device are those of the host, and each is taken only when it is asked for."""

import pytest
import torch

from training.transfer import on_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_arrives_as_it_was_whatever_it_holds(device):
    batch = {"input_values": torch.randn(2, 5), "ids": ["a", "b"], "index": 3}
    (moved,) = on_device([batch], torch.device(device))
    assert moved["input_values"].device.type == device
    torch.testing.assert_close(moved["input_values"].cpu(), batch["input_values"], rtol=0, atol=0)
    assert (moved["ids"], moved["index"]) == (["a", "b"], 3)


@pytest.mark.parametrize("device", DEVICES)
def test_no_batch_is_taken_before_it_is_asked_for(device):
    # the place of a run that goes on is that after the last batch taken
    taken = []

    def batches():
        for number in range(3):
            taken.append(number)
            yield {"input_values": torch.zeros(1)}

    source = on_device(batches(), torch.device(device))
    assert taken == []
    for number in range(3):
        next(source)
        assert taken == list(range(number + 1))
    assert next(source, None) is None


@needs_gpu
def test_what_is_computed_reads_no_batch_before_it_has_come_and_none_after_its_memory_was_given_away():
    sizes = [4_000_000 + 1000 * (number % 3) for number in range(50)]
    batches = ({"input_values": torch.full((size,), float(i)).pin_memory()} for i, size in enumerate(sizes))
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in on_device(batches, torch.device("cuda")):
        busy = (busy @ busy).clamp(-1, 1)  # the host is ahead
        sums.append(batch["input_values"].double().sum())
    assert torch.stack(sums).tolist() == [float(i) * size for i, size in enumerate(sizes)]
