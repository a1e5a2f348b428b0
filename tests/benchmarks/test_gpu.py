"""The GPU benchmarks at toy size: what they find right, what they write, and what they keep."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.engine.loop import DEFAULT, PUBLISHED, WHOLE
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import loop as gpu
from benchmarks.gpu import students as gpu_students
from benchmarks.gpu.pieces import Pieces
from benchmarks.students import step as student_step
from benchmarks.teachers import cifar10 as cifar_teachers
from benchmarks.teachers import cifar10_networks as cifar_networks
from pipeline.dataset.tar import Sample, write_tar
from pipeline.inversion.engine import Engine
from pipeline.storage import replacing
from pipeline.teachers.preprocessing import Preprocessing
from tests.conftest import tree


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("wrn40_2", 2_243_546),
        ("wrn16_1", 175_066),
    ],
)
def test_networks_are_those_of_the_papers(factory: str, parameters: int) -> None:
    network = getattr(cifar_networks, factory)()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    narrow = getattr(cifar_networks, factory)(classes=7, width=4).eval()
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_flops_are_those_of_the_convolutions_and_the_last_layer() -> None:
    """ResNet-34 at 32 pixels, its multiply-adds counted by hand."""
    network = cifar_networks.resnet34(width=4)
    teacher = gpu_checks.random_teacher(network, (3, 32, 32), 10, 2, torch.device("cpu"))
    multiplies = 1024 * 9 * 3 * 4 + 6 * 1024 * 9 * 4 * 4  # stem, first stage
    for width, pixels, blocks in ((8, 256, 4), (16, 64, 6), (32, 16, 3)):
        half = width // 2
        multiplies += pixels * width * (9 * half + half + (2 * blocks - 1) * 9 * width)
    assert gpu_checks.counted_flops(teacher) == 4 * (multiplies + 32 * 10)


def test_a_toy_run_measures_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--toy", "--pairs", "2", "--reports", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["cases"]) == {"ResNet-34", "ResNet-50", "ResNet-20"}
    assert report["warnings"] == []
    for case in report["cases"].values():
        loops = case["loops"]
        assert {DEFAULT, WHOLE, gpu.PLAIN} <= set(loops)
        shares = [kernel["share"] for kernel in case["kernels"]]
        assert shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1.001
        assert any("conv" in kernel["kernel"] for kernel in case["kernels"])
        ratios = [
            ours / base
            for ours, base in zip(loops[WHOLE]["rates"], loops[PUBLISHED]["rates"], strict=True)
        ]
        assert len(ratios) == 2
        assert loops[WHOLE]["ratio"] == pytest.approx(sum(ratios) / 2, abs=0.02)
        flops = case["flops_an_image_iteration"] * loops[WHOLE]["image_iterations_per_second"]
        assert case["share_of_peak"] == pytest.approx(
            flops / report["bf16_matrix_peak_tflops"] / 1e12, abs=2e-3
        )
    text = (tmp_path / "gpu.md").read_text()
    assert text == capsys.readouterr().out
    assert "no result" in text and "WRONG" not in text


@pytest.mark.parametrize("what", ["loss", "gradient", "nan"])
def test_a_broken_engine_is_found(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken where it computes in bfloat16 only, as a wrong kernel would be."""
    real = Engine.step

    def broken(engine: Engine, *arguments: Tensor) -> Any:
        gradient, means = real(engine, *arguments)
        if engine.precision == "float32":
            return gradient, means
        if what == "loss":
            return gradient, 1.1 * means
        return gradient * (0.2 if what == "gradient" else torch.nan), means

    monkeypatch.setattr(Engine, "step", broken)
    monkeypatch.setattr(gpu, "slowest", lambda *_: [])  # slow itself, and not looked at
    assert gpu.main(["--toy", "--pairs", "1", "--reports", str(tmp_path)]) == 1
    assert "WRONG" in (tmp_path / "gpu.md").read_text()


