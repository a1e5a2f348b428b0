"""The upload to the Hub, against a stand-in of its HTTP interface on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import _commit_api, constants

import pipeline as ds
from pipeline.errors import TryAgainError, UserError
from pipeline.stages.authenticate import subject_problems
from tests.command_line import printed, refused
from tests.conftest import Params, dataset

TOKEN = "hf_thisIsNoRealToken"
NAME = "org/images"


class Hub(ThreadingHTTPServer):
    """Repositories in memory. Tars travel by LFS, all other files in the commit itself."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.commits = 0
        self.refusal: tuple[int, str] | None = None

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"{body['organization']}/{body['name']}"
        assert body["type"] == "dataset"
        self.private[name] = body["visibility"] == "private"
        self.repositories[name] = {".gitattributes": b""}
        return {"url": f"{self.url}/datasets/{name}"}

    def commit(self, name: str, text: bytes) -> dict[str, Any]:
        for line in map(json.loads, text.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
            else:
                continue
            self.repositories[name][value["path"]] = content
        self.commits += 1
        return {"commitUrl": f"{self.url}/datasets/{name}/commit/1", "commitOid": "1" * 40}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name, _, tree = self.path.removeprefix("/api/datasets/").partition("/tree/main")
        files = self.server.repositories.get(name)
        if files is None or not tree:  # the only address that answers is the list of files
            self._answer(404, {"error": f"{self.path} not found"})
        else:
            entries = [{"type": "file", "path": file, "size": 0, "oid": ""} for file in files]
            self._answer(200, entries)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == digest
        self.server.objects[digest] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        hub, text = self.server, self._body()
        hub.tokens.add(self.headers["Authorization"])
        if hub.refusal:
            self._answer(hub.refusal[0], {"error": hub.refusal[1]})
        elif self.path == "/api/repos/create":
            body = json.loads(text)
            name = f"{body['organization']}/{body['name']}"
            if name in hub.repositories:
                url = f"{hub.url}/datasets/{name}"
                self._answer(409, {"error": "You already created this dataset repo", "url": url})
            else:
                self._answer(200, hub.create(body))
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".tar") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(text)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}}
                for item in json.loads(text)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/datasets/").partition("/commit/")[0]
            self._answer(200, hub.commit(name, text))
        else:
            self._answer(200, {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status >= 400:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Xet is a protocol of its own on other hosts.
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_the_shards_and_the_card_are_uploaded(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    made: Params,
    hub: Hub,
    tmp_path: Path,
) -> None:
    root = dataset(made)
    (root / "private-notes.txt").write_text("mine")
    caplog.set_level("DEBUG")
    (line,) = printed(capfd, "export", str(root), "--to", "hub", NAME)
    assert line == f"exported 20 of 20 images to {hub.url}/datasets/{NAME}: all images"
    files = hub.repositories[NAME]
    assert hub.commits == 1 and hub.private[NAME]
    assert "private-notes.txt" not in files
    (root / "private-notes.txt").unlink()
    copy = tmp_path / "downloaded"
    for name, content in files.items():
        if name != ".gitattributes":
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
    assert subject_problems(copy) == []
    assert len(ds.Dataset(copy)) == 20
    assert len(hub.objects) == 2  # the tars
    assert hub.tokens == {f"Bearer {TOKEN}"}
    written = "".join(capfd.readouterr()) + caplog.text + "".join(map(str, files.values()))
    assert TOKEN not in written


def test_a_public_repository_and_an_empty_one(made: Params, hub: Hub) -> None:
    opened = ds.Dataset(dataset(made))
    hub.repositories[NAME] = {".gitattributes": b""}  # made by hand, or by an upload that stopped
    opened.export("hub", NAME)
    opened.export("hub", "org/other", public=True)
    assert hub.private == {"org/other": False}


def test_nothing_is_overwritten(made: Params, hub: Hub) -> None:
    hub.repositories[NAME] = {".gitattributes": b"", "mine.txt": b"mine"}
    with pytest.raises(UserError, match=r"has files on the Hub, such as mine\.txt"):
        ds.Dataset(dataset(made)).export("hub", NAME)
    assert hub.commits == 0


def test_a_changed_file_is_not_uploaded(made: Params, hub: Hub) -> None:
    with (dataset(made) / "metadata/000000.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"metadata/000000\.parquet was changed"):
        ds.Dataset(dataset(made)).export("hub", NAME)
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["images", "a/b/c", "org/", "org/a b", "https://hub/org/images"])
def test_a_wrong_name(capsys: pytest.CaptureFixture[str], made: Params, name: str) -> None:
    line = refused(capsys, "export", str(dataset(made)), "--to", "hub", name)
    assert "write ORG/NAME" in line


def test_a_part_of_the_dataset_is_refused(made: Params, hub: Hub) -> None:
    with pytest.raises(UserError, match="the Hub gets the whole dataset"):
        ds.Dataset(dataset(made)).export("hub", NAME, images=3)


@pytest.mark.parametrize("token", [TOKEN, "another kind of token"])
def test_a_refusal_of_the_hub_shows_no_token(
    made: Params, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.refusal = (403, f"the token {token} may not write")
    with pytest.raises(TryAgainError, match="the Hub did not take org/images") as caught:
        ds.Dataset(dataset(made)).export("hub", NAME)
    assert token not in str(caught.value)
    assert "check the name, and the token" in str(caught.value)


def test_without_the_package(made: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install"):
        ds.Dataset(dataset(made)).export("hub", NAME)
