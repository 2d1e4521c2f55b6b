from __future__ import annotations

import copy
import json
import re
import threading

import pytest
import torch
from example_runs import free_port
from optimizers import make_optimizer
from torch.optim.lr_scheduler import LambdaLR
from trainer_runs import (
    FOUR_CYCLES,
    causal_lm,
    logged_rates,
    processes,
    rates_of,
    token_rows,
    train,
    train_in_process_group,
    training_arguments,
)
from transformers import (
    GPT2LMHeadModel,
    HfArgumentParser,
    SchedulerType,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_with_hard_restarts_schedule_with_warmup,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from work import HANGS_AFTER

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    WarmCosTrainer,
    WarmCosTrainerMixin,
)


def built_in():
    return TYPE_TO_SCHEDULER_FUNCTION[SchedulerType.COSINE_WITH_RESTARTS]


class TestRates:
    @pytest.mark.parametrize(
        ("lr_scheduler_kwargs", "schedule"),
        [
            (FOUR_CYCLES, CosineRestartSchedule.fit(24, 4, decay=0.75, warmup_steps=3)),
            (
                {"num_cycles": 3, "T_mult": 2, "min_lr": 1e-4, "warmup_mode": "overlap", "warmup_lr_rate": 0.1},
                CosineRestartSchedule.fit(
                    24, 3, T_mult=2, warmup_steps=3, warmup_mode="overlap", warmup_lr_rate=0.1, eta_min=1e-4
                ),
            ),
            (
                {"T_0": 8, "decay": 0.5, "min_lr_rate": 0.1, "warmup_mode": "every_cycle"},
                CosineRestartSchedule(8, decay=0.5, warmup_steps=3, warmup_mode="every_cycle", eta_min_rate=0.1),
            ),
            ({}, CosineRestartSchedule.fit(24, warmup_steps=3)),
        ],
    )
    def test_logged_rates_are_those_of_the_schedule_at_every_step(self, tmp_path, lr_scheduler_kwargs, schedule):
        trainer = train(tmp_path, max_steps=24, warmup_steps=3, lr_scheduler_kwargs=lr_scheduler_kwargs)
        assert logged_rates(trainer) == rates_of(schedule, 24)

    def test_without_decay_rates_and_weights_are_those_of_a_plain_trainer(self, tmp_path):
        arguments = {"max_steps": 24, "warmup_steps": 4, "lr_scheduler_kwargs": {"num_cycles": 4}}
        trainer = train(tmp_path, **arguments)
        plain = train(tmp_path, Trainer, lr_scheduler_type="cosine_with_restarts", **arguments)
        assert isinstance(plain.lr_scheduler, LambdaLR)
        assert logged_rates(trainer) == pytest.approx(logged_rates(plain), rel=1e-12, abs=0)
        for weight, plain_weight in zip(trainer.model.parameters(), plain.model.parameters()):
            torch.testing.assert_close(weight, plain_weight, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize(
        ("arguments", "num_steps"),
        [
            ({"num_train_epochs": 2}, 32),
            ({"num_train_epochs": 2, "gradient_accumulation_steps": 3}, 12),
            ({"max_steps": 20, "gradient_accumulation_steps": 2}, 20),
        ],
    )
    def test_steps_are_updates_under_epochs_and_gradient_accumulation(self, tmp_path, arguments, num_steps):
        trainer = train(tmp_path, lr_scheduler_kwargs=FOUR_CYCLES, **arguments)
        assert logged_rates(trainer) == rates_of(CosineRestartSchedule.fit(num_steps, 4, decay=0.75), num_steps)

    def test_warmup_can_be_a_fraction_of_training(self, tmp_path):
        # transformers 4 has an argument of its own for it, in transformers 5 it is a `warmup_steps` below 1.
        name = "warmup_ratio" if hasattr(TrainingArguments, "warmup_ratio") else "warmup_steps"
        trainer = train(tmp_path, max_steps=20, lr_scheduler_kwargs=FOUR_CYCLES, **{name: 0.2})
        schedule = CosineRestartSchedule.fit(20, 4, decay=0.75, warmup_steps=4)
        assert logged_rates(trainer) == rates_of(schedule, 20)

    def test_a_second_training_starts_the_schedule_anew_for_its_own_length(self, tmp_path):
        trainer = train(tmp_path, max_steps=8, lr_scheduler_kwargs=FOUR_CYCLES)
        trainer.args.max_steps = 16
        trainer.train()
        assert trainer.lr_scheduler.schedule == CosineRestartSchedule.fit(16, 4, decay=0.75)

    def test_auto_find_batch_size_fits_the_cycles_into_the_longer_training(self, tmp_path):
        class FitsTwoRows(GPT2LMHeadModel):
            def forward(self, input_ids, labels, **inputs):
                if len(input_ids) > 2:
                    raise RuntimeError("CUDA out of memory.")
                return super().forward(input_ids, labels=labels, **inputs)

        trainer = train(
            tmp_path,
            model=FitsTwoRows(causal_lm().config),
            auto_find_batch_size=True,
            num_train_epochs=1,
            lr_scheduler_kwargs=FOUR_CYCLES,
        )
        num_steps = trainer.state.max_steps
        assert num_steps >= 32
        assert logged_rates(trainer) == rates_of(CosineRestartSchedule.fit(num_steps, 4, decay=0.75), num_steps)

    @pytest.mark.needs("optuna")
    def test_hyperparameter_search_schedules_each_trial_by_its_own_arguments(self, tmp_path):
        rates_of_trials = []
        args = training_arguments(tmp_path, max_steps=12)
        trainer = WarmCosTrainer(
            model_init=lambda: causal_lm(), args=args, train_dataset=token_rows(16), eval_dataset=token_rows(4)
        )
        trials = [(1e-2, {"num_cycles": 2}), (1e-3, {"num_cycles": 3, "decay": 0.5})]

        def space(trial):
            learning_rate, lr_scheduler_kwargs = trials[trial.number]
            return {"learning_rate": learning_rate, "lr_scheduler_kwargs": lr_scheduler_kwargs}

        def objective(metrics):
            rates_of_trials.append(logged_rates(trainer))
            return metrics["eval_loss"]

        trainer.hyperparameter_search(hp_space=space, compute_objective=objective, n_trials=2, backend="optuna")
        assert rates_of_trials == [
            rates_of(CosineRestartSchedule.fit(12, 2), 12, 1e-2),
            rates_of(CosineRestartSchedule.fit(12, 3, decay=0.5), 12, 1e-3),
        ]

    @pytest.mark.slow
    def test_two_processes_train_with_the_learning_rates_of_one(self, tmp_path):
        port = free_port()
        arguments = {"max_steps": 20, "warmup_steps": 4, "lr_scheduler_kwargs": FOUR_CYCLES}
        group = [
            processes.Process(target=train_in_process_group, args=(rank, 2, port, str(tmp_path), arguments))
            for rank in range(2)
        ]
        for process in group:
            process.start()
        for process in group:
            process.join(timeout=HANGS_AFTER)
        assert [process.exitcode for process in group] == [0, 0]
        schedule = CosineRestartSchedule.fit(20, 4, decay=0.75, warmup_steps=4)
        results = [torch.load(tmp_path / f"result_{rank}.pt") for rank in range(2)]
        assert results[0]["rates"] == rates_of(schedule, 20)
        for weight, other_weight in zip(results[0]["weights"].values(), results[1]["weights"].values()):
            assert torch.equal(weight, other_weight)


class TestArguments:
    def test_come_from_a_command_line(self, tmp_path):
        command_line = [
            *("--output_dir", str(tmp_path), "--max_steps", "22", "--warmup_steps", "2"),
            *("--lr_scheduler_kwargs", json.dumps({"num_cycles": 4, "decay": 0.75, "T_mult": 2})),
        ]
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(command_line)
        trainer = WarmCosTrainer(causal_lm(), args)
        trainer.create_optimizer_and_scheduler(num_training_steps=22)
        expected = CosineRestartSchedule.fit(22, 4, decay=0.75, T_mult=2, warmup_steps=2)
        assert trainer.lr_scheduler.schedule == expected

    def test_can_be_json_that_a_search_sets(self, tmp_path):
        trainer = WarmCosTrainer(causal_lm(), training_arguments(tmp_path))
        trainer.args.lr_scheduler_kwargs = '{"num_cycles": 4}'
        trainer.create_optimizer_and_scheduler(num_training_steps=20)
        assert trainer.lr_scheduler.schedule == CosineRestartSchedule.fit(20, 4)

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"num_cycle": 4}, TypeError, "but got 'num_cycle'"),
            ({"decay": 2}, ValueError, "Expected decay <= 1, but got decay=2$"),
            ({"T_0": 5, "cycles": [5]}, ValueError, "cycles"),
        ],
    )
    def test_that_the_schedule_does_not_have_are_errors_at_construction(self, tmp_path, kwargs, error, message):
        args = training_arguments(tmp_path, lr_scheduler_kwargs=kwargs)
        with pytest.raises(error, match=rf"^lr_scheduler_kwargs={re.escape(repr(kwargs))}: .*{message}"):
            WarmCosTrainer(causal_lm(), args)

    def test_that_a_search_sets_are_checked_before_training(self, tmp_path):
        trainer = WarmCosTrainer(causal_lm(), training_arguments(tmp_path), train_dataset=token_rows(4))
        trainer.args.lr_scheduler_kwargs = {"gamma": 0.5}
        with pytest.raises(TypeError, match="'gamma'"):
            trainer.train()
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize("kwargs", ["num_cycles=4", "[4]", [4]])
    def test_have_to_be_a_dict_or_a_json_object(self, tmp_path, kwargs):
        args = training_arguments(tmp_path, lr_scheduler_kwargs=kwargs)
        with pytest.raises(TypeError, match="Expected lr_scheduler_kwargs to be a dict or a JSON object, but got"):
            WarmCosTrainer(causal_lm(), args)

    def test_that_change_after_construction_are_honoured(self, tmp_path):
        args = training_arguments(tmp_path, max_steps=8)
        trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(16))
        args.learning_rate, args.max_steps, args.warmup_steps = 0.5, 12, 2
        args.lr_scheduler_kwargs = FOUR_CYCLES
        trainer.train()
        schedule = CosineRestartSchedule.fit(12, 4, decay=0.75, warmup_steps=2)
        assert logged_rates(trainer) == rates_of(schedule, 12, base_lr=0.5)

    @pytest.mark.parametrize("name", ["cosine", "constant_with_warmup"])
    def test_another_scheduler_type_is_warned_about(self, tmp_path, name):
        args = training_arguments(tmp_path, max_steps=4, lr_scheduler_type=name)
        with pytest.warns(UserWarning, match=f"ignores lr_scheduler_type='{name}'"):
            trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(16))
        trainer.train()
        assert trainer.lr_scheduler.schedule == CosineRestartSchedule.fit(4)

    @pytest.mark.filterwarnings("error:.*ignores lr_scheduler_type")
    @pytest.mark.parametrize("named", [{}, {"lr_scheduler_type": "cosine_with_restarts"}])
    def test_name_the_schedule_while_they_are_reported_and_keep_the_given_values(self, tmp_path, named):
        class Reports(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                self.reported = args.to_dict()["lr_scheduler_type"]

        reports = Reports()
        args = training_arguments(tmp_path, max_steps=2, lr_scheduler_kwargs='{"num_cycles": 2}', **named)
        given = args.to_dict()
        trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(8), callbacks=[reports])
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        assert trainer.args is args
        assert args.to_dict() == given
        assert reports.reported == "cosine_with_restarts"
        assert "lr_scheduler_type: cosine_with_restarts" in (tmp_path / "README.md").read_text()

    def test_a_scheduler_that_was_passed_in_is_used(self, tmp_path):
        model = causal_lm()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scheduler = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 0, 8, num_cycles=2)
        args = training_arguments(tmp_path, max_steps=8, lr_scheduler_type="linear", lr_scheduler_kwargs={"other": 1})
        with pytest.warns(UserWarning, match="ignores lr_scheduler_kwargs"):
            trainer = WarmCosTrainer(model, args, train_dataset=token_rows(16), optimizers=(optimizer, scheduler))
        trainer.train()
        assert trainer.lr_scheduler is scheduler
        assert logged_rates(trainer)[0] == 0.5

    def test_an_optimizer_that_was_passed_in_is_scheduled(self, tmp_path):
        model = causal_lm()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        args = training_arguments(tmp_path, max_steps=8, lr_scheduler_kwargs=FOUR_CYCLES)
        trainer = WarmCosTrainer(model, args, train_dataset=token_rows(16), optimizers=(optimizer, None))
        trainer.train()
        assert logged_rates(trainer) == rates_of(CosineRestartSchedule.fit(8, 4, decay=0.75), 8, base_lr=0.5)

    def test_the_optimizer_argument_is_scheduled_as_deepspeed_asks_for_it(self, tmp_path):
        trainer = WarmCosTrainer(causal_lm(), training_arguments(tmp_path, lr_scheduler_kwargs=FOUR_CYCLES))
        trainer.create_optimizer_and_scheduler(num_training_steps=20)
        # What transformers.integrations.deepspeed does in the callable that it hands to DeepSpeed.
        trainer_copy = copy.copy(trainer)
        trainer_copy.lr_scheduler = None
        optimizer = make_optimizer(0.5)
        scheduler = trainer_copy.create_scheduler(num_training_steps=20, optimizer=optimizer)
        assert scheduler.optimizer is optimizer
        assert scheduler.schedule == trainer.lr_scheduler.schedule
        assert trainer.lr_scheduler.optimizer is trainer.optimizer


