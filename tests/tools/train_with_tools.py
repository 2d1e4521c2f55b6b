"""Train with tools that do not fit into one environment, each by its own command, and compare every learning rate.

    python tests/tools/train_with_tools.py            # all of them: installs several GB and takes some minutes
    python tests/tools/train_with_tools.py ms-swift   # or some

Each tool gets an environment of its own in --folder, which is kept for the next time; then the tool trains a tiny model
on the CPU, by the code of the page (`snippets.py`) or with `hf-warmcos run` in front of its command: on 1 process,
resumed from a checkpoint, and on 2 processes where the tool trains on several without a GPU. Behind the prefix each
cycle end has to leave a checkpoint. This is not part of the test suite. It needs the requirements of the tests, and
`uv`, which it installs into an environment of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, set_seed

from hf_warmcos import CosineRestartSchedule, find_cycle_end_checkpoints

ROOT = Path(__file__).parent.parent.parent
NUM_STEPS, NUM_WARMUP_STEPS, LR = 25, 4, 1e-2
RUN = ["hf-warmcos", "run", "--num_cycles", "3", "--T_mult", "2", "--at_cycle_ends", "save"]
SCHEDULE = CosineRestartSchedule.fit(NUM_STEPS, 3, T_mult=2, warmup_steps=NUM_WARMUP_STEPS, warmup_mode="prefix")
WITH_PLATEAU = dataclasses.replace(SCHEDULE, stable_ratio=0.8)
CYCLE_ENDS = [*SCHEDULE.restarts(NUM_STEPS), NUM_STEPS]
# What an environment for the CPU cannot use, or what does not fit its torch.
LEFT_OUT = ("torchvision", "torchaudio", "xformers", "flash-attn")


class Tool(NamedTuple):
    """How a tool is installed and called.

    Attributes:
        requirements: What pip installs.
        command: From the run's folder, the number of processes and whether it is resumed to the command and variables.
        rates: From the run's folder to the learning rates of its updates.
        stand_ins: Modules that the tool imports and does not use here: empty ones take their place.
        most_processes: On how many processes the tool trains without a GPU.
        resumes: Whether the tool resumes.
        schedule: The schedule of the recipe.
        lr: Its initial learning rate.
    """

    requirements: list[str]
    command: Callable[[Path, int, bool], tuple[list[str], dict[str, str]]]
    rates: Callable[[Path], list[float]]
    stand_ins: tuple[str, ...] = ()
    most_processes: int = 2
    resumes: bool = True
    schedule: CosineRestartSchedule = SCHEDULE
    lr: float = LR


def trainer_arguments(folder: Path) -> dict[str, Any]:
    """What all tools with a Trainer of transformers inside have in common."""
    return {
        "output_dir": str(folder / "output"),
        "max_steps": NUM_STEPS,
        "warmup_steps": NUM_WARMUP_STEPS,
        "learning_rate": LR,
        "logging_steps": 1,
        "save_steps": 10,
        "gradient_accumulation_steps": 1,
    }


def trainer_rates(folder: Path) -> list[float]:
    """What the Trainer logged."""
    state = json.loads((folder / "output" / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]


def checkpoint(folder: Path) -> str:
    return str(folder / "output" / "checkpoint-10")


def swift(folder: Path, num_processes: int, resumed: bool) -> tuple[list[str], dict[str, str]]:
    options = trainer_arguments(folder) | {
        "model": str(folder.parent / "model"),
        "model_type": "qwen2",
        "template": "qwen",
        "tuner_type": "full",
        "dataset": str(folder.parent / "messages.jsonl"),
        "lr_scheduler_type": "cosine_with_restarts",
        "per_device_train_batch_size": 1,
        "torch_dtype": "float32",
        "max_length": 256,
        "add_version": "false",
        "report_to": "none",
        "dataloader_num_workers": 0,
    }
    if resumed:
        options["resume_from_checkpoint"] = checkpoint(folder)
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    variables = {"NPROC_PER_NODE": str(num_processes)} if num_processes > 1 else {}
    return [*RUN, "swift", "sft", *arguments], variables


def llamafactory(folder: Path, num_processes: int, resumed: bool) -> tuple[list[str], dict[str, str]]:
    (folder.parent / "dataset_info.json").write_text(json.dumps({"tiny": {"file_name": "alpaca.json"}}))
    config = trainer_arguments(folder) | {
        "model_name_or_path": str(folder.parent / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": str(folder.parent),
        "dataset": "tiny",
        "template": "qwen",
        "cutoff_len": 256,
        "lr_scheduler_type": "cosine_with_restarts",
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "use_cpu": True,
        "resume_from_checkpoint": checkpoint(folder) if resumed else None,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    variables = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(num_processes)} if num_processes > 1 else {}
    return [*RUN, "llamafactory-cli", "train", str(folder / "config.yaml")], variables


def axolotl(folder: Path, num_processes: int, resumed: bool) -> tuple[list[str], dict[str, str]]:
    config = trainer_arguments(folder) | {
        "base_model": str(folder.parent / "model"),
        "datasets": [{"path": str(folder.parent / "alpaca.json"), "type": "alpaca", "ds_type": "json"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": 0,
        "sequence_len": 256,
        "lr_scheduler": "cosine_with_restarts",
        "optimizer": "adamw_torch",
        "micro_batch_size": 1,
        "num_epochs": 1,
        "save_total_limit": 10,  # its default, 4, would delete checkpoints of cycle ends
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "flash_attention": False,
        "special_tokens": {"pad_token": "<|endoftext|>"},
        "resume_from_checkpoint": checkpoint(folder) if resumed else None,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return [*RUN, "axolotl", "train", str(folder / "config.yml")], {
        "ACCELERATE_USE_CPU": "true",
        "AXOLOTL_DO_NOT_TRACK": "1",
    }


def torchtune(folder: Path, num_processes: int, resumed: bool) -> tuple[list[str], dict[str, str]]:
    """Its recipes take the schedule as four lines of their YAML. This one has five epochs of five updates."""
    size = {"vocab_size": 512, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16}
    size |= {"intermediate_dim": 32, "max_seq_len": 256}
    config = {
        "output_dir": str(folder / "output"),
        "tokenizer": {
            "_component_": "torchtune.models.qwen2.qwen2_tokenizer",
            "path": str(folder.parent / "model" / "vocab.json"),
            "merges_file": str(folder.parent / "model" / "merges.txt"),
            "special_tokens_path": str(folder.parent / "model" / "tokenizer.json"),
            "max_seq_len": 256,
        },
        "dataset": {
            "_component_": "torchtune.datasets.alpaca_dataset",
            "source": "json",
            "data_files": str(folder.parent / "alpaca.json"),
        },
        "model": {"_component_": "torchtune.models.qwen2.qwen2"} | size,
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder.parent / "model"),
            "checkpoint_files": ["model.safetensors"],
            "recipe_checkpoint": "recipe_state/recipe_state.pt" if resumed else None,
            "output_dir": str(folder / "output"),
            "model_type": "QWEN2",
        },
        "lr_scheduler": {
            "_component_": "hf_warmcos.get_cosine_restarts_with_decay_and_warmup_schedule",
            "num_warmup_steps": NUM_WARMUP_STEPS,
            "num_cycles": 3,
            "T_mult": 2,
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": LR},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "seed": 0,
        "shuffle": True,
        "batch_size": 1,
        "epochs": 5,
        "optimizer_in_bwd": False,
        "clip_grad_norm": None,
        "compile": False,
        "max_steps_per_epoch": 5,
        "gradient_accumulation_steps": 1,
        "resume_from_checkpoint": resumed,
        "device": "cpu",
        "dtype": "fp32",
        "log_every_n_steps": 1,
        "log_peak_memory_stats": False,
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(folder / "logs"),
            "filename": "log.txt",
        },
    }
    if resumed:
        # The recipe keeps no state of its last epoch: the one to resume from is that of the fourth of five.
        config["checkpointer"]["checkpoint_files"] = ["epoch_3/model-00001-of-00001.safetensors"]
        log = folder / "logs" / "log.txt"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[: NUM_STEPS * 4 // 5]))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["tune", "run", "full_finetune_single_device", "--config", str(folder / "config.yaml")], {}


def torchtune_rates(folder: Path) -> list[float]:
    lines = (folder / "logs" / "log.txt").read_text().splitlines()
    rates = {int(line.split()[1]): float(re.search(r"lr:(\S+)", line)[1]) for line in lines}  # type: ignore[index]
    return [rates[step] for step in sorted(rates)]


def snippet(folder: Path, num_processes: int, resumed: bool) -> tuple[list[str], dict[str, str]]:
    """The code of the page as it stands there."""
    (folder / "resumed").touch() if resumed else None
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    launch = ["python", *torchrun] if num_processes > 1 else ["python"]
    section = folder.name.removeprefix("run_")
    command = [*launch, str(ROOT / "tests" / "tools" / "snippets.py"), section, str(folder)]
    return command, {"ACCELERATE_USE_CPU": "true", "NODE_RANK": "0"}


def snippet_rates(folder: Path) -> list[float]:
    """What each process wrote: the same."""
    first, *others = (json.loads(path.read_text()) for path in folder.glob("rates_*.json"))
    if any(rates != first for rates in others):
        raise AssertionError(f"Expected the same learning rates on each process, but got {first} and {others}")
    return first


SNIPPETS = {
    "SetFit": Tool(["setfit==1.2.0"], snippet, snippet_rates, resumes=False, schedule=WITH_PLATEAU, lr=2e-5),
    "Composer": Tool(["mosaicml==0.32.1"], snippet, snippet_rates, schedule=WITH_PLATEAU),
    "litgpt": Tool(["litgpt==0.5.13", "requests"], snippet, snippet_rates, most_processes=1, schedule=WITH_PLATEAU),
    "skorch": Tool(["skorch==1.4.0"], snippet, snippet_rates, most_processes=1, schedule=WITH_PLATEAU),
    "ignite": Tool(["pytorch-ignite==0.5.5"], snippet, snippet_rates, most_processes=1, schedule=WITH_PLATEAU),
}
TOOLS = {
    **SNIPPETS,
    "ms-swift": Tool(["ms-swift"], swift, trainer_rates),
    "LLaMA-Factory": Tool(["llamafactory"], llamafactory, trainer_rates, stand_ins=("torchaudio",)),
    "axolotl": Tool(["axolotl>=0.19"], axolotl, trainer_rates, most_processes=1),
    "torchtune": Tool(["torchtune", "torchao==0.10.0"], torchtune, torchtune_rates, most_processes=1),
}


def make_model_and_data(folder: Path) -> None:
    """A Qwen2 of a few thousand parameters with a tokenizer of bytes, and 64 samples in two forms."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(["each restart has a peak"], vocab_size=260)
    bytes_.save_model(str(model))
    tokenizer = Qwen2Tokenizer(str(model / "vocab.json"), str(model / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 512}
    set_seed(0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = Qwen2Config(**sizes, tie_word_embeddings=False, bos_token_id=None, eos_token_id=end)
    Qwen2ForCausalLM(config).save_pretrained(model)
    samples = [{"instruction": f"say {row}", "input": "", "output": f"this is {row}"} for row in range(64)]
    (folder / "alpaca.json").write_text(json.dumps(samples))
    roles = {"instruction": "user", "output": "assistant"}
    messages = [[{"role": role, "content": row[name]} for name, role in roles.items()] for row in samples]
    (folder / "messages.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in messages))


def install(name: str, tool: Tool, folder: Path) -> Path:
    """Make the tool's environment if it is not there yet, and return it."""
    uv, environment = folder / "uv", folder / "environments" / name
    if not (uv / "bin" / "uv").exists():
        venv.create(uv, with_pip=True)
        subprocess.run([uv / "bin" / "pip", "install", "--quiet", "uv"], check=True)
    overrides = folder / "overrides.txt"
    torch = metadata.version("torch").partition("+")[0]
    lines = [f"torch=={torch}", *(f'{left_out}; sys_platform == "never"' for left_out in LEFT_OUT)]
    overrides.write_text("\n".join(lines))
    if not environment.exists():
        subprocess.run([uv / "bin" / "uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    command = [uv / "bin" / "uv", "pip", "install", "--quiet", "--python", environment / "bin" / "python"]
    links = os.environ.get("PIP_FIND_LINKS")
    options = ["--override", overrides, *(["--find-links", links] if links else [])]
    subprocess.run([*command, *options, *tool.requirements, "-e", ROOT], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for module in tool.stand_ins:
        (packages / f"{module}.py").touch()
    return environment


def version_in(environment: Path, name: str) -> str:
    (packages,) = environment.glob("lib/python*/site-packages")
    found = {each.name.lower().replace("_", "-"): each for each in metadata.Distribution.discover(path=[str(packages)])}
    return found[re.split("[=>]", name)[0]].version


def train(tool: Tool, environment: Path, folder: Path, num_processes: int, resumed: bool) -> None:
    """Train by the tool's command, and compare the learning rate of every update."""
    folder.mkdir(exist_ok=True)
    command, variables = tool.command(folder, num_processes, resumed)
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "USE_HF": "1"}
    log = folder / "log.txt"
    with log.open("w") as file:
        subprocess.run(
            command,
            env=inherited | variables,
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=900,
        )
    if "no schedule was asked for" in log.read_text():
        raise AssertionError(f"No schedule was asked for: {log}")
    rates = tool.rates(folder)
    # Some log the learning rate of an update, some that of the next one, which is set when they write.
    expected = [[tool.schedule.lr_at(step + ahead, tool.lr) for step in range(NUM_STEPS)] for ahead in (0, 1)]
    if rates not in expected:
        raise AssertionError(f"Expected {expected[0]}, but the command of {log} logged {rates}")
    if "--at_cycle_ends" in command:
        found = [path.name for path in find_cycle_end_checkpoints(folder / "output")]
        if found != [f"checkpoint-{step}" for step in CYCLE_ENDS]:
            raise AssertionError(f"Expected checkpoints at {CYCLE_ENDS}, but {folder / 'output'} has {found}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"some of {', '.join(TOOLS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hf_warmcos_tools")
    options = parser.parse_args()
    unknown = set(options.tools) - set(TOOLS)
    if unknown:
        parser.error(f"Expected some of {', '.join(TOOLS)}, but got {', '.join(sorted(unknown))}")
    folder = options.folder.resolve()
    make_model_and_data(folder)
    failed = 0
    for name in options.tools or TOOLS:
        tool = TOOLS[name]
        environment = install(name, tool, folder)
        run_folder = folder / f"run_{name}"
        for num_processes in range(1, 1 + tool.most_processes):
            for resumed in (False, True) if num_processes == 1 and tool.resumes else (False,):
                version = version_in(environment, tool.requirements[0])
                what = f"{name} {version}, {num_processes} process(es){', resumed' * resumed}"
                if not resumed:
                    shutil.rmtree(run_folder, ignore_errors=True)
                try:
                    train(tool, environment, run_folder, num_processes, resumed)
                    print(f"{what}: all {NUM_STEPS} learning rates are the schedule's", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"{what}: FAILED: {error!r}. See {run_folder / 'log.txt'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
