"""For all tests."""

import torch

# Sums split among threads round differently on every machine; with one, a tolerance means the same everywhere.
torch.set_num_threads(1)
