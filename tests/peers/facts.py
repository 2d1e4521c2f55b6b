"""The sentences of docs/migrate.md about each scheduler, each with its check.

A check gets the learning rates of the scheduler: `rates(steps, **arguments)` runs the real class in
`python -m tests.peers`, and the formula elsewhere. One that needs more than learning rates is only run there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .mappings import LR, PEERS, STEPS, ours

Rates = Callable[..., list[float]]
FACTS: dict[str, list[Callable[[Rates], bool]]] = {}
ONLY_REAL: set[Callable] = set()


def of(section: str, only_real: bool = False) -> Callable:
    """Make a check's docstring a sentence in a section of the page."""

    def add(check: Callable[[Rates], bool]) -> Callable[[Rates], bool]:
        FACTS.setdefault(section, []).append(check)
        if only_real:
            ONLY_REAL.add(check)
        return check

    return add


def sentence(check: Callable) -> str:
    return " ".join((check.__doc__ or "").split())


def near(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)


def ours_of(section: str, **case: Any) -> list[float]:
    return ours(next(peer for peer in PEERS if peer.section == section), **case)


@of("transformers `get_cosine_with_hard_restarts_schedule_with_warmup`")
def restarts_between_steps(rates: Rates) -> bool:
    """Its restarts may lie between two steps; here they move to the nearest whole step. The learning rates are equal
    if `num_cycles` divides the steps after the warmup."""
    section = "transformers `get_cosine_with_hard_restarts_schedule_with_warmup`"
    case = {"num_warmup_steps": 10, "num_training_steps": 100, "num_cycles": 7}
    pairs = [*zip(rates(100, **case), ours_of(section, **case))]
    return sum(not near(a, b) for a, b in pairs) > 80


@of("transformers `get_wsd_schedule`")
def warmup_from_the_minimum(rates: Rates) -> bool:
    """It has one cycle. Its warmup starts at `min_lr_ratio`: set `warmup_lr_rate` to it, too."""
    case = {"num_warmup_steps": 10, "num_stable_steps": 70, "num_decay_steps": 30, "min_lr_ratio": 0.1}
    seen = rates(STEPS, **case)
    return near(seen[0], 0.1 * LR) and near(seen[-1], 0.1 * LR)


KATSURA = "katsura-jp and pytorch_optimizer `CosineAnnealingWarmupRestarts`"


@of(KATSURA)
def first_step_at_the_minimum(rates: Rates) -> bool:
    """The first step trains at `min_lr`, even without a warmup."""
    return rates(2, first_cycle_steps=20)[0] == 1e-4 and rates(3, first_cycle_steps=20)[1] > 0.9 * LR


@of(KATSURA)
def only_the_part_after_the_warmup_grows(rates: Rates) -> bool:
    """Only the part of a cycle after its warmup grows, and each length is cut to a whole number. With a warmup and a
    `cycle_mult` other than 1, list the cycles: `cycles=[[steps, gamma**k], …]`, where the next length is
    `int((steps - warmup_steps) * cycle_mult) + warmup_steps`."""
    seen = rates(60, first_cycle_steps=20, cycle_mult=1.5, warmup_steps=5)
    return [step for step in range(1, 60) if seen[step] == 1e-4] == [20, 20 + 27]


@of(KATSURA)
def upside_down(rates: Rates) -> bool:
    """A peak that `gamma` takes below `min_lr` turns the cycle upside down. Here that cycle stays at the minimum."""
    seen = rates(60, first_cycle_steps=20, gamma=0.01, min_lr=1e-3)
    here = ours_of(KATSURA, first_cycle_steps=20, gamma=0.01, min_lr=1e-3)
    return seen[20] < seen[39] < 1e-3 and here[20] == here[39] == 1e-3


@of(KATSURA)
def one_learning_rate_for_all(rates: Rates) -> bool:
    """`max_lr` replaces the learning rates of all groups. Here each group keeps its own."""
    return near(max(rates(30, first_cycle_steps=20, max_lr=0.5)[1:]), rates(30, first_cycle_steps=20, max_lr=0.5)[20])


