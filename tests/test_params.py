from __future__ import annotations

import datetime
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.params import load_params, parse_overrides, parse_params
from tests.conftest import Params, changed, write_params

EXAMPLE = Path(__file__).parent.parent / "params.yaml"


def keys_of(model: type[BaseModel]) -> dict[str, Any]:
    """Every key of a model, a section as a table of its own keys."""
    return {
        name: keys_of(field.annotation)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        else None
        for name, field in model.model_fields.items()
    }


def shown(values: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """The keys of a file, as deep as ``model`` has sections."""
    return {
        name: shown(value, model[name]) if isinstance(model.get(name), dict) else None
        for name, value in values.items()
    }


def complaint(values: Any) -> str:
    """The one line that says what is wrong with ``values``."""
    with pytest.raises(UserError) as caught:
        parse_params(values, "params.yaml")
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("params.yaml: ")
    return text


def file_complaint(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


def test_the_example_is_valid() -> None:
    config = load_params(EXAMPLE)
    assert config.teacher.classes == 10
    assert config.synthesis.images == 2000


@pytest.mark.parametrize("name", ["own", "cifar10", "imagenet"])
def test_the_other_examples_are_valid_and_have_what_dvc_asks_for(name: str) -> None:
    path = EXAMPLE.parent / "examples" / f"{name}.yaml"
    assert load_params(path).adaptive.rounds == 0
    values = YAML(typ="safe", pure=True).load(path)
    stages = YAML(typ="safe", pure=True).load(EXAMPLE.with_name("dvc.yaml"))["stages"]
    sections = {section for stage in stages.values() for section in stage.get("params", [])}
    assert sections <= set(values)
    assert {"dataset", "students", "reports"} <= set(values["paths"])
    assert "weights" in values["teacher"] and "data" in values["evaluation"]


def test_the_example_shows_every_key_and_no_other() -> None:
    model = keys_of(Config)
    values = YAML(typ="safe", pure=True).load(EXAMPLE)
    assert shown(values, model) == model


def test_a_full_config(tiny: Params) -> None:
    config = parse_params(tiny)
    assert config.synthesis.shard_size == 12
    assert config.teacher.input.mean == (0.4,)
    assert config.teacher.class_names == ("top", "middle", "bottom")
    assert config.adaptive.training.steps == 4
    assert config.distillation.steps == 6


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("synthesis.imges", "images"),
        ("synthesis.objective.feture", "feature"),
        ("synthesis.max_similiarity", "max_similarity"),
        ("teacher.input.chanels", "channels"),
        ("adaptive.training.step", "steps"),
        ("distillation.seed", "seeds"),
        ("distillation.weight-decay", "weight_decay"),
        ("syntesis", "synthesis"),
    ],
)
def test_an_unknown_key_names_the_nearest(tiny: Params, key: str, nearest: str) -> None:
    text = complaint(changed(tiny, {key: 1}))
    assert f"unknown key {key}" in text
    assert f"did you mean {nearest}?" in text


def test_a_rounds_student_keeps_its_steps_beside_other_values(tiny: Params) -> None:
    whole = changed(tiny, {"adaptive": {"rounds": 1}})
    some = changed(tiny, {"adaptive": {"rounds": 1, "training": {"ema": 0.9}}})
    steps = [parse_params(params).adaptive.training.steps for params in (whole, some)]
    assert steps == [1000, 1000]


