from __future__ import annotations

import copy
import inspect
import pickle
import weakref

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from task_heads import HEADS, TOKENS, Head, save_models
from torch.nn import functional as F
from trainer_runs import causal_lm, token_rows, training_arguments
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoModelForSequenceClassification,
    BeitConfig,
    BertForSequenceClassification,
    ByT5Tokenizer,
    GPT2LMHeadModel,
    MixtralConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    ViTConfig,
    ViTMAEConfig,
    YolosConfig,
    default_data_collator,
)

from hf_warmcos import SnapshotEnsemble
from hf_warmcos.snapshots import one_of_classes

# Models of the same name in both: what an AutoModel class makes of a folder, and an ensemble of folders.
CAUSAL_LM = HEADS["causal LM"]
CLASSIFICATION = HEADS["sequence classification"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that returns the folders of three models with a task head."""
    folders = {}

    def save(name):
        if name not in folders:
            folders[name] = save_models(tmp_path_factory.mktemp("models"), HEADS[name])
        return folders[name]

    return save


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two LoRA adapters on one causal language model."""
    folder = tmp_path_factory.mktemp("adapters")
    causal_lm().save_pretrained(folder / "base")
    folders = [folder / "1", folder / "2"]
    for seed, path in enumerate(folders):
        base_model = GPT2LMHeadModel.from_pretrained(folder / "base")
        model = get_peft_model(base_model, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight)
        model.save_pretrained(path)
    return folders


def outputs_of(model_class, folders, inputs):
    with torch.no_grad():
        return [model_class.from_pretrained(folder)(**inputs) for folder in folders]


def by_hand(head, own):
    """The averages of the logits, and their loss."""
    if "start_logits" not in own[0]:
        logits = head.average(torch.stack([output.logits for output in own]))
        return {"loss": head.loss(logits, head.inputs["labels"]), "logits": logits}
    ends = {side: head.average(torch.stack([output[f"{side}_logits"] for output in own])) for side in ("start", "end")}
    loss = sum(head.loss(logits, head.inputs[f"{side}_positions"]) for side, logits in ends.items()) / 2
    return {"loss": loss, "start_logits": ends["start"], "end_logits": ends["end"]}


def assert_equals_by_hand(output, expected):
    assert list(output) == list(expected)
    for name, value in expected.items():
        assert output[name].dtype == torch.float32
        torch.testing.assert_close(output[name].double(), value, rtol=1e-4, atol=1e-4)


def trainer_of(model, output_dir, head, **arguments):
    rows = [
        {name: value[index] for name, value in head.inputs.items()}
        for index in range(len(next(iter(head.inputs.values()))))
    ]
    # A batch of all rows: means over batches are no mean over their rows where rows have labels to ignore.
    args = training_arguments(output_dir, per_device_eval_batch_size=len(rows), **arguments)
    return Trainer(model, args, eval_dataset=rows, data_collator=default_data_collator), rows


class TestTaskHeads:
    @pytest.mark.parametrize("name", HEADS)
    def test_an_ensemble_of_one_has_the_logits_and_the_loss_of_its_model(self, saved, name):
        head, folders = HEADS[name], saved(name)[:1]
        own = outputs_of(head.model_class, folders, head.inputs)
        output = SnapshotEnsemble(head.model_class, folders)(**head.inputs)
        torch.testing.assert_close(output.loss, own[0].loss, rtol=1e-5, atol=1e-6)
        assert_equals_by_hand(output, by_hand(head, own))

    @pytest.mark.parametrize("one_at_a_time", [False, True])
    @pytest.mark.parametrize("name", HEADS)
    def test_an_ensemble_of_three_has_the_average_by_hand_and_its_loss(self, saved, name, one_at_a_time):
        head, folders = HEADS[name], saved(name)
        output = SnapshotEnsemble(head.model_class, folders, one_at_a_time=one_at_a_time)(**head.inputs)
        assert_equals_by_hand(output, by_hand(head, outputs_of(head.model_class, folders, head.inputs)))

    @pytest.mark.parametrize("name", HEADS)
    def test_a_trainer_evaluates_and_predicts_with_it_as_with_its_models(self, saved, tmp_path, name):
        head, folders = HEADS[name], saved(name)
        own_trainer, _ = trainer_of(head.model_class.from_pretrained(folders[0]), tmp_path, head)
        own_loss = own_trainer.evaluate()["eval_loss"]
        alone, _ = trainer_of(SnapshotEnsemble(head.model_class, folders[:1]), tmp_path, head)
        assert alone.evaluate()["eval_loss"] == pytest.approx(own_loss, rel=1e-5)
        assert alone.label_names == own_trainer.label_names
        own = outputs_of(head.model_class, folders, head.inputs)
        loss, *logits = by_hand(head, own).values()
        for one_at_a_time in (False, True):
            ensemble = SnapshotEnsemble(head.model_class, folders, one_at_a_time=one_at_a_time)
            trainer, rows = trainer_of(ensemble, tmp_path, head)
            # A Trainer may divide the sum of the losses by another number of labels than the model does.
            expected = loss.item() * own_loss / own[0].loss.item()
            assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
            predictions = trainer.predict(rows).predictions
            predictions = predictions if isinstance(predictions, tuple) else [predictions]
            for prediction, expected in zip(predictions, logits, strict=True):
                torch.testing.assert_close(torch.from_numpy(prediction).double(), expected, rtol=1e-4, atol=1e-4)

    def test_the_loss_of_a_language_model_is_that_of_the_averaged_probabilities(self, saved):
        output = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))(**CAUSAL_LM.inputs)
        expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)

    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_adapters_are_models_like_others(self, adapters, tmp_path, one_at_a_time):
        head = CAUSAL_LM._replace(model_class=AutoPeftModelForCausalLM)
        own = outputs_of(AutoPeftModelForCausalLM, adapters, head.inputs)
        assert own[0].loss != own[1].loss
        ensemble = SnapshotEnsemble(AutoPeftModelForCausalLM, adapters, one_at_a_time=one_at_a_time)
        assert_equals_by_hand(ensemble(**head.inputs), by_hand(head, own))
        alone = SnapshotEnsemble(AutoPeftModelForCausalLM, adapters[:1], one_at_a_time=one_at_a_time)
        assert alone(**head.inputs).loss.item() == pytest.approx(own[0].loss.item(), rel=1e-5)
        own_model = AutoPeftModelForCausalLM.from_pretrained(adapters[0])
        losses = [
            trainer_of(model, tmp_path, head, label_names=["labels"])[0].evaluate()["eval_loss"]
            for model in (alone, own_model)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    @settings(deadline=None, max_examples=50)
    @given(scale=st.floats(0, 1e30), seed=st.integers(0, 1000))
    def test_averages_are_finite_and_sum_to_one_for_extreme_logits(self, scale, seed):
        model_logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * scale
        averaging = one_of_classes(-1)
        total = averaging.enter(model_logits[0])
        for logits in model_logits[1:]:
            total = averaging.add(total, averaging.enter(logits))
        averaged = averaging.leave(total, 3)
        assert averaged.isfinite().all()
        torch.testing.assert_close(averaged.exp().sum(-1), torch.ones(4), rtol=1e-5, atol=0)

    def test_half_precision_models_are_averaged_in_float32(self, saved):
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"), dtype=torch.bfloat16)
        assert ensemble.dtype == torch.bfloat16
        assert {weight.dtype for weight in ensemble.parameters()} == {torch.bfloat16}
        output = ensemble(**CAUSAL_LM.inputs)
        assert output.logits.dtype == torch.float32
        expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)


