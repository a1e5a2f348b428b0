"""What ``auto`` is on a device, and that shards and students say which it was."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.config.schema import Config
from pipeline.dataset.tar import read_tar
from pipeline.device import precision
from pipeline.device.precision import Precision, has_bfloat16, precision_on
from pipeline.distillation import muon
from pipeline.distillation.train_student import distill
from pipeline.stages.final_students import student_jobs
from pipeline.synthesis import engine_cache
from tests.conftest import Params, changed, dataset, load, make

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def ask_anew() -> Iterator[None]:
    """What is kept of a device's answers, and of engines that follow them."""
    has_bfloat16.cache_clear()
    yield
    has_bfloat16.cache_clear()
    engine_cache._cached_engine.cache_clear()


@pytest.mark.parametrize(
    ("onednn", "machine", "instructions", "expected"),
    [
        (False, "x86_64", False, False),  # AVX2
        (True, "x86_64", False, False),  # AVX-512, where oneDNN does without
        (True, "x86_64", True, True),
        (True, "AMD64", False, False),
        (True, "aarch64", False, True),
        (False, "arm64", False, False),
    ],
)
def test_a_cpu_has_bfloat16_where_it_has_the_instructions(
    onednn: bool, machine: str, instructions: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: onednn))
    monkeypatch.setattr(torch, "ops", ops)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert has_bfloat16(CPU) is expected


def test_without_onednn_a_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch, "ops", SimpleNamespace())  # such a build lacks the operator
    assert has_bfloat16(CPU) is False


def test_this_cpu_can_be_asked() -> None:
    assert isinstance(has_bfloat16(CPU), bool)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_has_bfloat16_from_ampere_on() -> None:
    device = torch.device("cuda", 0)
    assert has_bfloat16(device) is (torch.cuda.get_device_capability(device) >= (8, 0))


@pytest.mark.parametrize("has", [True, False])
def test_what_is_said_is_done_and_auto_asks_the_device(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: has)
    assert precision_on(CPU, "bfloat16") == "bfloat16"
    assert precision_on(CPU, "float32") == "float32"
    assert precision_on(CPU, "auto") == ("bfloat16" if has else "float32")


def test_auto_is_the_default() -> None:
    sections = (Config.model_fields[name].annotation for name in ("synthesis", "distillation"))
    assert [section.model_fields["precision"].default for section in sections] == ["auto"] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("expected", ["float32", "bfloat16"])
def test_auto_makes_what_its_precision_makes_and_the_records_say_which(
    expected: Precision, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: expected == "bfloat16")
    files = []
    for choice in ("auto", expected):
        engine_cache._cached_engine.cache_clear()  # it keeps what auto was
        paths = {f"paths.{name}": str(tmp_path / choice / name) for name in ("dataset", "students")}
        settings = {"synthesis.precision": choice, "distillation.precision": choice}
        params = changed(tiny, {**paths, **settings})
        make(params)
        (job,) = student_jobs(*load(params))
        distill(job, "cpu", lambda images: None)
        assert json.loads((dataset(params) / "metadata/000000.json").read_text())["precision"] == (
            expected
        )
        assert json.loads(job.record.read_text())["precision"] == expected
        files.append([samples(dataset(params)), job.output.read_bytes()])
    assert files[0] == files[1]


def samples(root: Path) -> list[dict[str, bytes]]:
    """The members of every sample, without the key, which tells datasets apart."""
    return [parts for tar in sorted(root.rglob("*.tar")) for _, parts, _ in read_tar(tar)]


def test_a_student_does_not_go_on_in_another_precision(
    made: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may come to another device: bytes are those of one that began there."""
    params = changed(made, {"distillation.precision": "auto"})
    (job,) = student_jobs(*load(params))

    def stop(images: float) -> None:
        if job.checkpoint.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    with pytest.raises(KeyboardInterrupt):
        distill(job, "cpu", stop)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    told: list[float] = []
    distill(job, "cpu", told.append)
    assert told[0] == 0
    weights = job.output.read_bytes()
    job.output.unlink()
    distill(job, "cpu", lambda images: None)
    assert job.output.read_bytes() == weights


@pytest.mark.parametrize("has", [True, False])
def test_muon_is_as_orthogonal_in_either_format(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: has)
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    (made,) = muon.orthogonalise([matrix])
    values = torch.linalg.svdvals(made)
    assert made.dtype == torch.float32
    assert values.min() > 0.65 and values.max() < 1.25
    assert torch.equal(made, made.bfloat16().float()) is has
