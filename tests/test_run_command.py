"""`hf-warmcos run`: scripts and modules that know nothing of this project, with its schedule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from example_runs import Run, make_text, make_tiny_model

from hf_warmcos import CosineRestartSchedule, unregister
from hf_warmcos.run import run

SCRIPTS = Path(__file__).parent / "scripts"
RUN = [sys.executable, "-m", "hf_warmcos", "run"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Where no process has two GPUs, this launches two processes on the CPU.
ACCELERATE_LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
ACCELERATE_LAUNCH += ["--main_process_port=0", "-m", "hf_warmcos", "run"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN += ["-m", "hf_warmcos", "run"]


def outcome(command, **options):
    completed = subprocess.run(
        [str(argument) for argument in command], capture_output=True, text=True, timeout=240, env=ENVIRONMENT, **options
    )
    return completed.returncode, completed.stdout, completed.stderr


class TestAsPythonRunsIt:
    PROBE = """
import multiprocessing, pickle, sys

class Something:
    pass

def square(number):
    return number * number

if __name__ == "__main__":
    main = sys.modules["__main__"]
    print(sys.argv, sys.path[0], __file__, __name__, main.__dict__ is globals(), main.__package__)
    print("torch" in sys.modules, type(pickle.loads(pickle.dumps(Something()))) is Something)
    if not (__spec__ and __spec__.name.endswith("__main__")):  # which spawned processes do not import
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(square, [1, 2, 3]))
"""

    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory):
        folder = tmp_path_factory.mktemp("as python runs it")
        (folder / "package").mkdir()
        (folder / "package" / "__init__.py").touch()
        for name in ("probe.py", "package/probe.py", "package/__main__.py"):
            (folder / name).write_text(TestAsPythonRunsIt.PROBE)
        (folder / "ends.py").write_text("import os, sys, signal\nexec(sys.argv[1])\n")
        return folder

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "target",
        [["probe.py"], ["package/probe.py"], ["-m", "package.probe"], ["-m", "package"]],
        ids=["script", "script in a folder", "module", "package"],
    )
    def test_with_its_arguments_its_path_and_its_main_module(self, folder, target):
        arguments = [*target, "--decay", "1", "--", "-h", "-m", "--num-cycles=x", ""]
        expected = outcome([sys.executable, *arguments], cwd=folder)
        assert expected[0] == 0, expected
        exit_code, stdout, _ = outcome([*RUN, "--decay=0.5", "--num-cycles", "4", *arguments], cwd=folder)
        assert (exit_code, stdout) == expected[:2]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "end",
        [
            "pass",
            "sys.exit(3)",
            "sys.exit('a message')",
            "raise ValueError('an error')",
            "os.kill(os.getpid(), signal.SIGTERM)",
            "os.kill(os.getpid(), signal.SIGINT)",
        ],
    )
    def test_with_its_exit_code(self, folder, end):
        expected = outcome([sys.executable, "ends.py", end], cwd=folder)
        exit_code, stdout, stderr = outcome([*RUN, "ends.py", end], cwd=folder)
        assert (exit_code, stdout) == expected[:2]
        # Its own last word, an error or a message, comes last here too.
        assert stderr.splitlines()[-1:] == expected[2].splitlines()[-1:] or "no schedule was asked for" in stderr

    @pytest.mark.slow
    def test_by_the_command_with_the_hyphen_too(self, folder):
        command = Path(sys.executable).with_name("hf-warmcos")
        exit_code, stdout, _ = outcome([command, "run", "probe.py", "--x"], cwd=folder)
        assert exit_code == 0
        assert stdout == outcome([sys.executable, "probe.py", "--x"], cwd=folder)[1]

    @pytest.mark.slow
    def test_until_ctrl_c(self, folder):
        code = "print('ready', flush=True); import time; time.sleep(60)"
        process = subprocess.Popen(
            [*RUN, "ends.py", code],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell lets what it runs in the background ignore Ctrl-C, and all that this starts in turn.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
        assert stderr.splitlines()[-1] == "KeyboardInterrupt"
        assert "no schedule was asked for" not in stderr


@pytest.fixture
def in_this_process(monkeypatch):
    """`run` without a process of its own: what it changes for the script is put back."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.delenv("RANK", raising=False)
    yield run
    unregister()


