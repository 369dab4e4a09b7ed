"""`python -m slugbench.bench` is the command `slugbench`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
