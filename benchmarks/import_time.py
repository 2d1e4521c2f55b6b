"""What `import hf_warmcos` adds to `import torch`, in fresh interpreters.

python benchmarks/import_time.py --output benchmarks/results
"""

from __future__ import annotations

import json
import subprocess
import sys

from timing import Bar, Timing, argument_parser, describe, finish, markdown_table, surroundings

IMPORTS = """
import json
from time import perf_counter
start = perf_counter()
import torch
torch_loaded = perf_counter()
import hf_warmcos
print(json.dumps([torch_loaded - start, perf_counter() - torch_loaded]))
"""


def main() -> None:
    arguments = argument_parser(__doc__).parse_args()
    rounds = 2 if arguments.quick else 21
    samples = []
    for _ in range(rounds):
        run = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
        samples.append([1000 * seconds for seconds in json.loads(run.stdout)])
    timings = dict(zip(("import torch", "import hf_warmcos after it"), map(Timing.of, zip(*samples))))

    where = surroundings()
    print(f"Milliseconds, median (quartiles) of {rounds} fresh interpreters. {describe(where)}.\n")
    print(markdown_table(["", "ms"], [[name, str(timing)] for name, timing in timings.items()]))
    record = {
        "surroundings": where,
        "rounds": rounds,
        "unit": "milliseconds",
        "imports": {name: timing._asdict() for name, timing in timings.items()},
    }
    added = timings["import hf_warmcos after it"].median
    finish(arguments, "import_time", record, [Bar("milliseconds that hf_warmcos adds", added, "<=", 50)])


if __name__ == "__main__":
    main()
