"""The rates in an optimizer's parameter groups: written into floats and tensors, and known again afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class WrittenRates:
    """Rates that were written into parameter groups, can be written anew, and are known again.

    A float is replaced. A tensor is filled in place, once where several groups share it (with the rate of the last of
    them, as if each had filled it in turn), and is never read: its version tells whether somebody else has written.

    Args:
        groups: The parameter groups as they are now.
        rates: The rate to write into each.

    Attributes:
        owners: The indices of the groups that have to be written: all, but for those that share a tensor with a later
            one.
        all_floats: Whether no group has a tensor.
        last_rate: The very object that the last group was given. Who writes floats without `rewrite` has to set it.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], rates: Sequence[float]) -> None:
        held = [group["lr"] for group in groups]
        are_tensors = [isinstance(rate, Tensor) for rate in held]
        last_sharers = {id(rate): index for index, rate in enumerate(held)}
        self.owners = [
            index for index, rate in enumerate(held) if not are_tensors[index] or last_sharers[id(rate)] == index
        ]
        self.all_floats, self._all_tensors = not any(are_tensors), all(are_tensors)
        tensors = [held[index] for index in self.owners if are_tensors[index]]
        on_cpu = all(tensor.is_cpu for tensor in tensors)
        self._each_fills_its_own = self._all_tensors and on_cpu and len(self.owners) == len(groups)

        versions = [tensor._version for tensor in tensors]
        _fill(tensors, [rates[index] for index in self.owners if are_tensors[index]])
        for group, rate, is_tensor in zip(groups, rates, are_tensors):
            if not is_tensor:
                group["lr"] = rate
        self.last_rate = groups[-1]["lr"] if groups else None
        self._versions = [(tensor, tensor._version) for tensor in tensors]
        self._versions_per_write = tensors[0]._version - versions[0] if tensors else 0

    def rewrite(self, groups: Sequence[dict[str, Any]], rates: Sequence[float]) -> bool:
        """Write other rates into the `owners` among the same number of groups.

        Returns False where the groups hold another kind of rates by now: the rates have to be written from scratch.
        """
        if self.all_floats:
            for group, rate in zip(groups, rates):
                group["lr"] = rate
            self.last_rate = rates[-1]
            return True
        try:
            if self._each_fills_its_own:
                for group, rate in zip(groups, rates):
                    group["lr"].fill_(rate)
                return True
            if self._all_tensors:
                _fill([groups[index]["lr"] for index in self.owners], rates)
                return True
        except (AttributeError, TypeError):
            pass  # a float where there was a tensor
        return False

    def stand(self, groups: Sequence[dict[str, Any]], rates: Sequence[float], rewrites: int) -> bool:
        """Whether these groups hold what was written last, `rates`, after so many rewrites of tensors.

        The last float has to be the very object that was written: every scheduler writes into all groups, and two may
        arrive at one value. The other floats only have to have its value, so that a rate set by hand is seen.
        """
        for tensor, version in self._versions:
            if tensor._version != version + rewrites * self._versions_per_write:
                return False
        tensors = {id(tensor) for tensor, _ in self._versions}
        held = [group["lr"] for group in groups]
        return all(id(lr) in tensors if isinstance(lr, Tensor) else lr == rate for lr, rate in zip(held, rates)) and (
            isinstance(held[-1], Tensor) or held[-1] is self.last_rate
        )


def _fill(tensors: list[Tensor], rates: Sequence[float]) -> None:
    if all(tensor.is_cpu for tensor in tensors):
        for tensor, rate in zip(tensors, rates):
            tensor.fill_(rate)
    else:
        # A few launches for all of them, and the rates travel as arguments: nothing waits for the device.
        torch._foreach_zero_(tensors)
        torch._foreach_add_(tensors, list(rates))
