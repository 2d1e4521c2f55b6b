"""Checks of arguments: what passes is a plain Python number, what does not is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_warmcos import CosineRestartSchedule
from hf_warmcos.checks import real_number, whole_number


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70)))
def test_a_number_is_itself_an_int_where_it_is_whole_and_a_float_otherwise(value):
    number = real_number("x", value)
    assert number == value
    assert type(number) is (int if value == int(value) else float)


@given(st.integers(-(2**40), 2**40), st.sampled_from([int, float, np.int64, np.float64]))
def test_a_whole_number_is_one_in_any_type(value, kind):
    number = whole_number("x", kind(value))
    assert (number, type(number)) == (value, int)


def test_lengths_that_are_whole_floats_are_those_of_integers():
    whole = CosineRestartSchedule(T_0=100, warmup_steps=10, num_cycles=2)
    assert CosineRestartSchedule(T_0=100.0, warmup_steps=10.0, num_cycles=2.0) == whole
    with pytest.raises(ValueError, match=r"Expected warmup_steps to be a whole number, but got warmup_steps=10\.5"):
        CosineRestartSchedule(T_0=100, warmup_steps=10.5)
