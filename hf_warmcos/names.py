"""What other schedulers call the arguments of this one: for hints in errors, and for the migration page. No imports.

For each scheduler: its arguments, and what they are here. A name in backquotes is one of the factory's arguments.
"""

from __future__ import annotations

_RISE = '`num_warmup_steps`, with `warmup_mode="every_cycle"`'
_START = "`warmup_lr_rate`, as a fraction of the initial learning rate"
_DECAY = "`stable_ratio` of each cycle, in `cycles`: the fraction of its steps before the decay"
_LR = "the optimizer's `lr`"

ELSEWHERE = {
    "torch `CosineAnnealingWarmRestarts`": {
        "T_0": "`T_0`",
        "T_mult": "`T_mult`",
        "eta_min": "`min_lr`",
    },
    "transformers `get_cosine_with_hard_restarts_schedule_with_warmup`": {
        "num_warmup_steps": "`num_warmup_steps`",
        "num_training_steps": "`num_training_steps`",
        "num_cycles": "`num_cycles`",
    },
    "transformers `get_wsd_schedule`": {
        "num_warmup_steps": "`num_warmup_steps`",
        "num_stable_steps": "`stable_ratio`, which is stable / (stable + decay)",
        "num_decay_steps": "`T_0`, which is stable + decay, with `num_cycles=1`",
        "min_lr_ratio": "`min_lr_rate`",
    },
    "katsura-jp and pytorch_optimizer `CosineAnnealingWarmupRestarts`": {
        "first_cycle_steps": "`T_0`",
        "cycle_mult": "`T_mult`",
        "warmup_steps": _RISE,
        "max_lr": _LR,
        "min_lr": "`min_lr`",
        "gamma": "`decay`",
    },
    "pytorch-scheduler `CosineAnnealingWarmupRestarts`": {
        "first_cycle_steps": "`T_0`",
        "cycle_mult": "`T_mult`",
        "warmup_steps": _RISE,
        "max_lr": _LR,
        "min_lr": "`min_lr`",
        "gamma": "`decay`",
    },
    "`CosineAnnealingWarmUpRestarts`, copied from project to project": {
        "T_0": "`T_0`",
        "T_mult": "`T_mult`",
        "T_up": _RISE,
        "eta_max": _LR,
        "the optimizer's lr": "`min_lr`",
        "gamma": "`decay`",
    },
    "LoRA Easy Training Scripts `CosineAnnealingWarmRestarts`": {
        "first_cycle_max_steps": "`T_0`",
        "cycle_multiplier": "`T_mult`",
        "warmup_steps": _RISE,
        "min_lr": "`min_lr`",
        "gamma": "`decay`",
    },
    "torch-cosine-annealing `CosineAnnealingWithWarmRestarts`": {
        "cycle_period": "`T_0`",
        "cycle_mult": "`T_mult`",
        "warmup_period": _RISE,
        "warmup_once": "`warmup_steps` of the first cycle, in `cycles`",
        "max_lr": _LR,
        "min_lr": "`min_lr`",
        "gamma": "`decay`",
    },
    "timm `CosineLRScheduler`": {
        "t_initial": "`T_0`",
        "cycle_mul": "`T_mult`",
        "cycle_limit": "`num_cycles`",
        "cycle_decay": "`decay`",
        "lr_min": "`min_lr`",
        "warmup_t": "`num_warmup_steps`",
        "warmup_lr_init": _START,
    },
    "MMEngine `CosineRestartLR`": {
        "periods": "`cycles`",
        "restart_weights": "`cycles`, as `[[period, weight], …]`",
        "eta_min": "`min_lr`",
        "eta_min_ratio": "`min_lr_rate`",
    },
    "optax `sgdr_schedule`": {
        "decay_steps": "`cycles`",
        "peak_value": "`cycles`, as `[[decay_steps, fraction], …]`",
        "warmup_steps": _RISE,
        "end_value": "`min_lr`",
    },
    "keras `CosineDecayRestarts`": {
        "initial_learning_rate": _LR,
        "first_decay_steps": "`T_0`",
        "t_mul": "`T_mult`",
        "m_mul": "`decay`",
        "alpha": "`min_lr_rate`",
    },
    "ignite `CosineAnnealingScheduler`": {
        "start_value": _LR,
        "end_value": "`min_lr`",
        "cycle_size": "`T_0`",
        "cycle_mult": "`T_mult`",
        "start_value_mult": "`decay`",
    },
    "composer `CosineAnnealingWarmRestartsScheduler`": {
        "t_0": "`T_0`",
        "t_mult": "`T_mult`",
        "alpha_f": "`min_lr_rate`",
    },
    "paddle `CosineAnnealingWarmRestarts`": {
        "learning_rate": _LR,
        "T_0": "`T_0`",
        "T_mult": "`T_mult`",
        "eta_min": "`min_lr`",
    },
    "fairseq `cosine`": {
        "lr_period_updates": "`T_0`",
        "t_mult": "`T_mult`",
        "lr_shrink": "`decay`",
        "min_lr": "`min_lr`",
        "warmup_updates": "`num_warmup_steps`",
        "warmup_init_lr": _START,
        "max_update": "`num_training_steps`",
    },
    "fairseq2 `CosineAnnealingLR`": {
        "cycle_len": "`T_0`",
        "cycle_mul": "`T_mult`",
        "lr_mul": "`decay`",
        "final_lr": "`min_lr`",
        "num_warmup_steps": "`num_warmup_steps`",
        "start_lr": _START,
    },
    "allennlp `cosine`": {
        "t_initial": "`T_0`",
        "t_mul": "`T_mult`",
        "eta_mul": "`decay`",
        "eta_min": "`min_lr`",
    },
    "OLMo-core `WSDS`": {
        "period_lengths": "`cycles`",
        "period_lr_multipliers": "`cycles`, as `[[length, multiplier], …]`",
        "decay_fraction": "`stable_ratio`, which is 1 - decay_fraction",
        "decay": _DECAY,
        "decay_min_lr": "`min_lr`",
        "warmup": '`num_warmup_steps`, with `warmup_mode="overlap"`',
        "warmup_min_lr": _START,
    },
    "levanter `OptimizerConfig`": {
        "learning_rate": _LR,
        "num_train_steps": "`num_training_steps`",
        "cycles": "`num_cycles`",
        "cycle_length": "`T_0`",
        "warmup": "`num_warmup_steps`",
        "rewarmup": "`warmup_steps` of each later cycle, in `cycles`",
        "decay": _DECAY,
        "min_lr_ratio": "`min_lr_rate`",
    },
}

