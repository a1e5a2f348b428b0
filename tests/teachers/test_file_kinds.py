"""Files that are no weights: the message says what each is and what to do."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from pipeline.errors import UserError
from pipeline.teachers.checkpoints import read_checkpoint


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def arrays(function: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    function(file, np.zeros(3))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


def onnx(*operators: bytes) -> bytes:
    return b"\x08\x08\x12\x07pytorch\x1a\x052.4.0:" + b"".join(operators)


STATE = {"weight": torch.zeros(40, 40)}
KINDS: list[tuple[str, bytes, str]] = [
    ("a.pth", b"", "is empty: copy or download it again"),
    ("a.pth", b"<!DOCTYPE html><html>sign in", "is a web page"),
    ("a.pth", b"\xef\xbb\xbf\n <HTML><body>404", "is a web page"),
    ("a.safetensors", b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page"),
    ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run `git lfs pull`"),
    ("a.onnx", onnx(b"Conv", b"BatchNormalization"), "name it in teacher.source (onnx:FILE)"),
    ("a.pth", onnx(b"Conv", b"Relu"), "onnx2torch"),
    ("a.pb", b"\x08\x01\x12\x04", "is a TensorFlow graph"),
    ("a.h5", b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file, as Keras and TensorFlow write"),
    ("a.keras", zipped("config.json", "model.weights.h5"), "is a Keras file"),
    ("a.tflite", b"\x1c\0\0\0TFL3\0\0", "is a TFLite file"),
    ("a.zip", zipped("notes.txt", "weights.pth"), "zip archive of notes.txt and more"),
    ("a.zip", zipped(), "zip archive|damaged or truncated"),
    ("a.pth.gz", gzip.compress(saved(STATE)), "is compressed with gzip: unpack it"),
    ("a.pth.bz2", b"BZh91AY", "is compressed with bzip2: unpack it"),
    ("a.pth.zst", b"\x28\xb5\x2f\xfd\0", "is compressed with zstd: unpack it"),
    ("a.tar", tarred(), "is a tar archive: unpack it"),
    ("a.npz", arrays(np.savez), "is a NumPy archive"),
    ("a.npy", arrays(np.save), "is a NumPy array"),
    ("a.gguf", b"GGUF\x03\0\0\0", "is a GGUF file"),
    ("a.pt2", zipped("a/archive_format", "a/data.pkl"), "is a program of torch.export"),
    ("a.pth", saved(STATE)[:-100], "is damaged or truncated (a zip archive"),
    ("a.safetensors", save(STATE)[:-100], "is damaged, truncated"),
    ("a.yaml", b"model: resnet\n", "is a text file that begins with 'model: resnet'"),
    ("a.pth", bytes(100), "is damaged, truncated or no file of weights"),
]


@pytest.mark.parametrize(("name", "data", "said"), KINDS, ids=[said for _, _, said in KINDS])
def test_what_a_file_is(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / name, "teacher")
    text = str(caught.value)
    assert any(each in text for each in said.split("|"))
    assert text.startswith(f"teacher.weights {tmp_path / name} ")
    assert len(text.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "net.pt"))
    with pytest.raises(UserError, match=r"is a TorchScript archive.*save the state_dict\(\)"):
        read_checkpoint(tmp_path / "net.pt", "teacher")


def test_a_truncated_file_of_the_old_format(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged, truncated or no file of weights"):
        read_checkpoint(path, "teacher")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").touch()
    with pytest.raises(UserError, match=r"is a folder: name a file in it \(best.pth\)"):
        read_checkpoint(tmp_path / "run", "teacher")


def test_a_pipe_or_a_device_in_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a regular file: name a file of weights"):
            read_checkpoint(path, "teacher")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin", "w"])
@pytest.mark.parametrize("writer", ["torch", "old torch", "safetensors"])
def test_the_bytes_decide_about_the_format(tmp_path: Path, name: str, writer: str) -> None:
    path = tmp_path / name
    if writer == "safetensors":
        path.write_bytes(save(STATE))
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=writer == "torch")
    states = read_checkpoint(path, "teacher").states
    assert torch.equal(states[""]["weight"], STATE["weight"])


@pytest.fixture
def without_checksums() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


def test_one_wrong_byte_in_the_weights(tmp_path: Path) -> None:
    """``torch.load`` reads such a file without a word."""
    path, weight = tmp_path / "w.pt", torch.arange(1000.0)
    torch.save({"weight": weight}, path)
    data = path.read_bytes()
    wrong = bytearray(data)
    wrong[data.index(weight.numpy().tobytes()) + 2003] ^= 0x40
    path.write_bytes(wrong)
    assert not torch.equal(torch.load(path)["weight"], weight)
    with pytest.raises(UserError, match=r"weights .*w\.pt is damaged \(w/data/0 in it .*again$"):
        read_checkpoint(path, "teacher")
    path.write_bytes(data)
    assert torch.equal(read_checkpoint(path, "teacher").states[""]["weight"], weight)


def test_a_file_that_was_saved_without_checksums(tmp_path: Path, without_checksums: None) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    states = read_checkpoint(tmp_path / "w.pt", "teacher").states
    assert torch.equal(states[""]["weight"], STATE["weight"])


class Command:
    """An object whose unpickling would run a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("false",)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", range(1, 6))
def test_a_pickle_that_runs_code(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pt"
    for value in (Command(), {"weight": Command()}):
        path.write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UserError, match=r"holds more than tensors.* posix\.system") as caught:
            read_checkpoint(path, "teacher")
        assert "weights_only" not in str(caught.value)


def test_the_advice_to_run_code_is_not_repeated(tmp_path: Path) -> None:
    for data in (bytes(100), b"\x7f" * 50, pickle.dumps([1]), pickle.dumps({"a": np.zeros(3)})):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_checkpoint(tmp_path / "a.pt", "teacher")
        assert "weights_only" not in str(caught.value)


def test_a_safetensors_file_with_a_wrong_length(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**40).to_bytes(8, "little") + save(STATE)[8:])
    with pytest.raises(UserError, match=r"it is damaged.*header too large"):
        read_checkpoint(tmp_path / "a.safetensors", "teacher")
