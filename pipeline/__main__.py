"""``python -m pipeline`` and the console command ``dreamshard``: the same commands."""

import sys

from pipeline.exit_codes import stop_at_once


def run(program: str = "dreamshard") -> int:
    """Run the command of this process.

    Args:
        program: the name that help texts and errors show.

    Returns:
        The exit code.
    """
    stop_at_once()
    from pipeline.cli import main

    return main(program=program)


if __name__ == "__main__":
    sys.exit(run("python -m pipeline"))