@of(KATSURA, only_real=True)
def gamma_of_pytorch_optimizer(rates: Rates) -> bool:
    """In pytorch_optimizer `gamma` is 0.9 unless given."""
    import inspect

    from .real import module

    packages = ("pytorch_optimizer", "pytorch_optimizer.lr_scheduler")
    scheduler_class = module("pytorch_optimizer.lr_scheduler.cosine_anealing", *packages).CosineAnnealingWarmupRestarts
    return inspect.signature(scheduler_class).parameters["gamma"].default == 0.9


PYTORCH_SCHEDULER = "pytorch-scheduler `CosineAnnealingWarmupRestarts`"


@of(PYTORCH_SCHEDULER)
def each_cycle_starts_at_the_minimum(rates: Rates) -> bool:
    """Without a warmup, the first step of every cycle trains at `min_lr`."""
    seen = rates(90, first_cycle_steps=30)
    return all(seen[restart] == 1e-4 and seen[restart + 1] > 0.9 * LR for restart in (0, 30, 60))


COPIED = "`CosineAnnealingWarmUpRestarts`, copied from project to project"


@of(COPIED)
def its_lr_is_the_minimum(rates: Rates) -> bool:
    """Its optimizer's `lr` is the minimum, usually 0. Give the optimizer the peak in place of it: with an `lr` of 0,
    every update here is at 0."""
    seen = rates(40, lr=0, T_0=20, T_up=5)
    return seen[0] == 0 and seen[5] == LR


@of(COPIED)
def its_cycles_grow_as_those_of_katsura(rates: Rates) -> bool:
    """Only the part of a cycle after its warmup grows. With `T_up` and a `T_mult` other than 1, list the cycles:
    `cycles=[[steps, gamma**k], …]`, where the next length is `(steps - T_up) * T_mult + T_up`."""
    seen = rates(80, lr=0, T_0=20, T_mult=2, T_up=5)
    return [step for step in range(80) if seen[step] == 0] == [0, 20, 55]


LORA_EASY = "LoRA Easy Training Scripts `CosineAnnealingWarmRestarts`"


@of(LORA_EASY)
def lengths_are_rounded_one_by_one(rates: Rates) -> bool:
    """Only the part of a cycle after its warmup grows, and each length is rounded. With a warmup or a fractional
    multiplier, list the cycles: `cycles=[[steps, gamma**k], …]`, where the next length is
    `round((steps - warmup_steps) * cycle_multiplier) + warmup_steps`."""
    seen = rates(70, first_cycle_max_steps=15, gamma=1, cycle_multiplier=1.5, warmup_steps=4)
    return [step for step in range(70) if seen[step] == 1e-6] == [0, 15, 15 + 20, 15 + 20 + 28]


TORCH_COSINE_ANNEALING = "torch-cosine-annealing `CosineAnnealingWithWarmRestarts`"


@of(TORCH_COSINE_ANNEALING)
def real_valued_lengths(rates: Rates) -> bool:
    """With a fractional `cycle_mult`, its lengths are not rounded: a cycle restarts at the next whole step, and its
    cosine ends between two steps."""
    seen = rates(50, cycle_period=15, cycle_mult=1.5)
    return seen[15 + 23] == LR and seen[15 + 22] > 1e-8


@of(TORCH_COSINE_ANNEALING)
def its_smallest_learning_rate(rates: Rates) -> bool:
    """`min_lr` is 1e-8 unless given; here it is 0."""
    return rates(5, cycle_period=10, warmup_period=4)[0] == 1e-8


TIMM = "timm `CosineLRScheduler`"


@of(TIMM)
def without_a_prefix_the_learning_rate_drops(rates: Rates) -> bool:
    """This holds with `warmup_prefix=True`. By default it is False: then the learning rate drops where the warmup ends
    (from 0.8 to 0.5 times `lr` with `t_initial=10` and `warmup_t=5`), which has no counterpart here."""
    seen = rates(6, t_initial=10, warmup_t=5)
    return near(seen[4], 0.8 * LR) and near(seen[5], 0.5 * LR)


