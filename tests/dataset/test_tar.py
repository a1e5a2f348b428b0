from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.tar import Member, Sample, decode_image, encode_image, read_tar, write_tar
from pipeline.errors import BadShardError
from pipeline.storage import digest_bytes


def image(channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, 6, 9), dtype=np.uint8)


def samples(count: int = 3, logits: bool = False) -> list[Sample]:
    return [
        Sample(
            key=f"{number:09d}",
            pixels=image(seed=number),
            label=number % 3,
            facts={"cls": number % 3, "teacher_prob": 0.25},
            logits=np.arange(3, dtype=np.float16) + number if logits else None,
        )
        for number in range(count)
    ]


def write(path: Path, what: list[Sample]) -> list[Member]:
    with path.open("w+b") as file:
        return write_tar(file, iter(what))


def regular(name: str, content: bytes = b"0") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_every_pixel(channels: int) -> None:
    pixels = image(channels)
    data = encode_image(pixels)
    assert data.startswith(b"\x89PNG")
    back = decode_image(data)
    assert back.dtype == np.uint8
    assert np.array_equal(back, pixels)


def test_png_has_no_text_or_time() -> None:
    data = encode_image(image(3))
    assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"tIME", b"eXIf"))


@pytest.mark.parametrize("logits", [False, True])
def test_the_same_samples_give_the_same_bytes(tmp_path: Path, logits: bool) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    members = write(first, samples(logits=logits))
    assert write(second, samples(logits=logits)) == members
    assert first.read_bytes() == second.read_bytes()
    write(second, samples(4, logits=logits))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("logits", "extensions"),
    [(False, ["cls", "json", "png"]), (True, ["cls", "json", "logits.npy", "png"])],
)
def test_members_lie_in_order_and_tell_nothing_of_the_writer(
    tmp_path: Path, logits: bool, extensions: list[str]
) -> None:
    write(tmp_path / "a.tar", samples(logits=logits))
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [
        f"{number:09d}.{extension}" for number in range(3) for extension in extensions
    ]
    for member in members:
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert member.uname == member.gname == "bigdata"  # WebDataset's constant
        assert member.mode & 0o444 == 0o444


def test_offsets_point_at_the_images(tmp_path: Path) -> None:
    members = write(tmp_path / "a.tar", samples(logits=True))
    data = (tmp_path / "a.tar").read_bytes()
    for member, sample in zip(members, samples(logits=True), strict=True):
        content = data[member.offset : member.offset + member.size]
        assert content == encode_image(sample.pixels)
        assert digest_bytes(content) == member.sha256
    read = list(read_tar(tmp_path / "a.tar"))
    assert [offset for _, _, offset in read] == [member.offset for member in members]


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", samples(logits=True))
    for (key, parts, _), sample in zip(
        read_tar(tmp_path / "a.tar"), samples(logits=True), strict=True
    ):
        assert key == sample.key
        assert set(parts) == {"cls", "json", "png", "logits.npy"}
        assert parts["cls"] == str(sample.label).encode()
        assert json.loads(parts["json"]) == sample.facts
        assert np.array_equal(decode_image(parts["png"]), sample.pixels)
        logits = np.load(io.BytesIO(parts["logits.npy"]), allow_pickle=False)
        assert logits.dtype == np.float16 and sample.logits is not None
        assert np.array_equal(logits, sample.logits)


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    assert write(tmp_path / "a.tar", []) == []
    assert list(read_tar(tmp_path / "a.tar")) == []


@pytest.mark.parametrize(
    "member",
    [
        special("0.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("0.png", tarfile.LNKTYPE, "0.cls"),
        special("0.png", tarfile.CHRTYPE),
        special("0.png", tarfile.FIFOTYPE),
        special("0.dir", tarfile.DIRTYPE),
        regular("/0.png"),
        regular("../0.png"),
        regular("a/0.png"),
        regular("..png"),
        regular("0"),
        regular("0."),
        regular(".png"),
    ],
    ids=lambda member: f"{member[0].name} {member[0].type.decode()}",
)
def test_members_that_are_no_plain_files(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    path = tar_of(tmp_path / "bad.tar", regular("0.cls"), member)
    with pytest.raises(BadShardError, match=r"bad\.tar: member .* is not a plain file"):
        list(read_tar(path))


def test_a_part_that_is_there_twice(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "bad.tar", regular("0.png"), regular("0.cls"), regular("0.png"))
    with pytest.raises(BadShardError, match=r"member .0\.png. occurs twice"):
        list(read_tar(path))


def test_a_sample_that_comes_back_later(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "bad.tar", regular("0.png"), regular("1.png"), regular("0.png"))
    with pytest.raises(BadShardError, match=r"member .0\.png. occurs twice"):
        list(read_tar(path))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(512 * 5 + 30, id="inside an image"),
        pytest.param(512 * 8 + 100, id="inside a header"),
        pytest.param(512 * 8 + 304, id="behind the checksum of a header"),
        pytest.param(512 * 6, id="between samples"),
        pytest.param(512 * 18, id="before the end marker"),
    ],
)
def test_a_truncated_tar(tmp_path: Path, size: int) -> None:
    path = tmp_path / "bad.tar"
    write(path, samples())  # a sample is a header and a block of content for each of three parts
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadShardError, match=r"bad\.tar"):
        list(read_tar(path))


@pytest.mark.parametrize("content", [b"", b"no tar", bytes(300), b"x" * 2048])
def test_a_file_that_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(BadShardError, match=r"bad\.tar"):
        list(read_tar(tmp_path / "bad.tar"))


def test_a_compressed_tar_is_not_what_this_project_writes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w:gz") as tar:
        info, content = regular("0.png")
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BadShardError):
        list(read_tar(tmp_path / "bad.tar"))


def test_no_tar_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadShardError, match=r"bad\.tar"):
        list(read_tar(tmp_path / "bad.tar"))
