"""What the documentation says of other libraries, with the releases that are installed.

`.ci/versions` runs this file with the lowest and the newest releases.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
from code_blocks import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import optimizers as page

INSTALLED = [name for name in ("torch", "transformers", "schedulefree") if importlib.util.find_spec(name)]
COMMITTED = {(record["package"], record["name"]): record for record in page.read()["optimizers"] if "half" in record}


# docs/optimizers.md


@pytest.mark.parametrize(("package", "name", "factory"), [*page.optimizers(*INSTALLED)])
def test_an_optimizer_does_with_the_learning_rate_what_the_page_says(package, name, factory):
    if (package, name) not in COMMITTED:
        pytest.skip("the page says that it was not measured")
    record, again = COMMITTED[package, name], page.measured(factory)
    assert page.kind_of(again | {"name": name}) == page.kind_of(record)
    assert again["half"] == pytest.approx(record["half"], abs=0.02)


@pytest.mark.parametrize("fact", [page.cap_of_adafactor, page.rounded_decay, page.groups_of_post_local_sgd])
def test_a_fact_about_torch_is_the_one_on_the_page(fact):
    assert fact() == page.read()["facts"][fact.__name__]


@pytest.mark.needs("schedulefree")
def test_schedule_free_counts_an_update_at_learning_rate_0_in_full():
    assert page.weight_in_the_average() == {"zero": 1.0}


@pytest.mark.needs("lightning")
def test_lightning_counts_its_frequency_within_an_epoch():
    assert page.steps_under_lightning() == page.read()["facts"]["steps_under_lightning"]
