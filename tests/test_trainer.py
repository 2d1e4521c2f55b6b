from __future__ import annotations

import copy
import json
import logging
import random
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from code_blocks import code_blocks, run_blocks
from example_runs import free_port
from optimizers import make_optimizer
from torch.optim.lr_scheduler import LambdaLR
from trainer_runs import (
    BASE_LR,
    causal_lm,
    logged_rates,
    processes,
    token_rows,
    train_and_keep_result,
    train_in_process_group,
    training_arguments,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    HfArgumentParser,
    SchedulerType,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_with_hard_restarts_schedule_with_warmup,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_warmcos import (
    CosineRestartLR,
    CosineRestartSchedule,
    CycleEndCallback,
    WarmCosTrainer,
    WarmCosTrainerMixin,
    find_cycle_end_checkpoints,
    register,
)
from hf_warmcos.checkpoints import find_incomplete_file, trainer_checkpoints

FOUR_CYCLES = {"num_cycles": 4, "decay": 0.75}


def train(output_dir, trainer_class=WarmCosTrainer, num_rows=64, model=None, **arguments):
    args = training_arguments(output_dir, **arguments)
    trainer = trainer_class(causal_lm() if model is None else model, args, train_dataset=token_rows(num_rows))
    trainer.train()
    return trainer


def rates_of(schedule, num_steps, base_lr=BASE_LR):
    return [schedule.lr_at(step, base_lr) for step in range(num_steps)]


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
            process.join(timeout=600)
        assert [process.exitcode for process in group] == [0, 0]
        schedule = CosineRestartSchedule.fit(20, 4, decay=0.75, warmup_steps=4)
        results = [torch.load(tmp_path / f"result_{rank}.pt") for rank in range(2)]
        assert results[0]["rates"] == rates_of(schedule, 20)
        for weight, other_weight in zip(results[0]["weights"].values(), results[1]["weights"].values()):
            assert torch.equal(weight, other_weight)


class TestOtherTrainers:
    """The mixin before the trainers of transformers, TRL and Sentence Transformers, and a PEFT model."""

    NUM_STEPS = 12
    ARGUMENTS = {"max_steps": NUM_STEPS, "warmup_steps": 2, "lr_scheduler_kwargs": FOUR_CYCLES}  # noqa: RUF012
    RATES = rates_of(CosineRestartSchedule.fit(NUM_STEPS, 4, decay=0.75, warmup_steps=2), NUM_STEPS)

    def test_seq2seq_trainer(self, tmp_path):
        class WarmCosSeq2SeqTrainer(WarmCosTrainerMixin, Seq2SeqTrainer):
            pass

        config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        config.decoder_start_token_id = 0
        args = training_arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, **self.ARGUMENTS)
        trainer = WarmCosSeq2SeqTrainer(
            T5ForConditionalGeneration(config), args, train_dataset=token_rows(16), eval_dataset=token_rows(4)
        )
        trainer.train()
        assert logged_rates(trainer) == self.RATES
        assert trainer.evaluate(max_length=8)["eval_loss"] > 0

    def test_sft_trainer_of_trl(self, tmp_path):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        class WarmCosSFTTrainer(WarmCosTrainerMixin, SFTTrainer):
            pass

        tokenizer = ByT5Tokenizer()
        model = causal_lm(vocab_size=len(tokenizer), n_positions=64)
        args = training_arguments(tmp_path, SFTConfig, max_length=64, **self.ARGUMENTS)
        texts = Dataset.from_dict({"text": [f"Each restart has a peak, and this is row {row}." for row in range(16)]})
        trainer = WarmCosSFTTrainer(model, args, train_dataset=texts, processing_class=tokenizer)
        trainer.train()
        assert logged_rates(trainer) == self.RATES

    @pytest.mark.parametrize("name", ["DPO", "GRPO", "Reward"])
    def test_preference_trainers_of_trl(self, tmp_path, name):
        import trl
        from datasets import Dataset

        trainer_class = type("WarmCos", (WarmCosTrainerMixin, getattr(trl, f"{name}Trainer")), {})
        tokenizer = ByT5Tokenizer(extra_ids=0)
        answers = {"prompt": ["a b"] * 16, "chosen": [" c"] * 16, "rejected": [" d"] * 16}
        dataset = Dataset.from_dict({"prompt": answers["prompt"]} if name == "GRPO" else answers)
        arguments, rewards = dict(self.ARGUMENTS), {}
        if name == "GRPO":
            arguments |= {"num_generations": 2, "max_completion_length": 4}
            rewards = {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]}
        config = causal_lm(vocab_size=len(tokenizer), n_positions=64, num_labels=1).config
        model_class = GPT2ForSequenceClassification if name == "Reward" else GPT2LMHeadModel
        model_class(config).save_pretrained(tmp_path / "model")  # DPO loads it once more
        model = model_class.from_pretrained(tmp_path / "model")
        args = training_arguments(tmp_path, getattr(trl, f"{name}Config"), **arguments)
        trainer = trainer_class(model, args=args, train_dataset=dataset, processing_class=tokenizer, **rewards)
        trainer.train()
        assert logged_rates(trainer) == self.RATES

    def test_sentence_transformer_trainer(self, tmp_path):
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        class WarmCosSentenceTransformerTrainer(WarmCosTrainerMixin, SentenceTransformerTrainer):
            pass

        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "each", "restart", "has", "a", "peak", "that", "decays"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
        transformer = Transformer(str(tmp_path / "bert"))
        model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
        args = training_arguments(tmp_path / "out", SentenceTransformerTrainingArguments, **self.ARGUMENTS)
        pairs = Dataset.from_dict({"anchor": words[5:] * 2, "positive": words[:4:-1] * 2})
        trainer = WarmCosSentenceTransformerTrainer(
            model, args, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
        )
        trainer.train()
        assert logged_rates(trainer) == self.RATES

    def test_a_peft_model_in_a_warm_cos_trainer(self, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(causal_lm(), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        trainer = train(tmp_path, model=model, **self.ARGUMENTS)
        assert logged_rates(trainer) == self.RATES
        trained = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
        assert trained
        assert all("lora_" in name for name in trained)

    def test_a_peft_model_whose_base_model_is_only_in_memory_is_saved_and_resumed(self, tmp_path):
        from peft import LoraConfig, get_peft_model

        def trainer(output_dir):
            model = get_peft_model(causal_lm(), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
            args = training_arguments(output_dir, load_best_model_at_end=True, **self.ARGUMENTS)
            rows = {"train_dataset": token_rows(64), "eval_dataset": token_rows(8)}
            return WarmCosTrainer(model, args, **rows, callbacks=[CycleEndCallback()])

        whole, resumed = trainer(tmp_path), trainer(tmp_path / "resumed")
        whole.train()
        whole.create_model_card()
        checkpoints = find_cycle_end_checkpoints(tmp_path)
        assert [folder.name for folder in checkpoints] == [
            "checkpoint-4",
            "checkpoint-7",
            "checkpoint-10",
            "checkpoint-12",
        ]
        resumed.train(resume_from_checkpoint=checkpoints[1])
        assert logged_rates(resumed) == logged_rates(whole) == self.RATES
        for weight, expected in zip(resumed.model.parameters(), whole.model.parameters()):
            assert torch.equal(weight, expected)


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
        with pytest.warns(UserWarning, match=f"ignores lr_scheduler_type='{name}'"):
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


class TestLayerWiseOptimizers:
    """What transformers makes of `optim="galore_adamw_layerwise"` and of APOLLO's, with AdamW in place of these."""

    RATES = rates_of(CosineRestartSchedule.fit(14, 3, T_mult=2), 14)

    def train(self, output_dir, trainer_class=WarmCosTrainer, resume_from_checkpoint=None, **arguments):
        """Train; return the learning rate of each update of each parameter, and the trainer."""
        model = causal_lm()
        rates = {parameter: [] for parameter in model.parameters()}
        optimizers = {parameter: torch.optim.AdamW([parameter], lr=BASE_LR) for parameter in rates}

        def update(parameter):
            rates[parameter].append(optimizers[parameter].param_groups[0]["lr"])
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in rates:
            parameter.register_post_accumulate_grad_hook(update)
        kwargs = {"num_cycles": 3, "T_mult": 2}
        args = training_arguments(
            output_dir, max_steps=14, save_strategy="steps", save_steps=5, lr_scheduler_kwargs=kwargs, **arguments
        )
        trainer = trainer_class(
            model,
            args,
            train_dataset=token_rows(64),
            optimizer_cls_and_kwargs=(LayerWiseDummyOptimizer, {"optimizer_dict": optimizers, "lr": BASE_LR}),
        )
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        return [*rates.values()], trainer

    @pytest.mark.filterwarnings("error:Detected call of")
    def test_update_each_parameter_by_the_schedule_also_when_resumed(self, tmp_path):
        rates, trainer = self.train(tmp_path)
        assert len(rates) > 10
        assert all(of_parameter == self.RATES for of_parameter in rates)
        assert logged_rates(trainer) == self.RATES
        resumed, trainer = self.train(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
        assert all(of_parameter == self.RATES[5:] for of_parameter in resumed)
        assert logged_rates(trainer) == self.RATES

    @pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="transformers 4 has another way for it")
    def test_do_so_in_a_plain_trainer_with_register(self, tmp_path):
        arguments = {"trainer_class": Trainer, "lr_scheduler_type": "cosine_with_restarts"}
        checkpoint = str(tmp_path / "checkpoint-5")
        with register():
            rates, _ = self.train(tmp_path, **arguments)
            resumed, _ = self.train(tmp_path, resume_from_checkpoint=checkpoint, **arguments)
        assert all(of_parameter == self.RATES for of_parameter in rates)
        assert all(of_parameter == self.RATES[5:] for of_parameter in resumed)


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


SAVED = {"max_steps": 12, "lr_scheduler_kwargs": FOUR_CYCLES, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a checkpoint at every third step."""
    return train(tmp_path_factory.mktemp("run"), **SAVED)


class TestResuming:
    @pytest.fixture
    def output_dir(self, run, tmp_path):
        """A copy of the run, whose last checkpoint is gone."""
        output_dir = shutil.copytree(run.args.output_dir, tmp_path / "copy")
        shutil.rmtree(output_dir / "checkpoint-12")
        return output_dir

    def resume(self, output_dir, resume_from_checkpoint):
        trainer = WarmCosTrainer(causal_lm(), training_arguments(output_dir, **SAVED), train_dataset=token_rows(64))
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        return trainer

    @pytest.mark.parametrize(
        ("torn", "passed_over"),
        [({}, []), ({9: "trainer_state.json"}, [9]), ({9: "model.safetensors", 6: "optimizer.pt"}, [9, 6])],
    )
    def test_takes_the_newest_complete_checkpoint_and_names_what_it_skipped(
        self, run, output_dir, caplog, torn, passed_over
    ):
        for step, name in torn.items():
            path = output_dir / f"checkpoint-{step}" / name
            path.write_bytes(path.read_bytes()[:50])
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        resumed = self.resume(output_dir, True)
        messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
        assert len(messages) == bool(passed_over)
        for step in passed_over:
            assert f"{output_dir / f'checkpoint-{step}' / torn[step]} is missing or incomplete" in messages[0]
        for weight, expected in zip(resumed.model.parameters(), run.model.parameters()):
            assert torch.equal(weight, expected)

    def test_from_a_torn_checkpoint_is_an_error_that_names_the_file(self, output_dir):
        torn = output_dir / "checkpoint-9" / "trainer_state.json"
        torn.unlink()
        with pytest.raises(ValueError, match=f"but {torn} is missing or incomplete"):
            self.resume(output_dir, str(output_dir / "checkpoint-9"))

    def test_where_the_only_checkpoint_is_incomplete_is_an_error_that_says_what_to_do(self, output_dir):
        for step in (6, 9):
            shutil.rmtree(output_dir / f"checkpoint-{step}")
        torn = output_dir / "checkpoint-3" / "trainer_state.json"
        torn.unlink()
        message = f"but {torn} is missing or incomplete. Start without resume_from_checkpoint, or pass the path"
        with pytest.raises(ValueError, match=re.escape(message)):
            self.resume(output_dir, True)

    def test_where_there_is_no_checkpoint_is_an_error_that_says_what_to_do(self, tmp_path):
        with pytest.raises(ValueError, match=r"but there is none\. Start without resume_from_checkpoint, or"):
            self.resume(tmp_path, True)

    def test_from_a_folder_that_is_not_there_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(ValueError, match=f"but {tmp_path / 'nowhere' / 'trainer_state.json'} is missing"):
            self.resume(tmp_path, tmp_path / "nowhere")

    @pytest.mark.parametrize("by_path", [True, False])
    @pytest.mark.parametrize("missing", [["optimizer.pt", "scheduler.pt"], ["optimizer.pt"], ["scheduler.pt"], []])
    def test_from_a_checkpoint_whose_schedule_a_trainer_does_not_load_is_warned_of(
        self, output_dir, caplog, missing, by_path
    ):
        for name in missing:
            (output_dir / "checkpoint-9" / name).unlink()
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        resumed = self.resume(output_dir, output_dir / "checkpoint-9" if by_path else True)
        rates = rates_of(CosineRestartSchedule.fit(12, 4, decay=0.75), 12)
        assert logged_rates(resumed)[9:] == (rates[:3] if missing else rates[9:])
        messages = [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]
        assert messages == [
            f"{output_dir / 'checkpoint-9'} has no optimizer or scheduler state (save_only_model?): the schedule "
            "starts again at step 0"
        ] * bool(missing)

    @pytest.mark.parametrize("names", [["optimizer_0/__0_0.distcp", "scheduler.pt"], ["global_step9/mp_rank_00.pt"]])
    def test_from_a_checkpoint_of_fsdp_or_deepspeed_is_not(self, output_dir, caplog, monkeypatch, names):
        checkpoint = output_dir / "checkpoint-9"
        for name in ("optimizer.pt", "scheduler.pt"):
            (checkpoint / name).unlink()
        for name in names:
            (checkpoint / name).parent.mkdir(exist_ok=True)
            torch.save({}, checkpoint / name)
        caplog.set_level(logging.WARNING, logger="hf_warmcos")
        monkeypatch.setattr(Trainer, "train", lambda self, resume_from_checkpoint: resume_from_checkpoint)
        assert WarmCosTrainer(causal_lm(), training_arguments(output_dir)).train(checkpoint) == str(checkpoint)
        assert [record for record in caplog.records if record.name == "hf_warmcos"] == []

    def test_works_where_a_trainer_saves_and_loads_its_weights_itself(self, tmp_path):
        class SavesItsWeightsItself(WarmCosTrainer):
            def _save(self, output_dir=None, state_dict=None):
                Path(output_dir).mkdir(parents=True)
                torch.save(self.model.state_dict(), Path(output_dir, "projector.weights"))

            def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
                self.model.load_state_dict(torch.load(Path(resume_from_checkpoint, "projector.weights")))

        whole = train(tmp_path, SavesItsWeightsItself, **SAVED)
        shutil.rmtree(tmp_path / "checkpoint-12")
        for resume_from_checkpoint in (True, tmp_path / "checkpoint-9"):
            args = training_arguments(tmp_path, **{**SAVED, "save_strategy": "no"})
            resumed = SavesItsWeightsItself(causal_lm(), args, train_dataset=token_rows(64))
            resumed.train(resume_from_checkpoint=resume_from_checkpoint)
            for weight, expected in zip(resumed.model.parameters(), whole.model.parameters()):
                assert torch.equal(weight, expected)

    def test_continues_with_another_initial_learning_rate_by_the_callback_of_the_troubleshooting_page(self, tmp_path):
        page = "docs/troubleshooting.md"
        (block,) = (block for block in code_blocks(page, "python") if "NewInitialLearningRate" in block)
        callback = run_blocks([block], page)["NewInitialLearningRate"]()
        args = training_arguments(tmp_path, max_steps=12, save_steps=6, save_strategy="steps")
        WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64)).train()
        shutil.rmtree(tmp_path / "checkpoint-12")
        args = training_arguments(tmp_path, max_steps=12, learning_rate=BASE_LR / 4)
        trainer = WarmCosTrainer(causal_lm(), args, train_dataset=token_rows(64), callbacks=[callback])
        trainer.train(resume_from_checkpoint=True)
        schedule = CosineRestartSchedule.fit(12)
        initial = [BASE_LR] * 6 + [BASE_LR / 4] * 6
        assert logged_rates(trainer) == [schedule.lr_at(step, lr) for step, lr in enumerate(initial)]

    def test_from_a_path_or_from_nothing_is_as_in_a_plain_trainer(self, run, output_dir):
        resumed = self.resume(output_dir, output_dir / "checkpoint-6")
        for weight, expected in zip(resumed.model.parameters(), run.model.parameters()):
            assert torch.equal(weight, expected)
        assert self.resume(output_dir, False).state.global_step == 12


class TestKilled:
    @pytest.mark.slow
    def test_twenty_times_while_it_saves_and_resumed_ends_with_the_weights_and_rates_of_a_run_left_alone(
        self, tmp_path
    ):
        num_steps, save_steps = 320, 4
        arguments = {
            "max_steps": num_steps,
            "warmup_steps": 20,
            "lr_scheduler_kwargs": {"num_cycles": 5, "decay": 0.75, "min_lr": 1e-4},
            "save_strategy": "steps",
            "save_steps": save_steps,
            "save_total_limit": 3,
        }
        left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
        left_alone.mkdir()
        killed.mkdir()

        def start(output_dir):
            resume = any(find_incomplete_file(folder) is None for folder in trainer_checkpoints(output_dir))
            process = processes.Process(target=train_and_keep_result, args=(str(output_dir), resume), kwargs=arguments)
            process.start()
            return process

        def finish(output_dir):
            process = start(output_dir)
            process.join(timeout=600)
            assert process.exitcode == 0

        finish(left_alone)
        num_torn = 0
        while num_torn < 20:  # the other kills come when a save has just ended
            process, known, num_saves = start(killed), {*trainer_checkpoints(killed)}, random.choice([1, 2])
            while len({*trainer_checkpoints(killed)} - known) < num_saves and process.is_alive():
                time.sleep(0.0005)
            time.sleep(random.uniform(0, 0.006))
            process.kill()
            process.join(timeout=600)
            assert process.exitcode == -9
            num_torn += any(find_incomplete_file(folder) for folder in trainer_checkpoints(killed)[:1])
        finish(killed)

        expected, result = (torch.load(folder / "result_0.pt") for folder in (left_alone, killed))
        schedule = CosineRestartSchedule.fit(num_steps, 5, decay=0.75, warmup_steps=20, eta_min=1e-4)
        assert expected["rates"] == result["rates"] == rates_of(schedule, num_steps)
        assert expected["weights"].keys() == result["weights"].keys()
        for name, weight in expected["weights"].items():
            assert torch.equal(weight, result["weights"][name]), name
