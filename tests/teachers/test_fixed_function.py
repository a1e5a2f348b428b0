"""A teacher or student must give an image the same logits, whenever and with whom it comes."""

from __future__ import annotations

import copy
import textwrap
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.params import parse_params
from pipeline.synthesis.check import load_checked_teacher
from pipeline.synthesis.student_check import check_student
from pipeline.teachers.fixed_function import check_fixed_function
from tests.conftest import Params, changed, dataset, load, write_params

NETWORKS = textwrap.dedent(
    """
    import os
    import random

    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(64, 3)
            self.seen = None

        def forward(self, x):
            return self.linear(x.flatten(1))


    class Dropout(Base):
        def forward(self, x):
            return self.linear(F.dropout(x.flatten(1), 0.3))


    class LittleDropout(Base):
        def forward(self, x):
            return self.linear(F.dropout(x.flatten(1), 0.02))


    class Numpy(Base):
        def forward(self, x):
            return super().forward(x) * (1 + 0.1 * np.random.rand())


    class Noise(Base):
        def forward(self, x):
            return super().forward(x + 0.01 * torch.randn_like(x))


    class Coin(Base):
        def forward(self, x):
            return super().forward(x.flip(3) if random.random() < 0.5 else x)


    class StuckDropout(Base):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.3)

        def train(self, mode=True):
            return super().train(True)

        def forward(self, x):
            return self.linear(self.drop(x.flatten(1)))


    class BatchStatistics(Base):
        def forward(self, x):
            return super().forward(F.batch_norm(x, None, None, training=True))


    class NoRunning(Base):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1, track_running_stats=False)

        def forward(self, x):
            return super().forward(self.norm(x))


    class StuckNorm(Base):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def train(self, mode=True):
            super().train(mode)
            self.norm.train()
            return self

        def forward(self, x):
            return self.linear(self.norm(x.flatten(1)))


    class Softened(Base):
        def forward(self, x):
            return super().forward(x) - super().forward(x).mean(0)


    class Squeezing(Base):
        def forward(self, x):
            return super().forward(x).squeeze()


    class Remembering(Base):
        def forward(self, x):
            logits = super().forward(x)
            if self.seen is not None:
                logits = logits + 0.1 * self.seen
            self.seen = logits.detach().mean(0)
            return logits


    class Counting(Base):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)


    class Frozen(Base):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)


    class Rounding(Base):
        def forward(self, x):
            return super().forward(x.detach().round())


    class Constant(Base):
        def forward(self, x):
            return self.linear.bias.expand(len(x), 3)


    class InPlace(Base):
        def forward(self, x):
            return super().forward(x.mul_(0.5))


    class DataInPlace(Base):
        def forward(self, x):
            x.data.mul_(0.5)
            return super().forward(x)


    class Activation(Base):
        def forward(self, x):
            y = x.exp()
            y.mul_(2)
            return super().forward(y)


    class Leaving(Base):
        def forward(self, x):
            os.chdir("/")
            return super().forward(x)


    class Same(Base):
        def forward(self, x):
            return super().forward(x * 0)


    class Integers(Base):
        def forward(self, x):
            return super().forward(x).long()


    class Lazy(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.LazyLinear(3))


    class LazyNorm(nn.Sequential):
        def __init__(self):
            super().__init__(nn.LazyBatchNorm2d(), nn.Flatten(), nn.Linear(64, 3))


    def called():
        network = Lazy()
        network(torch.zeros(1, 1, 8, 8))
        return network


    class Keeping(Base):
        def forward(self, x):
            self.seen = self.linear(x.flatten(1))
            return self.seen


    class Normed(Base):
        def __init__(self):
            super().__init__()
            torch.nn.utils.weight_norm(self.linear)


    class Weightless(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3]


    def untrainable():
        return Base().requires_grad_(False)


    def meta():
        with torch.device("meta"):
            return Base()


    class Complex(Base):
        def __init__(self):
            super().__init__()
            self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    """
)
NOT_FIXED = [
    ("Dropout", "draws random numbers"),
    ("LittleDropout", "draws random numbers"),
    ("StuckDropout", r"draws random numbers \(training mode: drop\)"),
    ("Noise", "draws random numbers"),
    ("Numpy", "draws random numbers"),
    ("Coin", "not a fixed function|not a function of one image"),
    ("BatchStatistics", "other logits alone than among other images|single image"),
    ("NoRunning", r"BatchNorm layer norm has no running statistics"),
    ("StuckNorm", "BatchNorm layer norm is in training mode"),
    ("Softened", "Its forward pass uses statistics of the batch"),
    ("Squeezing", "other logits alone than among other images"),
    ("Remembering", "Remove what it remembers"),
    ("InPlace", "in place .*x.mul_"),
    ("DataInPlace", "changes its input in place"),
    ("Activation", "in place"),
    ("Leaving", "forward pass changes the current folder to /: remove os.chdir"),
    ("Integers", "returns int64"),
    ("Frozen", "no gradient"),
    ("Rounding", "no gradient|do not depend on the image"),
    ("Constant", "no gradient|do not depend on the image"),
    ("Lazy", r"lazy layers \(first: 1\)"),
    ("LazyNorm", r"lazy layers \(first: 0\)"),
    ("meta", "on the meta device"),
    ("Complex", "phase is complex"),
]


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETWORKS)
    return f"{tmp_path / 'nets.py'}:"


