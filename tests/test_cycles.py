"""Where cycles lie: `hf_warmcos.cycles`."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_warmcos.cycles import Cycle, GeometricCycles, ListedCycle, ListedCycles

T_MULTS = st.one_of(st.integers(1, 5), st.floats(1.001, 4))


@given(st.one_of(st.integers(1, 1000), st.floats(0.5, 1000)), T_MULTS, st.integers(0, 40))
def test_a_cycle_starts_on_the_rounded_exact_sum_of_those_before_it(T_0, T_mult, index):
    assert GeometricCycles(T_0, T_mult).start(index) == round(
        sum((Fraction(T_0) * Fraction(T_mult) ** k for k in range(index)), Fraction(0))
    )


@given(st.one_of(st.integers(1, 1000), st.floats(1, 1000)), T_MULTS, st.integers(0, 10**18))
def test_a_step_lies_between_the_start_of_its_cycle_and_that_of_the_next(T_0, T_mult, step):
    cycles = GeometricCycles(T_0, T_mult)
    index = cycles.index_at(step)
    assert cycles.start(index) <= step < cycles.start(index + 1)
    assert cycles.index_at(step + 0.5 if step < 10**15 else step) == index


@given(
    st.one_of(st.integers(1, 30), st.floats(0.3, 30)),
    st.one_of(st.integers(1, 3), st.floats(0.5, 1.5)),
    st.integers(1, 60),
    st.integers(1, 12),
)
def test_the_first_cycle_that_is_too_short_is_found_as_by_looking_at_each(T_0, T_mult, count, least):
    cycles = GeometricCycles(T_0, T_mult, count)
    lengths = [after - start for start, after in pairwise(map(cycles.start, range(count + 1)))]
    too_short = [index for index, length in enumerate(lengths) if length < least]
    assert cycles.first_shorter_than(least) == (too_short[0] if too_short else None)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 1200))
def test_listed_cycles_follow_one_another(lengths, step):
    cycles = ListedCycles([ListedCycle(length, 1, 0, 0.0) for length in lengths])
    assert [cycles.start(index) for index in range(len(lengths) + 1)] == [
        sum(lengths[:k]) for k in range(len(lengths) + 1)
    ]
    index = cycles.index_at(step)
    assert cycles.start(index) <= step
    assert step < cycles.start(index + 1) or index == cycles.count - 1 == len(lengths) - 1


def test_cycles_that_never_grow_and_cycles_that_do_have_no_end_without_a_count():
    assert GeometricCycles(10).count is None
    assert GeometricCycles(10).index_at(10**18) == 10**17
    assert GeometricCycles(10, 1, 5).index_at(10**18) == 4
    assert GeometricCycles(10, 2, 5).index_at(10**18) == 4


def test_a_start_halfway_between_two_steps_is_the_even_one():
    assert [GeometricCycles(2.5).start(index) for index in range(6)] == [0, 2, 5, 8, 10, 12]


def test_a_cycle_knows_its_end():
    assert Cycle(2, 30, 40).end == 70
