"""Values that nobody means, for each argument of each public function."""

from __future__ import annotations

import decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st


class Unprintable:
    """What raises when it is shown, compared or asked for its length."""

    def __repr__(self) -> str:
        raise RuntimeError("this value cannot be shown")

    __str__ = __len__ = __eq__ = __bool__ = __float__ = __repr__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def nested(depth: int, kind: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"steps": value} if kind is dict else kind([value])
    return value


VALUES: dict[str, Any] = {
    "nothing": None,
    "true": True,
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "minus one": -1,
    "minus half": -0.5,
    "zero": 0,
    "tiny": 5e-324,
    "large": 1e200,
    "largest": 1.7976931348623157e308,
    "2**63": 2**63,
    "20,000 digits": 10**20_000,
    "complex": 1j,
    "decimal": decimal.Decimal("0.1"),
    "signalling nan": decimal.Decimal("sNaN"),
    "fraction": Fraction(1, 3),
    "huge fraction": Fraction(10**5000, 3),
    "text": "x",
    "text of a number": "3e-4",
    "text of a million": "x" * 10**6,
    "bytes": b"overlap",
    "empty": [],
    "empty pair": [[]],
    "pair": [1, 2],
    "list of a million": [1] * 10**6,
    "set": {1},
    "dict": {"steps": 1},
    "dict of others": {1: 2, None: "x" * 10**6},
    "nested list": nested(5000),
    "nested tuple": nested(5000, tuple),
    "nested dict": [nested(5000, dict)],
    "list that holds itself": (itself := []),
    "function": len,
    "class": float,
    "range": range(3),
    "generator": (each for each in (1, 2)),
    "array": np.ones(3),
    "array of one": np.ones(1),
    "array of none": np.ones(0),
    "array of texts": np.array(["x", "y"]),
    "scalar array": np.array(3.0),
    "numpy number": np.float32(0.1),
    "numpy bool": np.bool_(True),
    "numpy date": np.datetime64("2026-01-01"),
    "tensor": torch.ones(3),
    "tensor of one": torch.tensor([0.5]),
    "tensor of none": torch.ones(0),
    "meta tensor": torch.ones((), device="meta"),
    "whole tensor": torch.tensor(2),
    "complex tensor": torch.tensor(1j),
    "bool tensor": torch.tensor(True),
    "nan tensor": torch.tensor(float("nan")),
    "sparse tensor": torch.ones(2).to_sparse(),
    "unprintable": Unprintable(),
    "unprintable in a list": [Unprintable()],
}
itself.append(itself)

names = st.sampled_from(sorted(VALUES))  # hypothesis shows what it drew, which these values do not like
