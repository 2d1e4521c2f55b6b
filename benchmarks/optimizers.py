"""With which optimizers a restart does what you expect: the sizes of their updates, measured.

    pip install torch transformers lightning pytorch_optimizer schedulefree prodigyopt dadaptation grokadamw \
        lion-pytorch came-pytorch madgrad prodigy-plus-schedule-free torch-optimi bitsandbytes
    python -m benchmarks.optimizers
    python -m benchmarks.readme

The first command installs the optimizers; use an environment of its own. The second measures them in about two minutes,
and writes `benchmarks/results/optimizers.json`. The third writes the tables of `docs/optimizers.md`.

An optimizer has its default arguments and no weight decay. Its gradients are the same in each run, whatever the weights
are. So two runs differ in nothing but the learning rate. The size of an update is the Frobenius norm of the change of
the weights; all sizes below are fractions of the size that the same update has in a run at a constant learning rate.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from benchmarks.documents import markdown_table

RESULTS = Path(__file__).parent / "results" / "optimizers.json"
SHAPE = 16, 16
BEFORE, DURING, AFTER = 20, 10, 10  # updates at the full learning rate, at another one, and at the full one again
UPDATES = BEFORE + DURING + AFTER

Factory = Callable[..., Optimizer]

# For each distribution: the module and its optimizers. pytorch_optimizer lists its own.
PACKAGES: dict[str, tuple[str, str]] = {
    "torch": (
        "torch.optim",
        "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam",
    ),
    "transformers": ("transformers.optimization", "Adafactor"),
    "pytorch_optimizer": ("pytorch_optimizer", ""),
    "schedulefree": ("schedulefree", "AdamWScheduleFree RAdamScheduleFree SGDScheduleFree"),
    "prodigyopt": ("prodigyopt", "Prodigy"),
    "prodigy-plus-schedule-free": ("prodigyplus", "ProdigyPlusScheduleFree"),
    "dadaptation": ("dadaptation", "DAdaptAdaGrad DAdaptAdam DAdaptAdan DAdaptLion DAdaptSGD"),
    "madgrad": ("madgrad", "MADGRAD MirrorMADGRAD"),
    "grokadamw": ("grokadamw", "GrokAdamW"),
    "lion-pytorch": ("lion_pytorch", "Lion"),
    "came-pytorch": ("came_pytorch", "CAME"),
    "torch-optimi": ("optimi", "Adam AdamW Adan Lion RAdam Ranger SGD StableAdamW"),
    "bitsandbytes": ("bitsandbytes.optim", "AdamW8bit PagedAdamW8bit Lion8bit AdEMAMix8bit"),
}

RELATIVE_STEP = {"lr": 1e-3, "relative_step": False}

# Optimizers that are measured with other arguments, too.
WITH_ARGUMENTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("torch", "SGD", {"momentum": 0.9}),
    ("transformers", "Adafactor", RELATIVE_STEP | {"scale_parameter": False}),
    ("transformers", "Adafactor", RELATIVE_STEP | {"scale_parameter": False, "beta1": 0.9}),
    ("pytorch_optimizer", "AdaFactor", RELATIVE_STEP),
    ("pytorch_optimizer", "AdaFactor", RELATIVE_STEP | {"betas": (None, 0.999)}),
    ("pytorch_optimizer", "AdaGO", {"eps": 1e-8}),
    ("came-pytorch", "CAME", {"lr": 2e-4}),
    ("pytorch_optimizer", "ApolloDQN", {"warmup_steps": 0}),
)


def optimizers(*packages: str) -> Iterator[tuple[str, str, Factory]]:
    """The distribution, the name and the factory of each optimizer of some packages, by default of all."""
    for distribution in packages or PACKAGES:
        module_name, listed = PACKAGES[distribution]
        module = importlib.import_module(module_name)
        names = listed.split() or [module.load_optimizer(name).__name__ for name in module.get_supported_optimizers()]
        for name in names:
            if not hasattr(module, name):  # an older release
                continue
            factory = getattr(module, name)
            yield distribution, name, factory
            for *of, arguments in WITH_ARGUMENTS:
                if of == [distribution, name]:
                    shown = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
                    yield distribution, f"{name}({shown})", partial(factory, **arguments)


def random_matrix(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def gradient(index: int) -> torch.Tensor:
    """The gradient of an update: a part that is always the same, and noise half as large."""
    return random_matrix(0) + random_matrix(index + 2) / 2


class Run:
    """An optimizer on one matrix, and the size of each of its updates."""

    def __init__(self, factory: Factory, **arguments: Any) -> None:
        accepted = signature(factory).parameters
        given = {"weight_decay": 0.0} | arguments
        if "lr" in accepted and accepted["lr"].default is Parameter.empty:
            given["lr"] = 0.01
        self.module = torch.nn.Linear(*SHAPE, bias=False)
        self.weights = self.module.weight
        self.weights.data = random_matrix(1)
        self.make = partial(factory, **{name: value for name, value in given.items() if name in accepted})
        torch.manual_seed(0)
        self.optimizer = self.made()
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.sizes: list[float] = []

    def made(self) -> Optimizer:
        try:
            optimizer = self.make([self.weights])
        except (ValueError, RuntimeError):  # pytorch_optimizer's Muon and its relatives want to know what is a matrix
            optimizer = self.make([{"params": [self.weights], "use_muon": True}])
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    def update(self, updates: int, factor: float = 1.0) -> Run:
        """Make updates at a fraction of the learning rate."""
        for _ in range(updates):
            for group, lr in zip(self.optimizer.param_groups, self.lrs):
                if lr is not None:  # transformers' Adafactor computes its own
                    group["lr"] = lr * factor
            before = self.weights.detach().clone()
            self.weights.grad = gradient(len(self.sizes))
            self.optimizer.step()
            self.sizes.append((self.weights.detach() - before).norm().item())
        return self

    def resume(self) -> Run:
        """Go on with a new optimizer that has loaded the state of this one."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        self.optimizer = self.made()
        self.optimizer.load_state_dict(torch.load(file, weights_only=False))
        return self


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).norm().item()


