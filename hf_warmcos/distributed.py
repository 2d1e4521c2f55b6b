"""The schedule under Accelerate: one scheduler step per optimizer update, on any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate.scheduler import AcceleratedScheduler


def count_optimizer_steps(prepared: AcceleratedScheduler) -> AcceleratedScheduler:
    """Make a scheduler that `accelerator.prepare` returned advance once per optimizer update.

    Without this call it advances once per process at each update: with N processes, update k uses `lr_at(N * k)`, and
    the schedule ends N times too early. With this call, update k uses `lr_at(k)` on any number of processes.

    `num_training_steps`, `num_warmup_steps`, `T_0` and `cycles` then count optimizer updates. Compute them from the
    length of the *prepared* loader, which is the number of batches of one process.

    An update that mixed precision skips does not count, except with a fused optimizer, which skips it unnoticed by
    Accelerate (https://github.com/huggingface/accelerate/issues/4242).

    Do not use it in scripts that count one step per process themselves: those that multiply their lengths by
    `num_processes`, or that take the length of the loader before it is prepared.

    With `Accelerator(step_scheduler_with_optimizer=False)`, the scheduler advances at each call of `step()`: call it
    once per update, also where gradients are accumulated.

    Args:
        prepared (`accelerate.scheduler.AcceleratedScheduler`): The scheduler as `accelerator.prepare` returned it.

    Returns:
        `accelerate.scheduler.AcceleratedScheduler`: The same object.

    Raises:
        TypeError: If `prepared` is something else, such as a scheduler that is not prepared yet.

    Example:

    ```python
    >>> import math
    >>> from itertools import chain, repeat
    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_warmcos import count_optimizer_steps, get_cosine_restarts_with_decay_and_warmup_schedule
    >>> accelerator = Accelerator(gradient_accumulation_steps=4)
    >>> model = torch.nn.Linear(8, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    >>> loader = accelerator.prepare(torch.utils.data.DataLoader(torch.randn(202, 8), batch_size=2))
    >>> num_epochs = 3
    >>> num_training_steps = math.ceil(len(loader) / accelerator.gradient_accumulation_steps) * num_epochs
    >>> scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(
    ...     optimizer,
    ...     num_warmup_steps=2,
    ...     num_training_steps=num_training_steps,
    ...     num_cycles=3,
    ...     T_mult=2,
    ...     stable_ratio=0.8,
    ... )
    >>> model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    >>> scheduler = count_optimizer_steps(scheduler)
    >>> batches = chain.from_iterable(repeat(loader))  # epoch after epoch
    >>> while scheduler.scheduler.last_epoch < num_training_steps:
    ...     with accelerator.accumulate(model):
    ...         loss = model(next(batches)).square().mean()
    ...         accelerator.backward(loss)
    ...         optimizer.step()
    ...         scheduler.step()
    ...         optimizer.zero_grad()
    >>> scheduler.scheduler.at_cycle_end  # training ends where the schedule ends
    True

    ```

    Source: `accelerate.scheduler.AcceleratedScheduler.step`, which takes one step per update where `split_batches` is
    true.
    """
    from accelerate.scheduler import AcceleratedScheduler

    if not isinstance(prepared, AcceleratedScheduler):
        came = f"a {type(prepared).__name__}"
        raise TypeError(f"Expected prepared to be a scheduler that accelerator.prepare returned, but got {came}")
    prepared.split_batches = True
    return prepared
