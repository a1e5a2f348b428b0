"""A SLURM array on a real controller and node: one task cancelled, one requeued, the same bytes.

    python -m benchmarks.faults.slurm [--out FILE.json]

The script starts ``munged``, ``slurmctld`` and ``slurmd`` of this machine (Debian's packages
``slurm-wlm`` and ``munge``) in a temporary folder, as one node of two CPUs, and submits
``deploy/slurm.sbatch`` as an array of four tasks over 16 shards. It cancels task 1 and requeues
task 2 as soon as each has finished a shard, submits the cancelled task again, runs ``finalize`` as
a dependent job, and compares the dataset with one that a single undisturbed process made. Needs
root. About three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.common import (
    LIMIT,
    PROJECT,
    Params,
    at,
    dataset,
    difference,
    environment,
    parameters,
    tree,
    undisturbed,
)
from benchmarks.faults.prefect_site import wait_until

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")
SHARDS, TASKS = 16, 4
SBATCH = ("--gres=none", "--mem=0", "--cpus-per-task=1", "--time=10")

CONFIG = """
ClusterName=dreamshard
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=2
KillWait=2
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running controller and node, and the environment in which commands find them."""

    env: dict[str, str]
    logs: Path

    def ask(self, *arguments: str) -> str:
        """The output of one SLURM command."""
        done = subprocess.run(
            arguments, cwd=PROJECT, env=self.env, capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job or of an array task, such as ``RUNNING``; empty once it is gone."""
        return self.ask("squeue", "--noheader", "--all", "--jobs", job, "--format=%T")


def main() -> int:
    """Run the array and compare; returns 0 where the bytes are the same."""
    parser = argparse.ArgumentParser(description="A SLURM array with faults.")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        sys.exit(f"needs root and Debian's slurm-wlm and munge (missing: {missing or 'nothing'})")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        place = Path(name)
        place.chmod(0o755)
        params = parameters(place, {"adaptive.rounds": 0, "synthesis.iterations": 1000})
        params["execution"]["workers"] = 1
        expected, _ = undisturbed(params, place / "calm")
        here = at(params, place / "array")
        with cluster(place / "slurm") as slurm:
            report = disturb(slurm, here)
        report["differs"] = difference(tree(dataset(here)), expected)
        report["files"] = len(expected)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(report["differs"]))


def disturb(slurm: Cluster, params: Params) -> dict[str, object]:
    """Submit the array, cancel one task, requeue another, and finish the dataset."""
    dataset(params).parent.mkdir()
    path = dataset(params).parent / "params.yaml"
    path.write_text(json.dumps(params))
    script = ("deploy/slurm.sbatch", str(SHARDS), str(TASKS), "--params", str(path))
    log = f"--output={slurm.logs}/%x-%A_%a.log"
    started = time.monotonic()
    job = slurm.ask("sbatch", "--parsable", f"--array=0-{TASKS - 1}", log, *SBATCH, *script)
    kept: dict[str, int] = {}
    for task, command in ((1, ("scancel",)), (2, ("scontrol", "requeue"))):
        first = SHARDS * task // TASKS
        wait_until(functools.partial(is_made, params, first), LIMIT)
        slurm.ask(*command, f"{job}_{task}")
        time.sleep(3)
        made = sum(is_made(params, shard) for shard in range(first, first + SHARDS // TASKS))
        kept[command[-1]] = made
    again = slurm.ask("sbatch", "--parsable", "--array=1", log, *SBATCH, *script)
    finish = f"{sys.executable} -m pipeline finalize --params {path}"
    after = f"--dependency=afterany:{job},afterok:{again}"
    last = slurm.ask("sbatch", "--parsable", after, log, *SBATCH[1:], f"--wrap={finish}")
    wait_until(lambda: slurm.state(last) not in ("PENDING", "RUNNING", "COMPLETING"), LIMIT)
    return {
        "version": slurm.ask("sbatch", "--version"),
        "shards kept by the cancelled task": kept["scancel"],
        "shards kept by the requeued task": kept["requeue"],
        "seconds": round(time.monotonic() - started, 1),
    }


def is_made(params: Params, shard: int) -> bool:
    return (dataset(params) / "metadata" / f"{shard:06d}.json").is_file()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A controller and a node in ``folder``; all processes end with the block."""
    for name in ("munge", "state", "spool", "logs"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    ports = {"controller": free_port(), "node": free_port()}
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, **ports))
    env = environment(
        SLURM_CONF=str(config),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
    for name in ("socket", "pid-file", "log-file", "seed-file"):
        munged.append(f"--{name}={folder / 'munge' / name.removesuffix('-file')}")
    with contextlib.ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            stack.enter_context(daemon(command, env, folder / "logs"))
            time.sleep(1)
        slurm = Cluster(env, folder / "logs")
        wait_until(lambda: "idle" in slurm.ask("sinfo", "--noheader", "--format=%t"), 60)
        try:
            yield slurm
        finally:
            with contextlib.suppress(RuntimeError):
                slurm.ask("scancel", "--user=root")


@contextlib.contextmanager
def daemon(command: list[str], env: dict[str, str], logs: Path) -> Iterator[None]:
    """A process in the background whose output goes to a file in ``logs``."""
    with (logs / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=logs)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