@of(TIMM)
def one_cycle_by_default(rates: Rates) -> bool:
    """`cycle_limit` is 1 by default: one cycle, then the minimum. Here the cycles never end unless `num_cycles` says
    so."""
    return rates(15, t_initial=10)[10:] == [0.0] * 5


@of(TIMM)
def the_fifth_restart_is_at_the_minimum(rates: Rates) -> bool:
    """With `cycle_mul=3`, the step of the fifth restart trains at the minimum there, by rounding. Here it is the
    peak."""
    seen = rates(122, t_initial=1, cycle_mul=3, cycle_limit=9)
    restarts = [0, 1, 4, 13, 40, 121]
    return [seen[step] for step in restarts[:5]] == [LR] * 5 and near(seen[121], 0)


@of(TIMM)
def its_restarts_lie_between_steps(rates: Rates) -> bool:
    """With a fractional `cycle_mul`, its restarts lie between two steps. Here they move to the nearest whole step."""
    seen = rates(40, t_initial=10, cycle_mul=1.5, cycle_limit=9)
    return seen[0] == seen[10] == seen[25] == LR and LR not in seen[26:]


@of(TIMM)
def timm_upside_down(rates: Rates) -> bool:
    """A peak that `cycle_decay` takes below `lr_min` turns the cycle upside down. Here it stays at the minimum."""
    seen = rates(20, t_initial=10, cycle_decay=0.01, cycle_limit=2, lr_min=1e-3)
    return seen[10] < seen[19] < 1e-3


@of(TIMM, only_real=True)
def it_counts_epochs(rates: Rates) -> bool:
    """It counts epochs (`t_in_epochs=True`). Here all lengths are in updates: multiply them by the updates of an
    epoch."""
    import inspect

    from .real import module

    scheduler_class = module("timm.scheduler.cosine_lr", "timm").CosineLRScheduler
    return inspect.signature(scheduler_class).parameters["t_in_epochs"].default is True


MMENGINE = "MMEngine `CosineRestartLR`"


@of(MMENGINE)
def a_weight_multiplies_the_peak(rates: Rates) -> bool:
    """A restart weight multiplies the peak, not the distance to the minimum, as here."""
    return near(rates(30, periods=[20, 20], restart_weights=[1, 0.5], eta_min=1e-3)[20], 0.5 * LR)


@of(MMENGINE)
def it_stays_as_it_is(rates: Rates) -> bool:
    """After the last period the learning rate stays as it is. Here it falls to the minimum."""
    seen = rates(30, periods=[10, 10], restart_weights=[1, 1], eta_min=0)
    return seen[19] == seen[29] > 0


@of(MMENGINE, only_real=True)
def a_linear_warmup_multiplies(rates: Rates) -> bool:
    """`LinearLR` and `CosineRestartLR` that both begin at step 0 multiply each other: the learning rate reaches several
    times `lr`."""
    from mmengine.optim.scheduler import CosineRestartLR, LinearLR

    from .real import optimizer_with

    optimizer, seen = optimizer_with(LR), []
    schedulers = [
        LinearLR(optimizer, start_factor=0.1, by_epoch=False, end=10),
        CosineRestartLR(optimizer, periods=[50], restart_weights=[1], eta_min=0, by_epoch=False),
    ]
    for _ in range(50):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return max(seen) > 2 * LR


@of(MMENGINE, only_real=True)
def it_counts_epochs_too(rates: Rates) -> bool:
    """`by_epoch=True`, its default, counts epochs: multiply the periods by the updates of an epoch."""
    from mmengine.optim.scheduler import CosineRestartLR

    from .real import optimizer_with

    return CosineRestartLR(optimizer_with(LR), periods=[5], restart_weights=[1], eta_min=0).by_epoch is True


OPTAX = "optax `sgdr_schedule`"


