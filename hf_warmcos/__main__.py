"""`python -m hf_warmcos`: the command line of :mod:`hf_warmcos.cli`."""

import sys

from hf_warmcos.cli import main

sys.exit(main())