def test_an_unknown_key_like_no_other_lists_what_there_is(tiny: Params) -> None:
    text = complaint(changed(tiny, {"paths.zzz": 1}))
    assert "unknown key paths.zzz" in text
    assert all(name in text for name in ("dataset", "students", "reports"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("synthesis.iterations", "many", '"many"'),
        ("synthesis.iterations", 2.5, "2.5"),
        ("synthesis.iterations", True, "true"),
        ("synthesis.iterations", -1, "greater than or equal to 0"),
        ("synthesis.images", 0, "greater than or equal to 1"),
        ("synthesis.batch_size", 1, "greater than or equal to 2"),
        ("synthesis.seed", -1, "greater than or equal to 0"),
        ("synthesis.seed", 2**63, "less than"),
        ("synthesis.soft_labels", "yes", "boolean"),
        ("synthesis.confirmed", 1, "boolean"),
        ("synthesis.captions", "a photo", "exactly one {} for the name of the class"),
        ("synthesis.captions", "{} and {}", "exactly one {} for the name of the class"),
        ("synthesis.captions", "a {name} of {}", "no other braces"),
        ("synthesis.captions", "a {{}}", "no other braces"),
        ("synthesis.max_similarity", 1.0, "less than 1"),
        ("synthesis.max_similarity", 0, "greater than 0"),
        ("synthesis.keep", 0, "greater than 0"),
        ("synthesis.keep", 1.1, "less than or equal to 1"),
        ("synthesis.keep", 0.1, "leaves no image of a batch_size of 6"),
        ("synthesis.precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("synthesis.objective.tv", -0.1, "greater than or equal to 0"),
        ("synthesis.objective.tv", float("nan"), "finite"),
        ("synthesis.objective.learning_rate", float("inf"), "finite"),
        ("synthesis.objective.learning_rate", 0, "greater than 0"),
        ("synthesis.objective.preset", "best", "deepinversion-cifar10"),
        ("synthesis.objective.feature_form", "mean", "'normalised' or 'published'"),
        ("synthesis.objective.betas", [0.5], "missing"),
        ("synthesis.objective.betas", [0.5, 1.0], "less than 1"),
        ("teacher.classes", 0, "a classifier has 1 or more classes"),
        ("teacher.classes", 40000, "less than or equal to 32767"),
        ("teacher.class_names", ["top", "bottom"], "2 names for 3 classes"),
        ("teacher.class_names", [0, 1, 2], "string"),
        ("teacher.input.channels", 2, "mean must have one value for each of 2 channels"),
        ("teacher.input.channels", 0, "greater than or equal to 1"),
        ("teacher.input.std", [58.4], "divide both by 255"),
        ("teacher.input.mean", [0.4, 0.4, 0.4], "mean must have one value"),
        ("teacher.input.std", [0.4, 0.4], "std must have one value"),
        ("teacher.input.std", [0.0], "greater than 0"),
        ("adaptive.rounds", -1, "greater than or equal to 0"),
        ("distillation.seeds", [], "at least 1"),
        ("distillation.seeds", 0, "array"),
        ("distillation.mixup", 1.5, "less than or equal to 1"),
        ("distillation.temperature", 0, "greater than 0"),
        ("execution.device", "gpu", "'auto', 'cpu' or 'cuda'"),
        ("execution.workers", 0, "greater than or equal to 1"),
        ("paths.dataset", 3, "string"),
        ("synthesis", [], "object"),
        ("teacher.weights", 7, "string"),
        ("teacher.sha256", "00", "pattern"),
        ("paths.dataset", "~/dataset", "write the whole path"),
        ("paths.dataset", "x" * 5000, "the path has 5000 bytes"),
        ("paths.dataset", "s3://bucket/" + "x/" * 2500, "at most 4000 bytes"),
        ("paths.students", "runs/" + "ü" * 128, "the longest name in it 256: write at most"),
        ("paths.reports", "x" * 256, "at most 255 between two slashes"),
        ("teacher.weights", "x" * 300 + "/w.pt", "at most 255 between two slashes"),
        ("evaluation.data", "x" * 300, "at most 255 between two slashes"),
        ("evaluation.foreign", "x" * 300, "at most 255 between two slashes"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    tiny: Params, key: str, value: Any, said: str
) -> None:
    text = complaint(changed(tiny, {key: value}))
    assert said in text
    assert key.rpartition(".")[0] in text and key.rpartition(".")[2] in text


def test_names_as_long_as_file_systems_take(tiny: Params) -> None:
    parse_params(changed(tiny, {"paths.dataset": "s3://bucket/" + "x" * 300}))
    parse_params(changed(tiny, {"paths.dataset": "x" * 255, "teacher.weights": "x" * 255}))


def test_captions_need_the_names_of_the_classes(tiny: Params) -> None:
    captions = {"synthesis.captions": "a photo of a {}"}
    assert parse_params(changed(tiny, captions)).synthesis.captions == "a photo of a {}"
    text = complaint(changed(tiny, {**captions, "teacher.class_names": None}))
    assert "set teacher.class_names" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"teacher.sha256": "0" * 64, "teacher.weights": None},
            "sha256 is the digest of a weights file",
        ),
        ({"paths.reports": "d/r", "paths.dataset": "d"}, "reports must not lie inside dataset"),
        ({"paths.students": "d/s", "paths.dataset": "d"}, "students must not lie inside dataset"),
        ({"paths.dataset": "/"}, "dataset is /, the root of the file system: name a folder"),
        ({"paths.reports": "/."}, "reports is /, the root of the file system: name a folder"),
        ({"paths.students": "d-noise", "paths.dataset": "d/"}, "students must not be d-noise"),
        (
            {"paths.reports": "d-procedural", "paths.dataset": "d"},
            "reports must not be d-procedural: the procedural baseline writes its images there",
        ),
        ({"distillation.seeds": [3, 0, 3]}, "names a seed twice"),
    ],
)
def test_values_that_do_not_go_together(tiny: Params, changes: dict[str, Any], said: str) -> None:
    assert said in complaint(changed(tiny, changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 4, "class_names": None}, "evaluation.verifier has 4 classes, the teacher 3"),
        ({"input.height": 9}, "evaluation.verifier takes images of (1, 9, 8), the teacher of"),
    ],
)
def test_a_verifier_of_something_else(tiny: Params, changes: dict[str, Any], said: str) -> None:
    verifier = changed(tiny["teacher"], changes)
    assert said in complaint(changed(tiny, {"evaluation": {"verifier": verifier}}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("all", "integer"),
        (0, "greater than or equal to 1"),
        ({0: -1}, "greater than or equal to 0"),
        ({3: 1}, "names class 3, but teacher.classes is 3"),
        ({-1: 1}, "names class -1"),
        ({0: 0, 1: 0}, "no image at all"),
        ({}, "no image at all"),
        (None, "set one of images and images_per_class"),
    ],
)
def test_a_wrong_size_of_the_classes(tiny: Params, value: Any, said: str) -> None:
    text = complaint(changed(tiny, {"synthesis.images": None, "synthesis.images_per_class": value}))
    assert said in text
    assert "images_per_class" in text