# Names that other tools, and the classes of this package, have for the same arguments; most are options of commands.
COMMANDS = {
    "eta_min_rate": "`min_lr_rate`",
    "lr_num_cycles": "`num_cycles`",
    "lr_scheduler_num_cycles": "`num_cycles`",
    "lr_warmup_steps": "`num_warmup_steps`",
    "max_steps": "`num_training_steps`",
    "max_train_steps": "`num_training_steps`",
    "n_cycles": "`num_cycles`",
    "num_restarts": "`num_cycles`, which is the number of restarts plus 1",
    "num_warmup_epochs": "`num_warmup_steps`, in optimizer updates",
    "warmup_epochs": "`num_warmup_steps`, in optimizer updates",
    "warmup_iters": "`num_warmup_steps`",
    "warmup_ratio": "`num_warmup_steps`, in optimizer updates",
}

# Where the two arguments are set that a training passes itself.
SET_BY_THE_TRAINING = {
    "num_warmup_steps": "the warmup is set where the training is: TrainingArguments, or the command's own option",
    "num_training_steps": "the training sets its length: TrainingArguments, or the command's own option",
}


def meaning_of(name: str) -> str | None:
    """What an argument of another scheduler is here, or None where it is unknown.

    Where several schedulers have the name, it is what they agree on: the argument, and what is said of it.

    ```python
    >>> meaning_of("cycle_mul"), meaning_of("warmup_lr_init")
    ('`T_mult`', '`warmup_lr_rate`, as a fraction of the initial learning rate')
    >>> meaning_of("power")

    ```
    """
    meanings = {arguments[name] for arguments in (*ELSEWHERE.values(), COMMANDS) if name in arguments}
    if len(meanings) > 1:
        meanings = {meaning.partition(",")[0] for meaning in meanings}
    return meanings.pop() if len(meanings) == 1 else None
