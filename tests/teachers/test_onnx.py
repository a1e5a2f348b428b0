"""The source onnx:FILE: the same logits as the network that was exported, on any batch."""

from __future__ import annotations

import copy
import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.objective.bn_statistics import batchnorm_layers
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.networks import build_network, public_source
from pipeline.teachers.registry import find_source
from pipeline.teachers.source import Description
from tests.command_line import printed, refused
from tests.conftest import Params, write_params
from tests.teachers.onnx_files import (
    SHAPE,
    append,
    channels_last,
    edited,
    export,
    loaded,
    rename_input,
    small_resnet,
    trained_like,
)

INPUT = {"mean": [0.4] * 3, "std": [0.3] * 3}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with its BatchNorm, for any batch: not to be changed."""
    return export(network, tmp_path_factory.mktemp("onnx") / "net.onnx")


def images(count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def same(left: nn.Module, right: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(left(batch), right(batch), rtol=1e-4, atol=1e-4)


def describe(path: Path, **arguments: Any) -> Description:
    kind, name = find_source(f"onnx:{path}")
    return kind.describe(name, arguments, None)


def section(path: Path, **more: Any) -> dict[str, Any]:
    return {"source": f"onnx:{path}", "weights": None, "input": INPUT, **more}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_the_logits_are_those_of_the_network(
    network: nn.Module, tmp_path: Path, folded: bool, batch: int | None
) -> None:
    teacher = loaded(export(network, tmp_path / "net.onnx", folded=folded, batch=batch))
    for count in (1, 3, 4):
        same(teacher, network, images(count))
    assert len(batchnorm_layers(teacher)) == (0 if folded else 7)


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_the_versions_of_the_operators(network: nn.Module, tmp_path: Path, opset: int) -> None:
    same(loaded(export(network, tmp_path / "net.onnx", opset=opset)), network, images())


def test_attention_and_layernorm(tmp_path: Path) -> None:
    """Reshapes move the batch to other places, and Gelu is newer than onnx2torch."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            return self.last(self.attention(x, x, x, need_weights=False)[0][:, 0])

    network = Tokens().eval()
    same(loaded(export(network, tmp_path / "net.onnx", opset=20)), network, images())