def test_only_one_size_at_a_time(tiny: Params) -> None:
    text = complaint(changed(tiny, {"synthesis.images_per_class": 5}))
    assert "set one of images and images_per_class" in text


def test_a_table_of_sizes(tiny: Params) -> None:
    changes = {"synthesis.images": None, "synthesis.images_per_class": {0: 4, 2: 1}}
    assert parse_params(changed(tiny, changes)).synthesis.images_per_class == {0: 4, 2: 1}


@pytest.mark.parametrize("key", ["teacher", "student", "synthesis", "teacher.input.mean"])
def test_what_must_be_there(tiny: Params, key: str) -> None:
    *sections, last = key.split(".")
    values = changed(tiny, {})
    section = values
    for name in sections:
        section = section[name]
    del section[last]
    assert f"{key} is missing" in complaint(values)


def test_a_long_value_is_cut_short(tiny: Params) -> None:
    text = complaint(changed(tiny, {"execution.workers": "x" * 5000}))
    assert len(text) < 200


def test_a_key_that_json_cannot_hold(tiny: Params) -> None:
    """YAML reads an unquoted date as one, in a key too."""
    assert "date" in complaint(changed(tiny, {}) | {datetime.date(2020, 1, 1): 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("teacher: [unclosed", "not valid YAML"),
        ("teacher:\n\t- tab", "not valid YAML"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("synthesis: {seed: 1, seed: 2}\n", "duplicate key"),
        (b"a: \x80\x81\n", "not valid YAML"),
        ("", "must hold sections"),
        ("just words", "must hold sections"),
        ("- a\n- list\n", "must hold sections"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_parameters(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in file_complaint(tmp_path / "params.yaml", text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.yaml", "there is no parameter file"),
        (".", "is a directory"),
        ("fifo", "is not a regular file"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a/" * 2500, "cannot be read: File name too long"),
        ("params.yaml/below", "there is no parameter file"),
        ("circle", "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_path_that_is_no_parameter_file(
    tiny: Params, tmp_path: Path, name: str, said: str
) -> None:
    write_params(tiny, tmp_path / "params.yaml")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / name)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "holds more than 100000 values"),
        (BOMB.replace(" [*", " {<<: [*").replace("]\n", "]}\n").replace("}", "", 1), ""),
        ("a: &a [*a]\n", "*a lies inside &a"),
        ("a: &a {b: [1, {c: *a}]}\n", "*a lies inside &a"),
        ("a: " + "[" * 20_000, "more than 50 levels"),
        ("a: " + "{b: " * 20_000, "more than 50 levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(400)), "more than 50 levels"),
        ("- " * 3000 + "a", "more than 50 levels"),
        ("a: 0x" + "f" * 4000, "a number of 4002 characters"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: " + "1_000_" * 1000, "characters"),
        ("%YAML 1.1\n---\na: " + "59:" * 3000 + "59", "characters"),
        ("a: !!int '" + "9" * 5000 + "'", "characters"),
        ("a: " + "9." * 5000, "characters"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 9_000 + "1]", "more than 100000 values"),
        ("a: [" + "1, " * 150_000 + "1]", "more than 100000 values"),
        ("a: '" + "x" * (1 << 20) + "'", "more than 1 MiB"),
        ("a: *nowhere", "undefined alias"),
        ("? {a: 1}\n: 2\n", ""),
        ("a: \0", "not valid YAML"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 40, "not valid YAML"),
        ("a: \xe4".encode("latin-1"), "not text in UTF-8"),
        ("a: {b: 1}".encode("utf-16")[:-1], "not text in UTF-8"),
    ],
)
def test_a_hostile_file_is_refused_within_seconds(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    started = time.process_time()
    assert said in file_complaint(tmp_path / "params.yaml", text)
    assert time.process_time() - started < 10  # a second on an idle machine


@pytest.mark.parametrize(
    "value",
    [BOMB.replace("\n", ", ").join("{}"), "&a [*a]", "[" * 20_000, "0x" + "f" * 4000, "a: \x00"],
)
def test_a_hostile_override_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"--set synthesis\.seed") as caught:
        parse_overrides([f"synthesis.seed={value}"])
    assert len(str(caught.value).splitlines()) == 1


def test_values_in_memory_have_the_same_limits(tiny: Params) -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    for value in (circle, [[circle] * 9] * 9, 10**5000):
        with pytest.raises(UserError):
            parse_params(changed(tiny, {"teacher.arguments": {"x": 1}}) | {"student": value})
        with pytest.raises(UserError, match="--set student"):
            parse_params(tiny, overrides={"student": value})
    with pytest.raises(UserError, match="more than 50 parts"):
        parse_params(tiny, overrides={"a." * 9000 + "b": 1})


def test_anchors_and_merge_keys_still_work(tiny: Params, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = write_params(tiny, path).read_text()
    path.write_text(text.replace('"seeds": [0]', '"seeds": &seeds [0]', 1))
    assert load_params(path).distillation.seeds == (0,)
    names = [f"class number {number} of many" for number in range(32_767)]
    values = changed(tiny, {"teacher.classes": 32_767, "teacher.class_names": names})
    assert parse_params(values).teacher.classes == 32_767
    path.write_bytes(write_params(tiny, path).read_text().encode("utf-16"))
    assert load_params(path).synthesis.images == 20


def test_a_wrong_override_blames_the_command_line(tiny: Params, tmp_path: Path) -> None:
    path = write_params(tiny, tmp_path / "params.yaml")

    def said(*pairs: str) -> str:
        with pytest.raises(UserError) as caught:
            load_params(path, parse_overrides(pairs))
        return str(caught.value)

    assert said("synthesis.imges=3").startswith("--set synthesis.imges: unknown key")
    assert said("synthesis.seed=x", "adaptive.rounds=0").startswith("--set synthesis.seed: ")
    assert said("distillation.seeds=[a]").startswith("--set distillation.seeds: ")
    assert said("teacher={source: a:b}").startswith("--set teacher: ")
    assert said("synthesis.images_per_class=2").startswith(
        f"{path} with --set synthesis.images_per_class: "
    )
    write_params(changed(tiny, {"paths.zzz": 1}), path)
    assert said("synthesis.seed=1").startswith(f"{path}: unknown key")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1e0", 1.0), ("2.5E-4", 2.5e-4), ("3", 3.0), ("0.5", 0.5)]
)
def test_numbers_are_read_as_numbers(tiny: Params, tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "params.yaml"
    marked = changed(tiny, {"synthesis.objective.tv": "MARK"})
    content = write_params(marked, path).read_text()
    path.write_text(content.replace('"MARK"', text))
    assert load_params(path).synthesis.objective.tv == value
    write_params(tiny, path)
    overrides = parse_overrides([f"synthesis.objective.tv={text}"])
    assert load_params(path, overrides).synthesis.objective.tv == value


def test_nan_in_a_file(tiny: Params, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    marked = changed(tiny, {"distillation.learning_rate": "MARK"})
    text = write_params(marked, path).read_text().replace('"MARK"', ".nan")
    assert "distillation.learning_rate is NaN" in file_complaint(path, text)


def test_overrides_lie_over_the_file(tiny: Params, tmp_path: Path) -> None:
    path = write_params(changed(tiny, {"evaluation": {}}), tmp_path / "params.yaml")
    pairs = [
        "synthesis.images=null",
        "synthesis.images_per_class={0: 2, 1: 5}",
        "adaptive.training.steps=9",
        "distillation.seeds=[4, 5]",
        "teacher.arguments.width=6",
        "evaluation.data=a=b",
        "paths.dataset=",
        "paths.dataset=elsewhere",
    ]
    config = load_params(path, parse_overrides(pairs))
    assert config.synthesis.images is None
    assert config.synthesis.images_per_class == {0: 2, 1: 5}
    assert config.adaptive.training.steps == 9
    assert config.distillation.seeds == (4, 5)
    assert config.teacher.arguments == {"width": 6}
    assert config.evaluation.data == "a=b"
    assert config.paths.dataset == "elsewhere"


@pytest.mark.parametrize(
    "pair", ["synthesis.seed", "=3", "", "synthesis.seed=[", "a.b={a: 1", "a=2024-13-45"]
)
def test_overrides_that_cannot_be_read(pair: str) -> None:
    with pytest.raises(UserError, match="--set") as caught:
        parse_overrides([pair])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("synthesis.images.deeper=1", "images is a value, not a section"),
        ("synthesis.sed=1", "did you mean seed?"),
        ("nothing.seed=1", "unknown key nothing"),
    ],
)
def test_overrides_of_what_is_not_there(tiny: Params, tmp_path: Path, pair: str, said: str) -> None:
    path = write_params(tiny, tmp_path / "params.yaml")
    with pytest.raises(UserError) as caught:
        load_params(path, parse_overrides([pair]))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_cannot_be_changed(tiny: Params) -> None:
    config = parse_params(tiny)
    with pytest.raises(ValueError, match="frozen"):
        config.synthesis.seed = 1


def test_class_names_that_are_no_file_or_too_large(tiny: Params, tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, 2**40)
    for path, said in (("/dev/zero", "a device"), (pipe, "a pipe"), (large, "the limit is")):
        with pytest.raises(
            UserError, match=f"teacher.class_names: {path} cannot be read: .*{said}"
        ):
            parse_params(changed(tiny, {"teacher.class_names": str(path)}))
