"""fp16 and bf16: an update that overflows is none, and does not advance the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_warmcos import (
    CosineRestartSchedule,
    WarmCosTrainer,
    count_optimizer_steps,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)

NUM_UPDATES, BASE_LR = 12, 0.01
SCHEDULE = {"num_warmup_steps": 2, "num_training_steps": NUM_UPDATES, "num_cycles": 2, "decay": 0.5}
OVERFLOWS = {0, 3, 4, 9}  # attempts at an update


def expected_rates(num_updates: int = NUM_UPDATES) -> list[float]:
    schedule = CosineRestartSchedule.fit(NUM_UPDATES, num_cycles=2, decay=0.5, warmup_steps=2)
    return [schedule.lr_at(step, BASE_LR) for step in range(num_updates)]


def record_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """A list to which each update that takes place adds its rate."""
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return rates


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)


def loss_of(output: torch.Tensor, attempt: int) -> torch.Tensor:
    """Small, so that only what is meant to overflows."""
    return 1e-3 * output.float().square().mean() * (float("inf") if attempt in OVERFLOWS else 1.0)


def test_in_a_loop_with_a_grad_scaler(device):
    model = make_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **SCHEDULE)
    rates, scaler = record_rates(optimizer), torch.amp.GradScaler(device.type, init_scale=1024.0)
    for attempt in range(NUM_UPDATES + len(OVERFLOWS)):
        with torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16):
            output = model(torch.ones(8, 4, device=device))
        scaler.scale(loss_of(output, attempt)).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() >= scale:
            scheduler.step()
    assert rates == expected_rates()
    assert scheduler.last_epoch == NUM_UPDATES


@pytest.mark.parametrize("mixed_precision", ["fp16", "bf16"])
def test_under_accelerate(cuda, fresh_accelerate, mixed_precision):
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=mixed_precision)
    assert accelerator.device.type == "cuda"
    assert (accelerator.scaler is not None) == (mixed_precision == "fp16")
    overflows = OVERFLOWS if mixed_precision == "fp16" else set()
    train_under_accelerate(accelerator, overflows)


def test_under_accelerate_on_the_cpu_with_bf16(fresh_accelerate):
    from accelerate import Accelerator

    train_under_accelerate(Accelerator(cpu=True, mixed_precision="bf16"), set())


def train_under_accelerate(accelerator: Any, overflows: set[int]) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR)
    rates = record_rates(optimizer)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, **SCHEDULE)
    model, prepared_optimizer, prepared = accelerator.prepare(model, optimizer, scheduler)
    count_optimizer_steps(prepared)
    for attempt in range(NUM_UPDATES + len(overflows)):
        output = model(torch.ones(8, 4, device=accelerator.device))
        accelerator.backward(loss_of(output, attempt if overflows else -1))
        prepared_optimizer.step()
        assert accelerator.optimizer_step_was_skipped == (attempt in overflows)
        prepared.step()
        prepared_optimizer.zero_grad()
    assert rates == expected_rates()
    assert scheduler.last_epoch == NUM_UPDATES


class OverflowingModel(torch.nn.Module):
    """A model whose loss is infinite at some of its calls."""

    def __init__(self, overflows: set[int]) -> None:
        super().__init__()
        self.linear, self.overflows, self.calls = make_model(), overflows, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        call = self.calls if self.overflows else -1
        self.calls += 1
        return {"loss": loss_of(self.linear(x), call)}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_under_a_trainer(cuda, fresh_accelerate, tmp_path, precision):
    train_with_a_trainer(tmp_path, OVERFLOWS if precision == "fp16" else set(), **{precision: True})


def test_under_a_trainer_on_the_cpu_with_bf16(fresh_accelerate, tmp_path):
    train_with_a_trainer(tmp_path, set(), bf16=True, use_cpu=True)


def train_with_a_trainer(folder: Any, overflows: set[int], **arguments: Any) -> None:
    """A Trainer counts an update that overflowed among its steps; the schedule does not."""
    from transformers import TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=NUM_UPDATES,
        per_device_train_batch_size=4,
        learning_rate=BASE_LR,
        warmup_steps=2,
        lr_scheduler_kwargs={"num_cycles": 2, "decay": 0.5},
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **arguments,
    )
    rows = [{"x": torch.ones(4), "labels": torch.zeros(1)} for _ in range(64)]
    model = OverflowingModel(overflows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR)
    rates = record_rates(optimizer)
    trainer = WarmCosTrainer(model, args, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    num_updates = NUM_UPDATES - len(overflows)
    assert trainer.state.global_step == NUM_UPDATES
    assert rates == expected_rates(num_updates)
    assert trainer.lr_scheduler.last_epoch == num_updates
