"""The page "Use it in your tool": its snippets as they stand there; and the rows of the page "Migrate"."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from code_blocks import code_of_section
from example_runs import Run, free_port
from tools.train_with_tools import SNIPPETS
from tools.train_with_tools import TOOLS as ALONE
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from hf_warmcos import (
    CosineRestartSchedule,
    unregister,
)

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "use-it-in-your-tool.md").read_text()
# One section for each tool, in the groups below the page's first heading of the second level.
TOOLS = PAGE[PAGE.index("## Hugging Face") :]
SECTIONS = dict(section.split("\n", 1) for section in re.split(r"^### ", TOOLS, flags=re.MULTILINE)[1:])


code = partial(code_of_section, "docs/use-it-in-your-tool.md")


def run_code(section: str, **namespace: Any) -> dict[str, Any]:
    exec(compile(code(section), f"docs/use-it-in-your-tool.md: {section}", "exec"), namespace)
    return namespace


NUM_STEPS, BASE_LR = 25, 1e-2
FITTED = CosineRestartSchedule.fit(NUM_STEPS, 3, T_mult=2, warmup_steps=4, warmup_mode="prefix", stable_ratio=0.8)


def rates_of(schedule: CosineRestartSchedule, base_lr: float = BASE_LR, num_steps: int = NUM_STEPS) -> list[float]:
    return [schedule.lr_at(step, base_lr) for step in range(num_steps)]


def adamw(model: torch.nn.Module | None = None) -> torch.optim.AdamW:
    parameters = [torch.nn.Parameter(torch.zeros(1))] if model is None else model.parameters()
    return torch.optim.AdamW(parameters, lr=BASE_LR)


# The snippets run in a process for each or in two, which have the libraries imported. What a snippet calls its own is
# made here; each returns the rate at which training starts.


def plain_trainer(folder: Path) -> float:
    from trainer_runs import causal_lm, token_rows

    run_code("A plain Trainer", model=causal_lm(), dataset=token_rows(64), output_dir=str(folder))
    return 5e-5


def trl(folder: Path) -> float:
    from datasets import Dataset
    from example_runs import make_tiny_model

    dataset = Dataset.from_dict({"text": [f"this is row {row}" for row in range(64)]})
    run_code("trl", model=str(make_tiny_model(folder / "model")), dataset=dataset, output_dir=str(folder))
    return 2e-5


def sentence_transformers(folder: Path) -> float:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "each", "restart", "has", "a", "peak"]
    folder.joinpath(f"vocab_{os.getpid()}.txt").write_text("\n".join(words))
    bert = folder / f"bert_{os.getpid()}"
    BertTokenizer(str(folder / f"vocab_{os.getpid()}.txt")).save_pretrained(bert)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(bert)
    model = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)], device="cpu")
    pairs = Dataset.from_dict({"anchor": words[5:] * 8, "positive": words[:4:-1] * 8})
    loss = MultipleNegativesRankingLoss(model)
    run_code("sentence-transformers", model=model, dataset=pairs, output_dir=str(folder), loss=loss)
    return 5e-5


def peft(folder: Path) -> float:
    from trainer_runs import causal_lm, token_rows

    run_code("PEFT", model=causal_lm(), dataset=token_rows(64), output_dir=str(folder))
    return 5e-5


def accelerate(folder: Path) -> float:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    model = torch.nn.Linear(8, 1)
    rows = torch.randn(20 * int(os.environ.get("WORLD_SIZE", 1)), 8)
    run_code("Accelerate", model=model, optimizer=adamw(model), loader=DataLoader(rows), num_epochs=5)
    return BASE_LR


def lightning(folder: Path) -> float:
    import lightning as library

    module = run_code("Lightning")["MyModule"]()
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    loader = DataLoader(torch.randn(10 * num_processes, 8), batch_size=1)
    trainer = library.Trainer(
        accelerator="cpu",
        devices=num_processes,
        strategy="ddp" if num_processes > 1 else "auto",
        max_epochs=5,
        accumulate_grad_batches=2,
        **QUIET,
    )
    trainer.fit(module, loader)
    return BASE_LR


def fabric(folder: Path) -> float:
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    model = torch.nn.Linear(8, 1)
    loader = DataLoader(torch.randn(NUM_STEPS * num_processes, 8), batch_size=1)
    run_code("Lightning Fabric", model=model, optimizer=adamw(model), loader=loader, devices=num_processes)
    return BASE_LR


QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def deepspeed(folder: Path) -> float:
    import deepspeed as library

    # Its collectives over shared memory would be compiled for a minute first. Without them it uses gloo.
    library.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    model = torch.nn.Linear(8, 1)
    run_code("DeepSpeed", model=model, optimizer=adamw(model), loader=torch.randn(2 * NUM_STEPS, 1, 8))
    return BASE_LR


def train_by_the_page(output: str, snippet: str) -> None:
    """Run a section's code; each process writes the rate of each of its updates."""
    rates: list[float] = []
    register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    base_lr = globals()[snippet](Path(output))
    rank = os.environ.get("RANK", "0")
    (Path(output) / f"rates_{rank}.json").write_text(json.dumps({"base_lr": base_lr, "rates": rates}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    "snippet",
    [
        "plain_trainer",
        "accelerate",
        *(
            pytest.param(package, marks=pytest.mark.needs(package))
            for package in ("trl", "sentence_transformers", "peft", "lightning", "deepspeed")
        ),
        pytest.param("fabric", marks=pytest.mark.needs("lightning")),
    ],
)
def test_each_update_has_the_schedules_rate(tmp_path, snippet, num_processes):
    log = tmp_path / "log"
    Run(log, str(tmp_path), snippet, num_processes=num_processes, entry=train_by_the_page).succeed()
    for rank in range(num_processes):
        result = json.loads((tmp_path / f"rates_{rank}.json").read_text())
        assert result["rates"] == rates_of(FITTED, result["base_lr"])


def scheduler_rates(scheduler: Any, optimizer: torch.optim.Optimizer, num_steps: int = NUM_STEPS) -> list[float]:
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.needs("diffusers")
def test_diffusers():
    optimizer = adamw()
    try:
        scheduler = run_code("diffusers' scripts", optimizer=optimizer)["scheduler"]
    finally:
        unregister()
    assert scheduler_rates(scheduler, optimizer) == rates_of(FITTED)


@pytest.mark.needs("hydra")
def test_hydra():
    from omegaconf import OmegaConf

    optimizer = adamw()
    config = OmegaConf.create(code("Hydra", "yaml"))
    scheduler = run_code("Hydra", optimizer=optimizer, config=config)["scheduler"]
    assert scheduler_rates(scheduler, optimizer) == rates_of(FITTED)


def test_whatever_takes_a_function():
    optimizer = adamw()
    scheduler = run_code("A function from step to factor", optimizer=optimizer)["scheduler"]
    assert scheduler_rates(scheduler, optimizer) == pytest.approx(rates_of(FITTED), rel=1e-15)


@pytest.mark.needs("lightning", "jsonargparse")
def test_lightning_cli(tmp_path):
    module = run_code("Lightning")["MyModule"]
    del module.configure_optimizers  # it is the command line's to say
    (tmp_path / "config.yaml").write_text(code("LightningCLI", "yaml"))
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        cli = run_code("LightningCLI")["MyCLI"](
            module,
            trainer_defaults={"accelerator": "cpu", "max_steps": NUM_STEPS, "default_root_dir": tmp_path, **QUIET},
            save_config_callback=None,
            run=False,
            args=["--config", str(tmp_path / "config.yaml")],
        )
        cli.trainer.fit(cli.model, DataLoader(torch.randn(NUM_STEPS, 8), batch_size=1))
    finally:
        hook.remove()
    assert rates == rates_of(
        CosineRestartSchedule(T_0=3, T_mult=2, warmup_steps=4, warmup_mode="prefix", stable_ratio=0.8)
    )


def arguments_by_class_path(command: str) -> tuple[Any, dict[str, Any]]:
    """The class and its arguments, as kohya's scripts read them from their command line."""
    words = shlex.split(command.replace("\\\n", " ").replace("…", ""))
    start = words.index("--lr_scheduler_args") + 1
    stop = next((index for index in range(start, len(words)) if words[index].startswith("--")), len(words))
    module, _, name = words[words.index("--lr_scheduler_type") + 1].rpartition(".")
    pairs = (word.split("=") for word in words[start:stop])
    return getattr(importlib.import_module(module), name), {key: ast.literal_eval(value) for key, value in pairs}


BY_CLASS_PATH = CosineRestartSchedule.fit(2500, 3, T_mult=2, warmup_steps=100, warmup_mode="prefix", stable_ratio=0.8)


def test_by_the_path_of_the_factory_on_a_command_line():
    factory, arguments = arguments_by_class_path(code("kohya sd-scripts", "bash"))
    optimizer = adamw()
    assert scheduler_rates(factory(optimizer, **arguments), optimizer, 2500) == rates_of(BY_CLASS_PATH, num_steps=2500)


def test_onetrainer_by_the_path_of_the_factory():
    rows = dict(re.findall(r"^\| (?:`(\w+)`|Class Name) \| `(.*?)` \|$", SECTIONS["OneTrainer"], re.MULTILINE))
    module, _, name = rows.pop("").rpartition(".")
    arguments = {key: ast.literal_eval(value.replace("%TOTAL_STEPS%", "2500")) for key, value in rows.items()}
    scheduler = getattr(importlib.import_module(module), name)(optimizer=adamw(), last_epoch=-1, **arguments)
    assert scheduler.schedule == BY_CLASS_PATH


def test_torchtune_by_its_yaml():
    arguments = yaml.safe_load(code("torchtune", "yaml"))["lr_scheduler"]
    module, _, name = arguments.pop("_component_").rpartition(".")
    factory = getattr(importlib.import_module(module), name)
    assert factory(adamw(), num_training_steps=2500, last_epoch=-1, **arguments).schedule == BY_CLASS_PATH


@pytest.mark.parametrize("section", ["torchtitan", "MMEngine", *SNIPPETS])
def test_what_this_environment_cannot_run_at_least_compiles(section):
    compile(code(section), section, "exec")


ROWS = re.findall(r"^\| \[(.*)\]\(#(.*)\) \| .+ \| (.*) \|$", PAGE, re.MULTILINE)


def test_the_table_leads_to_each_section_and_says_how_it_was_tested():
    anchors = {re.sub(r"[^\w -]", "", section.lower()).replace(" ", "-") for section in SECTIONS}
    assert {anchor for _, anchor, _ in ROWS} == anchors
    assert all(re.match(r"suite: |tools: \d|by hand: \d|no: source of ", tested) for *_, tested in ROWS)


def test_what_the_table_says_of_tools_with_environments_of_their_own_is_what_the_script_trains():
    says = {name: re.split(r", (?=1)", tested)[1] for name, _, tested in ROWS if tested.startswith("tools: ")}
    trains = {
        name: "1" + " and 2" * (tool.most_processes > 1) + ", resumed" * tool.resumes for name, tool in ALONE.items()
    }
    assert says == trains


@pytest.mark.parametrize("page", ["use-it-in-your-tool.md", "migrate.md"])
def test_no_line_of_code_is_too_wide_for_the_page(page):
    for block in re.findall(r"^ *```\w+\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE):
        assert max(map(len, block.splitlines())) <= 88


if __name__ == "__main__":
    train_by_the_page(*sys.argv[1:])
