"""Many runs lock one dataset at a URL at the same moment: exactly one may get the lock.

    python -m benchmarks.faults.s3_lock [--server ceph] [--runs 8]

The server is that of ``benchmarks.faults.s3``. Ceph needs root and Debian's packages.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading

from upath import UPath

from benchmarks.faults.s3 import BUCKET, CREDENTIALS, s3_server
from pipeline.dataset.lock import locked
from pipeline.errors import TryAgainError

PATIENCE = 120.0  # Seconds after which a run counts as hung.


def compete(runs: int) -> tuple[int, int]:
    """Let threads lock one directory at once; returns how many had the lock, and were refused.

    The one that has it keeps it until all others were refused.
    """
    root = UPath(f"s3://{BUCKET}/dataset")
    together = threading.Barrier(runs, timeout=PATIENCE)
    others = threading.Semaphore(0)
    had: list[int] = []
    refused: list[str] = []

    def run(number: int) -> None:
        together.wait()
        try:
            with locked(root, "paths.dataset"):
                had.append(number)
                for _ in range(runs - 1):
                    others.acquire(timeout=PATIENCE)
        except TryAgainError as error:
            refused.append(str(error))
        others.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with locked(root, "paths.dataset"):  # it is free again
        return len(had), len(refused)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("moto", "ceph"), default="moto")
    parser.add_argument("--runs", type=int, default=8)
    options = parser.parse_args()
    with s3_server(options.server) as port:
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        had, refused = compete(options.runs)
    held = (had, refused) == (1, options.runs - 1)
    sys.stdout.write(f"{'held' if held else 'FAILED'}: {had} of {options.runs} runs had the lock\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