class TestMixin:
    def test_after_the_trainer_is_an_error_at_the_definition_of_the_class(self):
        with pytest.raises(TypeError, match=r"class Wrong\(WarmCosTrainerMixin, Trainer\)"):

            class Wrong(Seq2SeqTrainer, WarmCosTrainerMixin):
                pass

    def test_before_a_trainer_in_several_steps_is_right(self, tmp_path):
        class Own(Trainer):
            pass

        class First(WarmCosTrainerMixin, Trainer):
            pass

        class Second(Own, First):
            pass

        trainer = train(tmp_path, Second, max_steps=4, lr_scheduler_kwargs=FOUR_CYCLES)
        assert trainer.lr_scheduler.schedule == CosineRestartSchedule.fit(4, 4, decay=0.75)

    def test_leaves_the_built_in_schedule_to_trainers_in_other_threads(self, tmp_path):
        wrong, stop = [], threading.Event()

        def watch():
            while not stop.is_set():
                if built_in() is not get_cosine_with_hard_restarts_schedule_with_warmup:
                    wrong.append(built_in())

        def schedule(trainers, scheduler_class):
            for trainer in trainers:
                trainer.create_optimizer_and_scheduler(num_training_steps=20)
                if not isinstance(trainer.lr_scheduler, scheduler_class):
                    wrong.append(trainer.lr_scheduler)

        # Trainers are made in one thread, since they share a state of Accelerate, which each makes anew.
        ours = training_arguments(tmp_path, lr_scheduler_kwargs=FOUR_CYCLES)
        plain = training_arguments(
            tmp_path, lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 4}
        )
        threads = [
            threading.Thread(
                target=schedule, args=([trainer_class(causal_lm(), args) for _ in range(10)], scheduler_class)
            )
            for trainer_class, scheduler_class, args in 2
            * [(WarmCosTrainer, CosineRestartLR, ours), (Trainer, LambdaLR, plain)]
        ]
        watcher = threading.Thread(target=watch)
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        watcher.join()
        assert wrong == []
