"""`WarmCosTrainer` and its mixin with other trainers, models and optimizers."""

from __future__ import annotations

import importlib

import pytest
import torch
import transformers
from trainer_runs import (
    BASE_LR,
    FOUR_CYCLES,
    causal_lm,
    logged_rates,
    rates_of,
    token_rows,
    train,
    training_arguments,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_warmcos import (
    CosineRestartSchedule,
    CycleEndCallback,
    WarmCosTrainer,
    WarmCosTrainerMixin,
    find_cycle_end_checkpoints,
    register,
)


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

    @pytest.mark.needs("trl")
    @pytest.mark.parametrize("name", ["DPO", "GRPO", "Reward", "KTO", "experimental.orpo.ORPO"])
    def test_preference_trainers_of_trl(self, tmp_path, name):
        from datasets import Dataset

        *module, name = name.split(".")
        trl = importlib.import_module(".".join(["trl", *module]))
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
