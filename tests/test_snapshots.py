from __future__ import annotations

import shutil
import weakref

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from trainer_runs import VOCAB_SIZE, causal_lm, token_rows, training_arguments
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    T5Config,
    Trainer,
    default_data_collator,
    set_seed,
)

from hf_warmcos import (
    CycleEndCallback,
    SnapshotEnsemble,
    WarmCosTrainer,
    get_cosine_restarts_with_decay_and_warmup_schedule,
)
from hf_warmcos.snapshots import _CLASSIFICATION, find_cycle_end_checkpoints

BERT = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "max_position_embeddings": 8}
TOKENS = torch.randint(1, VOCAB_SIZE, (4, 8), generator=torch.Generator().manual_seed(0))
FLAGS = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three cycles, saved at their ends and every 5 steps; with its last model."""
    output_dir = tmp_path_factory.mktemp("run")
    kwargs = {"num_cycles": 3, "decay": 0.75}
    args = training_arguments(output_dir, max_steps=24, lr_scheduler_kwargs=kwargs, save_strategy="steps", save_steps=5)
    trainer = WarmCosTrainer(
        causal_lm(), args, train_dataset=token_rows(32), callbacks=[CycleEndCallback(evaluate=False)]
    )
    trainer.train()
    return output_dir, trainer.model.eval()


def save_models(folder, model_class, config, num_models=3):
    """Models of one configuration with different weights, each in a folder of its own."""
    for seed in range(num_models):
        set_seed(seed)
        model = model_class.from_config(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        model.save_pretrained(folder / str(seed))
    return [folder / str(seed) for seed in range(num_models)]


CASES = {
    "causal LM": (AutoModelForCausalLM, causal_lm().config, {"input_ids": TOKENS, "labels": TOKENS}),
    "seq2seq LM": (
        AutoModelForSeq2SeqLM,
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0),
        {"input_ids": TOKENS, "labels": TOKENS},
    ),
    "masked LM": (
        AutoModelForMaskedLM,
        BertConfig(**BERT),
        {"input_ids": TOKENS, "labels": TOKENS.masked_fill(TOKENS > 20, -100)},
    ),
    "sequence classification": (
        AutoModelForSequenceClassification,
        BertConfig(**BERT, num_labels=3),
        {"input_ids": TOKENS, "labels": torch.tensor([0, 2, 1, 0])},
    ),
    "multi-label classification": (
        AutoModelForSequenceClassification,
        BertConfig(**BERT, num_labels=3, problem_type="multi_label_classification"),
        {"input_ids": TOKENS, "labels": FLAGS.float()},
    ),
    "regression": (
        AutoModelForSequenceClassification,
        BertConfig(**BERT, num_labels=1),
        {"input_ids": TOKENS, "labels": torch.tensor([0.0, 0.5, -1.0, 2.0])},
    ),
    "token classification": (
        AutoModelForTokenClassification,
        BertConfig(**BERT, num_labels=3),
        {"input_ids": TOKENS, "labels": TOKENS % 3},
    ),
    "multiple choice": (
        AutoModelForMultipleChoice,
        BertConfig(**BERT),
        {"input_ids": TOKENS.unflatten(0, (2, 2)), "labels": torch.tensor([1, 0])},
    ),
}


class TestPredictions:
    @pytest.mark.parametrize("case", CASES)
    def test_are_the_average_of_probabilities_with_its_own_loss(self, tmp_path, case):
        model_class, config, inputs = CASES[case]
        folders = save_models(tmp_path, model_class, config)
        outputs = [model_class.from_pretrained(folder)(**inputs) for folder in folders]
        logits = torch.stack([output.logits.double() for output in outputs])
        if case == "regression":
            expected = logits.mean(0)
        elif case == "multi-label classification":
            expected = torch.logit(logits.sigmoid().mean(0))
        else:
            expected = logits.softmax(-1).mean(0).log()
        output = SnapshotEnsemble(model_class, folders)(**inputs)
        assert output.logits.dtype == torch.float32
        torch.testing.assert_close(output.logits.double(), expected, rtol=1e-4, atol=1e-4)
        assert not output.logits.requires_grad

    @pytest.mark.parametrize("case", CASES)
    def test_of_a_single_model_have_the_loss_that_the_model_gives_itself(self, tmp_path, case):
        model_class, config, inputs = CASES[case]
        folders = save_models(tmp_path, model_class, config, num_models=1)
        model = model_class.from_pretrained(folders[0])
        loss = SnapshotEnsemble(model_class, folders)(**inputs).loss
        torch.testing.assert_close(loss, model(**inputs).loss, rtol=1e-5, atol=1e-6)

    def test_of_spans_average_start_and_end(self, tmp_path):
        folders = save_models(tmp_path, AutoModelForQuestionAnswering, BertConfig(**BERT))
        output = SnapshotEnsemble(AutoModelForQuestionAnswering, folders)(input_ids=TOKENS)
        outputs = [AutoModelForQuestionAnswering.from_pretrained(folder)(input_ids=TOKENS) for folder in folders]
        for name in ("start_logits", "end_logits"):
            expected = torch.stack([output[name] for output in outputs]).softmax(-1).mean(0)
            torch.testing.assert_close(output[name].exp(), expected)

    def test_loss_is_the_cross_entropy_of_the_logits_and_at_most_the_mean_loss_of_the_models(self, tmp_path):
        model_class, config, inputs = CASES["causal LM"]
        folders = save_models(tmp_path, model_class, config)
        output = SnapshotEnsemble(model_class, folders)(**inputs)
        expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)
        losses = [model_class.from_pretrained(folder)(**inputs).loss for folder in folders]
        # The logarithm is concave (Jensen).
        assert output.loss <= torch.stack(losses).mean()

    @settings(deadline=None, max_examples=50)
    @given(scale=st.floats(0, 1e30), seed=st.integers(0, 1000))
    def test_are_finite_and_sum_to_one_for_extreme_logits(self, scale, seed):
        model_logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * scale
        total = _CLASSIFICATION.enter(model_logits[0])
        for logits in model_logits[1:]:
            total = _CLASSIFICATION.add(total, _CLASSIFICATION.enter(logits))
        averaged = _CLASSIFICATION.leave(total, 3)
        assert averaged.isfinite().all()
        torch.testing.assert_close(averaged.exp().sum(-1), torch.ones(4), rtol=1e-5, atol=0)

    def test_half_precision_models_are_averaged_in_float32(self, tmp_path):
        model_class, config, inputs = CASES["causal LM"]
        folders = save_models(tmp_path, model_class, config)
        ensemble = SnapshotEnsemble(model_class, folders, dtype=torch.bfloat16)
        assert {weight.dtype for weight in ensemble.parameters()} == {torch.bfloat16}
        assert ensemble(**inputs).logits.dtype == torch.float32

    def test_without_logits_are_an_error(self, tmp_path):
        folders = save_models(tmp_path, AutoModelForCausalLM, causal_lm().config, num_models=1)
        with pytest.raises(ValueError, match=r"Expected models that return logits, but got .* last_hidden_state"):
            SnapshotEnsemble(AutoModel, folders)(input_ids=TOKENS)


class TestMemory:
    def test_one_at_a_time_holds_no_model_and_predicts_the_same(self, tmp_path):
        model_class, config, inputs = CASES["causal LM"]
        folders = save_models(tmp_path, model_class, config)
        ensemble = SnapshotEnsemble(model_class, folders, one_at_a_time=True)
        assert list(ensemble.parameters()) == []
        assert torch.equal(ensemble(**inputs).logits, SnapshotEnsemble(model_class, folders)(**inputs).logits)

    def test_one_at_a_time_never_has_two_models(self, tmp_path):
        model_class, config, inputs = CASES["causal LM"]
        folders = save_models(tmp_path, model_class, config)
        alive, most = 0, 0

        class Counted(model_class):
            @classmethod
            def from_pretrained(cls, *args, **kwargs):
                nonlocal alive, most
                model = model_class.from_pretrained(*args, **kwargs)
                alive += 1
                most = max(most, alive)
                weakref.finalize(model, dropped)
                return model

        def dropped():
            nonlocal alive
            alive -= 1

        SnapshotEnsemble(Counted, folders, one_at_a_time=True)(**inputs)
        assert most == 1


class TestTrainerEvaluation:
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_gives_the_loss_and_the_predictions_of_the_ensemble(self, run, tmp_path, one_at_a_time):
        output_dir, _ = run
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, output_dir, one_at_a_time=one_at_a_time)
        args = training_arguments(tmp_path, per_device_eval_batch_size=4, remove_unused_columns=False)
        rows = token_rows(8, seed=1)
        trainer = Trainer(ensemble, args, eval_dataset=rows, data_collator=default_data_collator)
        metrics = trainer.evaluate()
        predictions = trainer.predict(rows).predictions
        expected = ensemble(**default_data_collator(rows))
        assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-5)
        torch.testing.assert_close(torch.from_numpy(predictions), expected.logits)


class TestCheckpoints:
    def test_of_an_output_folder_are_those_at_cycle_ends_in_order(self, run):
        output_dir, last_model = run
        assert (output_dir / "checkpoint-10").exists()
        names = [folder.name for folder in find_cycle_end_checkpoints(output_dir)]
        assert names == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, output_dir)
        assert ensemble.checkpoints == find_cycle_end_checkpoints(output_dir)
        assert torch.equal(ensemble.models[-1](TOKENS).logits, last_model(TOKENS).logits)

    def test_that_were_cut_off_are_left_out(self, run, tmp_path):
        output_dir = shutil.copytree(run[0], tmp_path / "run")
        scheduler = output_dir / "checkpoint-16" / "scheduler.pt"
        scheduler.write_bytes(scheduler.read_bytes()[:100])
        (output_dir / "checkpoint-24" / "scheduler.pt").unlink()
        assert [folder.name for folder in find_cycle_end_checkpoints(output_dir)] == ["checkpoint-8"]

    def test_of_accelerate_take_the_configuration_of_the_output_folder(self, tmp_path):
        accelerator = Accelerator(cpu=True)
        model = causal_lm()
        model.config.save_pretrained(tmp_path)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 0, 6, num_cycles=3)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        for step in range(1, 7):
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step != 4:
                accelerator.save_state(tmp_path / f"cycle_{step}")
        model.eval()
        found = [folder.name for folder in find_cycle_end_checkpoints(tmp_path)]
        assert found == ["cycle_2", "cycle_6"]
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, tmp_path)
        assert torch.equal(ensemble.models[-1](TOKENS).logits, model(TOKENS).logits)

    def test_of_a_run_of_another_schedule_are_an_error(self, tmp_path):
        args = training_arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        Trainer(causal_lm(), args, train_dataset=token_rows(16)).train()
        with pytest.raises(ValueError, match=r"Expected checkpoints of cycle ends .* found none among 2 checkpoints"):
            SnapshotEnsemble(AutoModelForCausalLM, tmp_path)

    def test_can_be_the_last_ones_of_a_list(self, run):
        folders = find_cycle_end_checkpoints(run[0])[-2:]
        assert SnapshotEnsemble(AutoModelForCausalLM, folders).checkpoints == folders

    def test_of_an_empty_list_are_an_error(self):
        with pytest.raises(ValueError, match=r"Expected checkpoints to have at least one folder, but got \[\]"):
            SnapshotEnsemble(AutoModelForCausalLM, [])