def vit(config_class, **config):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return config_class(**{"image_size": 8, "patch_size": 4, **sizes, **config})


class TestRefusals:
    @pytest.mark.parametrize(
        ("model_class", "config", "named"),
        [
            (AutoModel, CLASSIFICATION.config, "BertModel"),
            (
                AutoModelForPreTraining,
                vit(ViTMAEConfig, decoder_hidden_size=16, decoder_num_attention_heads=2),
                "ViTMAE",
            ),
            (AutoModelForMaskedImageModeling, vit(ViTConfig, encoder_stride=4), "ViTForMaskedImageModeling"),
            (AutoModelForObjectDetection, vit(YolosConfig, image_size=[8, 8]), "YolosForObjectDetection"),
        ],
    )
    def test_what_is_not_known_to_average_is_refused_by_name_at_construction(
        self, tmp_path, model_class, config, named
    ):
        folders = save_models(tmp_path, Head(model_class, config, {}), 1)
        with pytest.raises(ValueError, match=rf"whose outputs can be averaged, but {named}\w* .* pass task="):
            SnapshotEnsemble(model_class, folders)

    def test_a_class_that_does_a_known_task_under_another_name_says_so(self, tmp_path):
        class Judge(BertForSequenceClassification):
            pass

        # As if nothing in its bases told.
        Judge.__mro__[1].__name__, name = "BertJudge", BertForSequenceClassification.__name__
        try:
            folders = save_models(tmp_path, Head(Judge, CLASSIFICATION.config, {}), 1)
            with pytest.raises(ValueError, match="but Judge gives others"):
                SnapshotEnsemble(Judge, folders)
            output = SnapshotEnsemble(Judge, folders, task="SequenceClassification")(**CLASSIFICATION.inputs)
            (own,) = outputs_of(Judge, folders, CLASSIFICATION.inputs)
        finally:
            Judge.__mro__[1].__name__ = name
        torch.testing.assert_close(output.loss, own.loss)

    def test_a_loss_that_depends_on_more_than_the_averaged_logits_is_refused(self, tmp_path):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = MixtralConfig(
            vocab_size=32, num_key_value_heads=2, num_local_experts=2, output_router_logits=True, **sizes
        )
        folders = save_models(tmp_path, Head(AutoModelForCausalLM, config, {}), 2)
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, folders)
        with pytest.raises(ValueError, match=r"MixtralForCausalLM .*depends on more than .* without labels"):
            ensemble(**CAUSAL_LM.inputs)
        assert ensemble(TOKENS).logits.isfinite().all()

    def test_an_auxiliary_head_in_the_loss_is_refused_and_can_be_switched_off(self, tmp_path):
        config = vit(
            BeitConfig,
            image_size=16,
            num_hidden_layers=4,
            out_indices=[1, 2, 3, 4],
            num_labels=3,
            pool_scales=[1],
            auxiliary_channels=8,
        )
        folders = save_models(tmp_path, Head(AutoModelForSemanticSegmentation, config, {}), 1)
        inputs = {"pixel_values": torch.randn(1, 3, 16, 16), "labels": torch.zeros(1, 16, 16, dtype=torch.long)}
        with pytest.raises(ValueError, match="depends on more"):
            SnapshotEnsemble(AutoModelForSemanticSegmentation, folders)(**inputs)
        without = {"use_auxiliary_head": False}
        output = SnapshotEnsemble(AutoModelForSemanticSegmentation, folders, **without)(**inputs)
        own = AutoModelForSemanticSegmentation.from_pretrained(folders[0], **without)(**inputs)
        torch.testing.assert_close(output.loss, own.loss)

    def test_models_of_different_shapes_are_refused(self, tmp_path):
        folders = [
            *save_models(tmp_path / "three", CLASSIFICATION, 1),
            *save_models(tmp_path / "one", HEADS["regression"], 1),
        ]
        ensemble = SnapshotEnsemble(AutoModelForSequenceClassification, folders)
        with pytest.raises(ValueError, match=r"Expected logits of one shape, but the model in .*one.* \[4, 1\]"):
            ensemble(input_ids=TOKENS)

    def test_it_does_not_generate(self, saved, tmp_path):
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))
        assert not ensemble.can_generate()
        with pytest.raises(NotImplementedError, match=r"does not generate.*ensemble.models\[-1\].generate"):
            ensemble.generate(TOKENS)
        seq2seq = SnapshotEnsemble(HEADS["seq2seq LM"].model_class, saved("seq2seq LM"))
        args = training_arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True)
        with pytest.raises(NotImplementedError, match="does not generate"):
            Seq2SeqTrainer(seq2seq, args).predict(token_rows(4))

    def test_a_cache_of_one_model_is_refused(self, saved):
        cache = AutoModelForCausalLM.from_pretrained(saved("causal LM")[0])(TOKENS).past_key_values
        with pytest.raises(ValueError, match="Expected no past_key_values"):
            SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))(TOKENS, past_key_values=cache)


