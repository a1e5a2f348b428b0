"""Everything in a row, a record and a tar that can be derived is compared: the digests all fit."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.records import SCHEMA
from pipeline.errors import BadShardError, UserError
from pipeline.execution.runner import open_runner
from pipeline.stages.finalize import finalize
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.stages.forging import rewrite_record, rewrite_rows, seal

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rich(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Params:
    """A dataset with a round, soft labels, views, factors, candidates and new attempts."""
    from tests.conftest import parameters

    params = changed(
        parameters(trained, tmp_path_factory.mktemp("rich")),
        {
            "adaptive.rounds": 1,
            "adaptive.warm": 0.3,
            "synthesis.soft_labels": True,
            "synthesis.views": 2,
            "synthesis.keep": 0.5,
            "synthesis.confirmed": True,
            "synthesis.max_similarity": 0.9,
            "synthesis.objective.tv_spread": 1.0,
        },
    )
    make(params)
    return params


@pytest.fixture
def forged(rich: Params, tmp_path: Path) -> Params:
    shutil.copytree(dataset(rich), tmp_path / "dataset")
    return changed(rich, {"paths.dataset": str(tmp_path / "dataset")})


def problems(params: Params) -> list[str]:
    found = verify(*load(params), 0.0, lambda images: None)
    assert all(len(problem.splitlines()) == 1 for problem in found)
    return found


def of_content(found: list[str]) -> list[str]:
    """Without the provenance, whose digests notice any change."""
    return [problem for problem in found if problem.startswith("shard ")]


def test_the_true_dataset_has_no_problems(rich: Params) -> None:
    assert problems(rich) == []
    rows = [
        row for path in dataset(rich).glob("*/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert {row["attempt"] for row in rows} > {0}, "an attempt must be among what is tested"
    assert len({row["factor_tv"] for row in rows}) > 10


def other(value: Any) -> Any:
    """Another value of the same type, far enough not to be a matter of rounding."""
    if isinstance(value, bytes):
        return bytes(len(value))
    if isinstance(value, str):
        return "../../x"
    if value is None:
        return None
    return value + 1 if isinstance(value, int) else value * 1.3 + 0.3


COLUMNS = [name for name in SCHEMA.names if name not in ("replaced", "flaw")]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("number", [0, 2])
def test_every_column_of_a_row(forged: Params, column: str, number: int) -> None:
    root = dataset(forged)
    skipped = False

    def change(rows: list[Row]) -> None:
        nonlocal skipped
        skipped = rows[2][column] is None
        rows[2][column] = 0.5 if skipped and "pred" not in column else other(rows[2][column])
        if skipped and "pred" in column:
            rows[2][column] = 1
        elif "pred" in column:  # two logits of one image may be a tie, those of all images are not
            for row in rows:
                row[column] = (row[column] + 1) % 3

    rewrite_rows(root, number, change)
    assert of_content(problems(forged)), column


@pytest.mark.parametrize(
    ("column", "value"), [("flaw", "duplicate"), ("flaw", "x"), ("flaw", "unsure")]
)
def test_a_flaw_that_cannot_be(made: Params, column: str, value: str) -> None:
    rewrite_rows(dataset(made), 0, lambda rows: rows[0].update({column: value}))
    assert "shard 000000: sample" in " ".join(of_content(problems(made)))


def test_an_image_that_was_never_replaced(made: Params) -> None:
    rewrite_rows(dataset(made), 0, lambda rows: rows[0].update({"replaced": "diverged"}))
    assert any("replaced cannot be 'diverged'" in text for text in problems(made))


RECORD: dict[str, Any] = {
    "round": 1,
    "first": 3,
    "images": 5,
    "class_counts": {"0": 12},
    "batches": [12],
    "precision": "bfloat16",
    "agreement": 0.123,
    "confidence": 0.987,
    "replaced": {"diverged": 3},
    "flaws": {"unsure": 3},
}


@pytest.mark.parametrize("fact", RECORD)
def test_every_fact_of_a_record(made: Params, fact: str) -> None:
    seal(dataset(made), 0, **{fact: RECORD[fact]})
    assert of_content(problems(made))


def test_a_record_of_another_version_of_torch(made: Params) -> None:
    record = json.loads((dataset(made) / "metadata/000000.json").read_bytes())
    seal(dataset(made), 0, versions={**record["versions"], "torch": "1.0.0"})
    assert "shard 000000: its record names another version of torch than its spec" in problems(made)


@pytest.mark.parametrize("facts", [{"spec": "FORGED"}, {}, [], {"spec": {}, "teacher": {}}])
def test_the_metadata_of_the_rows(made: Params, facts: Any) -> None:
    path = dataset(made) / "metadata" / "000000.parquet"
    table = pq.read_table(path).replace_schema_metadata({"dreamshard": json.dumps(facts)})
    pq.write_table(table, path)
    rewrite_record(dataset(made), 0)
    assert of_content(problems(made))


def test_another_entry_in_the_metadata_of_the_rows(made: Params) -> None:
    path = dataset(made) / "metadata" / "000000.parquet"
    table = pq.read_table(path)
    table = table.replace_schema_metadata({**table.schema.metadata, b"pandas": b"{}"})
    pq.write_table(table, path)
    rewrite_record(dataset(made), 0)
    assert any("other entries" in text for text in of_content(problems(made)))


Edit = Callable[[str, bytes], list[tuple[str, bytes]]]


def edit_tar(root: Path, number: int, edit: Edit) -> None:
    """Write a tar again with each member replaced, and fit offsets, sizes and record to it."""
    path = root / "train" / f"{number:06d}.tar"
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
        members = [(m.name, tar.extractfile(m).read()) for m in infos]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (new for member in members for new in edit(*member)):
            info = copy.copy(infos[0])  # its mode and owner are those of this project
            info.name, info.size = name, len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        images = [m for m in tar.getmembers() if m.name.endswith(".png")]
        data = path.read_bytes()

    def fit(rows: list[Row]) -> None:
        from hashlib import sha256

        for row, image in zip(rows, images, strict=True):
            row["offset"], row["size"] = image.offset_data, image.size
            content = data[image.offset_data : image.offset_data + image.size]
            row["sha256"] = sha256(content).digest()

    rewrite_rows(root, number, fit)


class Touch:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("extension", ["pickle", "pyd", "pth", "html", "png.gz", "logits.npy"])
def test_a_member_that_is_not_ours(made: Params, extension: str, tmp_path: Path) -> None:
    payload = pickle.dumps(Touch(tmp_path / "executed"))

    def edit(name: str, data: bytes) -> list[tuple[str, bytes]]:
        more = [(name.removesuffix("png") + extension, payload)] if name.endswith(".png") else []
        return [*more, (name, data)]

    edit_tar(dataset(made), 0, edit)
    assert of_content(problems(made))
    if extension != "logits.npy":
        with pytest.raises(BadShardError, match="is not of this project"):
            list(Dataset(dataset(made)).stream(4, epochs=1))
    assert not (tmp_path / "executed").exists()


def with_text(data: bytes) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "anything")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def with_pixels(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the compressed pixels of a PNG file, and fit its size and its checksum."""
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start], "big")
    pixels = change(data[start + 4 : start + 4 + size])
    check = zlib.crc32(b"IDAT" + pixels).to_bytes(4, "big")
    new = len(pixels).to_bytes(4, "big") + b"IDAT" + pixels + check
    return data[: start - 4] + new + data[start + 8 + size :]


