"""Sources that are libraries: built, filled and described from files on this machine alone."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import nn

from pipeline.config.schema import Config
from pipeline.dataset.record_files import read_record
from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.inferred import read_names
from pipeline.teachers.networks import build_network, factory_file, public_source, weights_file
from pipeline.teachers.registry import find_source
from pipeline.teachers.source import Description
from tests.conftest import Params, changed, dataset, make


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing outside can be reached, and the caches of torch.hub are empty."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def teacher_only(params: Params, section: dict[str, Any]) -> Params:
    """``params`` with another teacher, and as little of its section as ``section`` holds."""
    return {**params, "teacher": section}


def describe_source(source: str, arguments: dict[str, Any], weights: str | None) -> Description:
    kind, name = find_source(source)
    return kind.describe(name, arguments, weights)


def moved(network: nn.Module) -> nn.Module:
    """The network with statistics that look trained."""
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return network.eval()


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    """A Hugging Face image classifier as ``save_pretrained`` leaves it."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=20,
        patch_size=4,
        num_channels=3,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    folder = tmp_path / "small-vit"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 20, "width": 20},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n")
    return folder


def test_torchvision_weights_by_name_come_from_the_cache(tmp_path: Path, tiny: Params) -> None:
    entry = torchvision.models.get_model_weights("squeezenet1_1").IMAGENET1K_V1
    cache = tmp_path / "torch" / "hub" / "checkpoints" / Path(entry.url).name
    cache.parent.mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), cache)
    section = {"source": "torchvision:squeezenet1_1", "weights": "IMAGENET1K_V1"}
    config = parse_params(teacher_only(tiny, section))
    assert weights_file("torchvision:squeezenet1_1", "IMAGENET1K_V1", "teacher") == cache
    assert weights_file("torchvision:squeezenet1_1", "pretrained", "teacher") == cache
    assert config.teacher.classes == 1000
    assert config.teacher.class_names is not None and config.teacher.class_names[1] == "goldfish"
    shape = config.teacher.input
    assert (shape.channels, shape.height, shape.width) == (3, 224, 224)
    assert shape.mean == (0.485, 0.456, 0.406)
    assert shape.interpolation == "bilinear"
    by_file = {**section, "weights": str(cache)}
    assert parse_params(teacher_only(tiny, by_file)).teacher.class_names is not None


def test_torchvision_weights_that_cannot_be_had() -> None:
    with pytest.raises(UserError, match=r"not in the cache of torch\.hub"):
        weights_file("torchvision:resnet18", "IMAGENET1K_V1", "teacher")
    with pytest.raises(UserError, match="no weights 'IMAGENET1K_V9', only IMAGENET1K_V1"):
        weights_file("torchvision:resnet18", "IMAGENET1K_V9", "teacher")
    missing = "some/folder/resnet18-f37072fd.pth"
    assert weights_file("torchvision:resnet18", missing, "teacher") == Path(missing)


def test_a_fine_tuned_torchvision_model_tells_its_classes_itself(
    tmp_path: Path, tiny: Params
) -> None:
    network = moved(torchvision.models.resnet18(num_classes=7))
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    section = {
        "source": "torchvision:resnet18",
        "arguments": {"num_classes": 7},
        "weights": str(tmp_path / "mine.safetensors"),
        "input": {"height": 64, "width": 48},
    }
    config = parse_params(teacher_only(tiny, section))
    assert config.teacher.classes == 7
    assert config.teacher.class_names is None
    assert (config.teacher.input.height, config.teacher.input.width) == (64, 48)
    assert config.teacher.input.std == (0.229, 0.224, 0.225)
    assert load_checked_teacher(config).shape == (3, 64, 48)