class TestBeforeAnythingStarts:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--decay", "2", "{script}"], "Expected decay <= 1, but got decay=2"),
            (["--decay", "high", "{script}"], "argument --decay: invalid number value: 'high'"),
            (["--cycles", "10,20:", "{script}"], "argument --cycles: invalid cycles value: '10,20:'"),
            (["--decays", "0.5", "{script}"], "unrecognized arguments: --decays 0.5"),
            (["--num_training_steps", "9", "{script}"], "unrecognized arguments: --num_training_steps 9"),
            (["--decay"], "argument --decay: expected one argument"),
            ([], "Expected SCRIPT to be a file, or -m MODULE, but got none"),
            (["no_such_script.py"], "Expected SCRIPT to be a file, or -m MODULE, but got no_such_script.py"),
            (["-m"], "Expected -m to be followed by a module that can be run, but got none"),
            (["-m", "no_such.module"], "but got no_such.module: No module named 'no_such'"),
            (["-m", "json"], "Expected -m to be followed by a module that can be run, but got json"),
        ],
    )
    def test_what_is_wrong_is_one_line_and_exit_code_2(self, in_this_process, tmp_path, capsys, arguments, message):
        script = tmp_path / "script.py"
        script.write_text(f"open({str(tmp_path / 'started')!r}, 'w')")
        with pytest.raises(SystemExit) as exit_:
            in_this_process([argument.format(script=script) for argument in arguments])
        assert exit_.value.code == 2
        assert not (tmp_path / "started").exists()
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr.startswith("hf-warmcos run: error: ")
        assert stderr.count("\n") == 1
        assert message in stderr

    def test_help_names_the_options_of_the_schedule(self, in_this_process, capsys):
        with pytest.raises(SystemExit) as exit_:
            in_this_process(["--help"])
        assert exit_.value.code == 0
        assert {"--cycles", "--decay", "--stable_ratio", "MODULE"} <= set(
            capsys.readouterr().out.replace("[", " ").split()
        )


