from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.objective.bn_statistics import (
    FeatureStatistics,
    LayerStatistics,
    batchnorm_layers,
    untrained_layers,
)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def observe(network: nn.Module, images: Tensor) -> list[LayerStatistics]:
    with FeatureStatistics(network) as statistics:
        network(images)
        return statistics.collect()


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in network.modules())


def test_mean_and_variance_are_those_of_the_input_of_the_layer() -> None:
    torch.manual_seed(0)
    convolution, batch_norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    batch_norm.running_mean = torch.tensor([1.0, 2.0, 3.0])
    batch_norm.running_var = torch.tensor([4.0, 5.0, 6.0])
    images = random(5, 2, 6, 6)
    (seen,) = observe(nn.Sequential(convolution, batch_norm).eval(), images)
    features = convolution(images).detach().double().numpy()
    for channel in range(3):
        values = features[:, channel].ravel()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert seen.mean[channel].item() == pytest.approx(mean, abs=1e-6)
        assert seen.variance[channel].item() == pytest.approx(variance, rel=1e-5)
    assert seen.running_mean.tolist() == [1, 2, 3]
    assert seen.running_variance.tolist() == [4, 5, 6]


def test_batchnorm1d() -> None:
    features = random(7, 4)
    (seen,) = observe(nn.BatchNorm1d(4).eval(), features)
    values = features.double().numpy()
    assert np.allclose(seen.mean.numpy(), values.mean(0), atol=1e-6)
    assert np.allclose(seen.variance.numpy(), values.var(0), atol=1e-6)


def test_statistics_carry_gradients_to_the_images() -> None:
    images = random(4, 1, 3, 3).requires_grad_(True)
    (seen,) = observe(nn.BatchNorm2d(1).eval(), images)
    (seen.mean + seen.variance).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not seen.running_mean.requires_grad


def test_half_precision_features_are_averaged_in_float32() -> None:
    network = nn.BatchNorm2d(1).eval()
    images = (1000 + random(64, 1, 8, 8)).to(torch.bfloat16)
    with FeatureStatistics(network) as statistics, torch.autocast("cpu", torch.bfloat16):
        network(images)
        (seen,) = statistics.collect()
    assert seen.mean.dtype == seen.variance.dtype == torch.float32
    assert seen.mean.item() == pytest.approx(images.double().mean().item(), rel=1e-5)


def test_observing_leaves_the_running_statistics_alone() -> None:
    network = nn.BatchNorm2d(2).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    observe(network, 5 + random(4, 2, 3, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_hooks_live_as_long_as_the_block() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    statistics = FeatureStatistics(network)
    assert hooks(network) == 0
    for _ in range(2):
        with statistics:
            assert hooks(network) == 2
            network(random(2, 1, 3, 3))
            assert len(statistics.collect()) == 2
        assert hooks(network) == 0
    network(random(2, 1, 3, 3))
    assert statistics.collect() == []


def test_hooks_are_gone_after_an_exception() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Linear(99, 1)).eval()
    statistics = FeatureStatistics(network)
    with pytest.raises(RuntimeError), statistics:
        network(random(2, 1, 3, 3))
    assert hooks(network) == 0
    assert statistics.collect() == []


class Backwards(nn.Module):
    """Runs its layers in the reverse of the order that defines them, the first one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate((self.third, self.second, self.first, self.first)):
            x = layer(x + index)
        return x


def test_layers_come_in_the_order_they_run() -> None:
    network = Backwards().eval()
    for mark, layer in enumerate((network.first, network.second, network.third)):
        layer.running_mean = torch.tensor([float(mark)])
    seen = observe(network, random(2, 1, 3, 3))
    assert [layer.running_mean.item() for layer in seen] == [2, 1, 0, 0]
    assert seen[2].mean.item() != seen[3].mean.item()


def test_collecting_forgets() -> None:
    network = nn.BatchNorm2d(1).eval()
    with FeatureStatistics(network) as statistics:
        network(random(2, 1, 3, 3))
        assert len(statistics.collect()) == 1
        assert statistics.collect() == []
        network(random(2, 1, 3, 3))
        assert len(statistics.collect()) == 1


def test_layers_without_running_statistics_are_left_out() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.BatchNorm2d(2),
    ).eval()
    assert batchnorm_layers(network) == [network[3]]
    assert len(observe(network, random(3, 2, 4, 4))) == 1


class Own(nn.Module):
    """A user's BatchNorm over the last dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x - self.running_mean) / (self.running_var + 1e-5).sqrt()
        return out


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm1d(4), (6, 4, 5)),
        (nn.BatchNorm2d(4), (6, 4, 3, 5)),
        (nn.BatchNorm2d(4, momentum=None), (6, 4, 3, 5)),
        (nn.BatchNorm2d(4, affine=False), (6, 4, 3, 5)),
        (nn.BatchNorm3d(4), (6, 4, 2, 3, 5)),
        (nn.SyncBatchNorm(4), (6, 4, 3, 5)),
        (FrozenBatchNorm2d(4), (6, 4, 3, 5)),
        (BatchNormAct2d(4), (6, 4, 3, 5)),
        (FrozenBatchNormAct2d(4), (6, 4, 3, 5)),
        (Own(4), (6, 7, 4)),
    ],
)
def test_every_form_of_batchnorm(layer: nn.Module, shape: tuple[int, ...]) -> None:
    features = 2 + 3 * random(*shape)
    (seen,) = observe(layer.eval(), features)
    axis = 1 if shape[1] == 4 else len(shape) - 1
    values = np.moveaxis(features.double().numpy(), axis, 0).reshape(4, -1)
    assert np.allclose(seen.mean.numpy(), values.mean(1), atol=1e-5)
    assert np.allclose(seen.variance.numpy(), values.var(1), rtol=1e-4)
    assert untrained_layers(layer) == [layer]
    layer.running_mean += 1  # type: ignore[operator]
    assert untrained_layers(layer) == []


class Grouped(nn.Module):
    """One BatchNorm of 2 channels for each of the 3 groups of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        out: Tensor = self.norm(x.reshape(3 * count, channels // 3, height, width))
        return out.reshape(x.shape)


def test_groups_that_share_a_layer() -> None:
    features = random(4, 6, 3, 3)
    (seen,) = observe(Grouped().eval(), features)
    assert seen.mean.shape == (2,)
    assert seen.mean[0].item() == pytest.approx(features[:, ::2].mean().item(), abs=1e-6)


def test_a_network_without_batchnorm_is_seen_by_its_input() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3)).eval()
    images, expected = random(4, 2, 5, 5), (torch.tensor([0.5, 0.6]), torch.tensor([2.0, 3.0]))
    with FeatureStatistics(network, expected) as statistics:
        network(images)
        (seen,) = statistics.collect()
    assert seen.mean.tolist() == pytest.approx(images.mean((0, 2, 3)).tolist())
    assert seen.running_mean.tolist() == pytest.approx([0.5, 0.6])
    assert seen.running_variance.tolist() == [2.0, 3.0]


def test_variances_are_never_negative() -> None:
    layer = nn.BatchNorm2d(64).eval()
    levels = torch.linspace(900, 1100, 64).view(1, 64, 1, 1).expand(7, 64, 5, 5)
    with FeatureStatistics(layer) as statistics:
        layer(levels)
        (seen,) = statistics.collect()
    assert seen.variance.min() >= 0