def sizes(constant: Run, run: Run, *indices: int) -> list[float]:
    """The sizes of some updates, as fractions of those at the constant learning rate."""
    fractions = [round(run.sizes[index] / constant.sizes[index], 3) for index in indices]
    if not all(map(math.isfinite, fractions)):
        raise ArithmeticError("the weights are no longer numbers")
    return fractions


def from_and_to(factory: Factory, factor: float) -> Run:
    """A run that begins at a fraction of the learning rate, comes back there, and restarts."""
    return Run(factory).update(1, factor).update(BEFORE).update(DURING, factor).update(AFTER)


def restart(factory: Factory, constant: Run) -> dict[str, Any]:
    """The first and last update at learning rate 0, and the first and last after the restart."""
    run = Run(factory).update(BEFORE).update(DURING, 0).update(AFTER)
    last = BEFORE + DURING
    return {"zero": sizes(constant, run, BEFORE, last - 1), "restart": sizes(constant, run, last, UPDATES - 1)}


def beginning(factory: Factory, constant: Run) -> dict[str, Any]:
    """The last update of a run that begins with one update at learning rate 0, as each warmup from 0 does."""
    return {"begin": sizes(constant, Run(factory).update(1, 0).update(UPDATES - 1), UPDATES - 1)[0]}


def resumed(factory: Factory) -> float:
    """How far a resumed run is from one that never stopped, as a fraction of the way it went since."""
    stopped, whole = Run(factory).update(BEFORE), Run(factory).update(BEFORE)
    begin = whole.weights.detach().clone()
    for run in (stopped.resume(), whole):
        torch.manual_seed(1)
        run.update(DURING)
    return round(distance(stopped.weights, whole.weights) / distance(whole.weights, begin), 4)


def decayed(factory: Factory, **arguments: Any) -> float:
    """The fraction of the weights that an update at learning rate 0 takes away, with weight_decay=0.1."""
    run, without = Run(factory, weight_decay=0.1, **arguments).update(1, 0), Run(factory).update(1, 0)
    return round(distance(run.weights, without.weights) / random_matrix(1).norm().item(), 4)


