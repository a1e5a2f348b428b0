"""Secrets and private paths reach nothing that is published."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest

from pipeline import redaction
from pipeline.dataset.run_markers import marked
from pipeline.redaction import redact, redact_text
from pipeline.synthesis.shard_states import shard_states
from tests.conftest import Params, changed, dataset, load, make

SECRETS: dict[str, Any] = {
    "token": "abc-def",
    "hfToken": "abc-def",
    "api_key": "abc-def",
    "key": "abc-def",
    "PASSWORD": 12345,
    "auth": {"user": "abc-def"},
    "credentials": ["abc-def"],
    "url": "https://user:abc-def@host/x",
    "short": "https://abc-def@host/x",
    "signed": "https://host/x?X-Amz-Signature=abc-def&size=3",
    "blob": "https://host/x?sv=1&sig=abc-def",
    "hub": "hf_abcdefghijklmnopqrst",
    "git": "use ghp_abcdefghijklmnopqrst here",
    "aws": "AKIAABCDEFGHIJKLMNOP",
    "header": "Bearer abc-defabc-def",
    "pem": "-----BEGIN PRIVATE KEY-----\nabc-def\n-----END PRIVATE KEY-----",
    "file": "/data/abc-def/secret/net.json",
    "home": "~/abc-def/net.json",
    "deep": {"list": [{"password": "abc-def"}]},
    "windows": "C:\\Users\\abc-def\\net.json",
    "option": "--cache=/home/abc-def/cache",
}


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_is_removed(key: str) -> None:
    text = str(redact({key: SECRETS[key]}))
    for secret in ("abc-def", "abcdefghij", "ABCDEFGHIJ", "12345"):
        assert secret not in text


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "width": 4,
            "keys": [1, 2],
            "key_dims": [3],
            "num_tokens": 77,
            "class_token": True,
            "token_dim": 8,
        },
        {"author": "me", "keyword": "x", "pattern": "a", "spin": "up", "name": "resnet18"},
        {"url": "https://host/x?size=3", "file": "nets/a.json", "none": None, "rate": 0.5},
    ],
)
def test_other_arguments_stay(arguments: dict[str, Any]) -> None:
    assert redact(arguments) == arguments


def test_the_example() -> None:
    assert doctest.testmod(redaction).failed == 0


def test_redaction_is_idempotent() -> None:
    assert redact(redact(SECRETS)) == redact(SECRETS)


FACTORY = (
    "\n\ndef secretive(token: str = '', url: str = '', **more):\n    return classifier(**more)\n"
)


def test_nothing_that_is_written_holds_a_secret(tiny: Params, tmp_path: Path) -> None:
    factory = tmp_path / "tinynet.py"
    factory.write_text(factory.read_text() + FACTORY)
    secret = {"token": "hf_SECRETSECRET", "url": "https://user:SECRETPW@host/x"}
    params = changed(
        tiny,
        {
            "teacher.source": f"{factory}:secretive",
            "teacher.arguments": secret,
            "student.source": f"{factory}:secretive",
            "student.arguments": {**secret, "width": 4},
            "adaptive.rounds": 1,
        },
    )
    make(params)
    for path in dataset(params).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for word in (b"SECRET", str(tmp_path).encode()):
                assert word not in data, path
    config, teacher = load(changed(params, {"teacher.arguments": {**secret, "token": "another"}}))
    assert set(shard_states(config, teacher.digest).values()) == {"stale"}
    config, teacher = load(
        changed(params, {"student.arguments": {**secret, "token": "another", "width": 4}})
    )
    assert shard_states(config, teacher.digest)[2] == "stale"


def test_a_marker_holds_no_secret(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), marked(tmp_path, 0):
        raise RuntimeError("GET https://user:SECRETPW@host/x failed")
    assert b"SECRET" not in (tmp_path / "metadata/.000000.failed.json").read_bytes()


def test_a_text_keeps_its_meaning() -> None:
    text = "paths.dataset /data/x holds other files (a.txt): name an empty or a new directory"
    assert redact_text(text) == text
    assert redact_text("s3://bucket/a@b") == "s3://bucket/a@b"
