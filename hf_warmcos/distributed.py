"""The schedule under Accelerate: one scheduler step per optimizer update, on any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate.scheduler import AcceleratedScheduler


def count_optimizer_steps(prepared: AcceleratedScheduler) -> AcceleratedScheduler:
    """Make a scheduler that `accelerator.prepare` returned advance once per optimizer update.

    By itself it advances once per process at each update, so that with N processes the rate of update k is
    `lr_at(N * k)` and the schedule ends N times too early. After this call it is `lr_at(k)`, on 1 process as on 10,000.
    `num_training_steps`, `num_warmup_steps` and `T_0` then all count optimizer updates.

    Args:
        prepared (`accelerate.scheduler.AcceleratedScheduler`): The scheduler as `accelerator.prepare` returned it.

    Returns:
        `accelerate.scheduler.AcceleratedScheduler`: The same object.

    Raises:
        TypeError: If `prepared` is something else, such as a scheduler that was not prepared yet.

    Example:

    ```python
    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule
    >>> accelerator = Accelerator(cpu=True)
    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 10, 100, num_cycles=3)
    >>> optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    >>> scheduler = count_optimizer_steps(scheduler)

    ```

    Source: `accelerate.scheduler.AcceleratedScheduler.step`, which takes one step per update where `split_batches` is
    true.
    """
    from accelerate.scheduler import AcceleratedScheduler

    if not isinstance(prepared, AcceleratedScheduler):
        raise TypeError(
            "Expected prepared to be a scheduler that accelerator.prepare returned, "
            f"but got a {type(prepared).__name__}"
        )
    prepared.split_batches = True
    return prepared