def measured(factory: Factory) -> dict[str, Any]:
    """What an optimizer does; `not_measured` where it cannot be driven in this way."""
    try:
        constant = Run(factory).update(UPDATES)
    except KeyError as error:
        return {"not_measured": "its groups have no learning rate" if error.args == ("lr",) else repr(error)}
    except Exception as error:
        return {"not_measured": f"{type(error).__name__}: {error}".split("\n")[0]}
    half = Run(factory).update(BEFORE).update(DURING + AFTER, 0.5)
    if not all(0 < size < math.inf for size in constant.sizes[BEFORE:]):
        return {"not_measured": "with these gradients it makes no updates"}
    record: dict[str, Any] = {"half": sizes(constant, half, BEFORE, UPDATES - 1)}
    for part in (restart, beginning):
        try:
            record |= part(factory, constant)
        except Exception as error:
            record[part.__name__] = f"{type(error).__name__}: {error}"
            record["at_one_percent"] = all(map(math.isfinite, from_and_to(factory, 0.01).sizes))
    record["resumed"] = resumed(factory)
    accepted = signature(factory).parameters
    if "weight_decay" in accepted and record.get("zero") == [0, 0]:
        record["decayed"] = decayed(factory)
        if "fixed_decay" in accepted:
            record["fixed_decayed"] = decayed(factory, fixed_decay=True)
    return record


# Facts that are not about the size of an update after a change of the learning rate.


def cap_of_adafactor() -> dict[str, Any]:
    """torch's Adafactor at half its default learning rate, 0.01, after that many updates."""
    fractions = {}
    for updates in (1_000, 100_000):
        constant, half = Run(torch.optim.Adafactor).update(BEFORE), Run(torch.optim.Adafactor).update(BEFORE)
        for run, factor in ((constant, 1), (half, 0.5)):
            run.optimizer.state[run.weights]["step"].fill_(updates)
            run.update(1, factor)
        fractions[str(updates)] = sizes(constant, half, BEFORE)[0]
    return fractions


def rounded_decay() -> dict[str, float]:
    """The weight decay of AdamW in float32, as a multiple of lr * weight_decay, by lr * weight_decay."""
    multiples = {}
    for product in (1e-8, 2.9e-8, 3.1e-8, 6e-8, 1e-7, 3e-7, 1e-6, 1e-5):
        weights = torch.nn.Parameter(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        before = weights.detach().double()
        weights.grad = torch.zeros_like(weights)
        torch.optim.AdamW([weights], lr=product / 0.1, weight_decay=0.1).step()
        lost = (before - weights.detach().double()).abs().sum() / before.abs().sum()
        multiples[f"{product:g}"] = round(lost.item() / product, 2)
    return multiples


def weight_in_the_average() -> dict[str, float]:
    """How much an update at learning rate 0 counts in the average of Schedule-Free, relative to the one before."""
    import schedulefree

    run = Run(schedulefree.AdamWScheduleFree)
    sums = [run.update(*update).optimizer.param_groups[0]["weight_sum"] for update in ((BEFORE,), (1,), (1, 0))]
    return {"zero": round((sums[2] - sums[1]) / (sums[1] - sums[0]), 3)}


def getter_of_distributed_checkpoints() -> dict[str, float]:
    """What torch.distributed.checkpoint takes from the weights when it asks a new optimizer for its state."""
    import pytorch_optimizer
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    lost = {}
    for name, factory in {
        "torch AdamW": torch.optim.AdamW,
        "pytorch_optimizer AdaBelief": pytorch_optimizer.AdaBelief,
        "pytorch_optimizer AdaBelief(fixed_decay=True)": partial(pytorch_optimizer.AdaBelief, fixed_decay=True),
    }.items():
        run = Run(factory, weight_decay=0.1)
        get_optimizer_state_dict(run.module, run.optimizer)
        lost[name] = round(distance(run.weights, random_matrix(1)) / random_matrix(1).norm().item(), 4)
    return lost


def groups_of_post_local_sgd() -> dict[str, bool]:
    """Whether a scheduler's learning rate reaches the optimizer inside, before and after states were loaded."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        weights = torch.nn.Parameter(torch.zeros(1))
        inside = torch.optim.SGD([weights], lr=0.1)
        optimizer = PostLocalSGDOptimizer(inside, PeriodicModelAverager(period=4))
        reached = {}
        for when, lr in (("before", 0.05), ("after", 0.025)):
            optimizer.param_groups[0]["lr"] = lr
            reached[when] = inside.param_groups[0]["lr"] == lr
            optimizer.load_state_dict(optimizer.state_dict())
        inside.load_state_dict(inside.state_dict())
        wrapped = PostLocalSGDOptimizer(inside, PeriodicModelAverager(period=4))
        reached["wrapped after loading"] = wrapped.param_groups is inside.param_groups
        torch.distributed.destroy_process_group()
    return reached


def steps_under_lightning() -> dict[str, int]:
    """How often Lightning steps a scheduler in 3 epochs of 4 batches, by `frequency`."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, frequency: int) -> None:
            super().__init__()
            self.layer, self.frequency = torch.nn.Linear(2, 1), frequency

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            config = {"scheduler": self.scheduler, "interval": "step", "frequency": self.frequency}
            return {"optimizer": optimizer, "lr_scheduler": config}

    steps = {}
    for frequency in (1, 2, 3, 4, 5):
        module = Module(frequency)
        off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **off)
        trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 2))))
        steps[str(frequency)] = module.scheduler.last_epoch
    return steps


