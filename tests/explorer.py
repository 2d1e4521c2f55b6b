"""The explorer, loaded as a module from its folder, where a Space runs it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gradio  # noqa: F401  # what the app imports
from trainer_runs import causal_lm, token_rows, training_arguments

from hf_warmcos import WarmCosTrainer

ROOT = Path(__file__).parents[1]
APP = "examples/explorer/app.py"
FOLDER = (ROOT / APP).parent


def _load_app():
    spec = importlib.util.spec_from_file_location("explorer_app", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


app = _load_app()


def ask(settings, **others):
    """What the page asks for."""
    return {"settings": settings, "kept": None, "run": None, "size": [730, 320]} | others


PLAN = {"num_training_steps": "100", "num_warmup_steps": "10", "num_cycles": "3", "T_mult": "2", "lr": "0.01"}


def trained(folder, **arguments):
    """A real run of a Trainer: what it logged, and its state as text."""
    trainer = WarmCosTrainer(
        causal_lm(),
        training_arguments(folder, learning_rate=0.01, **arguments),
        train_dataset=token_rows(16),
    )
    trainer.train()
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return trainer, (folder / "trainer_state.json").read_text()
