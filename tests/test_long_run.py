"""Three million steps through `step()`: as exact at the end as at the beginning, and no larger."""

from __future__ import annotations

import gc
import math
import sys
from fractions import Fraction

import pytest
import torch

from hf_warmcos import CosineRestartLR, CosineRestartSchedule

NUM_STEPS = 3_000_000
T_0, T_MULT, DECAY, STABLE_RATIO, ETA_MIN = 1000.5, 1.03125, 0.99, 0.25, 1e-6


def start_of_cycle(index: int) -> int:
    """By fractions, so that nothing is rounded before the whole step is."""
    return round(Fraction(T_0) * (Fraction(T_MULT) ** index - 1) / (Fraction(T_MULT) - 1))


def rates_of_cycle(index: int, base_lr: float) -> list[float]:
    """The definition, written out for all steps of a cycle."""
    length = start_of_cycle(index + 1) - start_of_cycle(index)
    span = max(base_lr * DECAY**index, min(base_lr, ETA_MIN)) - ETA_MIN
    stable = min(round(STABLE_RATIO * length), length - 1)
    cosine = [
        ETA_MIN + span * ((1 + math.cos(math.pi * step / (length - stable))) / 2) for step in range(length - stable)
    ]
    return cosine[:1] * stable + cosine


def allocated_blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.slow
def test_three_million_steps_drift_nowhere_and_leave_nothing_behind():
    schedule = CosineRestartSchedule(T_0=T_0, T_mult=T_MULT, decay=DECAY, stable_ratio=STABLE_RATIO, eta_min=ETA_MIN)
    base_lrs = [0.1, 0.02, 0.003]
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": base_lr} for base_lr in base_lrs[:1]]
    )
    scheduler = CosineRestartLR(optimizer, schedule)
    optimizer.step()

    step, groups = scheduler.step, optimizer.param_groups
    index = done = 0
    while done < NUM_STEPS:
        if index in (20, 40):  # a group joins inside of a run
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": base_lrs[len(groups)]})
            optimizer.step()
        assert schedule.cycle_at(done) == (index, start_of_cycle(index), start_of_cycle(index + 1) - done)
        assert done == scheduler.last_epoch == start_of_cycle(index)
        assert scheduler.T_cur == 0
        assert scheduler.cycle_index == index
        assert scheduler.at_cycle_end == (index > 0)
        for group, base_lr in zip(groups, base_lrs):
            assert group["lr"] == schedule.peak_lr(index, base_lr) == schedule.lr_at(done, base_lr)

        # Each rate that an update uses, of the group that came last.
        group, base_lr, length = groups[-1], base_lrs[len(groups) - 1], start_of_cycle(index + 1) - done
        seen = []
        for _ in range(length):
            seen.append(group["lr"])
            step()
        assert seen == rates_of_cycle(index, base_lr)
        for offset in range(0, length, 997):
            assert seen[offset] == schedule.lr_at(done + offset, base_lr)
        done, index = done + length, index + 1
        del seen
        if index == 50:
            blocks_with_all_groups = allocated_blocks()

    assert index > 140
    assert len(groups) == len(scheduler.base_lrs) == 3
    assert abs(allocated_blocks() - blocks_with_all_groups) < 1000
