from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import shutil
import threading

import pytest
import torch
from accelerate import Accelerator
from example_runs import Run
from safetensors.torch import save_file
from trainer_runs import causal_lm, save_with_accelerate, token_rows, train_and_keep_result, training_arguments
from transformers import GPT2LMHeadModel, Trainer

from hf_warmcos import CycleEndCallback, WarmCosTrainer, get_cosine_restarts_with_decay_and_warmup_schedule
from hf_warmcos.checkpoints import find_cycle_end_checkpoints, find_incomplete_file, trainer_checkpoints

TOKENS = torch.tensor([[1, 2, 3]])


def train(output_dir, *callbacks, model=None, num_rows=32, resume_from_checkpoint=None, **arguments):
    arguments = {"max_steps": 12, "lr_scheduler_kwargs": {"num_cycles": 3, "decay": 0.75}, **arguments}
    trainer = WarmCosTrainer(
        causal_lm() if model is None else model,
        training_arguments(output_dir, **arguments),
        train_dataset=token_rows(num_rows),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer


def saves():
    return CycleEndCallback(evaluate=False)


def found(output_dir):
    return [folder.name for folder in find_cycle_end_checkpoints(output_dir)]


def tear(path, num_bytes=100):
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output folder of a run of three cycles, saved at their ends and every 5 steps."""
    output_dir = tmp_path_factory.mktemp("run")
    train(output_dir, saves(), max_steps=24, save_strategy="steps", save_steps=5)
    return output_dir


@pytest.fixture
def copy_of_run(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture
def warnings_of(caplog):
    """A function that returns what the project's logger has warned of."""
    caplog.set_level(logging.WARNING, logger="hf_warmcos")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "hf_warmcos"]


