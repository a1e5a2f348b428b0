"""A dataset with the traps of other formats, and its images by the plainest means."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.api.dataset import Dataset
from pipeline.exporting.source import Source, open_source
from tests.conftest import Params, dataset, make, parameters
from tests.test_inputs import unlike

# A path, characters of YAML and of a shell, and a name that two classes have.
NAMES = ["../../no", 'no: "a" * {b}\n---', "no\u2028\U0001f600", "../../no"]
Loaded = list[tuple[np.ndarray, int]]


@pytest.fixture(scope="session")
def rgb(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 RGB images of 4 classes in 2 shards. Not to be changed."""
    root = tmp_path_factory.mktemp("exporting")
    params = unlike(parameters(trained, root), root, 3, 4, **{"teacher.class_names": NAMES})
    make(params)
    return dataset(params)


@pytest.fixture(scope="session")
def published(rgb: Path) -> Loaded:
    """What the tars hold, in their order; the pixels are ``[H, W, 3]``."""
    found: Loaded = []
    for path in sorted((rgb / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for key in dict.fromkeys(name.partition(".")[0] for name in tar.getnames()):
                png, label = (tar.extractfile(f"{key}.{part}") for part in ("png", "cls"))
                assert png and label
                pixels = np.asarray(Image.open(io.BytesIO(png.read())))
                found.append((pixels, int(label.read())))
    assert len(found) == 20
    return found


@pytest.fixture
def source(made: Params) -> Source:
    """All images of the tiny dataset."""
    return open_source(Dataset(dataset(made)), None)


def assert_same(loaded: Loaded, published: Loaded) -> None:
    assert len(loaded) == len(published)
    for (image, label), (expected, expected_label) in zip(loaded, published, strict=True):
        np.testing.assert_array_equal(image, expected)
        assert label == expected_label