@of(OPTAX)
def init_value(rates: Rates) -> bool:
    """A warmup starts at `init_value`; here at the minimum, `end_value`. Learning rates are equal where both are."""
    case = {"decay_steps": 20, "peak_value": LR, "warmup_steps": 5, "init_value": 0.0, "end_value": 1e-3}
    return rates(20, cosine_kwargs=[case])[0] == 0


KERAS = "keras `CosineDecayRestarts`"


@of(KERAS)
def alpha_lifts_the_peaks(rates: Rates) -> bool:
    """With `alpha` and `m_mul`, cycle k peaks at `(1 - alpha) * m_mul**k + alpha`: list the cycles with these
    peaks."""
    return near(rates(12, first_decay_steps=10, m_mul=0.5, alpha=0.2)[10], LR * (0.8 * 0.5 + 0.2))


@of(KERAS)
def t_mul_is_2(rates: Rates) -> bool:
    """`t_mul` is 2 by default; here `T_mult` is 1."""
    seen = rates(40, first_decay_steps=10)
    return [step for step in range(40) if near(seen[step], LR)] == [0, 10, 30]


IGNITE = "ignite `CosineAnnealingScheduler`"


@of(IGNITE)
def ignite_lengths_are_cut(rates: Rates) -> bool:
    """Each length is cut to a whole number before the next one is computed. With a fractional `cycle_mult`, list the
    cycles."""
    seen = rates(80, start_value=LR, end_value=0, cycle_size=15, cycle_mult=1.5)
    return [step for step in range(80) if seen[step] == LR] == [0, 15, 37, 70]


@of(IGNITE, only_real=True)
def ignite_warmups(rates: Rates) -> bool:
    """`create_lr_scheduler_with_warmup` reaches the peak at update W - 1, one before the cosine starts. The class's own
    `warmup_duration` comes after each cosine."""
    from ignite.handlers import CosineAnnealingScheduler, create_lr_scheduler_with_warmup

    from .real import optimizer_with

    optimizer = optimizer_with(LR)
    cosine = CosineAnnealingScheduler(optimizer, "lr", LR, 0, 10)
    # Its cosine starts at another value than the warmup's end: otherwise the two steps are one.
    scheduler = create_lr_scheduler_with_warmup(cosine, 0.0, 5, warmup_end_value=LR)
    seen = []
    for _ in range(12):
        scheduler(None)
        seen.append(optimizer.param_groups[0]["lr"])
    own = rates(25, start_value=LR, end_value=0, cycle_size=10, warmup_duration=5)
    return near(seen[4], LR) and near(own[0], LR) and near(own[15], LR) and near(own[12], 0.4 * LR)


COMPOSER = "composer `CosineAnnealingWarmRestartsScheduler`"


@of(COMPOSER)
def composer_lengths_are_cut(rates: Rates) -> bool:
    """Each length is cut to a whole number before the next one is computed. With a fractional `t_mult`, list the
    cycles."""
    seen = rates(80, t_0=15, t_mult=1.5)
    return [step for step in range(80) if seen[step] == LR] == [0, 15, 37, 70]


PADDLE = "paddle `CosineAnnealingWarmRestarts`"


@of(PADDLE, only_real=True)
def paddle_resumes_at_a_restart(rates: Rates) -> bool:
    """A scheduler of paddle that loads a state starts a new cycle. Here it continues inside of its cycle."""
    from paddle.optimizer.lr import CosineAnnealingWarmRestarts

    scheduler, resumed = (CosineAnnealingWarmRestarts(LR, T_0=10) for _ in range(2))
    for _ in range(5):
        scheduler.step()
    resumed.set_state_dict(scheduler.state_dict())
    scheduler.step()
    resumed.step()
    return resumed() > 1.5 * scheduler()


FAIRSEQ, FAIRSEQ2 = "fairseq `cosine`", "fairseq2 `CosineAnnealingLR`"


@of(FAIRSEQ)
def fairseq_shrinks_the_minimum(rates: Rates) -> bool:
    """`lr_shrink` (0.1 by default) shrinks the minimum with the peak, which has no counterpart here: the learning rates
    are equal with a minimum of 0, or with `lr_shrink=1`."""
    seen = rates(20, lr_period_updates=10, min_lr=1e-3)
    return seen[9] > 1e-3 > seen[19] > 1e-4