def test_timm_says_what_it_knows(tiny: Params) -> None:
    known = describe_source("timm:resnet18", {}, None)
    configured = timm.get_pretrained_cfg("resnet18")
    assert (known.mean, known.std) == (configured.mean, configured.std)
    assert known.license == configured.license == "apache-2.0"
    assert known.class_names is not None and "goldfish" in known.class_names[1]
    assert describe_source("timm:resnet18", {"in_chans": 1}, None).mean is None
    assert describe_source("timm:vit_tiny_patch16_224", {"img_size": 96}, None).height == 96
    section = {"source": "timm:resnet10t", "arguments": {"num_classes": 5}, "weights": None}
    config = parse_params(teacher_only(tiny, section))
    assert config.teacher.classes == 5
    assert config.teacher.class_names is None
    assert config.teacher.input.interpolation == timm.get_pretrained_cfg("resnet10t").interpolation


def test_timm_weights_of_a_local_folder(tmp_path: Path, tiny: Params) -> None:
    folder = tmp_path / "mynet"
    folder.mkdir()
    network = moved(timm.create_model("resnet10t", num_classes=3))
    save_file(network.state_dict(), folder / "model.safetensors")
    known = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    known |= {"num_classes": 3, "label_names": ["a", "b", "c"], "license": "mit"}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": known})
    )
    section = {"source": f"timm:local-dir:{folder}", "weights": "pretrained"}
    config = parse_params(teacher_only(tiny, section))
    assert config.teacher.class_names == ("a", "b", "c")
    assert config.teacher.license == "mit"
    assert config.teacher.input.mean == (0.1, 0.2, 0.3)
    teacher = load_checked_teacher(config)
    assert torch.equal(teacher.network.conv1[0].weight, network.conv1[0].weight)  # type: ignore[index, union-attr]
    assert public_source(section["source"]) == "timm:local-dir:mynet"


def test_names_of_a_file_that_begins_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert read_names(tmp_path / "names.txt") == ["cat", "dog"]


def test_a_hugging_face_classifier(vit_folder: Path, tiny: Params) -> None:
    section = {"source": f"hf:{vit_folder}", "weights": "pretrained"}
    config = parse_params(teacher_only(tiny, section))
    assert config.teacher.class_names == ("cat", "dog", "owl")
    assert config.teacher.license == "apache-2.0"
    assert config.teacher.input.mean == (0.5, 0.4, 0.3)
    assert config.teacher.input.interpolation == "bicubic"
    assert config.preset == "without-batchnorm"
    teacher = load_checked_teacher(config)
    original = transformers.ViTForImageClassification.from_pretrained(vit_folder).eval()
    images = torch.randn(2, 3, 20, 20)
    assert torch.allclose(teacher.network(images), original(images).logits, atol=1e-6)
    assert public_source(section["source"]) == "hf:small-vit"
    student = build_network(section["source"], {"num_labels": 5, "hidden_size": 8}, "student")
    assert student(images).shape == (2, 5)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [255]}, 0.5, 1.0),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
    ],
)
def test_a_processors_scale_is_taken_into_mean_and_std(
    vit_folder: Path, processor: dict[str, Any], mean: float, std: float
) -> None:
    path = vit_folder / "preprocessor_config.json"
    path.write_text(json.dumps(processor))
    known = describe_source(f"hf:{vit_folder}", {}, "pretrained")
    assert known.mean is not None and known.std is not None
    assert known.mean[0] == pytest.approx(mean)
    assert known.std[0] == pytest.approx(std)
    assert (known.height, known.width) == (20, 20)


