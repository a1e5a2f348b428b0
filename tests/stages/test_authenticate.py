"""Who has the public key notices any change; without a signature a dataset is unsigned."""

from __future__ import annotations

import base64
import doctest
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.dataset import signature
from pipeline.dataset.signature import pre_authentication_encoding
from tests.command_line import refused
from tests.conftest import Params, changed, dataset, make, tree, write_params

ENVELOPE = "provenance.json.dsse"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "mine.key"


@pytest.fixture
def signed(made: Params, tmp_path: Path, keys: Path) -> Path:
    """The parameter file of a signed dataset."""
    path = write_params(made, tmp_path / "params.yaml")
    assert main(["sign", "--new-key", str(keys), "--params", str(path)]) == 0
    return path


def verified(path: Path, *arguments: str) -> int:
    return main(["verify", "--agreement", "0", "--params", str(path), *arguments])


def authenticated(root: Path, key: Path) -> int:
    return main(["authenticate", str(root), "--key", f"{key}.pub"])


def test_the_encoding_is_that_of_the_protocol() -> None:
    assert doctest.testmod(signature).failed == 0
    assert pre_authentication_encoding("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_a_signed_dataset(
    made: Params, signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys.stat().st_mode & 0o777 == 0o600
    before = tree(dataset(made))
    assert verified(signed, "--key", f"{keys}.pub") == 0
    assert "20 images verified, signed by " in capsys.readouterr().out
    assert verified(signed) == 0
    assert "20 images verified, signed: name the public key" in capsys.readouterr().out
    assert authenticated(dataset(made), keys) == 0
    assert "every file is as signed by" in capsys.readouterr().out
    assert make(made) == []
    assert tree(dataset(made)) == before


def test_an_unsigned_dataset(
    made: Params, tmp_path: Path, signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset(made) / ENVELOPE).unlink()
    assert verified(signed) == 0
    assert "20 images verified, unsigned" in capsys.readouterr().out
    assert verified(signed, "--key", f"{keys}.pub") == 1
    assert "the dataset is unsigned" in capsys.readouterr().out
    assert authenticated(dataset(made), keys) == 1


def test_openssl_accepts_the_signature(
    made: Params, signed: Path, keys: Path, tmp_path: Path
) -> None:
    envelope = json.loads((dataset(made) / ENVELOPE).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    assert payload == (dataset(made) / "provenance.json").read_bytes()
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    (tmp_path / "pae").write_bytes(pre_authentication_encoding(envelope["payloadType"], payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", f"{keys}.pub", "-rawin"]
    files = ["-in", str(tmp_path / "pae"), "-sigfile", str(tmp_path / "sig")]
    subprocess.run([*command, *files], check=True, stdout=subprocess.DEVNULL)


def test_a_key_of_openssl(made: Params, tmp_path: Path) -> None:
    path, key = write_params(made, tmp_path / "params.yaml"), tmp_path / "ssl.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    public = ["openssl", "pkey", "-in", str(key), "-pubout", "-out", f"{key}.pub"]
    subprocess.run(public, check=True)
    assert main(["sign", "--key", str(key), "--params", str(path)]) == 0
    assert authenticated(dataset(made), key) == 0


def test_any_change_of_any_file_is_noticed(
    tiny: Params, tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    root = dataset(params)
    path = write_params(params, tmp_path / "params.yaml")
    assert main(["sign", "--new-key", str(keys), "--params", str(path)]) == 0
    names = list(tree(root))
    assert "students/000001.safetensors" in names and ENVELOPE in names
    for name in names:
        data = (root / name).read_bytes()
        (root / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        capsys.readouterr()
        assert authenticated(root, keys) == 1
        assert name in capsys.readouterr().out
        (root / name).unlink()
        assert authenticated(root, keys) == 1
        (root / name).write_bytes(data)
    (root / "train/000009.tar").write_bytes(b"more")
    assert authenticated(root, keys) == 1


def test_a_forger_without_the_key(
    made: Params, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """He changes a shard, makes all digests fit, and signs with a key of his own."""
    from tests.stages.forging import rewrite_rows

    root = dataset(made)
    shutil.copytree(root, tmp_path / "before")
    rewrite_rows(root, 0, lambda rows: rows[0].update({"seed": 1}))
    statement = json.loads((root / "provenance.json").read_bytes())
    from pipeline.storage import digest_file, write_json

    for subject in statement["subject"]:
        subject["digest"]["sha256"] = digest_file(root / subject["name"])
    write_json(root / "provenance.json", statement)
    assert authenticated(root, keys) == 1
    assert "is outdated" in capsys.readouterr().out
    other = tmp_path / "other.key"
    assert main(["sign", "--new-key", str(other), "--params", str(signed)]) == 0
    assert authenticated(root, other) == 0
    capsys.readouterr()
    assert authenticated(root, keys) == 1
    assert "is not signed by this key" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"payload": "!!"},
        {"payloadType": "text/plain"},
        {"signatures": []},
        {"signatures": None},
        {"signatures": [{"sig": "AAAA"}]},
        {"signatures": [{"keyid": 1, "sig": []}]},
    ],
    ids=str,
)
def test_an_envelope_that_is_none(
    made: Params, signed: Path, keys: Path, change: dict[str, object]
) -> None:
    path = dataset(made) / ENVELOPE
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}))
    assert authenticated(dataset(made), keys) == 1
    path.write_bytes(b"[" * 100_000)
    assert authenticated(dataset(made), keys) == 1
    assert verified(signed) == 1


def test_a_dataset_that_changed_must_be_signed_again(
    made: Params, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = changed(made, {"synthesis.images": 24})
    make(larger)
    path = write_params(larger, tmp_path / "larger.yaml")
    assert verified(path) == 1
    assert f"{ENVELOPE} is outdated" in capsys.readouterr().out
    assert main(["sign", "--key", str(keys), "--params", str(path)]) == 0
    assert verified(path, "--key", f"{keys}.pub") == 0


def test_a_damaged_dataset_is_not_signed(
    made: Params, signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset(made) / "train/000000.tar").write_bytes(b"")
    assert main(["sign", "--key", str(keys), "--params", str(signed)]) == 2
    assert "train/000000.tar was changed" in capsys.readouterr().err


def test_wrong_keys(
    made: Params, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rsa, locked = tmp_path / "rsa.key", tmp_path / "locked.key"
    make_rsa = ["openssl", "genpkey", "-algorithm", "RSA", "-out", str(rsa)]
    subprocess.run(make_rsa, check=True, stderr=subprocess.DEVNULL)
    lock = ["openssl", "pkey", "-in", str(keys), "-aes256", "-passout", "pass:x", "-out"]
    subprocess.run([*lock, str(locked)], check=True)
    params = ["--params", str(signed)]
    for arguments, said in (
        (["sign", "--key", f"{keys}.pub", *params], "holds no private key"),
        (["sign", "--key", str(rsa), *params], "is not an Ed25519 key"),
        (["sign", "--key", str(locked), *params], "is encrypted"),
        (["sign", "--key", str(tmp_path / "none"), *params], "cannot be read"),
        (["sign", "--new-key", str(keys), *params], "exists: name a new file"),
        (["authenticate", str(dataset(made)), "--key", str(keys)], "holds no public key"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("place", ["dataset", "students", "reports"])
@pytest.mark.parametrize("option", ["--new-key", "--key"])
def test_no_private_key_in_what_is_published(
    made: Params,
    signed: Path,
    keys: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: str,
    option: str,
) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    if option == "--key":
        shutil.copy(keys, folder / "k")
    (tmp_path / "link").symlink_to(folder)
    before = tree(tmp_path)
    for file in (folder / "k", tmp_path / "link" / "k", folder / ".." / place / "k"):
        error = refused(capsys, "sign", option, str(file), "--params", str(signed))
        assert f"lies in paths.{place}" in error
    assert tree(tmp_path) == before


def test_no_key_is_made_for_a_dataset_that_cannot_be_signed(
    made: Params, tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_params(made, tmp_path / "params.yaml")
    (dataset(made) / "notes.txt").write_text("mine")
    error = refused(capsys, "sign", "--new-key", str(keys), "--params", str(path))
    assert "notes.txt is not named by provenance.json" in error
    assert not keys.exists() and not Path(f"{keys}.pub").exists()


def test_keys_and_signatures_that_are_no_files_or_too_large(
    made: Params, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, pipe, large = dataset(made), tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, 2**40)
    for path, said in (("/dev/zero", "is a pipe or a device"), (pipe, "is a pipe"), (large, "has")):
        assert said in refused(capsys, "sign", "--key", str(path), "--params", str(signed))
        assert said in refused(capsys, "authenticate", str(root), "--key", str(path))
    for name in (ENVELOPE, "provenance.json"):
        data = (root / name).read_bytes()
        for make_odd in (os.mkfifo, large.rename):
            (root / name).unlink()
            make_odd(root / name)
            assert authenticated(root, keys) == 1
            assert name in capsys.readouterr().out
        large = (root / name).rename(large)
        (root / name).write_bytes(data)
