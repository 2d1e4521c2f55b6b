"""Run the code of a section of docs/use-it-in-your-tool.md as it stands there, in the environment of its tool.

    python tests/tools/snippets.py SECTION FOLDER   # what `train_with_tools.py` calls, also below torchrun

What the page calls the reader's own is made here. Each process writes the learning rate of each of its updates. With
FOLDER/resumed, the training continues from the checkpoint of update 10.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parent.parent))

from code_blocks import code_of_section

PAGE = "docs/use-it-in-your-tool.md"
NUM_STEPS, STOPPED_AT, LR = 25, 10, 1e-2
NUM_PROCESSES = int(os.environ.get("WORLD_SIZE", 1))


def run_code(section: str, **names: Any) -> dict[str, Any]:
    exec(compile(code_of_section(PAGE, section), f"{PAGE}: {section}", "exec"), names)
    return names


def setfit(folder: Path, resumed: bool) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from setfit import SetFitModel
    from sklearn.linear_model import LogisticRegression
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "each", "restart", "has", "a", "peak"]
    own = folder / os.environ.get("RANK", "0")
    own.mkdir(exist_ok=True)
    (own / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(own / "vocab.txt")).save_pretrained(own)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(own)
    body = SentenceTransformer(modules=[Transformer(str(own)), Pooling(16)], device="cpu")
    dataset = Dataset.from_dict({"text": words[5:] * 8, "label": [0, 1] * 20})
    model = SetFitModel(body, LogisticRegression())
    run_code("SetFit", model=model, dataset=dataset, output_dir=str(folder / "output"))


def litgpt(folder: Path, resumed: bool) -> None:
    import shutil

    from litgpt import GPT, Config
    from litgpt.utils import save_config

    model = folder / "checkpoint"
    if os.environ.get("RANK", "0") == "0" and not model.exists():
        shutil.copytree(folder.parent / "model", model)
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "intermediate_size": 32, "padded_vocab_size": 512}
        config = Config.from_name("pythia-14m", block_size=512, **sizes)
        torch.save(GPT(config).state_dict(), model / "lit_model.pth")
        save_config(config, model)
    options = {
        "out_dir": folder / "output",
        "precision": "32-true",
        "devices": NUM_PROCESSES,
        "data": "JSON",
        "data.json_path": folder.parent / "alpaca.json",
        "data.val_split_fraction": 0.05,
        "data.num_workers": 0,
        "train.global_batch_size": NUM_PROCESSES,
        "train.micro_batch_size": 1,
        "train.max_steps": NUM_STEPS,
        "train.lr_warmup_steps": 4,
        "train.save_interval": STOPPED_AT,
        "eval.max_new_tokens": 1,
        "eval.interval": 1000,
        "optimizer": json.dumps({"class_path": "torch.optim.AdamW", "init_args": {"lr": LR}}),
    }
    if resumed:
        options["resume"] = folder / "output" / f"step-{STOPPED_AT:06}" / "lit_model.pth"
    command = ["finetune_full", str(model), *(f"--{name}={value}" for name, value in options.items())]
    sys.argv = ["finetune.py", *command]
    run_code("litgpt", __name__="__main__")


def composer(folder: Path, resumed: bool) -> None:
    # Composer imports torchvision, which does not fit a torch for the CPU, and does not use it here. torchmetrics
    # does without, if it is imported first.
    import_module("torchmetrics")
    for module in ("", ".datasets", ".models.resnet", ".ops", ".transforms", ".transforms.functional", ".utils"):
        sys.modules[f"torchvision{module}"] = MagicMock(__spec__=None)
    import composer

    class Model(composer.ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch)

        def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

    model = Model()
    rows = torch.randn(10 * NUM_PROCESSES, 8)
    sampler = composer.utils.dist.get_sampler(rows)
    checkpoint = folder / "output" / f"step-{STOPPED_AT}-0.pt"
    composer.Trainer = partial(
        composer.Trainer,
        max_duration=f"{NUM_STEPS}ba",
        save_folder=str(folder / "output"),
        save_filename="step-{batch}-{rank}.pt",
        save_interval=f"{STOPPED_AT}ba",
        save_overwrite=True,
        load_path=str(checkpoint) if resumed else None,
        progress_bar=False,
    )
    names = run_code(
        "Composer",
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=LR),
        loader=torch.utils.data.DataLoader(rows, batch_size=1, sampler=sampler),
    )
    names["trainer"].fit()


def skorch(folder: Path, resumed: bool) -> None:
    from skorch.callbacks import Callback

    class Criterion(torch.nn.Module):
        def forward(self, outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return outputs.square().mean()

    class Save(Callback):
        def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
            if len(net.history) * 5 == STOPPED_AT:
                net.save_params(**files)

    files = {name: str(folder / name) for name in ("f_params", "f_optimizer", "f_history")}
    rows = torch.randn(5, 8), torch.zeros(5)
    net = run_code("skorch", module=torch.nn.Linear(8, 1), criterion=Criterion, updates=STOPPED_AT * resumed)["net"]
    net.set_params(batch_size=1, train_split=None, verbose=0, callbacks=[*net.callbacks, Save()])
    if resumed:
        net.initialize()
        net.load_params(**files)
        net.partial_fit(*rows, epochs=3)
    else:
        net.fit(*rows)


def ignite(folder: Path, resumed: bool) -> None:
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint

    def update(trainer: Engine, batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    trainer = Engine(update)
    scheduler = run_code("ignite", optimizer=optimizer, trainer=trainer)["scheduler"]
    to_save = {"trainer": trainer, "optimizer": optimizer, "scheduler": scheduler}
    path = folder / "checkpoint.pt"

    @trainer.on(Events.ITERATION_COMPLETED(once=STOPPED_AT))
    def save() -> None:
        torch.save({name: of.state_dict() for name, of in to_save.items()}, path)

    if resumed:
        Checkpoint.load_objects(to_save, torch.load(path))
    trainer.run(torch.randn(5, 8), max_epochs=5)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    resumed = (folder / "resumed").exists()
    rates: list[float] = []
    register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    globals()[name.lower()](folder, resumed)
    path = folder / f"rates_{os.environ.get('RANK', '0')}.json"
    if resumed:
        # Composer makes a step at a learning rate of 0 first, by which torch builds the optimizer's state for loading.
        rates = json.loads(path.read_text())[:STOPPED_AT] + rates[STOPPED_AT - NUM_STEPS :]
    path.write_text(json.dumps(rates))


if __name__ == "__main__":
    main()
