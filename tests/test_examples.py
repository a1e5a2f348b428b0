"""The examples of calibration and of pruning, on a teacher and a dataset of digits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

import pipeline as ds
from pipeline.cli import main
from pipeline.dataset.stream import ordered_batches
from pipeline.examples import digits
from pipeline.params import load_params
from pipeline.synthesis.check import load_checked_teacher
from tests.conftest import make

Logits = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parameter file of ``init --example digits``, with a trained teacher and a dataset."""
    root = tmp_path_factory.mktemp("digits")
    assert main(["init", str(root), "--example", "digits"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "EPOCHS", 3)
        digits.main(root / "data/digits")
    path = root / "params.yaml"
    values = YAML(typ="safe").load(path)
    values["teacher"]["weights"] = str(root / values["teacher"]["weights"])
    values["synthesis"] |= {"images": 200, "iterations": 20, "shard_size": 200, "batch_size": 200}
    values["paths"] = {name: str(root / name) for name in ("dataset", "students", "reports")}
    make(values)
    YAML(typ="safe").dump(values, path)
    return path


def onnx_runtime(path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in importlib.import_module("onnx").load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    return lambda images: session.run(None, {"images": images})[0]


def open_vino(path: Path) -> Logits:
    import openvino

    model = openvino.Core().read_model(path)
    assert any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    compiled = openvino.compile_model(model, "CPU")
    return lambda images: compiled(images)[0]


def torch_ao(path: Path) -> Logits:
    network = torch.export.load(path).module()
    assert "quantize_per_tensor" in str(network.graph)
    return lambda images: network(torch.from_numpy(images)).detach().numpy()


@pytest.mark.parametrize(
    ("name", "load"),
    [("onnxruntime", onnx_runtime), ("openvino", open_vino), ("torchao", torch_ao)],
)
def test_the_quantised_teacher_answers_as_the_teacher(
    params: Path, name: str, load: Callable[[Path], Logits]
) -> None:
    example = importlib.import_module(f"examples.calibrate_{name}")
    answer = load(example.main(str(params), 40))
    config = load_params(params)
    teacher = load_checked_teacher(config)
    ((pixels, _),) = ordered_batches([params.parent / "data/digits/heldout.tar"], 540)
    images = teacher.preprocessing.normalise(pixels)
    expected = teacher.network(images).numpy()
    found = answer(images.numpy())
    assert not np.array_equal(found, expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9


def test_the_pruned_teacher_is_smaller_and_recovers(params: Path) -> None:
    import torch_pruning

    from examples import prune

    teacher, dataset = (
        load_checked_teacher(load_params(params)),
        ds.Dataset(params.parent / "dataset"),
    )
    ((pixels, labels),) = ordered_batches([params.parent / "data/digits/heldout.tar"], 540)
    images = teacher.preprocessing.normalise(pixels)

    def size_and_accuracy(network: torch.nn.Module) -> tuple[float, float]:
        size = torch_pruning.utils.count_ops_and_params(network, images[:1])[0]
        with torch.no_grad():
            return size, (network.eval()(images).argmax(1) == labels).float().mean().item()

    size, accuracy = size_and_accuracy(teacher.network)
    before = size_and_accuracy(prune.prune(teacher, dataset, 0.3))
    after = size_and_accuracy(torch.load(prune.main(str(params), 0.3, 450), weights_only=False))
    assert before[0] == after[0] and 0.6 * size <= after[0] <= 0.7 * size
    assert before[1] < after[1] and after[1] > accuracy - 0.1, (accuracy, before, after)