def more_rows(pixels: bytes) -> bytes:
    """Hide bytes below the last row, which decoders ignore."""
    return zlib.compress(zlib.decompress(pixels) + b"hidden" * 9)


@pytest.mark.parametrize(
    ("extension", "change"),
    [
        ("png", with_text),
        ("png", lambda data: data + b"hidden"),
        ("png", lambda data: with_pixels(data, lambda found: found + b"hidden")),
        ("png", lambda data: with_pixels(data, more_rows)),
        ("cls", lambda data: b"0" + data),
        ("cls", lambda data: data + b"\n"),
        ("json", lambda data: data[:-1] + b', "more": 1}'),
        ("json", lambda data: data.replace(b'"round": 0', b'"round": 7')),
        ("json", lambda data: data.replace(b'"class_name": "', b'"class_name": "../')),
        ("json", lambda data: b"[" * 50_000),
        ("logits.npy", lambda data: data[:-2] + b"\0\x7c"),
        ("logits.npy", lambda data: data.replace(b"<f2", b"<u2")),
        ("logits.npy", lambda data: data + b"hidden"),
        ("logits.npy", lambda data: data.replace(b"(3,)", b"(3 )")),
        ("views.npy", lambda data: data[:-2] + b"\0\x7c"),
        ("views.npy", lambda data: data.replace(b"<f2", b"<u2")),
        ("views.npy", lambda data: data + b"hidden"),
        ("views.npy", lambda data: data.replace(b"(2, 12)", b"(12, 2)")),
        ("views.npy", lambda data: data[:128] + bytes(2) + data[130:]),
    ],
)
def test_a_changed_member(forged: Params, extension: str, change: Callable[[bytes], bytes]) -> None:
    def edit(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, change(data) if name.endswith(f"00004.{extension}") else data)]

    edit_tar(dataset(forged), 0, edit)
    assert of_content(problems(forged))