def test_the_bars_are_met_or_missed() -> None:
    loops = {WHOLE: {"image_iterations_per_second": 50.0, "ratio": 10.0, "ms_an_image": 11.0}}
    case = {
        "loops": loops,
        "flops_an_image_iteration": 4.0,
        "bars": {"ratio": 10.0, "ms_an_image": 10.0, "share_of_peak": 0.4},
    }
    bars = gpu.judged(case, peak=400.0)["bars"]
    assert {name: bar["met"] for name, bar in bars.items()} == {
        "ratio": True,
        "ms_an_image": False,
        "share_of_peak": True,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu.main(["--reports", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def write_real(directory: Path) -> Path:
    """40 training images in two tars and 20 test images: coloured bands."""
    rng = np.random.default_rng(0)
    for name, count in (("train-00000.tar", 24), ("train-00001.tar", 16), ("test-00000.tar", 20)):
        labels = np.arange(count) % 10
        pixels = rng.integers(0, 120, (count, 3, 32, 32))
        for image, label in zip(pixels, labels, strict=True):
            image[label % 3, 3 * label : 3 * label + 4] += 130
        with replacing(directory / name) as file:
            write_tar(
                file,
                (
                    Sample(f"{index:09d}", image.astype(np.uint8), int(label), {})
                    for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
                ),
            )
    return directory


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_real(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that one call finished."""
    out = write_real(tmp_path_factory.mktemp("whole"))
    assert students(out)[0] == 0
    return out


def students(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = gpu_students.main([str(out), "--toy", *options])
    return code, json.loads((out / "results.json").read_text())


def test_students_are_measured(whole: Path) -> None:
    report = json.loads((whole / "results.json").read_text())
    names = ["resnet34", "wrn40_2", *(row.name for row in gpu_students.TOY.rows)]
    assert report["finished"]
    assert [row["network"] for row in report["results"]] == names
    for row in report["results"]:
        assert (row["accuracy"] * 20) % 1 == 0  # of 20 real images
        assert row["met"] == (None if row["bar"] is None else row["accuracy"] >= row["bar"])
    assert set(report["seconds"]) == {*names, "images of resnet34", "images of wrn40_2"}
    counts = [len(list((whole / f"images-{name}/train").glob("*.tar"))) for name in names[:2]]
    assert counts == [5, 5]
    text = (whole / "results.md").read_text()
    assert "4 images of resnet34" in text and "20 images of wrn40_2" in text


def test_a_further_call_makes_nothing_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(whole)
    for name in ("train", "synthesize", "distill"):
        monkeypatch.delattr(gpu_students, name)
    assert students(whole)[0] == 0
    after = tree(whole)
    for name in ("results.json", "results.md"):  # which tell of this moment's load
        del before[name], after[name]
    assert after == before


def test_rows_are_made_alone(real: Path, whole: Path) -> None:
    code, report = students(real, "--rows", "wrn16_1")
    assert code == 0 and report["finished"]
    together = json.loads((whole / "results.json").read_text())["results"]
    assert report["results"] == [r for r in together if r["network"] in ("wrn40_2", "wrn16_1")]


@pytest.mark.slow
def test_a_run_in_pieces_makes_what_one_call_makes(
    real: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first piece ends in the first teacher, the others at their fourth look at the clock."""
    made = itertools.count()

    class Brief(Pieces):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.looks = 4 if next(made) else 1

        @property
        def over(self) -> bool:
            self.looks -= 1
            return self.looks <= 0

    monkeypatch.setattr(gpu_students, "Pieces", Brief)
    codes: list[int] = []
    checkpoints = set()
    while not codes or codes[-1] == gpu_students.MORE:
        code, report = students(real)
        codes.append(code)
        checkpoints |= {path.stem for path in real.rglob("*.checkpoint")}
        assert ("Not finished" in (real / "results.md").read_text()) == (code != 0)
        assert len(codes) < 20
    assert codes[-1] == 0
    assert "resnet34" in checkpoints and checkpoints & {row.name for row in gpu_students.TOY.rows}
    assert report["results"] == json.loads((whole / "results.json").read_text())["results"]
    kept = tree(real)
    for name, digest in tree(whole).items():
        if name.endswith((".safetensors", ".tar")):
            assert kept[name] == digest
    assert not list(real.rglob("*.checkpoint"))


def test_no_stage_begins_without_time_to_compile(real: Path) -> None:
    code, report = students(real, "--seconds", "-1")
    assert code == gpu_students.MORE
    assert report["results"] == [] and report["seconds"] == {}


def test_real_images_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_students.main([str(tmp_path), "--toy"])
    assert "must hold train-*.tar" in capsys.readouterr().err


def test_a_teacher_learns(real: Path) -> None:
    device = torch.device("cpu")
    images = cifar_teachers.read_images(sorted(real.glob("train-*.tar")), device)
    assert images[0].shape == (40, 3, 32, 32) and images[0].dtype == torch.uint8
    one = torch.ones(1, 3, 1, 1)
    prepare = Preprocessing(0.4 * one, 0.3 * one)
    torch.manual_seed(0)
    network = cifar_networks.wrn16_1(width=8)
    before = cifar_teachers.accuracy(network, prepare, images)
    recipe = cifar_teachers.Recipe(
        epochs=30, batch=20, rate=0.1, shift=0, hole=0, compiled=False, bfloat16=False
    )
    pieces = Pieces(real / "seconds.json", 100, 0)
    cifar_teachers.train(network, prepare, images, recipe, real / "checkpoint", pieces)
    after = cifar_teachers.accuracy(network, prepare, images)
    assert before < 0.4 and after > 0.8


def test_augmented_images_are_moved_flipped_and_cut() -> None:
    pixels = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    still = cifar_teachers.Recipe(shift=0, hole=0)
    flipped = cifar_teachers.augmented(pixels, still, generator)
    same = [torch.equal(image, pixels[0]) for image in flipped]
    mirrored = [torch.equal(image, pixels[0].flip(2)) for image in flipped]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 60 < sum(same) < 140
    moved = cifar_teachers.augmented(pixels, cifar_teachers.Recipe(shift=1, hole=0), generator)
    assert len({image.numpy().tobytes() for image in moved}) == 18  # 3 by 3 places, two sides
    holed = cifar_teachers.augmented(pixels, cifar_teachers.Recipe(shift=0, hole=4), generator)
    cut = (holed == 120).all(1).sum((1, 2))
    assert cut.max() == 16 and cut.min() == 4


def test_the_rate_rises_and_falls_to_zero() -> None:
    recipe = cifar_teachers.Recipe(rate=0.4, rise=0.2)
    rates = [cifar_teachers.rate(recipe, done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.2, 0.0])


def test_a_students_step_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert student_step.main(["resnet34", "wrn16_1", "--toy", "--steps", "4"]) == 0
    text = capsys.readouterr().out
    assert float(text.split()[0]) > 0 and text.endswith(" ms a step, without CUDA graphs\n")
