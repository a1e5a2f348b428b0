"""Datasets and students at URLs: the same bytes as on a disk, by the same commands."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset as wds
from s3fs import S3FileSystem

from benchmarks.faults.s3 import BUCKET, CREDENTIALS, PAGE, Proxy, Watcher, client, s3_server
from flows.command_line import main as flow
from pipeline.cli import main
from pipeline.dataset.lock import locked
from pipeline.errors import UserError
from pipeline.evaluation.accuracy import evaluate
from pipeline.execution.runner import JobsFailed, open_runner
from pipeline.params import parse_params
from pipeline.stages.distill import distill_students
from pipeline.stages.finalize import finalize
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline.storage import (
    digest_bytes,
    exists,
    listing,
    location,
    read_bytes,
    read_many,
    remove_all,
    replacing,
    size_of,
    write_bytes,
)
from pipeline.synthesis.make_shard import make_shard
from pipeline.synthesis.shard_states import missing_jobs, shard_states
from tests.conftest import Params, changed, dataset, load, make, tree, write_blobs, write_params

SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system behind ``memory://``, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def url(tiny: Params, memory: Any) -> Params:
    """``tiny`` with one adaptive round, its dataset and students in memory."""
    changes = {"dataset": "memory://tank/dataset", "students": "memory://tank/students"}
    paths = {f"paths.{name}": place for name, place in changes.items()}
    return changed(tiny, {**paths, "adaptive.rounds": 1})


def remote_tree(params: Params) -> dict[str, str]:
    root = location(params["paths"]["dataset"])
    return {name: digest_bytes(read_bytes(root / name)) for name in listing(root)}


def on_disk(params: Params, root: Path) -> Params:
    return changed(params, {f"paths.{n}": str(root / n) for n in ("dataset", "students")})


def problems(params: Params) -> list[str]:
    config, teacher = load(params)
    return verify(config, teacher, 0.0, lambda images: None)


# Files.


def test_a_local_name_is_a_real_path() -> None:
    assert type(location("data/x")) is type(Path("data/x"))
    assert location("file:///tmp/x") == Path("/tmp/x")


def test_a_protocol_that_nothing_speaks_here() -> None:
    with pytest.raises(UserError, match="nothing://tank/x cannot be opened"):
        location("nothing://tank/x")


def test_an_exception_leaves_the_old_file(memory: Any) -> None:
    path = location("memory://tank/file")
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("no luck")
    assert read_bytes(path) == b"old"


def test_what_is_there_and_what_is_not(memory: Any) -> None:
    root = location("memory://tank/set")
    write_bytes(root / "a" / "one", b"1")
    write_bytes(root / "two", b"22")
    write_bytes(location("memory://tank/setting"), b"another set's")
    assert {name: stat.size for name, stat in listing(root).items()} == {"a/one": 1, "two": 2}
    assert read_many([root / "two", root / "three"]) == [b"22", None]
    assert exists(root / "two") and not exists(root / "a") and not exists(root / "three")
    assert (size_of(root / "two"), size_of(root / "three")) == (2, -1)
    assert listing(location("memory://nowhere/at-all")) == {}


def test_what_a_store_cannot_do_names_the_file(memory: Any, monkeypatch: Any) -> None:
    def failing(*arguments: Any, **more: Any) -> None:
        raise ConnectionError("the line\nto http://me:secret@host/x is down")

    monkeypatch.setattr(type(memory), "cat_file", failing)
    said = "memory://tank/x: the line to http://host/x is down"
    with pytest.raises(OSError, match=said):
        read_bytes(location("memory://tank/x"))
    with pytest.raises(OSError, match=said):
        read_many([location("memory://tank/x")])


def test_files_at_a_url_are_removed_whatever_their_names_and_the_others(memory: Any) -> None:
    root = location("memory://tank/run[1]")
    for name in ("a", "b", "c*"):
        write_bytes(root / name, b"x")
    remove_all(root, ["a", "gone", "c*"])
    assert list(listing(root)) == ["b"]


def test_no_lock_at_a_url(memory: Any) -> None:
    place = location("memory://tank/dataset")
    with locked(place, "paths.dataset"), locked(place, "paths.dataset"):
        assert listing(place) == {}


# Runs.


def test_the_bytes_of_a_local_run(url: Params, tmp_path: Path) -> None:
    local = on_disk(url, tmp_path)
    assert make(local) == make(url) == [0, 1, 2]
    assert remote_tree(url) == tree(dataset(local))
    assert make(url) == []
    assert problems(url) == []


def test_ranges_and_finalize(url: Params) -> None:
    make(url)
    whole = remote_tree(url)
    parts = changed(url, {"paths.dataset": "memory://tank/parts"})
    for first in (0, 1):
        assert make(parts, range(first, first + 1)) == [first]
    with pytest.raises(UserError, match=r"1 of 3 .*000002 \(missing\)"):
        finalize(*load(parts))
    assert make(parts, range(2, 3)) == [2]
    assert "README.md" not in remote_tree(parts)
    finalize(*load(parts))
    assert remote_tree(parts) == whole


def test_a_smaller_plan_prunes_and_other_parameters_are_stale(url: Params) -> None:
    make(url)
    small = changed(url, {"synthesis.images": 12, "adaptive.rounds": 0})
    config, teacher = load(changed(url, {"synthesis.iterations": 3}))
    assert set(shard_states(config, teacher.digest).values()) == {"stale"}
    make(small)
    names = sorted(remote_tree(small))
    assert [n for n in names if n.startswith(("train/0", "students"))] == ["train/000000.tar"]
    assert problems(small) == []


def test_damage_is_found_and_mended(url: Params) -> None:
    make(url)
    before, root = remote_tree(url), location(url["paths"]["dataset"])
    for name in before:
        data = bytearray(read_bytes(root / name))
        data[len(data) // 2] ^= 4
        write_bytes(root / name, bytes(data))
        assert problems(url), name
        config, teacher = load(url)
        with open_runner(config) as run:
            repair(config, teacher, run)
        assert remote_tree(url) == before, name


def test_what_is_not_ours_is_refused(url: Params) -> None:
    write_bytes(location("memory://tank/dataset/thesis.pdf"), b"mine")
    with pytest.raises(UserError, match="holds other files"):
        make(url)


def test_a_failed_upload_leaves_no_record(url: Params, memory: Any, monkeypatch: Any) -> None:
    real = type(memory).pipe_file

    def failing(self: Any, path: str, value: bytes, **more: Any) -> None:
        if path.endswith("000001.parquet"):
            raise ConnectionError("cut off")
        real(self, path, value, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "pipe_file", failing)
        with pytest.raises(JobsFailed, match="cut off"):
            make(changed(url, {"adaptive.rounds": 0}))
    names = set(remote_tree(url))
    assert "train/000001.tar" in names and "metadata/000001.json" not in names
    assert make(url) == [1, 2]
    assert problems(url) == []


def test_a_shard_that_another_run_finished_first_is_left(url: Params) -> None:
    """Removing its record to write the same again would make it incomplete for a while."""
    params = changed(url, {"adaptive.rounds": 0})
    config, teacher = load(params)
    jobs = missing_jobs(config, teacher.digest, 0, None, [0, 1])
    make(params)
    root = location(params["paths"]["dataset"])
    before = listing(root)
    for job in jobs:
        make_shard(job, "cpu", lambda images: None)
    assert listing(root) == before


def test_students_and_their_evaluation(url: Params, tmp_path: Path) -> None:
    write_blobs(tmp_path / "real.tar", 30)
    results = []
    for params in (url, on_disk(url, tmp_path)):
        full = changed(
            params,
            {"evaluation.data": str(tmp_path / "real.tar"), "distillation.noise_baseline": True},
        )
        make(full)
        config, teacher = load(full)
        with open_runner(config) as run:
            assert len(distill_students(config, teacher, run)) == 2
            assert distill_students(config, teacher, run) == []
        students = location(full["paths"]["students"])
        digests = {name: digest_bytes(read_bytes(students / name)) for name in listing(students)}
        results.append((digests, evaluate(config, teacher)))
    assert results[0] == results[1]


def test_commands(
    url: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(write_params(url, tmp_path / "params.yaml"))
    monkeypatch.setattr("pipeline.params.check_lasting", lambda paths: None)
    said = []
    for command in ("synthesize", "finalize", "status", "verify", "distill", "summary"):
        assert main([command, "--params", path, *["--agreement=0"] * (command == "verify")]) == 0
        said += capsys.readouterr().out.splitlines()
    assert "made 3 shards in memory://tank/dataset" in said
    assert "3 complete" in said and "26 images verified, unsigned" in said
    assert "students   memory://tank/students/" in said


@pytest.mark.parametrize("name", ["dataset", "students"])
@pytest.mark.parametrize("program", [main, flow])
def test_a_command_refuses_what_is_lost_when_it_ends(
    tiny: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    program: Callable[[list[str]], int],
) -> None:
    params = changed(tiny, {f"paths.{name}": f"memory://tank/{name}"})
    path = str(write_params(params, tmp_path / "params.yaml"))
    for command in ("synthesize", "distill"):
        assert program([command, "--params", path]) == 2
        said = capsys.readouterr().err
        assert f"paths.{name} is memory://tank/{name}, which is lost when" in said
    assert not dataset(tiny).is_dir()


# An S3 server.


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()


def test_a_run_on_an_s3_server_that_fails(
    tiny: Params, tmp_path: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``benchmarks/faults/s3.py`` does the same at length."""
    local = changed(tiny, {"synthesis.images": 60})
    make(local)
    expected = tree(dataset(local))
    params = changed(local, {"paths.dataset": f"s3://{BUCKET}/faults/dataset"})
    watcher = Watcher(server, "faults/dataset/", expected)
    with Proxy(server, 0.15, seed=1, slowest=0.2).serving() as proxy:
        use(monkeypatch, proxy.environment)
        with watcher.watching():
            make(params)
        assert problems(params) == []
    assert watcher.problems == []
    assert watcher.look() == expected
    assert watcher.looks > 3 and proxy.struck["error"] and len(proxy.struck) > 2