@pytest.mark.parametrize("text", ["", "[1]", "image_mean: 3"])
def test_a_processor_file_that_is_broken(vit_folder: Path, text: str) -> None:
    (vit_folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        describe_source(f"hf:{vit_folder}", {}, "pretrained")


def test_what_was_read_is_written_down(vit_folder: Path, tiny: Params) -> None:
    section = {"source": f"hf:{vit_folder}", "weights": "pretrained"}
    params = changed(
        teacher_only(tiny, section), {"synthesis.images": 3, "synthesis.iterations": 1}
    )
    params["student"] = {"source": f"hf:{vit_folder}"}
    make(params)
    root = dataset(params)
    text = (root / "README.md").read_text()
    assert "mean 0.5, 0.4, 0.3" in text and "apache-2.0" in text
    statement = json.loads((root / "provenance.json").read_bytes())
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["teacher"]["class_names"] == ["cat", "dog", "owl"]
    (weights,) = [d for d in build["resolvedDependencies"] if d["name"].startswith("weights")]
    assert weights["uri"] == "pretrained"
    assert weights["annotations"] == {"license": "apache-2.0"}
    assert str(vit_folder.parent) not in json.dumps(statement) + text
    assert read_record(root / "metadata" / "000000.json") is not None


HUBCONF = """
dependencies = ["torch"]
from torch import nn

def small(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_local_hub_repository(tmp_path: Path, tiny: Params) -> None:
    folder = tmp_path / "their-repo"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    source = f"hub:{folder}:small"
    assert build_network(source, {"classes": 4}, "student")(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert factory_file(source, "teacher") == folder / "hubconf.py"
    assert public_source(source) == "hub:their-repo:small"
    section = {**tiny["teacher"], "source": source, "weights": None}
    assert load_checked_teacher(parse_params(teacher_only(tiny, section))).classes == 3


def test_a_fetched_hub_repository_is_used_from_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "someone_nets_main"
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(HUBCONF)
    network = build_network("hub:someone/nets:small", {"classes": 6}, "teacher")
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 6)
    assert factory_file("hub:someone/nets:small", "teacher") == folder / "hubconf.py"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("timm:resnet1", "timm has no model 'resnet1'"),
        ("hf:nobody/nothing-at-all", "neither a local file nor in the Hugging Face cache"),
        ("hf:/nowhere/at/all", "neither a local file"),
        ("hub:/nowhere/at/all:small", "there is no folder /nowhere/at/all"),
        ("hub:small", "hub:OWNER/REPO:ENTRY"),
        ("hub:someone/absent:small", "failed"),
    ],
)
def test_libraries_without_such_a_model(source: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        build_network(source, {}, "student")
    assert said in str(caught.value) and "student" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "package"),
    [("timm:x", "timm"), ("hf:x/y", "transformers"), ("onnx:x.onnx", "onnx")],
)
def test_a_library_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install .* '\.\[{package}\]'"):
        build_network(source, {}, "teacher")


def test_published_weights_of_a_source_that_has_none(tiny: Params) -> None:
    source = tiny["teacher"]["source"]
    with pytest.raises(UserError, match=r"'pretrained', but .* publishes no weights"):
        weights_file(source, "pretrained", "teacher")


def test_given_values_are_kept(vit_folder: Path, tiny: Params) -> None:
    section = {
        "source": f"hf:{vit_folder}",
        "weights": "pretrained",
        "license": "mine",
        "input": {"mean": [0.1, 0.1, 0.1]},
        "class_names": ["x", "y", "z"],
    }
    teacher = parse_params(teacher_only(tiny, section)).teacher
    assert teacher.input.mean == (0.1, 0.1, 0.1)
    assert teacher.input.std == (0.5, 0.25, 0.2)
    assert (teacher.license, teacher.class_names) == ("mine", ("x", "y", "z"))


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_class_names_from_a_file(tmp_path: Path, tiny: Params, suffix: str) -> None:
    names = ["upper part", "middle", "lower"]
    path = tmp_path / f"names.{suffix}"
    path.write_text(json.dumps(names) if suffix == "json" else "\n".join(names) + "\n")
    config: Config = parse_params(changed(tiny, {"teacher.class_names": str(path)}))
    assert config.teacher.class_names == tuple(names)


def test_a_file_of_class_names_that_is_none(tmp_path: Path, tiny: Params) -> None:
    for name, text in (("absent.txt", None), ("broken.json", "["), ("table.json", '{"a": 1}')):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            parse_params(changed(tiny, {"teacher.class_names": str(tmp_path / name)}))


def test_without_metadata_what_is_missing_is_said(tiny: Params) -> None:
    section = {key: tiny["teacher"][key] for key in ("source", "weights")}
    with pytest.raises(UserError, match=r"teacher\.(classes|input\.channels) is missing"):
        parse_params(teacher_only(tiny, section))
    section["input"] = tiny["teacher"]["input"]
    assert parse_params(teacher_only(tiny, section)).teacher.classes == 3
