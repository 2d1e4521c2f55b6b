"""`hf-warmcos run`: any command, as it is, with this schedule in every Python process that it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from example_runs import free_port, make_text, make_tiny_model
from work import HANGS_AFTER

from hf_warmcos import CosineRestartSchedule

SCRIPTS = Path(__file__).parent / "scripts"
RUN = [sys.executable, "-m", "hf_warmcos", "run"]
SCHEDULE = ["--num_cycles", "3", "--T-mult=2"]
SAID = 'hf-warmcos run: no schedule was asked for by the name "cosine_with_restarts"'


def outcome(command, environment=None, **options):
    completed = subprocess.run(
        [str(argument) for argument in command],
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
        env={**os.environ, **(environment or {})},
        **options,
    )
    return completed.returncode, completed.stdout, completed.stderr


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path_factory, monkeypatch, request):
    """Where commands put their temporary files; a command that was not killed leaves none."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    left = list(folder.glob("hf-warmcos-*"))
    assert left == [] or re.search(r"os\.(kill|_exit)", request.node.name)


@pytest.fixture
def script(tmp_path):
    """A function that writes a script; the scripts run the code that they are called with, where none is given."""

    def write(code="import os, signal, sys\nexec(sys.argv[1])\n", name="a script.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        return path

    return write


@pytest.mark.slow
class TestTheCommandAsItIs:
    PROBE = """
import multiprocessing, os, sys

if __name__ == "__main__":
    main = sys.modules["__main__"]
    print(sys.argv, sys.path[0], __file__, __name__, main.__dict__ is globals(), main.__package__, sys.stdin.read())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(abs, [-1, -2]))
"""

    @pytest.mark.parametrize(
        ("written", "run_by_python"),
        [
            (["probe.py"], ["probe.py"]),
            (["package/probe.py"], ["package/probe.py"]),
            (["-m", "package.probe"], ["-m", "package.probe"]),
            (["-m", "package"], ["-m", "package"]),
            (["--", sys.executable, "probe.py"], ["probe.py"]),
            (["sh", "-c", '"$0" probe.py "$@"', sys.executable], ["probe.py"]),
        ],
        ids=["script", "script in a folder", "module", "package", "python", "shell"],
    )
    def test_gets_its_arguments_its_input_its_path_and_its_main_module(self, tmp_path, script, written, run_by_python):
        for name in ("probe.py", "package/__init__.py", "package/probe.py", "package/__main__.py"):
            script("" if name.endswith("__init__.py") else self.PROBE, name)
        arguments = ["--decay", "1", "--", "-h", "-m", "--num-cycles=x", "", "a b", "\"'$HOME*\\"]
        expected = outcome([sys.executable, *run_by_python, *arguments], cwd=tmp_path, input="typed")
        assert expected[0] == 0, expected
        exit_code, stdout, stderr = outcome([*RUN, *SCHEDULE, *written, *arguments], cwd=tmp_path, input="typed")
        assert (exit_code, stdout) == expected[:2], stderr

    @pytest.mark.parametrize(
        "end",
        [
            "pass",
            "sys.exit(3)",
            "raise SystemExit(3)",
            "sys.exit('a message')",
            "raise ValueError('an error')",
            "os.kill(os.getpid(), signal.SIGTERM)",
            "os.kill(os.getpid(), signal.SIGINT)",
        ],
    )
    def test_ends_with_its_exit_code_and_prints_nothing_twice(self, script, end):
        expected = outcome([sys.executable, script(), end])
        exit_code, stdout, stderr = outcome([*RUN, script(), end])
        assert (exit_code, stdout) == expected[:2]
        assert [line for line in stderr.splitlines() if not line.startswith(SAID)] == expected[2].splitlines()

    def test_a_script_runs_with_this_python_and_its_flags(self, script):
        code = (
            "print(sys.executable, sys.flags.utf8_mode, sys.flags.optimize, sys.warnoptions, sys.stdout.write_through)"
        )
        flags = [sys.executable, "-u", "-X", "utf8", "-O", "-W", "ignore::ResourceWarning"]
        expected = outcome([*flags, script(), code])
        assert outcome([*flags, "-m", "hf_warmcos", "run", script(), code])[:2] == expected[:2]

    def test_starts_by_the_console_command_too(self, script):
        command = Path(sys.executable).with_name("hf-warmcos")
        exit_code, stdout, _ = outcome([command, "run", *SCHEDULE, script(), "print(sys.argv[2:])", "--x"])
        assert (exit_code, stdout) == (0, "['--x']\n")

    @pytest.mark.parametrize("to_the_group", [False, True], ids=["to the process", "to its group"])
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
    def test_gets_each_signal_once(self, script, name, to_the_group):
        code = f"""
import time
got = []
signal.signal(signal.{name}, lambda *_: got.append("got it"))
print(os.getpid(), flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
print(got)
sys.exit(7)
"""
        process = subprocess.Popen(
            [*RUN, script(), code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert int(process.stdout.readline()) == process.pid
        (os.killpg if to_the_group else os.kill)(process.pid, getattr(signal, name))
        assert process.stdout.read() == "['got it']\n"
        assert process.wait(timeout=HANGS_AFTER) == 7

    def test_ends_when_nobody_reads_its_output_any_more(self):
        process = subprocess.Popen([*RUN, "yes"], stdout=subprocess.PIPE)
        process.stdout.read(2)
        process.stdout.close()
        assert process.wait(timeout=HANGS_AFTER) == -signal.SIGPIPE


class TestBeforeAnythingStarts:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "exit_code", "message"),
        [
            (["--decay", "2", "{script}"], 2, "Expected decay <= 1, but got decay=2"),
            (["--decay", "high", "{script}"], 2, "argument --decay: invalid number value: 'high'"),
            (["--cycles", "10,20:", "{script}"], 2, "argument --cycles: expected STEPS or STEPS:FRACTION"),
            (["--decays", "0.5", "{script}"], 2, "unrecognized arguments: --decays 0.5"),
            (["--num_training_steps", "9", "{script}"], 2, "unrecognized arguments: --num_training_steps 9"),
            (["--decay"], 2, "argument --decay: expected one argument"),
            ([], 2, "Expected COMMAND, SCRIPT.py or -m MODULE, but got none"),
            (["--decay=0.5", "--"], 2, "Expected COMMAND, SCRIPT.py or -m MODULE, but got none"),
            ([""], 2, "Expected COMMAND, SCRIPT.py or -m MODULE, but got none"),
            (["no-such-command", "{script}"], 127, "no-such-command: No such file or directory"),
            (["{folder}"], 127, "Permission denied"),
            (["{folder}/not executable"], 127, "Permission denied"),
            (["{folder}/not a program"], 127, "Exec format error"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tmp_path, script, arguments, exit_code, message):
        path = script(f"open({str(tmp_path / 'started')!r}, 'w')")
        script("", "not executable")
        script("text", "not a program").chmod(0o755)
        outcomes = outcome([*RUN, *(argument.format(script=path, folder=tmp_path) for argument in arguments)])
        assert not (tmp_path / "started").exists()
        assert outcomes[:2] == (exit_code, "")
        assert re.fullmatch(rf"hf-warmcos run: error: .*{re.escape(message)}.*\n", outcomes[2])

    @pytest.mark.slow
    def test_help_names_the_options_and_recommends_three_cycles_that_double(self):
        exit_code, stdout, _ = outcome([*RUN, "--help"])
        assert exit_code == 0
        assert {"--cycles", "--decay", "--stable_ratio", "SCRIPT.py,", "MODULE}"} <= set(stdout.split())
        for example in re.findall("hf_warmcos run.*|hf-warmcos run --.*", stdout):
            assert "run --num_cycles 3 --T_mult 2 " in example


@pytest.mark.slow
class TestTheLineAtTheEnd:
    @pytest.mark.parametrize(
        "end", ["pass", "sys.exit()", "sys.exit(0)", "os.fork()", "print('no error', file=sys.stderr)"]
    )
    def test_says_once_that_no_schedule_was_asked_for(self, script, end):
        exit_code, _, stderr = outcome([*RUN, script(), end])
        assert exit_code == 0
        assert stderr.splitlines()[-1].startswith(SAID)
        assert stderr.count(SAID) == 1

    @pytest.mark.parametrize(
        "command",
        [
            ["-m", "json.tool", "--help"],
            [Path(sys.executable).with_name("hf-warmcos"), "--help"],
            [*RUN, "{script}", "pass"],
            ["{script}", "os.execv(sys.executable, ['python', sys.argv[0], 'pass'])"],
            ["{script}", "import subprocess; subprocess.run([sys.executable, sys.argv[0], 'pass'])"],
        ],
        ids=[
            "module",
            "console command",
            "run in run",
            "a script that becomes another",
            "a script that starts another",
        ],
    )
    def test_says_it_once_whatever_the_command_is(self, script, command):
        exit_code, _, stderr = outcome([*RUN, *(str(part).format(script=script()) for part in command)])
        assert exit_code == 0
        assert stderr.count(SAID) == 1

    @pytest.mark.parametrize(
        "end",
        [
            "sys.exit(3)",
            "sys.exit('a message')",
            "raise SystemExit(3)",
            "raise ValueError",
            "raise KeyboardInterrupt",
            "os._exit(0)",
            "os.kill(os.getpid(), signal.SIGTERM)",
            "import threading; threading.Thread(target=sys.exit, args=(3,)).run()",
        ],
    )
    def test_says_nothing_where_the_command_did_not_end_well(self, script, end):
        assert SAID not in outcome([*RUN, script(), end])[2]

    @pytest.mark.parametrize("command", [["no_such_script.py"], ["-m", "no_such_module"], ["sh", "-c", "true"]])
    def test_says_nothing_where_no_python_ran(self, command):
        assert SAID not in outcome([*RUN, *command])[2]

    @pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
    def test_other_processes_than_the_first_say_nothing(self, script, name):
        assert outcome([*RUN, script(), "pass"], {name: "1"})[2] == ""

    def test_inside_a_launcher_one_process_says_it(self, script):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        exit_code, stdout, stderr = outcome([*torchrun, *RUN[1:], script(), "print('ran')"])
        assert exit_code == 0, stderr
        assert stdout.count("ran") == 2
        assert stderr.count(SAID) == 1


@pytest.mark.slow
class TestTheStartOfEachProcess:
    def test_the_environments_own_sitecustomize_runs_first_and_once(self, tmp_path, script):
        script("print('its own', __file__)\nvalue = 3\n", "sitecustomize.py")
        code = "import sitecustomize; print(sitecustomize.value, os.environ['PYTHONPATH'].count('startup'))"
        for runs in (1, 2):
            command = [*RUN * runs, script(), code]
            stdout = outcome(command, {"PYTHONPATH": str(tmp_path)})[1]
            assert stdout.splitlines()[-2:] == [f"its own {tmp_path}/sitecustomize.py", f"3 {runs}"]

    def test_another_tools_sitecustomize_that_runs_the_next_one_runs_once_in_front_and_behind(self, tmp_path, script):
        """As ddtrace-run and newrelic-admin run-program do it."""
        other = script(
            "import os, sys\n"
            "print('another tool')\n"
            "sys.path.remove(os.path.dirname(__file__))\n"
            "del sys.modules['sitecustomize']\n"
            "import sitecustomize\n",
            "other/sitecustomize.py",
        )
        script("print('its own')", "sitecustomize.py")
        folders = os.pathsep.join(map(str, (other.parent, tmp_path)))
        code = "print([type(finder).__name__ for finder in sys.meta_path].count('RegisterAtImport'))"
        behind = outcome([*RUN, script(), code], {"PYTHONPATH": folders})[1]
        assert behind.splitlines()[-3:] == ["another tool", "its own", "1"]
        startup = outcome([*RUN, "sh", "-c", 'echo "$PYTHONPATH"'])[1].strip().split(os.pathsep)[0]
        in_front = {"PYTHONPATH": os.pathsep.join((str(other.parent), startup, str(tmp_path)))}
        assert outcome([sys.executable, script(), code], in_front)[1].splitlines() == ["another tool", "its own", "1"]

    @pytest.mark.parametrize("error", ["raise ValueError('its own error')", "import no_such_module"])
    def test_an_error_in_the_environments_own_sitecustomize_is_reported_as_without(self, tmp_path, script, error):
        script(error, "sitecustomize.py")
        environment = {"PYTHONPATH": str(tmp_path)}
        expected = outcome([sys.executable, script(), "print('ran')"], environment)
        # The prefix is a Python process of its own, which reports it too.
        exit_code, stdout, stderr = outcome([*RUN, script(), "print('ran')"], environment)
        assert (exit_code, stdout) == expected[:2]
        assert stderr.count(expected[2].splitlines()[-1]) == 2

    def test_a_python_without_the_package_goes_on_and_says_so_only_where_it_imports_a_table(self, tmp_path, script):
        python = tmp_path / "another environment" / "bin" / "python"
        outcome([sys.executable, "-m", "venv", "--without-pip", tmp_path / "another environment"])
        script("", "transformers/__init__.py")
        script("TYPE_TO_SCHEDULER_FUNCTION = {}", "transformers/optimization.py")
        exit_code, stdout, stderr = outcome([*RUN, python, script(), "print('ran')"])
        assert (exit_code, stdout) == (0, "ran\n")
        assert stderr.startswith(SAID)
        code = "import transformers.optimization; print('ran'); sys.exit(3)"
        exit_code, stdout, stderr = outcome([*RUN, python, script(), code])
        assert (exit_code, stdout) == (3, "ran\n")
        assert re.fullmatch(r"hf-warmcos run: no schedule in .*python: .*No module named 'hf_warmcos'\n", stderr)

    def test_a_process_that_does_not_train_loads_nothing(self):
        startup = outcome([*RUN, "sh", "-c", 'echo "$PYTHONPATH"'])[1].strip()
        without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        below = {**without, "PYTHONPATH": startup, "HF_WARMCOS_REGISTER": "{}"}
        code = "import sys; print(*sorted(sys.modules))"
        modules = [
            set(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split())
            for environment in (without, below)
        ]
        assert modules[1] - modules[0] == {"sitecustomize"}


EXPECTED = CosineRestartSchedule.fit(70, 3, T_mult=2, warmup_mode="prefix")


@pytest.mark.slow
@pytest.mark.needs("datasets")
class TestWhereTheScheduleIs:
    def test_in_every_process_that_a_script_starts(self, tmp_path):
        cache = {"HF_DATASETS_CACHE": str(tmp_path)}
        exit_code, stdout, stderr = outcome([*RUN, *SCHEDULE, SCRIPTS / "ask_everywhere.py"], cache)
        assert exit_code == 0, stderr
        answers = [line.split(": ", 1)[1] for line in stdout.splitlines() if line.startswith(("this", "a "))]
        assert answers == [str(EXPECTED)] * 6
        assert SAID not in stderr

    @pytest.mark.needs("deepspeed")
    @pytest.mark.parametrize("inside", [False, True], ids=["in front", "inside"])
    def test_in_the_processes_of_the_deepspeed_command(self, inside):
        launch = [Path(sys.executable).with_name("deepspeed"), "--num_accelerators=2", f"--master_port={free_port()}"]
        script = [SCRIPTS / "ask_everywhere.py", "child"]
        if inside:
            command = [*launch, "--no_local_rank", "--module", *RUN[2:], *SCHEDULE, *script]
        else:
            command = [*RUN, *SCHEDULE, *launch, "--no_local_rank", *script]
        exit_code, stdout, stderr = outcome(command, {"DS_ACCELERATOR": "cpu"})
        assert exit_code == 0, stderr
        assert stdout.count(str(EXPECTED)) == 2

    def test_the_inner_of_two_prefixes_wins_and_what_a_script_registers_or_unregisters_wins_over_both(self, script):
        path = script(f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from ask_everywhere import asked
import hf_warmcos
print(asked())
with hf_warmcos.register(num_cycles=2, decay=0.25):
    print(asked())
print(asked())
hf_warmcos.unregister()
print(asked())
""")
        exit_code, stdout, stderr = outcome([*RUN, "--decay", "0.5", *RUN, *SCHEDULE, path])
        assert exit_code == 0, stderr
        registered = CosineRestartSchedule.fit(70, 2, decay=0.25, warmup_mode="prefix")
        assert stdout.splitlines() == [*map(str, (EXPECTED, registered, EXPECTED)), "built-in"]

    @pytest.mark.parametrize("call", ["register(num_cycles=2, decay=0.25)", "unregister()"])
    def test_what_a_script_registers_before_it_imports_transformers_wins_as_well(self, script, call):
        path = script(f"""
import sys
import hf_warmcos
hf_warmcos.{call}
sys.path.insert(0, {str(SCRIPTS)!r})
from ask_everywhere import asked
print(asked())
""")
        exit_code, stdout, stderr = outcome([*RUN, *SCHEDULE, path])
        assert exit_code == 0, stderr
        registered = CosineRestartSchedule.fit(70, 2, decay=0.25, warmup_mode="prefix")
        assert stdout == ("built-in\n" if call == "unregister()" else f"{registered}\n")


NUM_STEPS, NUM_WARMUP_STEPS, LR = 25, 4, 1e-2


def expected_rates(num_processes=1):
    """Scripts without a Trainer count a step per process at each update, and multiply the lengths to match."""
    schedule = CosineRestartSchedule.fit(
        NUM_STEPS * num_processes, 3, T_mult=2, warmup_steps=NUM_WARMUP_STEPS * num_processes, warmup_mode="prefix"
    )
    return [schedule.lr_at(step * num_processes, LR) for step in range(NUM_STEPS)]


DDP = ["--config_file", SCRIPTS.parent.parent / "examples" / "accelerate_configs" / "ddp.yaml", "--main_process_port=0"]
ACCELERATE_LAUNCH = [Path(sys.executable).with_name("accelerate"), "launch", *DDP]
TORCHRUN = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
TRL = [Path(sys.executable).with_name("trl"), "sft"]


@pytest.mark.slow
class TestEachUpdateHasTheSchedulesLearningRate:
    """With commands of other projects, as their users type them, and with scripts of the shape of theirs."""

    @pytest.fixture(autouse=True)
    @staticmethod
    def small_processes(monkeypatch, tmp_path):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        assert "hf_warmcos" not in "".join(path.read_text() for path in SCRIPTS.glob("*.py"))

    @staticmethod
    def train(*command):
        exit_code, stdout, stderr = outcome(command)
        assert exit_code == 0, stdout + stderr
        assert SAID not in stderr

    @staticmethod
    def logged_rates(folder):
        """What a Trainer logged, those of the checkpoint that it resumed from included; and none is left."""
        state = json.loads((folder / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())
        shutil.rmtree(folder / f"checkpoint-{NUM_STEPS}")
        return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]

    @staticmethod
    def trainer_arguments(folder, *others):
        return [
            f"--output_dir={folder}",
            f"--max_steps={NUM_STEPS}",
            f"--warmup_steps={NUM_WARMUP_STEPS}",
            f"--learning_rate={LR}",
            "--lr_scheduler_type=cosine_with_restarts",
            "--logging_steps=1",
            "--save_steps=10",
            "--report_to=none",
            "--use_cpu",
            *others,
        ]

    @pytest.mark.needs("trl")
    def test_trl_sft_and_resumed_on_two_processes(self, tmp_path):
        make_tiny_model(tmp_path / "model")
        (tmp_path / "data").mkdir()
        rows = [json.dumps({"text": f"line {number} of the text"}) for number in range(64)]
        (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
        arguments = [
            f"--model_name_or_path={tmp_path / 'model'}",
            f"--dataset_name={tmp_path / 'data'}",
            "--max_length=16",
            "--bf16=false",
            *self.trainer_arguments(tmp_path),
        ]
        self.train(*RUN, *SCHEDULE, *TRL, *arguments)
        assert self.logged_rates(tmp_path) == expected_rates()
        resume = f"--resume_from_checkpoint={tmp_path / 'checkpoint-10'}"
        self.train(*RUN, *SCHEDULE, *TRL, *arguments, resume, "--accelerate_config", *DDP[1:])
        assert self.logged_rates(tmp_path) == expected_rates()

    @pytest.mark.needs("datasets")
    def test_torchrun_and_resumed_as_a_script(self, tmp_path):
        script = [SCRIPTS / "train_clm.py", f"--train_file={make_text(tmp_path / 'text.txt')}"]
        script += self.trainer_arguments(tmp_path)
        self.train(*RUN, *SCHEDULE, *TORCHRUN, *script)
        assert self.logged_rates(tmp_path) == expected_rates()
        self.train(*RUN, *SCHEDULE, *script, f"--resume_from_checkpoint={tmp_path / 'checkpoint-10'}")
        assert self.logged_rates(tmp_path) == expected_rates()

    def test_accelerate_launch_of_a_script_without_a_trainer(self, tmp_path):
        script = [
            SCRIPTS / "train_no_trainer.py",
            "--lr_scheduler_type=cosine_with_restarts",
            f"--num_warmup_steps={NUM_WARMUP_STEPS}",
            f"--max_train_steps={NUM_STEPS}",
            "--gradient_accumulation_steps=2",
            f"--output_dir={tmp_path}",
        ]
        self.train(*RUN, *SCHEDULE, *ACCELERATE_LAUNCH, *script)
        rates = [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text().splitlines()]
        assert rates == expected_rates(2)

    @pytest.mark.needs("diffusers")
    def test_inside_accelerate_launch_with_a_script_of_diffusers_shape(self, tmp_path):
        script = [
            SCRIPTS / "train_diffusion.py",
            "--lr_scheduler=cosine_with_restarts",
            f"--lr_warmup_steps={NUM_WARMUP_STEPS}",
            f"--max_train_steps={NUM_STEPS}",
            f"--output_dir={tmp_path}",
        ]
        self.train(*ACCELERATE_LAUNCH, *RUN[1:], *SCHEDULE, *script)
        rates = [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text().splitlines()]
        assert rates == expected_rates(2)
