"""The processes of a run: they end together, and one of them does what is to be done once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def end_with_the_launcher() -> None:
    """Let Linux end this process when the launcher that started it is killed.

    A killed launcher cannot stop its processes. They would train on, beside the run that resumes theirs.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_signal_at_death_of_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal_at_death_of_parent, signal.SIGKILL)


def on_main_process(accelerator: Accelerator, function: Callable[..., Result], *args: Any) -> Result:
    """Call a function on the main process alone; its result, or its error, reaches every process."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function(*args)
        except (OSError, ValueError, TypeError, RuntimeError) as caught:
            outcome[1] = caught
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result
