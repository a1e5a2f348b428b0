"""ONNX files that cannot be teachers: one sentence each, and nothing in them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers import onnx_file
from tests.conftest import Params
from tests.teachers.onnx_files import append, edited, export, loaded, small_resnet


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_resnet(), tmp_path_factory.mktemp("onnx") / "net.onnx")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("teacher.source: ")
    return text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged, truncated or no ONNX file"),
        (lambda data: data[:200], "damaged, truncated"),
        (lambda data: b"", "is empty"),
        (lambda data: b"<!DOCTYPE html><html>", "is a web page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (lambda data: b"\x89HDF\r\n\x1a\n" + bytes(50), "convert the model to ONNX"),
        (lambda data: bytes(1000), "damaged, truncated"),
    ],
)
def test_a_file_that_is_no_model(
    exported: Path, tmp_path: Path, content: Callable[[bytes], bytes], said: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(content(exported.read_bytes()))
    assert said in refusal(tmp_path / "bad.onnx")


def test_a_missing_and_a_large_file(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no file" in refusal(tmp_path / "absent.onnx")
    monkeypatch.setattr(onnx_file, "MOST", 1000)
    assert "less than 2 GiB" in refusal(exported)


def second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))


def second_output(model: Any) -> None:
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["positive"]))
    model.graph.output.append(
        helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["n", 5])
    )


def whole_numbers(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def branch(model: Any) -> None:
    empty = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value_float=1.0)],
        "g",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [])],
    )
    node = helper.make_node("If", ["logits"], ["last"], then_branch=empty, else_branch=empty)
    model.graph.node.append(node)


def of_runtime(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(
        helper.make_node("FusedConv", ["logits"], ["last"], domain="com.microsoft")
    )


def quantised(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, "float32"), "s"))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["logits", "s"], ["last"]))


def flat_input(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[2:]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (second_input, "has 2 inputs (images, scale)"),
        (second_output, "has 2 outputs (logits, positive)"),
        (whole_numbers, "numbers of the type INT64"),
        (branch, "has control flow (If)"),
        (of_runtime, "outside of the ONNX standard (domain com.microsoft)"),
        (quantised, "is quantised (QuantizeLinear)"),
        (flat_input, "an input of 2 dimensions"),
        (append("Sigmoid"), "ends in a sigmoid"),
        (append("Hardmax"), "cannot convert, of opset 17: Hardmax"),
        (append("NoSuchOperator"), "NoSuchOperator"),
    ],
)
def test_a_model_that_is_no_classifier(
    exported: Path, edit: Callable[[Any], None], said: str
) -> None:
    assert said in refusal(edited(exported, edit))


def test_nan_in_the_weights(exported: Path, tiny: Params) -> None:
    def edit(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "linear.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    section = {
        "source": f"onnx:{edited(exported, edit)}",
        "weights": None,
        "input": {"mean": [0.4] * 3, "std": [0.3] * 3},
    }
    with pytest.raises(UserError, match=r"holds NaN or infinite values"):
        load_checked_teacher(parse_params({**tiny, "teacher": section}))


def test_a_name_in_the_file_is_never_code(exported: Path, tmp_path: Path) -> None:
    """Modules are called by generated code, which would hold the names of the nodes."""
    target = tmp_path / "touched"
    name = f'a")(x), open("{target}", "w"), getattr(self, "a'

    def edit(model: Any) -> None:
        for node in model.graph.node:
            node.name = name
        for values in (model.graph.input, model.graph.output):
            values[0].name = values[0].name

    network = loaded(edited(exported, edit, "hostile.onnx"))
    network(torch.zeros(2, 3, 16, 16))
    assert not target.exists()
    assert all(part.isidentifier() or part == "" for part, _ in network.body.named_children())


def with_external_data(exported: Path, folder: Path, location: str = "net.data") -> Path:
    path = folder / "net.onnx"
    onnx.save_model(
        onnx.load(str(exported)),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="net.data",
        size_threshold=0,
    )
    if location != "net.data":
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read_from_the_same_folder(
    exported: Path, tmp_path: Path, tiny: Params
) -> None:
    path = with_external_data(exported, tmp_path)
    batch = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded(path)(batch), loaded(exported)(batch))
    section = {
        "source": f"onnx:{path}",
        "weights": None,
        "input": {"mean": [0.4] * 3, "std": [0.3] * 3},
    }
    teacher = load_checked_teacher(parse_params({**tiny, "teacher": section}))
    assert [file.name for file in teacher.weights] == ["net.onnx", "net.data"]
    with pytest.raises(UserError, match=r"keeps its weights in net\.data"):
        load_checked_teacher(parse_params({**tiny, "teacher": {**section, "sha256": "0" * 64}}))


def test_external_data_that_is_not_there(exported: Path, tmp_path: Path) -> None:
    for location in ("../net.data", "/etc/hostname", "a/b", "..", ""):
        path = with_external_data(exported, tmp_path, location)
        assert "another folder" in refusal(path)
    path = with_external_data(exported, tmp_path)
    data = tmp_path / "net.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:100])
    assert "shorter than the file says" in refusal(path)
    data.rename(tmp_path / "elsewhere")
    assert "is missing" in refusal(path)
    data.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refusal(path)