FACTS: tuple[Callable[[], dict[str, Any]], ...] = (
    cap_of_adafactor,
    rounded_decay,
    weight_in_the_average,
    getter_of_distributed_checkpoints,
    groups_of_post_local_sgd,
    steps_under_lightning,
)

# What the figures of an optimizer come to: what happens, and what to do.
KINDS = {
    "ignored": (
        "The learning rate has no effect",
        'transformers: `relative_step=False`, `scale_parameter=False` and an `lr`, as `optim="adafactor"` does. '
        "pytorch_optimizer: `relative_step=False` for `AdaFactor`, `warmup_steps=0` for `ApolloDQN` (it has no effect "
        "in its first 500 updates), `eps=1e-8` for `AdaGO`. `Rprop`: choose another optimizer",
    ),
    "capped": (
        "The learning rate is capped at 1/√step: a change above that has no effect",
        "keep the peak below 1/√N for a run of N updates",
    ),
    "late": ("The learning rate is used one update late", "nothing: also a cycle end comes one update late"),
    "follows": (
        "A long average of past learning rates caps the learning rate",
        "use it with one cycle (`num_cycles=1`)",
    ),
    "fails": (
        "An error, or weights that are not numbers, at a learning rate of 0",
        "`warmup_lr_rate=0.01, min_lr_rate=0.01`",
    ),
    "jumps": (
        "The learning rate divides the difference of two sums: each change of it moves the weights far",
        "use a constant learning rate",
    ),
    "averages": (
        "The weights move at a learning rate of 0, since they are an average; "
        "an update at 0 counts in it as much as any other",
        "use a constant learning rate, or its own `warmup_steps`",
    ),
    "momentum": (
        "The momentum contains the learning rate of past updates: the weights move at a learning rate of 0",
        "expect that the weights still move at a cycle end. `Adafactor`: without `beta1` (transformers), or with "
        "`betas=(None, 0.999)` (pytorch_optimizer), they do not",
    ),
    "estimates": (
        "It multiplies the learning rate by an estimate of its own, which depends on the learning rates of the past",
        "one cycle (`num_cycles=1`), `lr=1`, and `safeguard_warmup=True` where it has it",
    ),
    "expected": ("An update is as large as the learning rate says", "nothing"),
}


def kind_of(record: dict[str, Any]) -> str:
    """What the figures of an optimizer come to: one of `KINDS`."""
    half, zero = record["half"], record.get("zero")
    if half[0] > 2:
        return "jumps"
    if isinstance(record.get("beginning"), str) or zero is None:
        return "fails"
    if half[0] > 0.95:
        at_zero = {(True, True): "ignored", (True, False): "late", (False, False): "capped"}
        kind = at_zero[zero[0] > 0.95, zero[1] > 0.95]
        return "follows" if kind == "capped" and record["begin"] < 0.5 else kind
    if "ScheduleFree" in record["name"] and zero[0] > 0.01:
        return "averages"
    if half[1] < 0.4 or record["restart"][0] > 1.5:
        return "estimates"
    return "momentum" if zero[0] > 0.01 else "expected"


def named(record: dict[str, Any]) -> str:
    return f"{record['package']} `{record['name']}`"


def read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text())


def by_kind() -> dict[str, list[dict[str, Any]]]:
    """The optimizers that were measured, by what their figures come to."""
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for record in read()["optimizers"]:
        if "half" in record:
            kinds[kind_of(record)].append(record)
    if read()["facts"]["cap_of_adafactor"]["100000"] == 1:  # too many updates to make them for each optimizer
        kinds["capped"].append({"package": "torch", "name": "Adafactor"})
    return kinds


