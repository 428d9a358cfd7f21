"""For all tests."""

import socket

import pytest
import torch
from interruptions import forget_accelerator

# Sums split among threads round differently on every machine; with one, a tolerance means the same everywhere.
torch.set_num_threads(1)


@pytest.fixture
def fresh_accelerator():
    """Nothing of Accelerate's state comes from the test before or goes to the next one."""
    forget_accelerator()
    yield
    forget_accelerator()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listened to a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