class TestWhereNoScheduleIsAskedFor:
    def said(self, in_this_process, tmp_path, capsys, code):
        script = tmp_path / "script.py"
        script.write_text(code)
        with suppress(BaseException):
            in_this_process(["--decay", "0.5", str(script)])
        return capsys.readouterr().err

    @pytest.mark.parametrize("code", ["pass", "raise SystemExit(1)", "raise ValueError", "import transformers"])
    def test_one_line_says_so_with_the_two_usual_reasons(self, in_this_process, tmp_path, capsys, code):
        stderr = self.said(in_this_process, tmp_path, capsys, code)
        assert stderr.count("\n") == 1
        assert 'no schedule was asked for by the name "cosine_with_restarts"' in stderr
        assert "script.py has no option for it" in stderr
        assert "starts processes of its own" in stderr

    def test_other_processes_than_the_first_say_nothing(self, in_this_process, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        assert self.said(in_this_process, tmp_path, capsys, "pass") == ""

    @pytest.mark.parametrize(
        "code",
        [
            "raise KeyboardInterrupt",
            "import torch, transformers\n"
            "optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)\n"
            "scheduler = transformers.get_scheduler('cosine_with_restarts', optimizer, 0, 10)\n"
            "assert scheduler.schedule.decay == 0.5\n",
        ],
        ids=["interrupted", "asked for"],
    )
    def test_nothing_is_said_otherwise(self, in_this_process, tmp_path, capsys, code):
        assert self.said(in_this_process, tmp_path, capsys, code) == ""


NUM_STEPS, NUM_WARMUP_STEPS, BASE_LR = 20, 4, 1e-2
SCHEDULE_OPTIONS = ["--num_cycles", "4", "--decay=0.75"]


def expected_rates(num_processes=1, start=0):
    """Scripts without a Trainer count a step per process at each update, and multiply the lengths to match."""
    schedule = CosineRestartSchedule.fit(
        NUM_STEPS * num_processes,
        4,
        decay=0.75,
        warmup_steps=NUM_WARMUP_STEPS * num_processes,
        warmup_mode="prefix",
    )
    return [schedule.lr_at(step * num_processes, BASE_LR) for step in range(start, NUM_STEPS)]


def run_command(arguments):
    """`hf-warmcos run`, in a process that has been started for it."""
    from hf_warmcos.cli import main

    os.environ["HF_DATASETS_CACHE"] = arguments.pop()
    sys.exit(main(["run", *arguments]))


class Script:
    """What a script is called with, and the rates that it logged."""

    def __init__(self, folder):
        self.folder = folder

    def arguments(self, resumed):
        raise NotImplementedError

    def rates(self):
        return [json.loads(line) for line in (self.folder / "rates.jsonl").read_text().splitlines()]

    def lengths_are_multiplied(self):
        return True


class NoTrainer(Script):
    def arguments(self, resumed):
        resume = [f"--resume_from_checkpoint={self.folder}/step_7"] if resumed else []
        return [
            str(SCRIPTS / "train_no_trainer.py"),
            "--lr_scheduler_type=cosine_with_restarts",
            f"--num_warmup_steps={NUM_WARMUP_STEPS}",
            f"--max_train_steps={NUM_STEPS}",
            "--gradient_accumulation_steps=2",
            "--stop_after=7",
            f"--output_dir={self.folder}",
            *resume,
        ]


class Diffusion(Script):
    def arguments(self, resumed):
        resume = [f"--resume_from_checkpoint={self.folder}/checkpoint-7"] if resumed else []
        return [
            str(SCRIPTS / "train_diffusion.py"),
            "--lr_scheduler=cosine_with_restarts",
            f"--lr_warmup_steps={NUM_WARMUP_STEPS}",
            f"--max_train_steps={NUM_STEPS}",
            "--stop_after=7",
            f"--output_dir={self.folder}",
            *resume,
        ]


class WithTrainer(Script):
    def lengths_are_multiplied(self):
        return False

    def rates(self):
        state = json.loads((self.folder / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())
        return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]

    def trainer_arguments(self, resumed):
        resume = [f"--resume_from_checkpoint={self.folder}/checkpoint-10"] if resumed else []
        return [
            f"--output_dir={self.folder}",
            f"--max_steps={NUM_STEPS}",
            f"--warmup_steps={NUM_WARMUP_STEPS}",
            f"--learning_rate={BASE_LR}",
            "--lr_scheduler_type=cosine_with_restarts",
            "--logging_steps=1",
            "--save_steps=10",
            "--report_to=none",
            "--use_cpu",
            *resume,
        ]


class Clm(WithTrainer):
    def arguments(self, resumed):
        text = make_text(self.folder / "text.txt")
        return [str(SCRIPTS / "train_clm.py"), f"--train_file={text}", *self.trainer_arguments(resumed)]


class Sft(WithTrainer):
    def arguments(self, resumed):
        model, data = self.folder / "model", self.folder / "data"
        make_tiny_model(model)
        data.mkdir(exist_ok=True)
        rows = [json.dumps({"text": f"line {number} of the text"}) for number in range(64)]
        (data / "train.jsonl").write_text("\n".join(rows))
        options = [f"--model_name_or_path={model}", f"--dataset_name={data}", "--max_length=16", "--bf16=false"]
        return ["-m", "trl.scripts.sft", *options, *self.trainer_arguments(resumed)]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("script_class", [Clm, Sft, NoTrainer, Diffusion])
def test_every_rate_of_an_unmodified_script_is_the_schedules_and_of_one_that_goes_on(
    tmp_path, script_class, num_processes
):
    script = script_class(tmp_path)
    expected = expected_rates(num_processes if script.lengths_are_multiplied() else 1)
    for resumed in (False, True):
        arguments = [*SCHEDULE_OPTIONS, *script.arguments(resumed), str(tmp_path / "cache")]
        output = Run(tmp_path / "log", arguments, num_processes=num_processes, entry=run_command).succeed()
        assert "no schedule was asked for" not in output
        rates = script.rates()
        assert rates == expected[: len(rates)]
    assert len(rates) == NUM_STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "script_class"),
    [(ACCELERATE_LAUNCH, NoTrainer), (TORCHRUN, Clm)],
    ids=["accelerate launch", "torchrun"],
)
def test_inside_a_launcher_too(tmp_path, command, script_class):
    script = script_class(tmp_path)
    arguments = [argument for argument in script.arguments(False) if not argument.startswith("--stop_after")]
    exit_code, _, stderr = outcome([*command, *SCHEDULE_OPTIONS, *arguments])
    assert exit_code == 0, stderr
    assert script.rates() == expected_rates(2 if script.lengths_are_multiplied() else 1)
    assert "hf_warmcos" not in "".join(path.read_text() for path in SCRIPTS.glob("*.py"))


@pytest.mark.slow
def test_inside_a_launcher_one_process_says_that_no_schedule_was_asked_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('ran')")
    exit_code, stdout, stderr = outcome([*TORCHRUN, "--decay=0.5", script])
    assert exit_code == 0, stderr
    assert stdout.count("ran") == 2
    assert stderr.count("no schedule was asked for") == 1
