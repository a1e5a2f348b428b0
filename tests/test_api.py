from __future__ import annotations

import contextlib
import io
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pipeline as ds
from pipeline.config.distillation import NOISE, PROCEDURAL
from pipeline.errors import UserError
from pipeline.teachers import in_memory
from tests.conftest import CLASSES, FACTORY, MEAN, SIDE, STD, Params, changed, tree, write_params

KEYS = ("channels", "height", "width", "mean", "std")
INPUT = (1, SIDE, SIDE, MEAN, STD)
QUICK: dict[str, Any] = {"iterations": 4, "batch_size": 6, "precision": "float32"}
HEAVY = ("torch", "pydantic", "numpy", "pyarrow", "matplotlib", "fsspec", "tqdm", "ruamel")


class Net(nn.Sequential):
    """The tiny teacher as a class of this process alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(x)
        return result


def build() -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(FACTORY, namespace)
    return Net(*namespace["classifier"]())


@pytest.fixture
def model(tiny: Params) -> nn.Module:
    from safetensors.torch import load_file

    network = build()
    network.load_state_dict(load_file(tiny["teacher"]["weights"]))
    return network.train()


def tar_images(path: Path) -> np.ndarray:
    """The images of a shard, read without this package's own reader; ``[N, 1, H, W]``."""
    with tarfile.open(path) as tar:
        files = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".png")]
        images = [np.asarray(Image.open(io.BytesIO(file.read()))) for file in files if file]
    return np.stack(images)[:, None]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline, pipeline.cli\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert 'invert' in dir(pipeline)\n"
        "for words in (['--help'], ['--version'], ['synthesize', '--help'], []):\n"
        "    pipeline.cli.main(words)\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'synthesise'"):
        _ = ds.synthesise


def test_every_public_name_can_be_imported() -> None:
    for name in ds.__all__:
        assert getattr(ds, name) is not None


def test_params_become_a_dataset_students_and_no_problem(
    tiny: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"distillation.noise_baseline": True, "distillation.procedural_baseline": True}
    file = write_params(changed(tiny, both), tmp_path / "p.yaml")
    params = ds.load_params(file, {"synthesis.images": 12})
    dataset = ds.synthesize(params)
    assert isinstance(dataset, ds.Dataset)
    assert (tmp_path / "reports/grids/round-0.png").is_file()
    student, noise, procedural = ds.distill(params)
    assert student.name == "student-0" and noise.name == f"{NOISE}-0"
    assert procedural.name == f"{PROCEDURAL}-0"
    assert Path(str(student.weights)).is_file()
    assert student.log["step"] == 6
    assert ds.verify(params, agreement=0) == []
    (tmp_path / "dataset/stranger").touch()
    (problem,) = ds.verify(params, agreement=0)
    assert problem.startswith("stranger does not belong to the dataset")
    assert capsys.readouterr().out == ""


