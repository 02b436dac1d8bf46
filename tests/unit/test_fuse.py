"""Products with packed weights are torch's own, whatever the number of rows, and come in few sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specfleet.engine import fuse
from specfleet.engine.fuse import PackedLinear
from specfleet.engine.quantize import Int8Linear
from specfleet.engine.rows import padded_rows

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch is built without oneDNN here"
)


def test_padding_is_an_eighth_at_most_and_sizes_are_few() -> None:
    found = {rows: padded_rows(rows) for rows in range(1, 1025)}
    assert [*range(1, 17)] == [found[rows] for rows in range(1, 17)]
    assert all(rows <= size <= rows * 9 / 8 for rows, size in found.items())
    assert all(size == padded_rows(size) for size in found.values())
    assert 64 == len(set(found.values()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 17, 37, 72, 131])
def test_products_are_those_of_torch(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    packed, x, residual = PackedLinear(linear), torch.randn(rows, 24), torch.randn(rows, 40)
    torch.testing.assert_close(packed(x), linear(x))
    torch.testing.assert_close(packed(x[None]), linear(x[None]))  # as transformers' own modules call it
    torch.testing.assert_close(packed.add_to(residual.clone(), x), residual + linear(x))


@pytest.mark.parametrize("rows", [17, 72, 131])
def test_filling_up_changes_nothing_in_int8(rows: int) -> None:
    torch.manual_seed(rows)
    quantized, x = Int8Linear(nn.Linear(24, 40).requires_grad_(False)), torch.randn(rows, 24) + 3.0
    torch.testing.assert_close(quantized(x), quantized._product(x, quantized.packed))


def test_one_dnn_sees_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a compiled kernel for each, so that their number bounds memory."""
    seen: set[int] = set()
    product, product_sum = fuse._product, fuse._product_sum
    monkeypatch.setattr(fuse, "_product", lambda x, *rest: (seen.add(x.shape[-2]), product(x, *rest))[1])
    monkeypatch.setattr(fuse, "_product_sum", lambda x, *rest: (seen.add(x.shape[-2]), product_sum(x, *rest))[1])
    linear = nn.Linear(8, 8, bias=False).requires_grad_(False)
    packed, quantized = PackedLinear(linear), Int8Linear(linear)
    in_eight_bits = quantized._product
    quantized._product = lambda x, *rest: (seen.add(x.shape[-2]), in_eight_bits(x, *rest))[1]
    for rows in range(1, 257):
        x = torch.ones(rows, 8)
        assert (rows, 8) == packed(x).shape == packed.add_to(x, x).shape == quantized(x).shape
    assert {padded_rows(rows) for rows in range(1, 257)} == seen