def test_logits_of_another_image(forged: Params) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([9, -9, 0], dtype=np.float16))

    def edit(name: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(name, buffer.getvalue() if name.endswith("4.logits.npy") else data)]

    edit_tar(dataset(forged), 0, edit)
    assert any("differs from the teacher's logits" in text for text in problems(forged))


def test_views_with_the_answers_to_other_views(forged: Params) -> None:
    """The description is the planned one, and the logits are another view's."""

    def edit(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if not name.endswith("4.views.npy"):
            return [(name, data)]
        views = np.load(io.BytesIO(data))
        views[:, 9:] = views[::-1, 9:]
        buffer = io.BytesIO()
        np.save(buffer, views)
        return [(name, buffer.getvalue())]

    edit_tar(dataset(forged), 0, edit)
    found = of_content(problems(forged))
    assert any("its .views.npy differs from the teacher's logits" in text for text in found)


def mended(params: Params) -> list[str]:
    config, teacher = load(params)
    with open_runner(config) as run:
        return repair(config, teacher, run)


def test_repair_makes_a_forged_shard_again(forged: Params) -> None:
    root = dataset(forged)
    before = tree(root)
    rewrite_rows(root, 1, lambda rows: rows[0].update({"seed": 7}))
    assert mended(forged) == ["shard 000001"]
    assert tree(root) == before


# Records that are sealed and still no records, and files that are no files.


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": []},
        {"files": {}},
        {"files": {"train/000000.tar": None}},
        {"files": {"/etc/passwd": {"sha256": "0" * 64, "md5": "0" * 32, "size": 1}}},
        {"spec": None},
        {"spec": []},
        {"spec": {}},
        {"spec": {"student": [], "code": {}}},
        {"versions": None},
        {"versions": [1]},
        {"images": 10**30},
        {"images": "8"},
        {"shard": "000001"},
        {"shard": "../../etc"},
        {"curve": {}},
        {"batches": [0]},
        {"batches": [10**12]},
        {"agreement": float("nan")},
        {"surplus": 1},
        {"precision": "float8"},
    ],
    ids=lambda changes: f"{changes}"[:40],
)
def test_a_sealed_record_that_is_none(made: Params, changes: dict[str, Any]) -> None:
    root = dataset(made)
    before = tree(root)
    seal(root, 0, **changes)
    assert of_content(problems(made))
    mended(made)
    assert tree(root) == before


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"shard": ' * 9_000, b"9" * 9_000, b"\xff", b"null"]
)
def test_a_record_that_is_no_json_of_a_record(made: Params, text: bytes) -> None:
    (dataset(made) / "metadata/000000.json").write_bytes(text)
    assert "there is no readable record" in of_content(problems(made))[0]


def test_a_sparse_file_of_terabytes(made: Params) -> None:
    root = dataset(made)
    before = tree(root)
    for name in ("train/000000.tar", "metadata/000000.parquet", "metadata/000001.json"):
        with (root / name).open("r+b") as file:
            file.truncate(4 * 2**40)
    found = problems(made)
    assert any("000000.tar has 4398046511104 bytes" in text for text in found)
    mended(made)
    assert tree(root) == before


