"""Types of products, with autocast and in spite of it."""

import torch

from hf_wav2vec_family.precision import dtype_of, without_autocast


def product_within(values: torch.Tensor) -> torch.Tensor:
    with without_autocast(values.device):
        return values @ values.T


def test_what_stands_within_keeps_its_type_where_autocast_would_round():
    values = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (values @ values.T).dtype == torch.bfloat16
        assert product_within(values).dtype == torch.float32
        assert (values @ values.T).dtype == torch.bfloat16
        assert dtype_of(values) == torch.bfloat16
    assert product_within(values).dtype == dtype_of(values) == torch.float32


def test_a_device_without_autocast_is_left_alone():
    assert product_within(torch.empty(3, 4, device="meta")).dtype == torch.float32


def test_one_compiled_graph_has_the_types_of_each_call():
    compiled = torch.compile(product_within, backend="eager", fullgraph=True)
    values = torch.randn(3, 4)
    assert compiled(values).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(values).dtype == torch.float32
