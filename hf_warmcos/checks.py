"""Checks of arguments: each returns a plain Python number, or says what was expected and what came."""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from numbers import Integral, Real
from typing import Any

# The steps that can be counted, as in numpy's and torch's integers. Whatever is computed from numbers within this limit
# fits into a float.
MOST_STEPS = 2**63 - 1
# The largest learning rate, and the largest factor on one: their product still fits into a float.
MOST_LR = 1e150

_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_MOST_CHARACTERS = 200
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = _MOST_CHARACTERS
_shorten.maxlist = _shorten.maxtuple = _shorten.maxdict = _shorten.maxarray = 20


def shown(value: Any) -> str:
    """Return `value` as it stands in a message: at most 200 characters, whatever it is.

    ```python
    >>> shown([1, "x", None]), len(shown(list(range(10**6)))) <= 200
    ("[1, 'x', None]", True)

    ```
    """
    try:
        text = _shorten.repr(value)
    except Exception:  # its own `__repr__` fails, or an integer has too many digits to be written
        text = f"<a value of type {type(value).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def real_number(name: str, value: Any, *bounds: tuple[str, float]) -> int | float:
    """Return ``value`` as an ``int`` where it is whole and as a ``float`` otherwise.

    Args:
        name: The argument's name, for the error message.
        value: Any real number, including numpy's. A bool is not a number here.
        bounds: Pairs of a comparison and a limit that the value has to meet, such as ``(">", 0)``.

    Raises:
        TypeError: If ``value`` is not a real number.
        ValueError: If ``value`` is NaN, does not fit into a float or is out of bounds.
    """
    if type(value) not in (int, float) and (isinstance(value, bool) or not isinstance(value, Real)):
        came = f"{name}={shown(value)} of type {type(value).__name__}"
        raise TypeError(f"Expected {name} to be a number, but got {came}{_yaml_hint(value)}")
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction of large integers
        number = math.inf
    if not abs(number) <= sys.float_info.max:
        came = f"an integer of {number.bit_length()} bits" if isinstance(number, int) else f"{name}={shown(value)}"
        raise ValueError(f"Expected {name} to be finite, but got {came}")
    for comparison, limit in bounds:
        if not _COMPARISONS[comparison](number, limit):
            raise ValueError(f"Expected {name} {comparison} {limit}, but got {name}={shown(number)}")
    return int(number) if number == int(number) else number


def _yaml_hint(value: Any) -> str:
    """What to write for a number that YAML reads as a text: its floats need a point, as in 1.0e-5."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    return "" if number is None else f": a text. Write {number!r}; in YAML a float needs a point, such as 1.0e-5"


def whole_number(name: str, value: Any, *bounds: tuple[str, float]) -> int:
    """Return ``value`` as an ``int``; as :func:`real_number`, but a fraction is a ValueError (100.0 is whole)."""
    number = real_number(name, value, *bounds)
    if not isinstance(number, int):
        raise ValueError(f"Expected {name} to be a whole number, but got {name}={number}")
    return number


def learning_rate(name: str, value: Any, *bounds: tuple[str, float]) -> float:
    """Return ``value`` as a ``float`` that any peak can be multiplied with."""
    return float(real_number(name, value, (">=", -MOST_LR), ("<=", MOST_LR), *bounds))


# What a schedule and a listed cycle are made of.
_COUNTED = ("<=", MOST_STEPS)
_RANGES: dict[str, tuple[Any, ...]] = {
    "T_0": (real_number, (">", 0), _COUNTED),
    "T_mult": (real_number, (">", 0), _COUNTED),
    "decay": (real_number, (">", 0), ("<=", 1)),
    "num_cycles": (whole_number, (">=", 1), _COUNTED),
    "peak": (real_number, (">", 0), ("<=", MOST_LR)),
    "stable_ratio": (real_number, (">=", 0), ("<", 1)),
    "steps": (whole_number, (">=", 1), _COUNTED),
    "warmup_lr_rate": (real_number, (">=", 0), ("<=", 1)),
    "warmup_steps": (whole_number, (">=", 0), _COUNTED),
}


def argument(name: str, value: Any, in_messages: str | None = None) -> Any:
    """Return an argument of a schedule or of a listed cycle as a number in its range.

    ```python
    >>> argument("decay", 2, in_messages="my_decay")
    Traceback (most recent call last):
    ValueError: Expected my_decay <= 1, but got my_decay=2

    ```
    """
    check, *bounds = _RANGES[name]
    return check(in_messages or name, value, *bounds)


def minimum(eta_min: Any, eta_min_rate: Any, *names: str) -> tuple[float, float | None]:
    """Return ``eta_min`` and ``eta_min_rate``, of which one at most is given, as numbers."""
    name, name_of_rate = names or ("eta_min", "eta_min_rate")
    eta_min = learning_rate(name, eta_min, (">=", 0))
    if eta_min_rate is not None:
        eta_min_rate = real_number(name_of_rate, eta_min_rate, (">=", 0), ("<=", 1))
        if eta_min != 0:
            came = f"{name}={eta_min} and {name_of_rate}={eta_min_rate}"
            raise ValueError(f"Expected one of {name} and {name_of_rate}, but got {came}")
    return eta_min, eta_min_rate
