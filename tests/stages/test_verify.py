from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.schema import Config
from pipeline.dataset.layout import sample_key
from pipeline.dataset.tar import Sample
from pipeline.stages.verify import verify
from pipeline.storage import write_json
from pipeline.synthesis.shard_states import shard_states
from pipeline.synthesis.spec import key_prefix
from pipeline.teachers.teacher import Teacher
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.stages.forging import rewrite_record, rewrite_tar, samples_of, seal

FILES = [
    "README.md",
    "_info.json",
    "index.json",
    "provenance.json",
    "croissant.json",
    "train/000000.tar",
    "train/000001.tar",
    "metadata/000000.parquet",
    "metadata/000001.parquet",
    "metadata/000000.json",
    "metadata/000001.json",
]


@pytest.fixture
def root(made: Params) -> Path:
    return dataset(made)


def problems(params: Params, agreement: float = 0.0) -> list[str]:
    config, teacher = load(params)
    return judge(config, teacher, agreement)


def judge(config: Config, teacher: Teacher, agreement: float = 0.0) -> list[str]:
    found = verify(config, teacher, agreement, lambda images: None)
    assert all(len(problem.splitlines()) == 1 for problem in found)
    return found


def named(name: str, found: list[str]) -> bool:
    """Whether a problem says in which file, or at least in which shard, it lies."""
    stem = Path(name).stem
    return any(name in problem or f"shard {stem}:" in problem for problem in found)


def key_of(params: Params, index: int) -> str:
    config, teacher = load(params)
    return sample_key(key_prefix(config, teacher.digest), index)


def says(found: list[str], beginning: str) -> bool:
    return any(problem.startswith(beginning) for problem in found)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_good_dataset_has_no_problems(made: Params, root: Path) -> None:
    before = tree(root)
    told: list[int] = []
    config, teacher = load(made)
    assert verify(config, teacher, 0.0, told.append) == []
    assert told == [12, 8]
    assert tree(root) == before


def test_soft_labels_and_a_student_are_no_problem(tiny: Params) -> None:
    params = changed(tiny, {"synthesis.soft_labels": True, "adaptive.rounds": 1})
    make(params)
    assert problems(params) == []