def test_listings_go_on_beyond_a_page(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = client(server)
    names = [f"{number:06d}.json" for number in range(PAGE + 3)]
    for name in names:
        direct.put_object(Bucket=BUCKET, Key=f"pages/{name}", Body=name.encode())
    use(monkeypatch, {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}"})
    root = location(f"s3://{BUCKET}/pages")
    assert list(listing(root)) == names
    assert read_many([root / name for name in [*names[:40], "none"]])[38:] == [
        names[38].encode(),
        names[39].encode(),
        None,
    ]


def test_plain_webdataset_reads_from_there(
    tiny: Params, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}"})
    make(changed(tiny, {"paths.dataset": f"s3://{BUCKET}/plain"}))
    urls = [
        client(server).generate_presigned_url(
            "get_object", Params={"Bucket": BUCKET, "Key": f"plain/train/{name}.tar"}
        )
        for name in ("000000", "000001")
    ]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("torchrgb"))
    assert len(samples) == 20 and samples[0]["png"].shape == (3, 8, 8)


# Secrets.


@pytest.mark.parametrize(
    "place",
    [
        f"s3://AKIA:{SECRET}@tank/x",
        f"s3://AKIA:a/{SECRET}@tank/x",
        f"s3://tank/x?token={SECRET}",
        f"https://tank/x#{SECRET}",
        {"url": f"s3://AKIA:{SECRET}@tank/x"},
        [f"s3://AKIA:{SECRET}@tank/x"],
    ],
)
@pytest.mark.parametrize("key", ["paths.dataset", "paths.students", "teacher.weights"])
def test_credentials_in_a_url_are_refused_and_not_repeated(
    tiny: Params, key: str, place: Any
) -> None:
    with pytest.raises(UserError) as caught:
        parse_params(changed(tiny, {key: place}))
    assert key in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("key", "place", "said"),
    [
        ("paths.dataset", "s3://tank", "write protocol://bucket/prefix"),
        ("paths.dataset", "s3://", "write protocol://bucket/prefix"),
        ("paths.students", "chain::s3://tank/x", "write protocol://bucket/prefix"),
        ("paths.reports", "s3://tank/x", "name a local directory"),
        ("paths.students", "s3://tank/dataset/", "three different directories"),
    ],
)
def test_urls_that_cannot_be(tiny: Params, key: str, place: str, said: str) -> None:
    params = changed(tiny, {"paths.dataset": "s3://tank/dataset"})
    with pytest.raises(UserError, match=said):
        parse_params(changed(params, {key: place}))


