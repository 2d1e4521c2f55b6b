"""`python -m tests.fuzz`: a search for what the tests do not know yet. pytest does not run it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the modules that the tests share
