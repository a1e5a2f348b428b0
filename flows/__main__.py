"""``python -m flows synthesize | distill | dream``: see :mod:`flows.command_line`."""

import sys

from pipeline.exit_codes import stop_at_once

if __name__ == "__main__":  # worker processes import this module too
    stop_at_once()
    from flows.command_line import main

    sys.exit(main())