def teacher_of(tiny: Params, source: str) -> Params:
    changes = {"teacher.source": source, "teacher.weights": None}
    return changed(tiny, {**changes, "synthesis.objective.feature": 0})


@pytest.mark.parametrize(("network", "said"), NOT_FIXED)
def test_a_teacher_that_is_no_fixed_function_is_refused(
    tiny: Params, nets: str, network: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(teacher_of(tiny, nets + network))
    assert "teacher" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "said"),
    [*NOT_FIXED, ("Weightless", "no weight to train"), ("untrainable", "no weight to train")],
)
def test_a_student_gets_the_same_checks(tiny: Params, nets: str, network: str, said: str) -> None:
    params = changed(tiny, {"student.source": nets + network, "student.arguments": {}})
    config, teacher = load(params)
    with pytest.raises(UserError, match=said) as caught:
        check_student(config, teacher, "distillation", config.distillation)
    assert "student" in str(caught.value)
    adaptive = parse_params(changed(params, {"adaptive.rounds": 1}))
    with pytest.raises(UserError, match=said):
        load_checked_teacher(adaptive)


@pytest.mark.parametrize("network", ["Base", "Counting", "called"])
def test_fixed_networks_are_taken(tiny: Params, nets: str, network: str) -> None:
    config, teacher = load(teacher_of(tiny, nets + network))
    assert load(teacher_of(tiny, nets + network))[1].digest == teacher.digest
    params = changed(tiny, {"student.source": nets + network, "student.arguments": {}})
    check_student(parse_params(params), teacher, "distillation", config.distillation)


def test_a_network_that_keeps_its_answer_can_still_be_copied(tiny: Params, nets: str) -> None:
    """As an engine with bfloat16 copies it."""
    _, teacher = load(teacher_of(tiny, f"{nets}Keeping"))
    copy.deepcopy(teacher.network)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_moving_average_needs_a_student_that_can_be_copied(tiny: Params, nets: str) -> None:
    params = changed(tiny, {"student.source": f"{nets}Normed", "student.arguments": {}})
    config, teacher = load(params)
    check_student(config, teacher, "distillation", config.distillation)
    average = config.distillation.model_copy(update={"ema": 0.9})
    with pytest.raises(UserError, match=r"distillation\.ema must be 0: .* cannot be copied"):
        check_student(config, teacher, "distillation", average)


def test_commands_stop_before_any_work(
    tiny: Params, nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_params(teacher_of(tiny, f"{nets}Dropout"), tmp_path / "p.yaml")
    for command in ("synthesize", "verify", "probe", "distill"):
        assert main([command, "--params", str(path)]) == 2
        error = capsys.readouterr().err
        assert "not a fixed function" in error and "Traceback" not in error
    assert not (dataset(tiny) / "train").exists()


@pytest.mark.parametrize(
    "network",
    [
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: torchvision.models.efficientnet_b0(num_classes=10),
        lambda: torchvision.models.vgg11_bn(num_classes=10),
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64),
        lambda: timm.create_model("convnext_atto", num_classes=10),
    ],
    ids=["resnet18", "efficientnet_b0", "vgg11_bn", "vit_tiny", "convnext_atto"],
)
def test_the_rounding_of_real_networks_is_tolerated(network: object) -> None:
    def normalise(pixels: Tensor) -> Tensor:
        return pixels.float() / 127.5 - 1

    torch.manual_seed(0)
    built = network()  # type: ignore[operator]
    assert isinstance(built, nn.Module)
    check_fixed_function(built.eval(), (3, 64, 64), normalise, "teacher")


def test_a_teacher_with_the_same_logits_for_every_image(tiny: Params, nets: str) -> None:
    with pytest.raises(UserError, match="gives every image the same logits"):
        load(teacher_of(tiny, f"{nets}Same"))
    params = changed(tiny, {"student.source": f"{nets}Same", "student.arguments": {}})
    config, teacher = load(params)
    check_student(config, teacher, "distillation", config.distillation)


def test_a_forward_pass_does_not_move_this_process(tiny: Params, nets: str) -> None:
    place = Path.cwd()
    counted = changed(
        teacher_of(tiny, f"{nets}Leaving"), {"teacher.classes": None, "teacher.class_names": None}
    )
    with pytest.raises(UserError, match="changes the current folder"):
        parse_params(counted)
    assert Path.cwd() == place