def positions(size: int) -> Iterator[int]:
    """Both ends, and some in between."""
    yield from {0, size - 1, *range(size // 7, size, max(1, size // 7))}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_named(made: Params, root: Path, name: str) -> None:
    config, teacher = load(made)
    data = (root / name).read_bytes()
    for position in positions(len(data)):
        flip(root / name, position)
        found = judge(config, teacher)
        assert named(name, found), (position, found)
        (root / name).write_bytes(data)
    assert judge(config, teacher) == []


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield (*path, key)
            yield from leaves(inner, (*path, key))


def changed_facts(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``record`` with one fact left out or another, for each fact in it."""
    for location in leaves(record):
        for change in ("without", "another"):
            damaged = json.loads(json.dumps(record))
            owner = damaged
            for key in location[:-1]:
                owner = owner[key]
            if change == "without":
                del owner[location[-1]]
            else:
                value = owner[location[-1]]
                owner[location[-1]] = value + 1 if isinstance(value, int | float) else "other"
            yield f"{change} {'.'.join(map(str, location))}", damaged


@pytest.fixture
def record(root: Path) -> dict[str, Any]:
    """The first shard's, its curve cut short to save time."""
    path = root / "metadata" / "000000.json"
    facts: dict[str, Any] = json.loads(path.read_bytes())
    facts["curve"] = facts["curve"][:1]
    write_json(path, facts)
    return facts


def test_a_changed_fact_of_a_record_is_found_and_named(
    made: Params, root: Path, record: dict[str, Any]
) -> None:
    config, teacher = load(made)
    silent = []
    for what, damaged in changed_facts(record):
        write_json(root / "metadata" / "000000.json", damaged)
        try:
            if not named("metadata/000000.json", judge(config, teacher)):
                silent.append(what)
        except Exception as error:
            silent.append(f"{what}: {error!r}")
    assert silent == []


def test_a_damaged_record_does_not_stop_a_run(
    made: Params, root: Path, record: dict[str, Any]
) -> None:
    """Whether a shard is complete can be told of any record, so that it can be made again."""
    config, teacher = load(made)
    broken = []
    for what, damaged in changed_facts(record):
        write_json(root / "metadata" / "000000.json", damaged)
        try:
            shard_states(config, teacher.digest)
        except Exception as error:
            broken.append(f"{what}: {error!r}")
    assert broken == []


@pytest.mark.parametrize("name", FILES)
def test_a_lost_file_is_found_and_named(made: Params, root: Path, name: str) -> None:
    (root / name).unlink()
    assert named(name, problems(made))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found_and_named(made: Params, root: Path, name: str) -> None:
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: len(data) // 2])
    assert named(name, problems(made))


@pytest.mark.parametrize(
    "name",
    [
        "stranger.txt",
        "train/000002.tar",
        "train/notes.md",
        "metadata/000007.json",
        "deep/er/file",
        "train/.000000.tar.x.tmp",
        ".dreamshard.txt",
        "students/000001.safetensors",
    ],
)
def test_a_stranger_is_found_and_named(made: Params, root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"?")
    assert problems(made) == [
        f"{name} does not belong to the dataset: move it elsewhere, or delete it"
    ]


def test_an_empty_directory(tiny: Params) -> None:
    found = problems(tiny)
    assert "shard 000000: there is no readable record metadata/000000.json" in found
    assert "shard 000001: there is no readable record metadata/000001.json" in found


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("synthesis.iterations", 5, "iterations"),
        ("synthesis.seed", 1, "batches, labels"),
        ("synthesis.objective.tv", 0.5, "objective"),
        ("synthesis.soft_labels", True, "soft_labels"),
        ("teacher.class_names", None, "class_names"),
        ("teacher.input.mean", [0.39], "teacher"),
    ],
)
def test_a_stale_shard_is_named_with_what_changed(
    made: Params, root: Path, key: str, value: Any, said: str
) -> None:
    found = problems(changed(made, {key: value}))
    for number in ("000000", "000001"):
        assert f"shard {number}: stale: {said} changed since it was made" in found


def test_a_plan_of_another_size(made: Params, root: Path) -> None:
    larger = problems(changed(made, {"synthesis.images": 30}))
    assert any("000002" in text for text in larger)
    assert any(text.startswith("balance: 3 classes") for text in larger)
    smaller = problems(changed(made, {"synthesis.images": 12}))
    assert (
        "train/000001.tar does not belong to the dataset: move it elsewhere, or delete it"
        in smaller
    )


def test_swapped_shards(made: Params, root: Path) -> None:
    params = changed(made, {"synthesis.images": 24})
    make(params)
    first, second = root / "train" / "000000.tar", root / "train" / "000001.tar"
    first.rename(root / "train" / "t")
    second.rename(first)
    (root / "train" / "t").rename(second)
    found = problems(params)
    assert any("000000" in text and "keys" in text for text in found)
    assert any("000001" in text and "keys" in text for text in found)


# Forgeries: the digests fit, the contents do not.


def test_another_image_under_a_right_digest(made: Params, root: Path) -> None:
    samples = samples_of(root, 0)
    pixels = 255 - samples[3].pixels
    samples[3] = Sample(samples[3].key, pixels, samples[3].label, samples[3].facts)
    rewrite_tar(root, 0, samples)
    rewrite_record(root, 0)
    assert says(problems(made), f"shard 000000: sample {key_of(made, 3)} differs from its row")


@pytest.mark.parametrize("caption", [None, "a photo of another"])
def test_another_caption_under_a_right_digest(tiny: Params, caption: str | None) -> None:
    params = changed(tiny, {"synthesis.captions": "a photo of {}"})
    make(params)
    root = dataset(params)
    samples = samples_of(root, 0)
    samples[3] = replace(samples[3], caption=caption)
    rewrite_tar(root, 0, samples)
    rewrite_record(root, 0)
    text = f"sample {key_of(params, 3)} has another caption than synthesis.captions asks for"
    assert f"shard 000000: {text}" in problems(params)


@pytest.mark.parametrize("change", ["cls", "json"])
def test_another_label_under_a_right_digest(made: Params, root: Path, change: str) -> None:
    samples = samples_of(root, 1)
    old = samples[2]
    other = (old.label + 1) % 3
    facts = {**old.facts, "cls": other} if change == "json" else old.facts
    label = other if change == "cls" else old.label
    samples[2] = Sample(old.key, old.pixels, label, facts)
    rewrite_tar(root, 1, samples)
    rewrite_record(root, 1)
    found = problems(made)
    assert says(found, f"shard 000001: sample {key_of(made, 14)} differs from its row")
    if change == "cls":
        assert any(text.startswith("balance: 2 classes") for text in found)


def test_a_sample_too_few(made: Params, root: Path) -> None:
    rewrite_tar(root, 1, samples_of(root, 1)[:-1])
    rewrite_record(root, 1)
    found = problems(made)
    assert "shard 000001: the keys of its samples are not the planned ones" in found
    assert "shard 000001: its rows and samples do not join one to one" in found


def test_a_sample_without_an_image(made: Params, root: Path) -> None:
    path = root / "train" / "000001.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"-000000013.png", b"-000000013.gif"))
    assert named("train/000001.tar", problems(made))


def test_rows_in_another_order(made: Params, root: Path) -> None:
    path = root / "metadata" / "000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([1, 0, *range(2, 8)])), path)
    rewrite_record(root, 1)
    assert "shard 000001: its rows and samples do not join one to one" in problems(made)


def test_other_columns(made: Params, root: Path) -> None:
    path = root / "metadata" / "000001.parquet"
    pq.write_table(pq.read_table(path).drop(["seed"]), path)
    rewrite_record(root, 1)
    assert (
        "shard 000001: metadata/000001.parquet: the columns are not those of this version"
        in problems(made)
    )


def test_answers_that_the_teacher_never_gave(made: Params, root: Path) -> None:
    path = root / "metadata" / "000000.parquet"
    rows = pq.read_table(path).to_pylist()
    schema = pq.read_schema(path)
    samples = samples_of(root, 0)
    for row, sample in zip(rows, samples, strict=True):
        row["teacher_pred"] = sample.facts["teacher_pred"] = (row["teacher_pred"] + 1) % 3
    rewrite_tar(root, 0, samples)  # of the same lengths: the offsets stay
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
    rewrite_record(root, 0)
    expected = f"shard 000000: sample {key_of(made, 0)}: the networks do not give teacher_pred"
    assert says(problems(made), expected)


def test_a_forged_record_is_found_all_the_same(made: Params, root: Path) -> None:
    spec = json.loads((root / "metadata" / "000000.json").read_bytes())["spec"]
    seal(root, 0)
    assert problems(made) == []
    seal(root, 0, spec={**spec, "iterations": 400})
    assert (
        "shard 000000: its record contradicts itself: the digest of its spec is another"
        in problems(made)
    )
    seal(root, 0, spec=spec, agreement=1.0, confidence=0.999)
    assert problems(made) != []


def test_too_few_labels_that_the_teacher_confirms(tiny: Params) -> None:
    noise = changed(tiny, {"synthesis.iterations": 0})
    make(noise)
    assert problems(noise, agreement=0.0) == []
    (line,) = problems(noise, agreement=0.95)
    assert line.startswith("the teacher confirms ")
    assert line.endswith("% of labels, less than 95.0%")


def test_enough_labels_that_the_teacher_confirms(tiny: Params) -> None:
    good = changed(tiny, {"synthesis.iterations": 60})
    make(good)
    assert problems(good, agreement=0.95) == []


def test_a_student_that_is_not_the_one_competed_with(tiny: Params) -> None:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    flip(dataset(params) / "students" / "000001.safetensors", -1)
    assert "shard 000002: stale: student changed since it was made" in problems(params)
    shutil.rmtree(dataset(params) / "students")
    assert "shard 000002: stale: student changed since it was made" in problems(params)


@pytest.mark.parametrize("kind", ["safetensors", "json", "csv"])
def test_a_lost_file_of_a_student_is_found_and_named(tiny: Params, kind: str) -> None:
    params = changed(tiny, {"adaptive.rounds": 1})
    make(params)
    (dataset(params) / "students" / f"000001.{kind}").unlink()
    assert f"students/000001.{kind} is missing" in problems(params)


@pytest.mark.parametrize(
    ("column", "file"),
    [("cls", "rows"), ("offset", "rows"), ("size", "rows"), ("teacher_pred", "json")],
)
def test_a_row_that_does_not_fit_its_sample(made: Params, column: str, file: str) -> None:
    root = dataset(made)
    path = root / "metadata" / "000000.parquet"
    if file == "json":
        samples = samples_of(root, 0)
        samples[3].facts[column] = (samples[3].facts[column] + 1) % 3
        rewrite_tar(root, 0, samples)
    else:
        rows = pq.read_table(path).to_pylist()
        rows[3][column] = (rows[3][column] + 1) % 3 if column == "cls" else rows[3][column] + 1
        table = pa.Table.from_pylist(rows, schema=pq.read_schema(path))
        pq.write_table(table, path, compression="zstd")
    rewrite_record(root, 0)
    assert says(problems(made), f"shard 000000: sample {key_of(made, 3)} differs from its row")


def test_images_of_another_size_under_right_digests(made: Params) -> None:
    root = dataset(made)
    samples = [replace(sample, pixels=sample.pixels[:, :6, :6]) for sample in samples_of(root, 0)]
    rewrite_tar(root, 0, samples)
    rewrite_record(root, 0)
    expected = f"sample {key_of(made, 0)}: its image is (1, 6, 6), not (1, 8, 8)"
    assert f"shard 000000: a sample cannot be read: {expected}" in problems(made)
