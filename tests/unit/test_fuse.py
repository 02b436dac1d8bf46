"""Products with packed weights are torch's own, whatever the number of rows, and come in few sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from specfleet.engine import fuse
from specfleet.engine.fuse import PackedLinear, UniformLinear
from specfleet.engine.halves import halves_of
from specfleet.engine.quantize import Int8Linear
from specfleet.engine.rows import padded_rows

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch is built without oneDNN here"
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [40, 128])
@pytest.mark.parametrize("rows", [*range(10), 48, 49, 96, 97])
def test_products_of_few_rows_read_bfloat16_weights_as_they_are(
    rows: int, outputs: int, bias: bool, one_thread: None
) -> None:
    """Exactly the same weights: no further from the sum in float64 than float32 is."""
    pytest.importorskip("numba")
    torch.manual_seed(rows)
    linear = nn.Linear(384, outputs, bias=bias).requires_grad_(False)
    linear.weight.copy_(linear.weight.bfloat16())
    packed, x, residual = PackedLinear(linear), torch.randn(rows, 384), torch.randn(rows, outputs)
    assert packed.halves is not None and packed.halves.rows in (48, 96)
    used: list[int] = []
    multiply = packed.halves._multiply
    packed.halves._multiply = lambda x, *rest: (used.append(len(x)), multiply(x, *rest))
    expected = linear.double()(x.double())
    for found in (packed(x), packed(x[None])[0], packed.add_to(residual.clone(), x) - residual, packed(x.T.clone().T)):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    assert used == [rows] * 4 * (rows <= packed.halves.rows)


def test_other_weights_are_not_rounded(one_thread: None) -> None:
    weight = torch.randn(8, 16).bfloat16().float()
    assert halves_of(weight, None) is not None
    weight[7, 15] = 0.1
    assert halves_of(weight, None) is None
    assert halves_of(weight.bfloat16(), None) is None


def test_products_can_be_uniform(one_thread: None) -> None:
    """A row's product is the same to the last bit in any company."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 40).requires_grad_(False)
    linear.weight.copy_(linear.weight.bfloat16())
    packed, x = UniformLinear(linear), torch.randn(64, 64)
    assert packed.halves is None
    whole = packed(x)
    for rows in (1, 4, 8, 9, 32):
        assert packed(x[:rows]).equal(whole[:rows])


@pytest.mark.parametrize("threads", [1, 2, 8, 16])
def test_more_threads_want_fewer_rows(threads: int) -> None:
    """oneDNN uses them, and these products do not."""
    before, weight = torch.get_num_threads(), torch.ones(8, 16)
    torch.set_num_threads(threads)
    try:
        found = halves_of(weight, None)
        assert (found.rows if found else 0) in (48 // threads**2, 96 // threads**2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [17, 72, 131])
def test_filling_up_changes_nothing_in_int8(rows: int) -> None:
    torch.manual_seed(rows)
    quantized, x = Int8Linear(nn.Linear(24, 40).requires_grad_(False)), torch.randn(rows, 24) + 3.0
    whole = quantized._product(x, quantized.packed, quantized._seven_bits)
    torch.testing.assert_close(quantized(x), whole)


def test_one_dnn_sees_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a compiled kernel for each, so that their number bounds memory."""
    seen: set[int] = set()
    product, product_sum = fuse._product, fuse._product_sum
    monkeypatch.setattr(fuse, "_product", lambda x, *rest: (seen.add(x.shape[-2]), product(x, *rest))[1])
    monkeypatch.setattr(fuse, "_product_sum", lambda x, *rest: (seen.add(x.shape[-2]), product_sum(x, *rest))[1])
    linear = nn.Linear(8, 8, bias=False).requires_grad_(False)
    linear.weight.fill_(0.1)  # no bfloat16 number: all products are oneDNN's
    packed, quantized = PackedLinear(linear), Int8Linear(linear)
    in_eight_bits = quantized._product
    quantized._product = lambda x, *rest: (seen.add(x.shape[-2]), in_eight_bits(x, *rest))[1]
    for rows in range(1, 257):
        x = torch.ones(rows, 8)
        assert (rows, 8) == packed(x).shape == packed.add_to(x, x).shape == quantized(x).shape
    assert {padded_rows(rows) for rows in range(1, 257)} == seen
