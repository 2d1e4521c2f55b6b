"""The migration page: its mappings and its facts, with the formulas of other schedulers, and its loops.

`python -m tests.peers` runs the real classes.
"""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from code_blocks import ROOT, code_blocks, run_blocks
from optimizers import advance, make_optimizer, parameter_group, rates_of
from peers.facts import BACK, FACTS, ONLY_REAL, sentence
from peers.mappings import PEERS, STEPS, largest_difference

from hf_warmcos import CosineRestartSchedule
from hf_warmcos import get_cosine_restarts_with_decay_and_warmup_schedule as factory
from hf_warmcos.names import ELSEWHERE

RESULTS = json.loads((ROOT / "tests" / "peers" / "results.json").read_text())
CASES = [pytest.param(peer, case, id=f"{peer.formula.__name__}-{case}") for peer in PEERS for case in peer.cases]
CHECKS = [pytest.param(peer, of, id=of.__name__) for peer in PEERS for of in FACTS.get(peer.section, [])]


@pytest.mark.parametrize(("peer", "case"), CASES)
def test_the_learning_rates_are_those_of_the_other_scheduler(peer, case):
    assert largest_difference(peer, peer.formula(STEPS, **case), case) < 1e-11


@pytest.mark.parametrize(("peer", "fact"), [of for of in CHECKS if of.values[1] not in ONLY_REAL])
def test_what_the_page_says_of_a_scheduler_follows_from_its_formula(peer, fact):
    assert fact(peer.formula)


def test_each_scheduler_of_the_table_of_names_is_compared_over_more_than_three_cycles():
    assert [peer.section for peer in PEERS] == [*ELSEWHERE] == [*RESULTS]
    for peer in PEERS:
        restarts = [CosineRestartSchedule(**schedule_of(peer, case)).restarts(STEPS) for case in peer.cases]
        assert max(map(len, restarts)) >= 3 or peer.section == "transformers `get_wsd_schedule`", peer.section


def schedule_of(peer, case):
    """The schedule of a case: its arguments that say where cycles lie."""
    arguments = peer.here(**case)
    if "num_training_steps" in arguments:
        total, warmup = arguments["num_training_steps"], arguments["num_warmup_steps"]
        return {"T_0": (total - warmup) // arguments["num_cycles"]}
    return {name: arguments[name] for name in ("T_0", "T_mult", "num_cycles", "cycles") if name in arguments}


def test_the_committed_results_are_of_these_releases_cases_and_facts():
    for peer in PEERS:
        found = RESULTS[peer.section]
        assert found["facts"] == [*map(sentence, FACTS.get(peer.section, []))]
        assert (found["back"], found["cases"]) == (BACK[peer.section], len(peer.cases))
        assert found["largest_difference"] < 1e-11
        release = peer.package.replace("==", " ")
        own = peer.package.startswith(("torch==", "transformers=="))  # those of the environment
        assert release.partition(" ")[0] in found["compared_with"] if own else release in found["compared_with"]


def test_the_code_of_the_page_runs_in_its_order_and_comes_to_what_the_page_says():
    first, gradual, written, scaled, table = code_blocks("docs/migrate.md", "python")
    names = run_blocks([first], "docs/migrate.md")
    assert names["scheduler"].schedule.end == 100 + 7000

    names = run_blocks([gradual], "docs/migrate.md", **names)
    warmup = [step for (step,) in advance(names["scheduler"].optimizer, names["scheduler"], 10)]
    assert warmup == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)])

    names = run_blocks([written], "docs/migrate.md", **names)
    expected = CosineRestartSchedule(T_0=100).lr_at(40, 0.1)
    assert rates_of(names["optimizer"]) == pytest.approx([expected])
    assert advance(names["optimizer"], names["scheduler"], 2)[1] == pytest.approx(
        [CosineRestartSchedule(T_0=100).lr_at(41, 0.1)]
    )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = run_blocks([scaled], "docs/migrate.md", **names)
    assert names["scheduler"].base_lrs == pytest.approx([1e-3, 0.75e-3, 0.75**2 * 1e-3])

    names = run_blocks([table], "docs/migrate.md", **names)
    assert names["learning_rate"] == 6e-4 * names["schedule"].lr_at(500)