def test_inverting_a_model_in_memory(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = ds.invert(model, CLASSES, INPUT, images=9, **QUICK)
    images, labels, logits = result
    assert images.dtype == torch.uint8 and images.shape == (9, 1, SIDE, SIDE)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with torch.no_grad():
        answers = build_eval(model)((images / 255 - MEAN) / STD)
    torch.testing.assert_close(logits, answers)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    again = ds.invert(model, CLASSES, dict(zip(KEYS, INPUT, strict=True)), 9, **QUICK)
    assert torch.equal(again.images, images)
    other = ds.invert(model, CLASSES, INPUT, 9, seed=1, **QUICK)
    assert not torch.equal(other.images, images)


def build_eval(model: nn.Module) -> nn.Module:
    network = build()
    network.load_state_dict(model.state_dict())
    return network.eval()


def test_the_process_is_left_as_it_was(model: nn.Module) -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    ds.invert(model, CLASSES, INPUT, 3, threads=2, **QUICK)
    assert torch.get_num_threads() == 1
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_a_dataset_of_a_model_in_memory(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "data/mine"
    settings: dict[str, Any] = {"classes": CLASSES, "input": INPUT, "images": 9, **QUICK}
    dataset = ds.synthesize(model=model, out=out, class_names=["a", "b", "c"], **settings)
    assert isinstance(dataset, ds.Dataset)
    assert sorted(p.name for p in out.parent.glob("mine*")) == [
        "mine",
        "mine-params.yaml",
        "mine-reports",
        "mine-teacher.safetensors",
    ]
    source = "memory:tests.test_api.Net"
    provenance = (out / "provenance.json").read_text()
    assert source in provenance and "mine-teacher.safetensors" in provenance
    inverted = ds.invert(model, CLASSES, INPUT, 9, **QUICK)
    assert np.array_equal(tar_images(out / "train/000000.tar"), inverted.images.numpy())
    before = tree(out)
    ds.synthesize(model=model, out=out, class_names=["a", "b", "c"], **settings)
    assert tree(out) == before
    assert ds.verify(model=model, out=out, agreement=0) == []
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert ds.verify(model=model, out=out, agreement=0) == []  # the saved weights count
    ds.synthesize(model=model, out=out, class_names=["a", "b", "c"], **settings)
    assert tree(out) != before


def test_a_model_that_is_no_classifier(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(FACTORY, namespace)
    network, out = namespace["segmenter"](), tmp_path / "maps"
    found = ds.invert(network, None, INPUT, 9, labels="none", **QUICK)
    assert (found.labels, found.logits) == (None, None)
    dataset = ds.synthesize(model=network, input=INPUT, images=9, out=out, labels="none", **QUICK)
    assert dataset.classes == 0
    assert np.array_equal(tar_images(out / "train/000000.tar"), found.images.numpy())
    assert ds.verify(model=network, out=out) == []


def test_students_of_a_model_in_memory(model: nn.Module, tiny: Params, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    ds.synthesize(model=model, classes=CLASSES, input=INPUT, images=12, out=out, **QUICK)
    training = {f"distillation.{key}": value for key, value in tiny["distillation"].items()}
    with pytest.raises(UserError, match="a student starts from new weights"):
        ds.distill(ds.load_params(tmp_path / "mine-params.yaml", training))
    factory = tiny["student"]["source"]
    params = ds.load_params(tmp_path / "mine-params.yaml", {**training, "student.source": factory})
    (student,) = ds.distill(params)
    assert student.weights == tmp_path / "mine-students/student-0.safetensors"


def test_adaptive_rounds_of_a_model_in_memory(
    model: nn.Module, tiny: Params, tmp_path: Path
) -> None:
    training = {f"adaptive.training.{k}": v for k, v in tiny["adaptive"]["training"].items()}
    ds.synthesize(
        model=model,
        classes=CLASSES,
        input=INPUT,
        images=8,
        out=tmp_path / "mine",
        student=tiny["student"],
        overrides={"adaptive.rounds": 1, "adaptive.images": 6, **training},
        **QUICK,
    )
    assert (tmp_path / "mine/train/000001.tar").is_file()


def test_another_process_is_told_that_the_model_is_not_there(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    ds.synthesize(model=model, classes=CLASSES, input=INPUT, images=6, out=out, **QUICK)
    monkeypatch.setattr(in_memory, "_registered", {})
    params = ds.load_params(tmp_path / "mine-params.yaml")
    with pytest.raises(UserError, match="exists only in the Python process that registered it"):
        ds.verify(params)
    with pytest.raises(UserError, match=r"model is memory:torch\.nn"):
        ds.verify(model=nn.Linear(1, 1), out=out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": 3}, "model is of the type int"),
        ({"classes": 5}, "teacher.classes is 5, but the teacher returns 3 logits"),
        ({"images": None}, "set one of images and images_per_class"),
        ({"imges": 4}, "pipeline: unknown key synthesis.imges: did you mean images?"),
        ({"iterations": "many"}, 'pipeline: synthesis.iterations is "many"'),
        ({"input": (1, 8, 8)}, "give a dict with channels, height, width, mean, std"),
        ({"input": (1, 8, 8, object(), 1.0)}, "teacher.input.mean is "),
        ({"input": ("one", 8, 8, 0.5, 0.5)}, "teacher.input.channels is "),
        ({"overrides": ["adaptive.rounds=1"]}, "give a dict"),
        ({"input": {"channels": 1, "height": 8}}, "teacher.input.width is missing"),
        ({"input": (1, 8, 8, 128.0, 64.0)}, "divide both by 255"),
        ({"out": "s3://bucket/mine"}, "out s3://bucket/mine is a URL"),
        ({"out": ".."}, "out .. has no name"),
        ({"out": None}, "out is missing"),
        ({"overrides": {"adaptive.rounds": 1}, "student": None}, "starts from new weights"),
        ({"device": "tpu"}, 'execution.device is "tpu"'),
        ({"model": None}, "one of params and model"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    model: nn.Module, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    arguments: dict[str, Any] = {
        "model": model,
        "classes": CLASSES,
        "input": INPUT,
        "images": 9,
        "out": tmp_path / "made/mine",
        **QUICK,
        **changes,
    }
    with pytest.raises(UserError, match=re.escape(said)):
        ds.synthesize(**arguments)
    assert not list(tmp_path.rglob("*mine-*"))


def test_settings_do_not_go_with_params(tiny: Params, tmp_path: Path) -> None:
    params = ds.load_params(write_params(tiny, tmp_path / "p.yaml"))
    with pytest.raises(UserError, match=re.escape("synthesize(params) takes no images")):
        ds.synthesize(params, images=3)
    with pytest.raises(UserError, match="verify needs either params, or both model and out"):
        ds.verify(params, out=tmp_path)
    with pytest.raises(UserError, match="agreement is 95"):
        ds.verify(params, agreement=95)
    with pytest.raises(UserError, match=re.escape("there is no")):
        ds.verify(model=build(), out=tmp_path / "nothing")


@pytest.mark.parametrize("name", ["mine-teacher.safetensors", "mine-params.yaml"])
def test_a_file_of_a_user_beside_the_dataset_stays(
    model: nn.Module, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"{name} was not written by pipeline.synthesize"):
        ds.synthesize(
            model=model, classes=CLASSES, input=INPUT, images=6, out=tmp_path / "mine", **QUICK
        )
    assert tree(tmp_path) == before


def test_a_changed_model_replaces_the_files_of_its_earlier_run(
    model: nn.Module, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"classes": CLASSES, "input": INPUT, "images": 6, **QUICK}
    out = tmp_path / "mine"
    ds.synthesize(model=model, out=out, **given)
    before = tree(tmp_path)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    with pytest.raises(UserError, match="which keep protects"):
        ds.synthesize(model=model, out=out, keep=True, **given)
    assert tree(tmp_path) == before
    ds.synthesize(model=model, out=out, **given)
    after = tree(tmp_path)
    assert after["mine-teacher.safetensors"] != before["mine-teacher.safetensors"]
    weights = tmp_path / "mine-teacher.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(UserError, match="or was changed since"):
        ds.synthesize(model=model, out=out, **given)


@contextlib.contextmanager
def other_defaults() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        other_defaults,
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu"),
    ],
    ids=["defaults", "inference", "no_grad", "device", "autocast"],
)
def test_the_state_of_torch_does_not_matter(
    model: nn.Module, tiny: Params, tmp_path: Path, state: Callable[[], Any]
) -> None:
    expected = ds.invert(model, CLASSES, INPUT, 6, device="cpu", **QUICK)
    params = write_params(tiny, tmp_path / "params.yaml")

    def now() -> tuple[Any, ...]:
        tensor = torch.zeros(1)
        modes = (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        return tensor.dtype, tensor.device, torch.is_grad_enabled(), modes

    with state():
        before = now()
        found = ds.invert(model, CLASSES, INPUT, 6, device="cpu", **QUICK)
        config = ds.load_params(params, {"teacher.classes": None, "teacher.class_names": None})
        assert config.teacher.classes == CLASSES
        dataset = ds.synthesize(config)
        (_, labels), *_ = dataset.batches(6)
        assert str(labels.device) == "cpu"
        assert ds.verify(config, agreement=0) == []
        ds.distill(config)
        assert now() == before
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_numbers_of_numpy(model: nn.Module) -> None:
    numbers = (np.int64(1), np.int32(SIDE), np.uint8(SIDE), np.float32(MEAN), np.array([STD]))
    found = ds.invert(model, np.int64(CLASSES), numbers, np.int64(6), device="cpu", **QUICK)  # type: ignore[arg-type]
    assert len(found.images) == 6


@pytest.mark.parametrize("path", [None, {}, 3, ["params.yaml"]])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(UserError, match="name a parameter file"):
        ds.load_params(path)
    with pytest.raises(UserError, match="name the folder or the URL of a dataset"):
        ds.Dataset(path)


def test_wrong_numbers_for_a_dataset(made: Params) -> None:
    dataset = ds.Dataset(made["paths"]["dataset"])
    calls: list[Callable[[Any], object]] = [
        dataset.batches,
        dataset.record,
        dataset.stream,
        lambda value: dataset.stream(4, shuffle=value),
        lambda value: dataset.stream(4, keep=value),
        lambda value: dataset.stream(4, epochs=value),
    ]
    for call in calls:
        for wrong in (-1, "x", 1.5, True, [1]):
            with pytest.raises(UserError, match=r"is .*: give a whole number|has no shard -1"):
                call(wrong)
    with pytest.raises(UserError, match="size is 0: give a whole number of at least 1"):
        dataset.batches(0)
    assert len(next(dataset.batches(np.int64(3)))[1]) == 3  # type: ignore[arg-type]
