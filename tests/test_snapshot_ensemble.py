"""The example that compares the checkpoints at cycle ends with their ensemble."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from accelerate import Accelerator
from example_runs import EXAMPLES
from trainer_runs import causal_lm, token_rows, training_arguments
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    ByT5Tokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_warmcos import CycleEndCallback, WarmCosTrainer, get_cosine_restarts_with_decay_and_warmup_schedule

sys.path.insert(0, str(EXAMPLES))

import snapshot_ensemble

ROWS = torch.tensor([row["input_ids"] for row in token_rows(16, seed=1)])
LANGUAGE_BATCHES = [{"input_ids": rows, "labels": rows} for rows in ROWS.split(6)]


def classifier(seed=0, num_labels=3, **config):
    """A classifier on top of a model that can generate."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0, num_labels=num_labels, **config))


def class_batches(dtype=torch.long, shape=()):
    return [{"input_ids": rows, "labels": torch.randint(0, 2, (len(rows), *shape)).to(dtype)} for rows in ROWS.split(6)]


def save(model, folder):
    model.save_pretrained(folder)
    return folder


def expected(models, batches, choose):
    """Loss and accuracy of the mean of the probabilities, written out for all rows at once."""
    inputs, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        chosen = [choose(model.eval()(inputs).logits, labels) for model in models]
    probabilities = torch.stack([logits.softmax(-1) for logits, _ in chosen]).mean(0)
    right = chosen[0][1]
    losses = -probabilities.gather(-1, right.unsqueeze(-1)).log()
    return pytest.approx([losses.mean().item(), (probabilities.argmax(-1) == right).float().mean().item()], rel=1e-5)


def next_tokens(logits, labels):
    return logits[:, :-1], labels[:, 1:]


@pytest.mark.parametrize(
    ("make", "batches", "choose"),
    [(causal_lm, LANGUAGE_BATCHES, next_tokens), (classifier, class_batches(), lambda *both: both)],
    ids=["language model", "classifier"],
)
def test_probabilities_are_averaged_and_each_checkpoint_is_measured_in_the_same_way(tmp_path, make, batches, choose):
    models = [make(seed=seed) for seed in range(3)]
    folders = [save(model, tmp_path / str(index)) for index, model in enumerate(models)]
    results = snapshot_ensemble.evaluate(folders, batches)
    assert results == {
        **{str(folder): expected([model], batches, choose) for folder, model in zip(folders, models)},
        "ensemble": expected(models, batches, choose),
    }
    alone = snapshot_ensemble.evaluate(folders[:1], batches)
    assert alone["ensemble"] == alone[str(folders[0])]


def test_padding_does_not_count(tmp_path):
    folder = save(causal_lm(), tmp_path)
    labels = ROWS.clone()
    labels[:, 5:] = -100
    padded = snapshot_ensemble.evaluate([folder], [{"input_ids": ROWS, "labels": labels}])
    shorter = snapshot_ensemble.evaluate([folder], [{"input_ids": ROWS[:, :5], "labels": ROWS[:, :5]}])
    assert padded["ensemble"] == pytest.approx(shorter["ensemble"])


def bert(model_class):
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return model_class(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=8))


@pytest.mark.parametrize(
    ("make", "batches", "names"),
    [
        (lambda: classifier(num_labels=1), class_batches(), "GPT2ForSequenceClassification with num_labels=1"),
        (lambda: classifier(problem_type="regression"), class_batches(), "problem_type=regression"),
        (lambda: classifier(), class_batches(torch.float, (3,)), r"torch.float32 labels of shape \(6, 3\)"),
        (lambda: bert(BertForMaskedLM), LANGUAGE_BATCHES, "BertForMaskedLM"),
        (lambda: bert(BertForQuestionAnswering), LANGUAGE_BATCHES, "BertForQuestionAnswering .*logits of shape None"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in LANGUAGE_BATCHES],
            "T5ForConditionalGeneration",
        ),
        (causal_lm, class_batches(), r"GPT2LMHeadModel .*labels of shape \(6,\) and logits of shape \(6, 8, 32\)"),
    ],
    ids=["reward", "regression", "several labels", "masked", "question answering", "T5", "no text to predict"],
)
def test_everything_else_is_refused_by_name(tmp_path, make, batches, names):
    folder = save(make(), tmp_path)
    with pytest.raises(ValueError, match=f"Expected a causal language model, .* or a classifier .* Got .*{names}"):
        snapshot_ensemble.evaluate([folder], batches)


@pytest.fixture
def run_with_adapters(tmp_path):
    """A function that trains adapters of a base model and returns the output folder."""
    from peft import LoraConfig, get_peft_model

    def run(base):
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
        args = training_arguments(tmp_path / "run", max_steps=6, lr_scheduler_kwargs={"num_cycles": 2})
        callbacks = [CycleEndCallback(evaluate=False)]
        trainer = WarmCosTrainer(model, args, train_dataset=token_rows(24), callbacks=callbacks)
        trainer.train()
        return tmp_path / "run", model

    return run