class TestCalls:
    def test_take_what_the_models_take_by_position_and_by_name(self, saved):
        ensemble = SnapshotEnsemble(AutoModelForSequenceClassification, saved("sequence classification"))
        signature = inspect.signature(BertForSequenceClassification.from_pretrained(ensemble.checkpoints[0]).forward)
        assert inspect.signature(ensemble.forward) == signature
        by_name = ensemble(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS))
        assert torch.equal(ensemble(TOKENS).logits, by_name.logits)
        assert torch.equal(ensemble(TOKENS, torch.ones_like(TOKENS)).logits, by_name.logits)
        own_class = HEADS["sequence classification of a user's class with a loss of its own"].model_class
        narrow = SnapshotEnsemble(own_class, saved("sequence classification"))
        with pytest.raises(TypeError, match="unexpected keyword argument 'attention_mask'"):
            narrow(TOKENS, attention_mask=torch.ones_like(TOKENS))

    def test_return_a_tuple_where_asked_to(self, saved):
        folders = saved("causal LM")
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, folders)
        loss, logits = ensemble(**CAUSAL_LM.inputs, return_dict=False)
        output = ensemble(**CAUSAL_LM.inputs)
        assert torch.equal(loss, output.loss)
        assert torch.equal(logits, output.logits)
        configured = SnapshotEnsemble(AutoModelForCausalLM, folders, return_dict=False)
        assert torch.equal(configured(TOKENS)[0], output.logits)

    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_without_labels_go_by_the_labels_of_calls_before(self, saved, one_at_a_time):
        name = "multi-label classification by the type of the labels"
        ensemble = SnapshotEnsemble(HEADS[name].model_class, saved(name), one_at_a_time=one_at_a_time)
        output = ensemble(**HEADS[name].inputs)
        assert torch.equal(ensemble(TOKENS, torch.ones_like(TOKENS)).logits, output.logits)

    def test_have_no_gradients_and_no_dropout_whatever_the_mode(self, saved):
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))
        expected = ensemble(TOKENS).logits
        assert torch.equal(ensemble.train()(TOKENS).logits, expected)
        assert not expected.requires_grad

    def test_go_through_copies_and_pickles(self, saved):
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))
        expected = ensemble(**CAUSAL_LM.inputs)
        for again in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
            assert isinstance(again, SnapshotEnsemble)
            assert torch.equal(again(**CAUSAL_LM.inputs).loss, expected.loss)

    def test_of_a_trainer_with_label_smoothing_shift_the_labels_as_its_model_does(self, saved, tmp_path):
        folders = saved("causal LM")[:1]
        losses = [
            trainer_of(model, tmp_path, CAUSAL_LM, label_smoothing_factor=0.1)[0].evaluate()["eval_loss"]
            for model in (
                SnapshotEnsemble(AutoModelForCausalLM, folders),
                AutoModelForCausalLM.from_pretrained(folders[0]),
            )
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    def test_of_a_trainer_that_reaches_into_its_model_are_refused(self, saved, tmp_path):
        from trl import SFTConfig, SFTTrainer

        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))
        rows = Dataset.from_list([{"input_ids": row} for row in TOKENS.tolist()])
        args = training_arguments(tmp_path, SFTConfig, max_length=8)
        with pytest.raises(AttributeError, match=r"A SnapshotEnsemble is several models, and has no .* plain"):
            SFTTrainer(
                ensemble, args, train_dataset=rows, eval_dataset=rows, processing_class=ByT5Tokenizer()
            ).evaluate()

    def test_of_a_trainer_pass_over_the_columns_that_its_models_do_not_take(self, saved, tmp_path):
        ensemble = SnapshotEnsemble(AutoModelForCausalLM, saved("causal LM"))
        rows = Dataset.from_list([{"input_ids": row, "text": "…"} for row in TOKENS.tolist()])
        predictions = Trainer(ensemble, training_arguments(tmp_path)).predict(rows).predictions
        torch.testing.assert_close(torch.from_numpy(predictions), ensemble(TOKENS).logits)