def sparse_tar(path: Path) -> None:
    """A tar whose PAX header says that its image has 4 TB."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("000000000.png")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "000000000.png",
            "GNU.sparse.realsize": str(4 * 2**40),
        }
        info.size = 512
        tar.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))


def test_a_sparse_member_of_terabytes(made: Params) -> None:
    root = dataset(made)
    before = tree(root)
    sparse_tar(root / "train/000000.tar")
    rewrite_record(root, 0)
    assert any("is not a plain file" in text for text in problems(made))
    mended(made)
    assert tree(root) == before


def test_an_array_of_terabytes(forged: Params) -> None:
    def edit(name: str, data: bytes) -> list[tuple[str, bytes]]:
        huge = data.replace(b"(3,), }" + b" " * 14, b"(4000000000000,), }   ")
        return [(name, huge if name.endswith("4.logits.npy") else data)]

    edit_tar(dataset(forged), 0, edit)
    assert any("another size than its header says" in text for text in problems(forged))


def test_more_rows_than_images(made: Params) -> None:
    path = dataset(made) / "metadata" / "000000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table] * 1000), path)
    rewrite_record(dataset(made), 0)
    assert any("it has 12000 rows, not 12" in text for text in problems(made))


NAMES = ["train/000000.tar", "metadata/000001.parquet", "metadata/000000.json", "README.md"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_place_of_a_file(
    made: Params, name: str, dangling: bool, tmp_path: Path
) -> None:
    root = dataset(made)
    before, target = tree(root), tmp_path / "target"
    (root / name).rename(target)
    (root / name).symlink_to(tmp_path / "nowhere" if dangling else target)
    content = target.read_bytes()
    found = problems(made)
    assert any(text.startswith(f"{name} is a link to ") for text in found)
    mended(made)
    assert tree(root) == before
    assert not (root / name).is_symlink()
    assert target.read_bytes() == content
    assert problems(made) == []


def test_a_pipe_in_the_place_of_a_file(made: Params) -> None:
    root = dataset(made)
    before = tree(root)
    for name in NAMES:
        (root / name).unlink()
        os.mkfifo(root / name)
    found = problems(made)
    assert f"{NAMES[0]} is a pipe" in " ".join(found)
    mended(made)
    assert tree(root) == before


@pytest.mark.parametrize("folder", ["train", "metadata"])
def test_a_folder_that_is_a_link(made: Params, folder: str, tmp_path: Path) -> None:
    root, outside = dataset(made), tmp_path / "outside"
    (root / folder).rename(outside)
    (root / folder).symlink_to(outside)
    before = tree(outside)
    assert any(text.startswith(f"{folder} is a link to") for text in problems(made))
    with pytest.raises(UserError, match=f"{folder} is a link to"):
        mended(made)
    with pytest.raises(UserError, match=f"{folder} is a link to"):
        make(made)
    assert tree(outside) == before


def test_a_folder_in_the_place_of_a_file(made: Params) -> None:
    path = dataset(made) / "train/000000.tar"
    path.unlink()
    path.mkdir()
    assert any(text.startswith("train/000000.tar is a folder") for text in problems(made))
    with pytest.raises(UserError, match=r"train/000000\.tar is a folder"):
        mended(made)


def rewrite_headers(path: Path, **changes: Any) -> None:
    with tarfile.open(path) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (info, data) in enumerate(members):
            for name, value in changes.items() if number == 1 else ():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(data))


def zeros(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(10240))


def between(path: Path) -> None:
    """Hide bytes between the data and the footer of a Parquet file."""
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:footer] + b"hidden" * 200 + data[footer:])


HIDDEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nothing": ("train/000000.tar", rewrite_headers),
    "zeros": ("train/000000.tar", zeros),
    "mode": ("train/000000.tar", lambda path: rewrite_headers(path, mode=0o4777)),
    "owner": ("train/000000.tar", lambda path: rewrite_headers(path, uid=7, uname="somebody")),
    "mtime": ("train/000000.tar", lambda path: rewrite_headers(path, mtime=1234567)),
    "linkname": ("train/000000.tar", lambda path: rewrite_headers(path, linkname="/etc/passwd")),
    "parquet": ("metadata/000000.parquet", between),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_bytes_that_hold_no_sample(made: Params, kind: str) -> None:
    root = dataset(made)
    before = tree(root)
    name, hide = HIDDEN[kind]
    hide(root / name)
    rewrite_record(root, 0)
    finalize(*load(made))
    found = problems(made)
    if kind == "nothing":
        assert found == [] and tree(root) == before
    else:
        assert len(of_content(found)) == 1 and "other bytes" in found[0]
        mended(made)
        assert tree(root) == before