def of_packages(records: list[dict[str, Any]]) -> str:
    """The names of optimizers, those of a package together."""
    packages: dict[str, list[str]] = {}
    for record in records:
        packages.setdefault(record["package"], []).append(f"`{record['name']}`")
    return "; ".join(f"{package} {', '.join(names)}" for package, names in packages.items())


def optimizers_by_kind() -> str:
    """The table: what happens, with which optimizers, and what to do."""
    facts, records = read()["facts"], read()["optimizers"]
    rows = [
        [what, of_packages(found), do]
        for kind, found in by_kind().items()
        for what, do in [KINDS[kind]]
        if kind != "expected"
    ]
    multiples = facts["rounded_decay"]
    lost = max(product for product, multiple in multiples.items() if multiple == 0)
    most = max(multiples, key=multiples.__getitem__)
    forgetful = [record for record in records if record.get("resumed", 0) > 0.001]
    fixed = sorted({record["name"].split("(")[0] for record in records if record.get("fixed_decayed")})
    rows += [
        [
            f"float32 rounds the weight decay: at lr · weight_decay = {lost} nothing is left of it, at {most} it is "
            f"{multiples[most]} times as large",
            "all with decoupled weight decay in float32; measured with torch `AdamW`",
            "nothing, if lr · weight_decay is far above that at the peak; else a larger `weight_decay`",
        ],
        [
            "A resumed run differs: the moments are not in `state_dict()`",
            of_packages(forgetful),
            "choose another optimizer for a run that may be resumed",
        ],
        [
            "With `fixed_decay=True`, the weights shrink at a learning rate of 0, also when "
            "`torch.distributed.checkpoint` asks a new optimizer for its state",
            f"pytorch_optimizer: {len(fixed)} optimizers, such as `{fixed[0]}`",
            "leave `fixed_decay` out; else load the model's weights after that call",
        ],
    ]
    if facts["groups_of_post_local_sgd"] == {"before": True, "after": False, "wrapped after loading": True}:
        rows.append(
            [
                "After `load_state_dict`, its groups are no longer those of the optimizer inside: the learning rate "
                "stays",
                "torch `PostLocalSGDOptimizer`",
                "load the state of the optimizer inside first, then construct the wrapper and the scheduler",
            ]
        )
    return markdown_table(["what happens", "optimizers", "what to do"], rows, num_text_columns=3)


def optimizers_as_expected() -> str:
    """The optimizers that do what the learning rate says, and those that were not measured."""
    records = read()["optimizers"]
    known = {(record["package"], record["name"].split("(")[0]) for record in records if "half" in record}
    left_out = [
        record for record in records if (record["package"], record["name"]) not in known and "not_measured" in record
    ]
    versions = ", ".join(f"{name} {version}" for name, version in read()["versions"].items())
    return (
        f"With these, an update is as large as the learning rate says: {of_packages(by_kind()['expected'])}.\n\n"
        f"Not measured, because they need more than a matrix and its gradient: {of_packages(left_out)}.\n\n"
        f"Measured with {versions}."
    )


def lightning_frequency() -> str:
    """What `frequency` does under Lightning."""
    steps = read()["facts"]["steps_under_lightning"]
    taken = "; ".join(f"`frequency={frequency}`: {count}" for frequency, count in steps.items())
    return f"In 3 epochs of 4 batches, a scheduler took this many steps: {taken}."


def main() -> None:
    warnings.simplefilter("ignore")
    records = []
    for distribution, name, factory in optimizers():
        with contextlib.redirect_stdout(io.StringIO()):
            records.append({"package": distribution, "name": name} | measured(factory))
        print(records[-1], flush=True)
    facts = {fact.__name__: fact() for fact in FACTS}
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, "lightning")}
    lines = ",\n".join(f"    {json.dumps(record)}" for record in records)
    of_facts = ",\n".join(f"    {json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
    RESULTS.write_text(
        f'{{\n  "versions": {json.dumps(versions)},\n  "optimizers": [\n{lines}\n  ],\n'
        f'  "facts": {{\n{of_facts}\n  }}\n}}\n'
    )


if __name__ == "__main__":
    main()
