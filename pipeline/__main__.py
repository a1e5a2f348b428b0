"""``python -m pipeline``: the same commands as ``dreamshard``."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m pipeline"))
