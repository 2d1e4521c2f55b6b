"""Rates in parameter groups: `hf_warmcos.written_rates`."""

from __future__ import annotations

import pytest
import torch

from hf_warmcos.written_rates import WrittenRates


def floats(*rates):
    return [{"lr": rate} for rate in rates]


def tensors(*rates):
    return [{"lr": torch.tensor(rate, dtype=torch.float64)} for rate in rates]


def sharing(*rates):
    shared = torch.tensor(rates[0], dtype=torch.float64)
    return [{"lr": shared} for _ in rates]


def mixed(*rates):
    return [tensors(rate)[0] if index % 2 else {"lr": rate} for index, rate in enumerate(rates)]


def rates_of(groups):
    return [float(group["lr"]) for group in groups]


@pytest.mark.parametrize("make", [floats, tensors, sharing, mixed])
def test_what_was_written_stands_until_somebody_else_writes(make):
    groups = make(0.1, 0.2, 0.3)
    rates = WrittenRates(groups, [0.5, 0.5, 0.5])
    assert rates_of(groups) == [0.5, 0.5, 0.5]
    assert rates.stand(groups, [0.5, 0.5, 0.5], rewrites=0)
    for group in groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(0.5)
        else:
            group["lr"] = float("0.5")
    assert not rates.stand(groups, [0.5, 0.5, 0.5], rewrites=0)


@pytest.mark.parametrize("make", [floats, tensors, sharing])
def test_rewritten_rates_stand_as_well(make):
    groups = make(0.1, 0.2, 0.3)
    held = [group["lr"] for group in groups]
    rates = WrittenRates(groups, [0.5, 0.5, 0.5])
    for rewrites in range(1, 4):
        value = 0.5 / rewrites
        assert rates.rewrite(groups, [value] * len(rates.owners))
        assert rates_of(groups) == [value] * 3
        assert rates.stand(groups, [value] * 3, rewrites)
    assert not rates.stand(groups, [value] * 3, rewrites + 1) or make is floats
    if make is not floats:
        assert all(group["lr"] is tensor for group, tensor in zip(groups, held))


def test_a_tensor_that_groups_share_is_written_once_with_the_rate_of_the_last():
    groups = sharing(0.1, 0.2, 0.3)
    rates = WrittenRates(groups, [0.5, 0.6, 0.7])
    assert rates.owners == [2]
    assert rates_of(groups) == [0.7] * 3
    assert groups[0]["lr"]._version == 1


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("make", [floats, tensors])
def test_a_rate_set_by_hand_in_any_group_is_seen(make, index):
    groups = make(0.1, 0.2, 0.3)
    rates = WrittenRates(groups, [0.5, 0.6, 0.7])
    groups[index]["lr"] *= 0.5
    assert not rates.stand(groups, [0.5, 0.6, 0.7], rewrites=0)


def test_groups_that_hold_another_kind_of_rates_by_now_are_not_rewritten():
    for make in (tensors, sharing, mixed):
        groups = make(0.1, 0.2, 0.3)
        rates = WrittenRates(groups, [0.5, 0.5, 0.5])
        groups[2] = {"lr": 0.9}
        assert not rates.rewrite(groups, [0.4] * len(rates.owners))