class TestMemory:
    def test_one_at_a_time_holds_no_model_and_never_has_two(self, saved):
        model_class = AutoModelForCausalLM
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

        ensemble = SnapshotEnsemble(Counted, saved("causal LM"), one_at_a_time=True)
        assert list(ensemble.parameters()) == []
        ensemble(**CAUSAL_LM.inputs)
        assert (alive, most) == (0, 1)


class TestFiles:
    @pytest.mark.parametrize("one_at_a_time", [False, True])
    def test_that_are_torn_are_named_at_construction(self, tmp_path, one_at_a_time):
        folders = save_models(tmp_path, CAUSAL_LM)
        weights = folders[1] / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(OSError, match=rf"{weights} is missing or was not written to its end"):
            SnapshotEnsemble(AutoModelForCausalLM, folders, one_at_a_time=one_at_a_time)

    def test_that_are_missing_are_named(self, tmp_path):
        (folder,) = save_models(tmp_path, CAUSAL_LM, 1)
        with pytest.raises(OSError, match=f"there is no {tmp_path / 'other'}"):
            SnapshotEnsemble(AutoModelForCausalLM, [folder, tmp_path / "other"])
        (folder / "config.json").unlink()
        with pytest.raises(OSError, match=rf"Expected a config.json in {folder} or in the folder that it is in"):
            SnapshotEnsemble(AutoModelForCausalLM, [folder])

    def test_of_an_empty_list_are_an_error(self):
        with pytest.raises(ValueError, match=r"Expected checkpoints to have at least one folder, but got \[\]"):
            SnapshotEnsemble(AutoModelForCausalLM, [])