def test_a_loop_that_steps_once_per_epoch_trains_its_first_epoch_at_0_with_a_warmup():
    optimizer = make_optimizer()
    scheduler = factory(optimizer, num_warmup_steps=2, T_0=10)
    epochs = []
    for _ in range(2):
        epochs.append(rates_of(optimizer))
        for _ in range(5):
            optimizer.step()
        scheduler.step()
    assert epochs == [[0.0], [0.05]]


def test_a_loop_that_loads_its_optimizer_before_it_constructs_keeps_the_last_learning_rate_for_good():
    optimizer = make_optimizer()
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 1e-6
    optimizer.load_state_dict(saved)
    assert factory(optimizer, 0, T_0=100).base_lrs == [1e-6]


def test_a_checkpoint_without_a_scheduler_state_continues_after_one_step_to_the_updates_taken():
    optimizer = make_optimizer()
    scheduler = factory(optimizer, 5, T_0=10, decay=0.5)
    uncut = advance(optimizer, scheduler, 40)
    loaded = make_optimizer()
    loaded.load_state_dict(optimizer.state_dict())
    resumed = factory(loaded, 5, T_0=10, decay=0.5)
    resumed.step(20)
    assert advance(loaded, resumed, 20) == uncut[20:]


def test_groups_with_an_lr_scale_lose_it_with_a_warning():
    optimizer = torch.optim.SGD([{**parameter_group(), "lr_scale": scale} for scale in (0.5, 0.25, 1.0)])
    with pytest.warns(UserWarning, match="^2 parameter groups have an lr_scale"):
        assert factory(optimizer, 0, T_0=10).base_lrs == [0.1] * 3


@pytest.mark.parametrize(("ahead", "seen"), [(1, [9, 19, 29]), (0, [10, 20])])
def test_a_loop_that_steps_by_a_fraction_of_an_epoch_sees_cycle_ends_in_time_with_i_plus_1(ahead, seen):
    optimizer = make_optimizer()
    scheduler = factory(optimizer, 0, T_0=2)
    ends = []
    for update in range(30):
        optimizer.step()
        scheduler.step(update // 5 + (update % 5 + ahead) / 5)
        ends += [update] if scheduler.at_cycle_end else []
    assert ends == seen


def test_a_validation_loss_that_is_passed_to_step_is_taken_for_the_position_as_in_torch():
    ours, torchs = make_optimizer(), make_optimizer()
    factory(ours, 0, T_0=10).step(0.37)
    torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(torchs, 10).step(0.37)
    assert rates_of(ours) == rates_of(torchs)


def test_a_warmup_of_each_group_multiplies_what_the_schedule_wrote():
    optimizer = torch.optim.SGD([parameter_group(0.1), parameter_group(0.01)])
    scheduler = factory(optimizer, 0, T_0=20)
    warmups, seen = (2, 10), []
    for step in range(30):
        for group, steps in zip(optimizer.param_groups, warmups):
            group["lr"] *= min(1, (step + 1) / steps)
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [
        [scheduler.schedule.lr_at(step, lr) * min(1, (step + 1) / steps) for lr, steps in zip((0.1, 0.01), warmups)]
        for step in range(30)
    ]


@pytest.mark.needs("lightning")
def test_lightning_counts_the_updates_of_both_optimizers_in_manual_optimization():
    import lightning

    class TwoOptimizers(lightning.LightningModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.updates = [0, 0]

        def configure_optimizers(self):
            self.estimated = self.trainer.estimated_stepping_batches
            return [torch.optim.SGD([of], lr=0.1) for of in self.parameters()]

        def training_step(self, batch, _):
            for index, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                self.manual_backward(self.layer(batch).square().mean())
                optimizer.step()
                self.updates[index] += 1

    module = TwoOptimizers()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", max_steps=6, enable_model_summary=False, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(10, 2)))
    assert (module.estimated, module.updates) == (6, [3, 3])


def test_each_loop_of_the_page_is_named_once():
    section = (ROOT / "docs" / "migrate.md").read_text().partition("## A loop of your own")[2]
    assert len(re.findall(r"^\*\*… ", section, re.MULTILINE)) == 10