@of(FAIRSEQ2)
def fairseq2_shrinks_the_minimum(rates: Rates) -> bool:
    """`lr_mul` shrinks the minimum with the peak, which has no counterpart here: the learning rates are equal with a
    minimum of 0, or with `lr_mul=1`."""
    seen = rates(20, cycle_len=10, num_warmup_steps=0, lr_mul=0.1, final_lr=1e-3)
    return seen[9] > 1e-3 > seen[19] > 1e-4


ALLENNLP = "allennlp `cosine`"


@of(ALLENNLP)
def allennlp_lengths_are_cut(rates: Rates) -> bool:
    """Each length is `int(t_initial * t_mul**k)`, in epochs. With a fractional `t_mul`, list the cycles."""
    seen = rates(80, t_initial=15, t_mul=1.5)
    return [step for step in range(80) if seen[step] == LR] == [0, 15, 37, 70]


OLMO = "OLMo-core `WSDS`"


@of(OLMO)
def olmo_decays_linearly(rates: Rates) -> bool:
    """Its decay is linear; here it is a cosine. The learning rates of the warmup and of the plateaus are equal."""
    return near(rates(40, period_lengths=[40], decay_fraction=0.5)[35], LR * 5 / 20)


@of(OLMO)
def olmo_starts_a_period_at_the_minimum(rates: Rates) -> bool:
    """The first step of each later period trains at its minimum. Here it is at the peak."""
    seen = rates(80, period_lengths=[40, 40], decay_fraction=0.5)
    return seen[40] == 0 and seen[41] == LR


LEVANTER = "levanter `OptimizerConfig`"


@of(LEVANTER)
def levanter_warmup_in_the_first_cycle(rates: Rates) -> bool:
    """Its warmup lies in the first cycle, which is shorter here by the steps of the warmup: list the cycles."""
    seen = rates(100, num_train_steps=100, cycles=4, warmup=10)
    return near(seen[10], LR) and near(seen[25], LR) and near(seen[50], LR)


@of(LEVANTER)
def levanter_minimum(rates: Rates) -> bool:
    """`min_lr_ratio` is 0.1 unless given; here the minimum is 0."""
    return near(rates(130, num_train_steps=100, cycles=4)[-1], 0.1 * LR)


# What a user loses who goes from here to each scheduler; none of them says where its cycles end.
BACK = {
    "torch `CosineAnnealingWarmRestarts`": "warmup, decay, plateau, an end",
    "transformers `get_cosine_with_hard_restarts_schedule_with_warmup`": "growing cycles, decay, minimum, plateau",
    "transformers `get_wsd_schedule`": "all cycles but one",
    KATSURA: "plateau, one warmup for all cycles, the groups' own learning rates, an end",
    PYTORCH_SCHEDULER: "plateau, one warmup for all cycles, the groups' own learning rates, an end",
    COPIED: "plateau, one warmup for all cycles, an end",
    LORA_EASY: "plateau, one warmup for all cycles, an end",
    TORCH_COSINE_ANNEALING: "plateau, an end",
    TIMM: "plateau, restarts on whole steps, each cycle's own length and peak",
    MMENGINE: "plateau, a warmup in the same scheduler, growth and decay by a factor",
    OPTAX: "plateau, growth and decay by a factor",
    KERAS: "warmup, plateau, an end",
    IGNITE: "plateau, a warmup in the same scheduler, an end",
    COMPOSER: "warmup, decay, plateau, an end",
    PADDLE: "warmup, decay, plateau, an end, resuming inside a cycle",
    FAIRSEQ: "plateau, a minimum that stays, an end",
    FAIRSEQ2: "plateau, a minimum that stays, an end",
    ALLENNLP: "warmup, plateau, an end",
    LEVANTER: "growth and decay of the cycles by a factor",
    OLMO: "the cosine, growth and decay by a factor",
}