def test_the_network_has_gradients_copies_and_no_trace_of_the_batch(
    network: nn.Module, exported: Path
) -> None:
    teacher = loaded(exported)
    batch = images().requires_grad_(True)
    (gradient,) = torch.autograd.grad(teacher(batch).sum(), batch)
    (wanted,) = torch.autograd.grad(network(batch).sum(), batch)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)
    same(copy.deepcopy(teacher), network, images())
    same(pickle.loads(pickle.dumps(teacher)), network, images())
    kinds = {type(module).__name__ for module in teacher.modules()}
    assert not kinds & {"OnnxShape", "OnnxReshape", "OnnxSlice", "OnnxPadDynamic"}
    assert loaded(exported).state_dict().keys() == teacher.state_dict().keys()


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_final_softmax_is_taken_off(
    network: nn.Module, exported: Path, tiny: Params, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = edited(exported, append(kind, axis=1), f"{kind}.onnx")
    same(loaded(path), network, images())
    with caplog.at_level(logging.INFO):
        load_checked_teacher(parse_params({**tiny, "teacher": section(path)}))
    assert f"the final {kind} is taken off" in caplog.text


def test_a_graph_with_the_channels_last(
    network: nn.Module, exported: Path, tiny: Params, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(exported, channels_last, "nhwc.onnx")
    assert describe(path).channels == 3
    same(loaded(path), network, images())
    with caplog.at_level(logging.INFO):
        load_checked_teacher(parse_params({**tiny, "teacher": section(path)}))
    assert "[N, H, W, C]" in caplog.text
    with pytest.raises(UserError, match=r"layout is 'hwc': write nchw or nhwc"):
        loaded(path, layout="hwc")


def test_channels_last_without_a_transpose_is_told_by_the_sizes_or_the_layout(
    tmp_path: Path,
) -> None:
    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.mean((1, 2)))

    path = export(Means().eval(), tmp_path / "net.onnx", shape=(6, 8, 3))
    found = describe(path)
    assert (found.channels, found.height, found.width) == (3, 6, 8)
    assert describe(path, layout="nchw").channels == 6
    assert loaded(path)(torch.zeros(2, 3, 6, 8)).shape == (2, 4)


def test_input_and_classes_come_from_the_graph_and_mean_and_std_do_not(
    exported: Path, tiny: Params
) -> None:
    config = parse_params({**tiny, "teacher": section(exported)})
    shape = (config.teacher.input.channels, config.teacher.input.height, config.teacher.input.width)
    assert (shape, config.teacher.classes) == (SHAPE, 5)
    with pytest.raises(UserError, match=r"teacher\.input\.mean"):
        parse_params({**tiny, "teacher": {"source": f"onnx:{exported}", "weights": None}})


@pytest.mark.parametrize(
    ("steps", "std"),
    [
        ([("Sub", [0.48, 0.45, 0.4]), ("Div", [0.23, 0.22, 0.22])], 1),
        ([("Mul", [1 / 127.5]), ("Sub", [1.0])], 1 / 255),
        ([("Sub", [104.0, 117.0, 124.0])], 1 / 255),
        ([("Mul", [0.2])], None),
        ([], None),
    ],
)
def test_a_graph_that_normalises_its_input_itself(
    exported: Path, steps: list[tuple[str, list[float]]], std: float | None
) -> None:
    def edit(model: Any) -> None:
        value = "images"
        rename_input(model, f"step{len(steps)}" if steps else value)
        for number, (kind, constant) in enumerate(steps):
            array = np.array(constant, "float32").reshape(1, -1, 1, 1)
            model.graph.initializer.append(numpy_helper.from_array(array, f"c{number}"))
            names = [value, f"c{number}"], [value := f"step{number + 1}"]
            model.graph.node.insert(number, helper.make_node(kind, *names))

    found = describe(edited(exported, edit, f"own{len(steps)}{std}.onnx"))
    assert found.std == (None if std is None else (std,) * 3)
    assert found.mean == (None if std is None else (0.0,) * 3)


@pytest.mark.parametrize("side", [15, 16])
def test_same_padding_is_that_of_the_sizes(tmp_path: Path, side: int) -> None:
    """onnx2torch refuses ``auto_pad``, which older converters write."""
    weight = torch.randn(4, 3, 3, 3)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["a"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("MaxPool", ["a"], ["b"], auto_pad="SAME_LOWER", kernel_shape=[2, 2]),
        helper.make_node("GlobalAveragePool", ["b"], ["means"]),
    ]
    path = tmp_path / "same.onnx"
    path.write_bytes(hand_made(nodes, side, [numpy_helper.from_array(weight.numpy(), "w")]))
    batch = images(2, (3, side, side))
    total = max(0, (-(-side // 2) - 1) * 2 + 3 - side)
    pads = [total // 2, total - total // 2] * 2
    hidden = nn.functional.conv2d(nn.functional.pad(batch, pads), weight, stride=2)
    hidden = nn.functional.pad(hidden, [1, 0, 1, 0], value=-torch.inf)
    wanted = nn.functional.max_pool2d(hidden, 2, 1).mean((2, 3))
    torch.testing.assert_close(loaded(path)(batch), wanted, rtol=1e-4, atol=1e-5)


def hand_made(nodes: list[Any], side: int | str, weights: list[Any]) -> bytes:
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, side, side])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "classes"])
    nodes = [*nodes, helper.make_node("Flatten", ["means"], ["logits"])]
    graph = helper.make_graph(nodes, "g", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def test_half_precision_is_computed_in_float32(network: nn.Module, exported: Path) -> None:
    def edit(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                half = numpy_helper.to_array(tensor).astype("float16")
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    teacher = loaded(edited(exported, edit, "half.onnx"))
    with torch.no_grad():
        logits = teacher(images())
        torch.testing.assert_close(logits, network(images()), rtol=0.05, atol=0.05)
    assert logits.dtype == torch.float32


def test_layers_exported_in_training_mode(tmp_path: Path) -> None:
    network = trained_like(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))

    def edit(model: Any) -> None:
        node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
        node.attribute.append(helper.make_attribute("training_mode", 1))
        node.output.extend(["mean", "variance"])
        for at in reversed(range(len(node.attribute) - 1)):
            if node.attribute[at].name == "training_mode":
                del node.attribute[at]

    path = edited(export(network, tmp_path / "net.onnx"), edit)
    teacher = loaded(path)
    same(teacher, network, images())
    assert len(batchnorm_layers(teacher)) == 1


def test_folded_batchnorm_is_said_and_takes_the_objective_without_it(
    network: nn.Module, exported: Path, tiny: Params, tmp_path: Path, caplog: Any
) -> None:
    folded = export(network, tmp_path / "folded.onnx", folded=True)
    tiny["synthesis"].pop("objective", None)
    for path, preset, said in ((exported, "normalised", 0), (folded, "without-batchnorm", 1)):
        caplog.clear()
        config = parse_params({**tiny, "teacher": section(path)})
        assert config.preset == preset
        load_checked_teacher(config)
        assert caplog.text.count("do_constant_folding=False") == said


def test_the_digest_covers_the_file(exported: Path, tiny: Params, tmp_path: Path) -> None:
    digest = hashlib.sha256(exported.read_bytes()).hexdigest()
    config = parse_params({**tiny, "teacher": section(exported, sha256=digest.upper())})
    teacher = load_checked_teacher(config)
    assert [(file.name, file.sha256) for file in teacher.weights] == [("net.onnx", digest)]
    assert public_source(config.teacher.source) == "onnx:net.onnx"
    # The same weights with another graph: a note in the file is enough for another digest.
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "net.onnx"
    model = onnx.load(str(exported))
    model.doc_string = "changed"
    other.write_bytes(model.SerializeToString())
    changed = load_checked_teacher(parse_params({**tiny, "teacher": section(other)}))
    assert changed.digest != teacher.digest
    with pytest.raises(UserError, match=r"has sha256 .* teacher\.sha256 says"):
        load_checked_teacher(parse_params({**tiny, "teacher": section(other, sha256=digest)}))


def test_a_student_and_a_weights_file_are_refused(exported: Path) -> None:
    with pytest.raises(UserError, match="a student starts from new weights"):
        build_network(f"onnx:{exported}", {}, "student")
    with pytest.raises(UserError, match=r"set teacher\.weights to null"):
        build_network(f"onnx:{exported}", {}, "teacher", "weights.pth")
    with pytest.raises(UserError, match="takes only layout, height and width"):
        build_network(f"onnx:{exported}", {"num_classes": 3}, "teacher")


@pytest.mark.parametrize("folded", [False, True])
def test_from_the_file_to_a_student_by_commands_alone(
    network: nn.Module,
    capsys: pytest.CaptureFixture[str],
    tiny: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folded: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    export(network, tmp_path / "net.onnx", folded=folded)
    printed(capsys, "init", "mine", "--source", "onnx:net.onnx")
    assert '"../net.onnx"' in Path("mine/dvc.yaml").read_text()
    monkeypatch.chdir(tmp_path / "mine")
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
    )
    values = {
        "synthesis.images": 10,
        "synthesis.shard_size": 10,
        "synthesis.batch_size": 10,
        "synthesis.iterations": 3,
        "synthesis.compile": "false",
        "student.source": "nets.py:net",
        "student.arguments": "{}",
        "distillation.steps": 4,
        "distillation.batch_size": 5,
        "distillation.compile": "false",
        "execution.device": "cpu",
        "execution.workers": 1,
    }
    options = [each for key, value in values.items() for each in ("--set", f"{key}={value}")]
    printed(capsys, "synthesize", *options)
    printed(capsys, "distill", *options)
    text = Path("data/synthetic/provenance.json").read_text()
    assert "net.onnx" in text and "../net.onnx" not in text
    assert list(Path("data/students").glob("*.safetensors"))


def test_init_takes_the_size_from_the_user_where_the_file_has_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Params, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("GlobalAveragePool", ["images"], ["means"])]
    Path("any.onnx").write_bytes(hand_made(nodes, "side", []))
    assert "fixes no size" in refused(capsys, "init", "mine", "--source", "onnx:any.onnx")
    with pytest.raises(UserError, match="fixes no size"):
        loaded(Path("any.onnx"))
    assert loaded(Path("any.onnx"), height=9, width=8)(torch.zeros(2, 3, 9, 8)).shape == (2, 3)
    printed(capsys, "init", "mine", "--source", "onnx:any.onnx", "--input", "3x9x8")
    assert "arguments: {height: 9, width: 8}" in Path("mine/params.yaml").read_text()
    write_params(tiny, tmp_path / "unused.yaml")
