"""Stored views can be made again from the shards, and their logits are the teacher's."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.train_from_shards import make_view as by_the_example
from pipeline.dataset.layout import VIEWS
from pipeline.dataset.plan import plan_of
from pipeline.dataset.tar import decode_image, image_part, read_tar
from pipeline.params import parse_params
from pipeline.synthesis.spec import key_prefix
from pipeline.synthesis.stored_views import FIELDS, SHIFT, draw_views, make_view
from tests.conftest import Params, changed, dataset, load, make, tree
from tests.test_inputs import unlike


def with_views(params: Params, views: int = 3) -> Params:
    return changed(params, {"synthesis.views": views, "synthesis.objective.flip": True})


def shard_of(params: Params, number: int) -> tuple[Tensor, Tensor]:
    """The images and the stored views of a shard, as any program would read them."""
    tar = dataset(params) / "train" / f"{number:06d}.tar"
    images, views = [], []
    for _, parts, _ in read_tar(tar):
        images.append(decode_image(image_part(parts)))
        views.append(np.load(io.BytesIO(parts[VIEWS])))
    assert views[0].dtype == np.float16
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(views)).float()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_logits_are_the_teachers_for_the_views_made_again(
    tiny: Params, tmp_path: Path, channels: int
) -> None:
    params = with_views(unlike(tiny, tmp_path, channels, 3))
    make(params)
    _, teacher = load(params)
    largest = 0.0
    for number in range(2):
        images, views = shard_of(params, number)
        assert views.shape == (len(images), 3, 9 + 3)
        for index, of_image in enumerate(views):
            for view in of_image:
                shown = by_the_example(images.float() / 255, index, view)
                logits = teacher.network(teacher.preprocessing.normalise(255 * shown[None]))[0]
                assert torch.allclose(logits, view[9:], rtol=2e-3, atol=2e-3)
                largest = max(
                    largest,
                    float(
                        (
                            logits
                            - teacher.network(teacher.preprocessing.normalise(images[index, None]))[
                                0
                            ]
                        )
                        .abs()
                        .max()
                    ),
                )
    assert largest > 0.1, "a view must differ from its image"


def test_the_example_and_the_package_make_the_same_views(tiny: Params) -> None:
    config = parse_params(with_views(tiny, 64))
    shard = plan_of(config).shard(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    drawn = draw_views(config, shard)
    for index, of_image in enumerate(drawn):
        for view in of_image:
            expected = by_the_example(images.float(), index, torch.from_numpy(view).float())
            found = make_view(images, index, view.tolist())
            assert torch.allclose(found, expected, atol=1e-3)


def test_the_descriptions_have_the_promised_ranges(tiny: Params) -> None:
    config = parse_params(with_views(tiny, 64))
    drawn = draw_views(config, plan_of(config).shard(0))
    fields = dict(zip(FIELDS, drawn.reshape(-1, 9).T, strict=True))
    assert set(fields["partner"]) == set(range(1, 12))
    for side, length, start in (("height", 8, "top"), ("width", 8, "left")):
        assert (fields[side] >= 0).all()
        assert (fields[start] + fields[side] <= length).all()
        assert (fields[start] >= 0).all()
    for shift in ("down", "right"):
        assert set(fields[shift]) == set(range(-(8 // SHIFT), 8 // SHIFT + 1))
    assert set(fields["flip"]) == {0, 1}
    assert fields["weight"].min() >= 0
    assert 0.3 < (fields["weight"] == 1).mean() < 0.7
    assert 0.1 < (fields["height"] * fields["width"] == 0).mean() < 0.5


def test_a_shard_of_one_image_mixes_it_with_itself(tiny: Params) -> None:
    params = changed(with_views(tiny), {"synthesis.shard_size": 1, "synthesis.images": 3})
    make(params)
    _, views = shard_of(params, 0)
    assert (views[0, :, 0] == 0).all()


def test_digits_are_not_mirrored(tiny: Params) -> None:
    config = parse_params(changed(tiny, {"synthesis.views": 8}))
    drawn = draw_views(config, plan_of(config).shard(0))
    assert not config.objective.flip
    assert (drawn[..., FIELDS.index("flip")] == 0).all()


def test_the_images_and_keys_do_not_depend_on_views(tiny: Params) -> None:
    """Without views a dataset has the keys that it had before there were views."""
    make(tiny)
    before = [parts["png"] for _, parts, _ in read_tar(dataset(tiny) / "train" / "000000.tar")]
    params = changed(tiny, {"synthesis.views": 2})
    make(params)
    after = [parts["png"] for _, parts, _ in read_tar(dataset(params) / "train" / "000000.tar")]
    assert before == after
    facts = {key_prefix(parse_params(one), "teacher") for one in (tiny, params)}
    assert len(facts) == 2


def test_a_stopped_run_continues_to_the_same_bytes(tiny: Params) -> None:
    params = with_views(tiny)
    assert make(params) == [0, 1]
    whole = tree(dataset(params))
    (dataset(params) / "metadata" / "000001.json").unlink()
    assert make(params) == [1]
    assert tree(dataset(params)) == whole
    shutil.rmtree(dataset(params))
    make(params, range(1))
    make(params)
    assert tree(dataset(params)) == whole
