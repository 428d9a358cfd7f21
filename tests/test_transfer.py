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
def test_nothing_reads_a_batch_before_it_has_come():
    batch = {"input_values": torch.ones(2**26).pin_memory()}  # 5 ms on the way
    for _ in range(5):
        (moved,) = on_device([batch], torch.device("cuda"))
        assert moved["input_values"].sum().item() == 2**26
        moved["input_values"].zero_()  # whose memory the next has


@needs_gpu
def test_the_memory_of_a_batch_is_not_given_away_while_it_is_read():
    batches = [{"input_values": torch.full((2**20,), float(number)).pin_memory()} for number in range(20)]
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # the host is all batches ahead
    sums = [batch["input_values"].sum() for batch in on_device(batches, torch.device("cuda"))]
    assert torch.stack(sums).tolist() == [float(number) * 2**20 for number in range(20)]
