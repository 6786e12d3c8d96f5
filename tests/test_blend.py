"""One tensor alone: blend_ on torch tensors and NumPy arrays of any type and layout, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hypermerge_ext as hm
import oracle
from live_models import LAYOUTS, equal_numbers, from_torch, lay_out, to_torch

DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 6e-8, 6.1e-5, 65504.0, 65520.0, 1e5, 448.0, 464.0,
           57344.0, 3e38, -3e38, np.inf, -np.inf, np.nan, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8]  # fmt: skip


@st.composite
def blends(draw):
    """A shape, a layout for each operand, types, numbers with special ones among them, multipliers."""
    shape = draw(st.sampled_from([(), (1,), (7,), (1031,), (0, 3), (33, 17), (5, 3, 3, 3), (2, 8, 5, 7), (3, 1, 41)]))
    count = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = []
    for _ in range(count + 2):
        scale = draw(st.sampled_from([1.0, 1e-3, 1e-7, 300.0, 4e4]))
        numbers = np.asarray(scale * rng.standard_normal(shape))
        if draw(st.booleans()) and numbers.size:
            places = rng.random(shape) < 0.2
            numbers = np.where(places, rng.choice(SPECIAL, shape), numbers)
        tensors.append(oracle.tensor(numbers.astype(np.float32), draw(st.sampled_from(DTYPES))))
    multiplier = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e6]), st.floats(-3, 3))
    at = draw(st.lists(multiplier, min_size=count, max_size=count))
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in tensors]
    return tensors, at, layouts, draw(st.booleans())


@settings(max_examples=300, deadline=None)
@given(blends())
def test_one_tensor_equals_numpy(case):
    (out, base, *directions), at, layouts, with_base = case
    tensors = [lay_out(to_torch(item), layout) for item, layout in zip([out, base, *directions], layouts)]
    before = [from_torch(tensor) for tensor in tensors]
    result = hm.blend_(tensors[0], tensors[1] if with_base else None, tensors[2:], at, threads=1 + len(at) % 3)
    assert result is tensors[0]
    with np.errstate(all="ignore"):
        expected = oracle.blend(base if with_base else None, None, directions, at, out.dtype)
    assert equal_numbers(from_torch(result), expected)
    assert all(from_torch(tensor).same(held) for tensor, held in zip(tensors[1:], before[1:]))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["F32", "F16", "BF16"]), st.integers(1, 6))
def test_one_tensor_is_within_rounding_of_f64(seed, dtype, count):
    rng = np.random.default_rng(seed)
    base, *directions = [oracle.tensor(rng.standard_normal(517), dtype) for _ in range(count + 1)]
    at = rng.standard_normal(count)
    out = to_torch(base)
    hm.blend_(out, out, [to_torch(item) for item in directions], at)
    terms = [base.f64(), *(c * item.f64() for c, item in zip(at, directions))]
    bound = (
        oracle.STEP[dtype] * np.abs(sum(terms))
        + 2 * count * oracle.STEP["F32"] * sum(map(np.abs, terms))
        + 1e-7 * (dtype == "F16")
    )
    assert (np.abs(from_torch(out).f64() - sum(terms)) <= bound).all()


def test_one_numpy_array_with_any_strides():
    rng = np.random.default_rng(1)
    out, base, direction = (rng.standard_normal((31, 17)).astype(np.float32) for _ in range(3))
    expected = base + np.float32(0.3) * direction
    assert hm.blend_(out[::-1, ::2], base[::-1, ::2], [direction[::-1, ::2]], [0.3]) is not None
    assert (out[:, ::2] == expected[:, ::2]).all() and not (out[:, 1::2] == expected[:, 1::2]).any()
    transposed = np.empty((17, 31), np.float16)
    hm.blend_(transposed.T, base, [direction], [0.3])
    assert (transposed.T == expected.astype(np.float16)).all()


def test_one_tensor_refuses():
    out, base = torch.zeros(8), torch.ones(8)
    frozen = np.zeros(8, np.float32)
    frozen.flags.writeable = False
    cases = [
        ((out, base, [base], []), hm.ArgumentError, "0 multipliers for 1 direction"),
        ((out, base, [base], [float("nan")]), hm.ArgumentError, "multiplier 1 is nan"),
        ((out, base, [torch.ones(7)], [1]), hm.MismatchError, "another shape"),
        ((out, base, [out], [1]), hm.ArgumentError, "overlaps"),
        ((torch.zeros(8, dtype=torch.int32), base, [base], [1]), hm.MismatchError, "int32"),
        ((out, torch.ones(8, dtype=torch.int64), [base], [1]), hm.ArgumentError, "int64"),
        ((torch.zeros(1).expand(8), base, [base], [1]), hm.MismatchError, "expanded"),
        ((torch.zeros(8, requires_grad=True), base, [base], [1]), hm.MismatchError, "gradients"),
        ((torch.zeros(8, device="meta"), base, [base], [1]), hm.MismatchError, "meta"),
        ((out, torch.ones(8, device="meta"), [base], [1]), hm.ArgumentError, "meta"),
        ((frozen, base, [base], [1]), hm.MismatchError, "read-only"),
        (([0.0] * 8, base, [base], [1]), TypeError, "list"),
        ((out, "base", [base], [1]), TypeError, "str"),
    ]
    for arguments, kind, text in cases:
        with pytest.raises(kind, match=text):
            hm.blend_(*arguments)
    assert (out == 0).all()
