"""Run the real schedulers, compare them with this package, and write what came out to results.json.

    python -m tests.peers
    python -m benchmarks.readme

The first command installs pinned releases into an environment of its own, a temporary folder (about 3 GB). Schedulers
of torch and transformers run in the environment of the call. docs/migrate.md shows the results.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from .facts import BACK, FACTS, ONLY_REAL, sentence
from .mappings import PEERS, STEPS, Peer, largest_difference
from .real import REAL

ROOT = Path(__file__).parent.parent.parent
RESULTS = Path(__file__).with_name("results.json")

OWN = ("torch", "transformers")
# Installed without what they depend on: other releases of torch, or torchvision. Their schedulers need neither.
ALONE = ("composer", "fairseq2", "timm")


def compared(peer: Peer) -> dict[str, Any]:
    """How far the learning rates are apart, and the facts that hold; an error where one does not."""
    rates = REAL.get(peer.section, peer.formula)
    differences = []
    for case in peer.cases:
        theirs = rates(STEPS, **case)
        differences.append(largest_difference(peer, theirs, case))
        from_formula = max(abs(a - b) for a, b in zip(theirs, peer.formula(STEPS, **case)))
        if max(differences[-1], from_formula) > 1e-11:
            raise AssertionError(
                f"{peer.section}, {case}: {differences[-1]} from ours, {from_formula} from the formula"
            )
    facts = FACTS.get(peer.section, [])
    for fact in facts:
        if (fact not in ONLY_REAL or peer.section in REAL) and not fact(rates):
            raise AssertionError(f"{peer.section}: no longer true: {sentence(fact)}")
    name = peer.package.partition("==")[0]
    return {
        "compared_with": f"{name} {metadata.version(name).partition('+')[0]}"
        if peer.section in REAL
        else f"formula; {peer.package}",
        "cases": len(peer.cases),
        "largest_difference": max(differences),
        "facts": [*map(sentence, facts)],
        "back": BACK[peer.section],
    }


def all_compared(own: bool) -> dict[str, dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {peer.section: compared(peer) for peer in PEERS if (peer.package.partition("==")[0] in OWN) == own}


def main() -> None:
    logging.disable(logging.WARNING)  # cases go on after the end of their schedules
    if sys.argv[1:]:  # in the environment of the others
        Path(sys.argv[1]).write_text(json.dumps(all_compared(own=False)))
        return
    results = all_compared(own=True)
    packages = [peer.package for peer in PEERS if "==" in peer.package and not peer.package.startswith("transformers")]
    alone = [package for package in packages if package.startswith(ALONE)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        for more in ({*packages} - {*alone}, ["--no-deps", *alone]):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *sorted(more)], check=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        there = f"{folder}/results.json"
        subprocess.run([python, "-m", "tests.peers", there], check=True, cwd=ROOT, env=environment)
        results |= json.loads(Path(there).read_text())
    in_order = {peer.section: results[peer.section] for peer in PEERS}
    RESULTS.write_text(json.dumps(in_order, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