def test_adapters_come_with_their_base_model(tmp_path, run_with_adapters):
    base = GPT2LMHeadModel.from_pretrained(save(causal_lm(), tmp_path / "base"))
    output_dir, model = run_with_adapters(base)
    checkpoints = snapshot_ensemble.find_cycle_end_checkpoints(output_dir)
    assert [folder.name for folder in checkpoints] == ["checkpoint-3", "checkpoint-6"]
    results = snapshot_ensemble.evaluate(checkpoints, LANGUAGE_BATCHES)
    assert results[str(checkpoints[-1])] == expected([model], LANGUAGE_BATCHES, next_tokens)


def test_adapters_of_a_base_model_that_was_never_saved_are_refused(run_with_adapters):
    output_dir, _ = run_with_adapters(causal_lm())
    checkpoints = snapshot_ensemble.find_cycle_end_checkpoints(output_dir)
    with pytest.raises(ValueError, match=r"Expected base_model_name_or_path in .*checkpoint-3.adapter_config\.json"):
        snapshot_ensemble.evaluate(checkpoints, LANGUAGE_BATCHES)


def test_checkpoints_of_accelerate_take_the_configuration_of_the_output_folder(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = causal_lm()
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_cosine_restarts_with_decay_and_warmup_schedule(optimizer, 0, 4, num_cycles=2)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for _ in range(2):
        accelerator.backward(model(input_ids=ROWS, labels=ROWS).loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    accelerator.save_state(tmp_path / "cycle_0")
    checkpoints = snapshot_ensemble.find_cycle_end_checkpoints(tmp_path)
    results = snapshot_ensemble.evaluate(checkpoints, LANGUAGE_BATCHES)
    assert results[str(tmp_path / "cycle_0")] == expected([model], LANGUAGE_BATCHES, next_tokens)


def test_a_model_class_that_is_not_of_transformers_is_refused(tmp_path):
    save(causal_lm(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MyModel"]}))
    with pytest.raises(ValueError, match=r"Expected a model class of transformers in .*config\.json, but got MyModel"):
        snapshot_ensemble.evaluate([tmp_path], LANGUAGE_BATCHES)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--last=-1"], "Expected --last >= 0, but got -1"),
        (["--batch_size=0"], "Expected --batch_size >= 1, but got 0"),
        (["--max_length=1"], "Expected --max_length >= 2, but got 1"),
        (["--data=empty.txt"], "Expected a text in each line of empty.txt, but it is empty"),
        (["--data=nowhere.txt"], "nowhere.txt"),
        (["--max_length=9"], "Expected --max_length <= 8, the model's positions, but got 9 tokens"),
    ],
)
def test_a_wrong_option_of_the_command_is_named_in_one_line(tmp_path, monkeypatch, capsys, options, expected):
    save(causal_lm(), tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(snapshot_ensemble, "find_cycle_end_checkpoints", lambda _: [tmp_path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("a line of more than nine tokens")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(SystemExit, match="2"):
        snapshot_ensemble.main(["run", "--data=data.txt", *options])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert expected in error


@pytest.mark.parametrize("labeled", [False, True], ids=["language model", "classifier"])
def test_the_command_prints_the_loss_and_the_accuracy_of_each_checkpoint_and_of_the_ensemble(tmp_path, capsys, labeled):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    rows = [{"text": f"this is text {index}", "label": index % 2} for index in range(10, 34)]
    tokens = [tokenizer(row["text"])["input_ids"] for row in rows]
    labels = [row["label"] for row in rows] if labeled else tokens
    dataset = [{"input_ids": of_row, "labels": label} for of_row, label in zip(tokens, labels)]
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    trainer = WarmCosTrainer(
        (GPT2ForSequenceClassification if labeled else GPT2LMHeadModel)(config),
        training_arguments(tmp_path / "run", max_steps=7, lr_scheduler_kwargs={"num_cycles": 3, "T_mult": 2}),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[CycleEndCallback(evaluate=False)],
    )
    trainer.train()
    data = tmp_path / ("data.jsonl" if labeled else "data.txt")
    data.write_text("\n".join(json.dumps(row) if labeled else row["text"] for row in rows))
    snapshot_ensemble.main([str(tmp_path / "run"), f"--data={data}", "--last=2"])
    lines = re.findall(r"loss (\S+), accuracy (\S+): (.+)", capsys.readouterr().out)
    run = tmp_path / "run"
    assert [name for *_, name in lines] == [str(run / "checkpoint-3"), str(run / "checkpoint-7"), "ensemble"]
    with torch.no_grad():
        own_loss = trainer.model.eval()(torch.tensor(tokens), labels=torch.tensor(labels)).loss.item()
    assert float(lines[1][0]) == pytest.approx(own_loss, abs=1e-4)
    assert all(0 <= float(accuracy) <= 1 for _, accuracy, _ in lines)
