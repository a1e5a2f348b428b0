"""The flows as a user runs them: from a worker of a real Prefect server, and without a server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import FACTORY, Params, changed, dataset, make, tree, write_blobs, write_params

pytestmark = pytest.mark.prefect

ROOT = Path(__file__).parents[2]
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")

# A teacher that ends the first worker process that builds it; the main process it spares.
MORTAL = FACTORY + textwrap.dedent(
    """
    import multiprocessing
    import os
    from pathlib import Path


    def mortal(grave: str) -> nn.Module:
        if multiprocessing.parent_process() is not None:
            try:
                Path(grave).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os._exit(137)
        return classifier()
    """
)


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect server of this module, and the environment in which commands find it."""

    api: str
    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def ready(self) -> None:
        """Wait until it answers, for at most two minutes."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.api}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError(f"no server:\n{(self.home / 'server.log').read_text()[-4000:]}")

    def find(self, kind: str, **query: Any) -> list[dict[str, Any]]:
        """The server's objects of a kind, such as ``flow_runs``."""
        request = urllib.request.Request(
            f"{self.api}/{kind}/filter",
            json.dumps(query).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It may still be starting: a test calls ``ready`` when it needs it."""
    home, port = tmp_path_factory.mktemp("server"), free_port()
    api = f"http://127.0.0.1:{port}/api"
    with background(
        home / "server.log",
        *(*PREFECT, "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)),
        env=environment(home),
    ) as process:
        yield Server(api, home, environment(home, PREFECT_API_URL=api), process)


def test_a_deployment_makes_the_bytes_of_the_command_line(
    server: Server, tiny: Params, tmp_path: Path
) -> None:
    params = write_params(tiny, tmp_path / "params.yaml")
    direct = tmp_path / "direct"
    command(
        tmp_path,
        *(sys.executable, "-m", "pipeline", "synthesize", "--params", str(params)),
        *("--set", f"paths.dataset={direct}"),
        env=environment(tmp_path),
    )

    server.ready()
    env = server.environment
    command(tmp_path, *PREFECT, "work-pool", "create", "local", "--type", "process", env=env)
    worker = (*PREFECT, "worker", "start", "--pool", "local", "--limit", "1")
    with background(tmp_path / "worker.log", *worker, env=env):
        command(tmp_path, *PREFECT, "deploy", "--all", env=env)
        watched = command(
            tmp_path,
            *(*PREFECT, "deployment", "run", "synthesize/local", "--param", f"params={params}"),
            *(
                "--param",
                'settings={"iterations": 4}',
                "--param",
                'overrides={"synthesis.seed": 0}',
            ),
            *("--watch", "--watch-interval", "1", "--watch-timeout", "120"),
            env=env,
        )

    assert "finished successfully" in watched
    assert tree(dataset(tiny)) == tree(direct)

    deployments = server.find("deployments", deployments={"name": {"any_": ["local"]}})
    assert {found["entrypoint"] for found in deployments} == {
        f"flows/{flow}.py:{flow}" for flow in ("synthesize", "distill", "dream", "calibrate")
    }
    assert not any(plan["active"] for found in deployments for plan in found["schedules"])
    assert {found["global_concurrency_limit"]["limit"] for found in deployments} == {1}
    for found in deployments:
        parameters = found["parameter_openapi_schema"]["properties"].values()
        assert all(parameter["description"] for parameter in parameters)
    (run,) = server.find("flow_runs")
    assert (run["name"], run["state_type"]) == (
        "synthesize tinynet:classifier, 20 images of 8x8",
        "COMPLETED",
    )
    (picture,) = server.find("artifacts", artifacts={"type": {"any_": ["image"]}})
    assert picture["data"].startswith("data:image/png;base64,")
    (progress,) = server.find("artifacts", artifacts={"type": {"any_": ["progress"]}})
    assert progress["data"] == 100
    wait_until(lambda: {"round 0: 100 %", "shard-000001 is complete"} <= messages(server))
    shards = {"shard-000000": "COMPLETED", "shard-000001": "COMPLETED"}
    wait_until(lambda: shards == states(server.find("task_runs")))  # the server writes them late


def test_a_cluster_deployment_asks_for_a_gpu(server: Server, tmp_path: Path) -> None:
    template = ROOT / "deploy" / "prefect-kubernetes.json"
    server.ready()
    pool = ("work-pool", "create", "gpus", "--type", "kubernetes")
    for arguments in (
        (*pool, "--base-job-template", str(template)),
        ("deploy", "--all", "--prefect-file", str(ROOT / "deploy" / "prefect.yaml")),
    ):
        command(tmp_path, *PREFECT, *arguments, env=server.environment)

    (pool_found,) = server.find("work_pools", work_pools={"name": {"any_": ["gpus"]}})
    assert pool_found["base_job_template"] == json.loads(template.read_text())
    (found,) = server.find("deployments", deployments={"name": {"any_": ["cluster"]}})
    assert (found["entrypoint"], found["schedules"]) == ("flows.synthesize.synthesize", [])
    known = pool_found["base_job_template"]["variables"]["properties"]
    assert set(found["job_variables"]) <= set(known)
    container = job_manifest(server, found, {"gpus": 2})["spec"]["template"]["spec"]["containers"]
    assert container[0]["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "16Gi"}
    assert container[0]["image"] == "dreamshard:flows"


def test_a_flow_without_a_server_survives_the_death_of_a_worker(
    server: Server, tiny: Params, tmp_path: Path
) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    grave = tmp_path / "grave"
    doomed = changed(
        tiny,
        {
            "teacher.source": f"{tmp_path / 'mortal.py'}:mortal",
            "teacher.arguments": {"grave": str(grave)},
            "synthesis.shard_size": 7,
            "execution.workers": 2,
            "execution.retries": 1,
        },
    )
    server.ready()
    copy_database(server.home, tmp_path)  # to make an empty one takes 10 s

    command(
        tmp_path,
        *(sys.executable, "-m", "flows", "synthesize"),
        *("--params", str(write_params(doomed, tmp_path / "params.yaml"))),
        env=environment(tmp_path),
    )

    assert grave.exists()
    undisturbed = changed(
        doomed, {"execution.workers": 1, "paths.dataset": str(tmp_path / "undisturbed")}
    )
    assert make(undisturbed) == [0, 1, 2]
    assert tree(dataset(doomed)) == tree(dataset(undisturbed))


def test_dream_makes_all_that_dvc_knows(server: Server, tiny: Params, tmp_path: Path) -> None:
    """So that ``dvc commit`` can take it over."""
    write_blobs(tmp_path / "real.tar", 30)
    whole = changed(tiny, {"evaluation.data": str(tmp_path / "real.tar")})
    server.ready()
    copy_database(server.home, tmp_path)

    command(
        tmp_path,
        *(sys.executable, "-m", "flows", "dream"),
        *("--params", str(write_params(whole, tmp_path / "params.yaml"))),
        env=environment(tmp_path),
    )

    with contextlib.closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        artifacts = dict(database.execute("select key, type from artifact").fetchall())
        runs = {name for (name,) in database.execute("select name from flow_run")}
    kinds = {"summary": "markdown", "images": "image", "learning-curves": "image"}
    kinds |= {"shards": "table", "students": "table", "accuracy": "table"}
    assert artifacts.items() >= kinds.items()
    assert {f"{flow} tinynet:classifier, 20 images of 8x8" for flow in ("dream", "distill")} <= runs

    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    made = [
        entry if isinstance(entry, str) else next(iter(entry))
        for name in ("synthesize", "distill", "measure", "evaluate")
        for kind in ("outs", "metrics", "plots")
        for entry in stages[name].get(kind, [])
    ]
    assert len(made) > 10
    for path in made:
        key = re.fullmatch(r"\$\{paths\.(\w+)\}(.*)", path)
        assert key is not None
        assert Path(whole["paths"][key[1]] + key[2]).exists(), path


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment with Prefect's settings replaced by just these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PWD": str(ROOT),  # where prefect.yaml says that runs work
        **more,
    }


def command(logs: Path, *arguments: str, env: dict[str, str]) -> str:
    """Run a command in the project's root; its output, which a failure shows the end of."""
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    log = "".join(path.read_text()[-4000:] for path in sorted(logs.glob("*.log")))
    assert done.returncode == 0, f"{' '.join(arguments[2:])}\n{done.stdout[-4000:]}\n{log}"
    return done.stdout


@contextlib.contextmanager
def background(
    log: Path, *arguments: str, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs beside the test; at the end it and its children are stopped."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def job_manifest(
    server: Server, deployment: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """The Kubernetes Job of a deployment's run, resolved by Prefect as its worker does."""
    code = (
        "import asyncio, json, sys\n"
        "from prefect.workers.base import BaseJobConfiguration as Base\n"
        "class Manifest(Base):\n    job_manifest: dict\n"
        "template, values = json.load(sys.stdin)\n"
        "found = asyncio.run(Manifest.from_template_and_values(template, values))\n"
        "print(json.dumps(found.job_manifest))\n"
    )
    template = json.loads((ROOT / "deploy" / "prefect-kubernetes.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([template, {**deployment["job_variables"], **more}]),
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    manifest: dict[str, Any] = json.loads(done.stdout)
    return manifest


def copy_database(home: Path, other: Path) -> None:
    """Prefect's database, as it is while a server uses it."""
    with (
        contextlib.closing(sqlite3.connect(home / "prefect.db")) as source,
        contextlib.closing(sqlite3.connect(other / "prefect.db")) as target,
    ):
        source.backup(target)


def states(runs: list[dict[str, Any]]) -> dict[str, str]:
    return {run["name"]: run["state_type"] for run in runs}


def messages(server: Server) -> set[str]:
    """The lines of the Logs tab of all runs."""
    return {line["message"] for line in server.find("logs")}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