class TestCycleEnds:
    def test_are_found_among_other_checkpoints_in_their_order(self, run, warnings_of):
        assert (run / "checkpoint-10").exists()
        assert found(run) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
        assert warnings_of() == []

    @pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "scheduler.pt"])
    def test_that_are_incomplete_or_deleted_are_left_out_and_named(self, copy_of_run, warnings_of, name):
        cut = tear(copy_of_run / "checkpoint-16" / name)
        shutil.rmtree(copy_of_run / "checkpoint-8")
        assert found(copy_of_run) == ["checkpoint-24"]
        (warning,) = warnings_of()
        assert f"{cut} is missing or incomplete" in warning
        assert "the checkpoint of step 8 is missing" in warning

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json"])
    def test_without_weights_configuration_or_state_are_left_out_and_named(self, copy_of_run, warnings_of, name):
        (copy_of_run / "checkpoint-16" / name).unlink()
        assert found(copy_of_run) == ["checkpoint-8", "checkpoint-24"]
        (warning,) = warnings_of()
        assert f"{copy_of_run / 'checkpoint-16' / name} is missing or incomplete" in warning

    def test_of_a_trainer_that_names_its_weights_itself_are_found(self, copy_of_run, warnings_of):
        for checkpoint in trainer_checkpoints(copy_of_run):
            (checkpoint / "model.safetensors").rename(checkpoint / "projector.safetensors")
        assert found(copy_of_run) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
        assert warnings_of() == []

    def test_of_a_module_without_a_configuration_are_found(self, tmp_path, warnings_of):
        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = causal_lm(tie_word_embeddings=False)

            def forward(self, input_ids, labels):
                return {"loss": self.inner(input_ids, labels=labels).loss}

        train(tmp_path, saves(), model=Module())
        assert not [*tmp_path.glob("*/config.json")]
        assert found(tmp_path) == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
        assert warnings_of() == []

    def test_that_disappear_while_they_are_read_are_left_out(self, copy_of_run):
        """As where a training with save_total_limit is running."""
        stop = threading.Event()

        def save_and_delete():
            while not stop.is_set():
                shutil.copytree(copy_of_run / "checkpoint-10", copy_of_run / "checkpoint-9", copy_function=os.link)
                shutil.rmtree(copy_of_run / "checkpoint-9")

        training = threading.Thread(target=save_and_delete)
        training.start()
        try:
            for _ in range(100):
                assert found(copy_of_run) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
        finally:
            stop.set()
            training.join()

    def test_copies_and_files_of_other_names_are_left_out(self, copy_of_run):
        shutil.copytree(copy_of_run / "checkpoint-16", copy_of_run / "backup-checkpoint-16")
        shutil.copytree(copy_of_run / "checkpoint-16", copy_of_run / "copy-16")
        (copy_of_run / "notes-3").write_text("")
        assert found(copy_of_run) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]

    @pytest.mark.parametrize("foreign", [[1, 2], 3, {"schedule": 5, "last_epoch": 7}, {"schedule": {"T_0": 7}}, "text"])
    def test_a_foreign_scheduler_is_none_of_them(self, copy_of_run, foreign):
        for name in ("x-7", "checkpoint-7"):
            (copy_of_run / name).mkdir()
            torch.save(foreign, copy_of_run / name / "scheduler.bin")
        assert found(copy_of_run) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]

    def test_of_an_earlier_run_in_the_folder_are_left_out(self, tmp_path, warnings_of):
        train(tmp_path, saves(), max_steps=12)
        train(tmp_path, saves(), max_steps=30)
        assert [int(folder.name[11:]) for folder in trainer_checkpoints(tmp_path)] == [30, 20, 12, 10, 8, 4]
        assert found(tmp_path) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
        (warning,) = warnings_of()
        assert all(f"checkpoint-{step}" in warning for step in (4, 8, 12))

    def test_of_an_earlier_run_do_not_take_the_place_of_those_that_are_missing(self, tmp_path):
        train(tmp_path, saves(), max_steps=12)
        shutil.move(tmp_path / "checkpoint-8", tmp_path / "kept")
        train(tmp_path, saves(), max_steps=24)
        shutil.rmtree(tmp_path / "checkpoint-8")
        shutil.move(tmp_path / "kept", tmp_path / "checkpoint-8")
        assert found(tmp_path) == ["checkpoint-16", "checkpoint-24"]

    def test_of_an_attempt_that_was_given_up_are_left_out(self, tmp_path):
        class RunsOutOfMemory(GPT2LMHeadModel):
            num_calls = 0

            def forward(self, input_ids, labels, **inputs):
                self.num_calls += 1
                if len(input_ids) > 2 and self.num_calls > 5:
                    raise RuntimeError("CUDA out of memory.")
                return super().forward(input_ids, labels=labels, **inputs)

        arguments = {"auto_find_batch_size": True, "max_steps": -1, "num_train_epochs": 1, "num_rows": 48}
        trainer = train(tmp_path, saves(), model=RunsOutOfMemory(causal_lm().config), **arguments)
        ends = [trainer.state.max_steps * cycle // 3 for cycle in (1, 2, 3)]
        assert {folder.name for folder in trainer_checkpoints(tmp_path)} > {f"checkpoint-{step}" for step in ends}
        assert found(tmp_path) == [f"checkpoint-{step}" for step in ends]

    def test_of_a_resumed_run_are_those_before_and_after(self, tmp_path, warnings_of):
        train(tmp_path, saves(), max_steps=24)
        shutil.rmtree(tmp_path / "checkpoint-24")
        train(tmp_path, saves(), max_steps=24, resume_from_checkpoint=True)
        assert found(tmp_path) == ["checkpoint-8", "checkpoint-16", "checkpoint-24"]
        assert warnings_of() == []

    def test_of_a_run_that_was_resumed_at_an_earlier_one_are_not_those_it_had_behind_that(self, tmp_path):
        train(tmp_path, saves(), max_steps=24)
        kwargs = {"T_0": 8, "T_mult": 2, "num_cycles": 2}
        train(
            tmp_path,
            saves(),
            max_steps=24,
            lr_scheduler_kwargs=kwargs,
            resume_from_checkpoint=str(tmp_path / "checkpoint-8"),
        )
        assert found(tmp_path) == ["checkpoint-8", "checkpoint-24"]

    def test_without_the_state_of_the_scheduler_are_known_by_their_mark(self, tmp_path):
        train(tmp_path, saves(), save_only_model=True)
        assert found(tmp_path) == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]

    def test_without_a_mark_are_known_by_the_state_of_the_scheduler(self, tmp_path):
        train(tmp_path, save_strategy="steps", save_steps=2)
        assert found(tmp_path) == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]

    def test_without_a_mark_have_to_have_one_schedule(self, tmp_path):
        train(tmp_path, max_steps=12, save_strategy="steps", save_steps=4)
        train(tmp_path, max_steps=30, save_strategy="steps", save_steps=10)
        with pytest.raises(ValueError, match=r"Expected checkpoints of one run, but .* different schedules$"):
            find_cycle_end_checkpoints(tmp_path)

    def test_of_accelerate_are_known_by_the_state_of_the_scheduler(self, tmp_path):
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
        assert found(tmp_path) == ["cycle_2", "cycle_6"]
        shutil.copytree(tmp_path / "cycle_2", tmp_path / "copy_2")
        with pytest.raises(ValueError, match=r"Expected checkpoints of one run, but .*copy_2, .*cycle_2.* same step"):
            find_cycle_end_checkpoints(tmp_path)

    def test_of_a_run_of_another_schedule_are_an_error(self, tmp_path):
        args = training_arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        Trainer(causal_lm(), args, train_dataset=token_rows(16)).train()
        with pytest.raises(ValueError, match=r"Expected checkpoints of cycle ends, .* has none"):
            find_cycle_end_checkpoints(tmp_path)

    def test_of_a_folder_that_is_not_there_are_an_error_that_names_it(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere has none"):
            find_cycle_end_checkpoints(tmp_path / "nowhere")


@pytest.fixture(scope="module", params=[("Trainer", 1), ("Trainer", 2), ("Accelerate", 1), ("Accelerate", 2)])
def saved(request, tmp_path_factory):
    """A checkpoint of a Trainer or of Accelerate, saved on one or on two processes, and their number."""
    tool, num_processes = request.param
    folder = tmp_path_factory.mktemp("saved")
    save = {"Trainer": train_and_keep_result, "Accelerate": save_with_accelerate}[tool]
    arguments = {"Trainer": {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}, "Accelerate": {}}[tool]
    entry = functools.partial(save, str(folder), **arguments)
    Run(folder / "log", num_processes=num_processes, entry=entry).succeed()
    return next(folder.glob("*_1" if tool == "Accelerate" else "checkpoint-1")), num_processes


class TestIncompleteFiles:
    def test_are_found_in_each_file_wherever_it_was_cut_off(self, saved, tmp_path):
        checkpoint, num_processes = shutil.copytree(saved[0], tmp_path / "copy"), saved[1]
        assert all(find_incomplete_file(checkpoint, index) is None for index in (None, *range(num_processes)))
        names = {path.name for path in checkpoint.iterdir()}
        assert {"model.safetensors"} < names
        for name in names:
            content = (checkpoint / name).read_bytes()
            for num_bytes in (0, 1, len(content) // 2, len(content) - 2, len(content) - 1):
                tear(checkpoint / name, num_bytes)
                if content[num_bytes:] != b"\n":  # a JSON file says the same without its last end of line
                    assert find_incomplete_file(checkpoint) == checkpoint / name, num_bytes
                (checkpoint / name).write_bytes(content)

    def test_can_be_the_random_state_of_the_process(self, saved, tmp_path):
        checkpoint, num_processes = shutil.copytree(saved[0], tmp_path / "copy"), saved[1]
        states = sorted([*checkpoint.glob("rng_state*"), *checkpoint.glob("random_states*")])
        assert len(states) == num_processes
        for index, state in enumerate(states):
            content = state.read_bytes()
            state.write_bytes(b"garbage" * 1000)
            assert find_incomplete_file(checkpoint) == state
            state.unlink()
            # Of Accelerate's random states, the last one may be one that never was.
            of_last = index == len(states) - 1 > 0 and state.suffix == ".pkl"
            assert find_incomplete_file(checkpoint, index) == (None if of_last else state)
            others = {*range(num_processes)} - {index}
            assert all(find_incomplete_file(checkpoint, other) is None for other in others)
            state.write_bytes(content)
        assert find_incomplete_file(checkpoint, num_processes) is None, "a process that was not there before"

    def test_can_be_the_random_states_of_all_processes(self, saved, tmp_path):
        checkpoint = shutil.copytree(saved[0], tmp_path / "copy")
        for state in [*checkpoint.glob("rng_state*"), *checkpoint.glob("random_states*")]:
            state.unlink()
        of_one = "random_states_0.pkl" if (checkpoint / "scheduler.bin").exists() else "rng_state.pth"
        assert find_incomplete_file(checkpoint) == checkpoint / of_one

    @pytest.mark.parametrize("lost", [0, 1])
    def test_of_one_of_two_processes_let_a_trainer_resume_before_it_on_both(self, tmp_path, lost):
        arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        Run(
            tmp_path / "log",
            num_processes=2,
            entry=functools.partial(train_and_keep_result, str(tmp_path), **arguments),
        ).succeed()
        weights = torch.load(tmp_path / "result_0.pt")["weights"]
        lost_file = tmp_path / "checkpoint-4" / f"rng_state_{lost}.pth"
        lost_file.unlink()
        resume = functools.partial(train_and_keep_result, str(tmp_path), resume_from_checkpoint=True, **arguments)
        output = Run(tmp_path / "log", num_processes=2, entry=resume).succeed()
        expected = f"Resume from {tmp_path / 'checkpoint-2'}. Skipped incomplete checkpoints: {lost_file} is missing"
        assert expected in output
        resumed = torch.load(tmp_path / "result_0.pt")["weights"]
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)

    def test_are_none_in_a_checkpoint_that_has_only_the_model(self, tmp_path):
        train(tmp_path, save_strategy="steps", save_steps=12, save_only_model=True)
        assert find_incomplete_file(tmp_path / "checkpoint-12", 0) is None

    def test_are_none_on_a_node_that_has_only_the_random_states_of_its_own_processes(self, tmp_path):
        train_and_keep_result(str(tmp_path), max_steps=1, save_strategy="steps", save_steps=1)
        checkpoint = tmp_path / "checkpoint-1"
        state = (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_2.pth")
        shutil.copy(state, checkpoint / "rng_state_3.pth")
        assert find_incomplete_file(checkpoint, 2) is find_incomplete_file(checkpoint, 3) is None

    def test_can_be_missing(self, copy_of_run):
        state = copy_of_run / "checkpoint-16" / "trainer_state.json"
        state.unlink()
        assert find_incomplete_file(state.parent) == state

    def test_can_be_named_by_an_index(self, tmp_path):
        causal_lm().save_pretrained(tmp_path, max_shard_size="5KB")
        (tmp_path / "trainer_state.json").write_text("{}")
        assert find_incomplete_file(tmp_path) is None
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        shard = tmp_path / sorted(index["weight_map"].values())[0]
        shard.unlink()
        assert find_incomplete_file(tmp_path) == shard

    def test_can_be_the_index_itself(self, copy_of_run):
        index = copy_of_run / "checkpoint-16" / "model.safetensors.index.json"
        for text in ("[]", '{"weight_map":', ""):
            index.write_text(text)
            assert find_incomplete_file(index.parent) == index

    def test_can_be_the_note_that_transformers_leaves_while_it_saves_after_a_sigterm(self, copy_of_run):
        note = copy_of_run / "checkpoint-16" / "checkpoint-is-incomplete.txt"
        note.write_text("")
        assert find_incomplete_file(copy_of_run / "checkpoint-16") == note

    @pytest.mark.parametrize(
        "name",
        [
            "pytorch_model.bin",
            "adapter_model.safetensors",
            "model-00001-of-00002.safetensors",
            "global_step8/mp_rank_00_model_states.pt",
            "global_step8/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        ],
    )
    def test_can_be_weights_of_any_tool_that_a_trainer_saves_with(self, copy_of_run, name):
        checkpoint = copy_of_run / "checkpoint-16"
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / name).parent.mkdir(exist_ok=True)
        if name.endswith("safetensors"):
            save_file({"weight": torch.zeros(1)}, checkpoint / name)
        else:
            torch.save({}, checkpoint / name)
        assert find_incomplete_file(checkpoint) is None
        tear(checkpoint / name, 60)
        assert find_incomplete_file(checkpoint) == checkpoint / name

    @pytest.mark.parametrize(
        "name", ["projector.safetensors", "mm_projector.bin", "weights.npz", "shards/__0_0.distcp"]
    )
    def test_are_none_where_the_weights_have_another_name(self, copy_of_run, name):
        checkpoint = copy_of_run / "checkpoint-16"
        (checkpoint / "model.safetensors").rename(checkpoint / "weights")
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / "weights").rename(checkpoint / name)
        if name.endswith(".bin"):
            torch.save({"weight": torch.zeros(1)}, checkpoint / name)
        assert find_incomplete_file(checkpoint) is None

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("completions.json", '{"a": 1}\n{"a": 2}\n'),
            ("terms.index.json", "[]"),
            ("language_model/5gram.bin", "mmap lm http://kheafield.com/code format version 5"),
            ("notes.txt", ""),
            ("merges", "P"),
        ],
    )
    def test_are_none_among_files_that_others_add(self, copy_of_run, name, text):
        path = copy_of_run / "checkpoint-16" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        assert find_incomplete_file(copy_of_run / "checkpoint-16") is None

    @pytest.mark.parametrize("protocol", range(2, 6))
    def test_can_be_pickles(self, copy_of_run, protocol):
        path = copy_of_run / "checkpoint-16" / "notes.pkl"
        content = pickle.dumps([{"a": 1.0}] * 9, protocol)
        for num_bytes in range(len(content)):
            path.write_bytes(content[:num_bytes])
            assert find_incomplete_file(path.parent) == path
        path.write_bytes(content)
        assert find_incomplete_file(path.parent) is None

    def test_can_be_json_that_nothing_could_read(self, copy_of_run):
        path = copy_of_run / "checkpoint-16" / "trainer_state.json"
        for content in (b"\xff" * 100, b"garbage", b"[" * 100_000):
            path.write_bytes(content)
            assert find_incomplete_file(path.parent) == path