def test_no_secret_reaches_files_or_messages(
    tiny: Params,
    tmp_path: Path,
    server: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    params = changed(tiny, {"paths.dataset": f"s3://{BUCKET}/secret/set"})
    path = str(write_params(params, tmp_path / "params.yaml"))
    secrets = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
    direct = {**CREDENTIALS, **secrets, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}"}
    use(monkeypatch, direct)
    assert main(["synthesize", "--params", path]) == 0
    with Proxy(server, 1.0, seed=0, harms=("error",)).serving() as proxy:
        use(monkeypatch, {**direct, **proxy.environment, **secrets, "AWS_MAX_ATTEMPTS": "1"})
        for command in ("status", "synthesize", "verify", "finalize", "distill"):
            assert main([command, "--params", path]) in (1, 2)
    said = "".join(capsys.readouterr()) + caplog.text
    assert "so said the proxy" in said and SECRET not in said
    use(monkeypatch, direct)
    root = location(params["paths"]["dataset"])
    for name in listing(root):
        assert SECRET.encode() not in read_bytes(root / name)
    for file in (tmp_path / "reports").rglob("*.json"):
        assert SECRET not in json.dumps(json.loads(file.read_bytes()))


def test_threads_share_one_connection(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session for each shard's thread would cost more than the shard's requests."""
    use(monkeypatch, {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}"})
    found: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(location("s3://a/b").fs))  # type: ignore[union-attr]
        thread.start()
        thread.join()
    assert found[0] is found[1]
