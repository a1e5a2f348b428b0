"""Compare the bytes that two small jobs make with digests that were recorded earlier.

A change that only moves code must not change a pixel or a weight. Record the digests before such a
change and compare after it::

    python -m tests.same_pixels --record
    python -m tests.same_pixels

The jobs are the default one (``params.yaml``) and ``examples/cifar10.yaml`` with 64 images and 20
iterations. The digests are those of the samples of every tar, and of every student's weights. The
prefix of a sample key does not count, because it follows from the parameters and the teacher's
code. Last bits depend on the processor and on torch, so ``same_pixels.json`` keeps one table for
each pair of both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

TABLE = Path(__file__).with_suffix(".json")
CIFAR10 = [
    "synthesis.images=64",
    "synthesis.iterations=20",
    "distillation.steps=20",
    "distillation.batch_size=32",
]


def main() -> int:
    """Run both jobs; returns 0 where all digests are the recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the digests down")
    parser.add_argument("--digits-only", action="store_true", help="skip the CIFAR-10 job")
    parser.add_argument(
        "--cifar10-weights",
        default="data/cifar10/resnet20.th",
        help="the teacher of examples/cifar10.yaml",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run_jobs(Path(folder), None if options.digits_only else options.cifar10_weights)
    tables = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    if options.record and not options.digits_only:
        TABLE.write_text(json.dumps({**tables, machine(): found}, indent=1, sort_keys=True) + "\n")
        return 0
    if machine() not in tables:
        sys.exit(f"no digests were recorded on {machine()}: run --record on the commit before")
    recorded = tables[machine()]
    if options.digits_only:
        recorded = {name: digest for name, digest in recorded.items() if "digits" in name}
    differing = sorted(n for n in recorded | found if recorded.get(n) != found.get(n))
    sys.stdout.write("".join(f"differs: {name}\n" for name in differing))
    sys.stdout.write(f"{len(recorded) - len(differing)} of {len(recorded)} files are the same\n")
    return 1 if differing else 0


def machine() -> str:
    """The processor's instructions and torch's version: what the last bits depend on."""
    bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    amx = torch.cpu._is_amx_tile_supported()
    capability = torch.backends.cpu.get_cpu_capability()
    extra = f"{' bfloat16' if bfloat16 else ''}{' AMX' if amx else ''}"
    return f"{capability}{extra}, torch {torch.__version__}"


def run_jobs(folder: Path, cifar10_weights: str | None) -> dict[str, str]:
    """Make both datasets and their students in ``folder``; file name to SHA-256."""
    if not Path("data/digits/teacher.safetensors").is_file():
        subprocess.run([sys.executable, "-m", "examples.digits", "data/digits"], check=True)
    run_job(folder / "digits", "params.yaml", [])
    if cifar10_weights is not None:
        weights = f"teacher.weights={cifar10_weights}"
        run_job(folder / "cifar10", "examples/cifar10.yaml", [*CIFAR10, weights])
    made = [*folder.rglob("*.tar"), *folder.rglob("student*/*.safetensors")]
    return {
        str(path.relative_to(folder)): samples_digest(path)
        if path.suffix == ".tar"
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(made)
    }


def samples_digest(path: Path) -> str:
    """A digest of the numbers, extensions and contents of a tar's members, in their order."""
    digest = hashlib.sha256()
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            digest.update(f"{member.name.rpartition('-')[2]} {member.size} ".encode())
            digest.update(content.read())
    return digest.hexdigest()


def run_job(folder: Path, params: str, changes: list[str]) -> None:
    """Synthesize and distill with the command line, as a user would."""
    paths = [f"paths.{name}={folder / name}" for name in ("dataset", "students", "reports")]
    settings = [part for change in [*changes, *paths] for part in ("--set", change)]
    for command in ("synthesize", "distill"):
        arguments = [sys.executable, "-m", "pipeline", command, "--params", params, *settings]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
