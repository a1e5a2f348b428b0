from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.dataset.plan import make_plan
from pipeline.dataset.records import NULLABLE, SCHEMA
from pipeline.dataset.tar import decode_image, read_tar
from pipeline.params import parse_params
from pipeline.storage import digest_file
from pipeline.synthesis.spec import key_prefix, round_objective
from tests.conftest import Params, changed, dataset, load, make
from tests.synthesis.shards import rows


@pytest.mark.parametrize("soft_labels", [False, True])
def test_rows_and_samples_join_one_to_one(competing: Params, soft_labels: bool) -> None:
    params = changed(competing, {"synthesis.soft_labels": soft_labels})
    make(params)
    config, teacher = load(params)
    root = dataset(params)
    layout = make_plan(config.synthesis, config.adaptive, 3)
    joined, prefix = 0, key_prefix(config, teacher.digest)
    for shard in layout:
        data = (root / "train" / f"{shard.name}.tar").read_bytes()
        samples = list(read_tar(root / "train" / f"{shard.name}.tar"))
        batch_of = [i for i, batch in enumerate(shard.batches) for _ in range(batch.size)]
        for index, (row, (key, parts, offset)) in enumerate(
            zip(rows(root, shard.number), samples, strict=True)
        ):
            assert row["key"] == key == shard.key(prefix, index)
            assert (row["shard"], row["index"]) == (f"{shard.name}.tar", index)
            assert row["offset"] == offset
            assert data[row["offset"] : row["offset"] + row["size"]] == parts["png"]
            assert row["cls"] == int(parts["cls"]) == shard.labels[index]
            assert row["class_name"] == ["top", "middle", "bottom"][row["cls"]]
            assert row["round"] == shard.round
            assert row["batch"] == batch_of[index]
            assert row["seed"] == shard.batches[batch_of[index]].seed
            assert (row["iterations"], row["height"], row["width"]) == (4, 8, 8)
            facts = json.loads(parts["json"])
            assert facts["cls"] == row["cls"]
            assert facts["teacher_pred"] == row["teacher_pred"]
            pixels = torch.from_numpy(decode_image(parts["png"]).copy())[None]
            logits = teacher.network(teacher.preprocessing.normalise(pixels))[0]
            shares = logits.softmax(0)
            assert row["teacher_pred"] == logits.argmax().item()
            assert row["teacher_prob"] == pytest.approx(shares[row["cls"]].item(), abs=1e-4)
            entropy = -(shares * shares.log()).sum().item()
            assert row["teacher_entropy"] == pytest.approx(entropy, abs=1e-3)
            assert ("logits.npy" in parts) == soft_labels
            if soft_labels:
                stored = np.load(io.BytesIO(parts["logits.npy"]))
                assert np.allclose(stored, logits.numpy(), rtol=2e-3, atol=2e-2)
            joined += 1
    assert joined == 26


def test_the_losses_of_a_row_add_up(competing: Params) -> None:
    make(competing)
    config = parse_params(competing)
    for number in range(3):
        weights = round_objective(config, rows(dataset(competing), number)[0]["round"])
        for row in rows(dataset(competing), number):
            expected = (
                weights.classification * row["factor_classification"] * row["loss_classification"]
                + weights.tv * row["factor_tv"] * row["loss_tv"]
                + weights.l2 * row["loss_l2"]
                + weights.feature * row["loss_feature"]
                + weights.compete * (row["loss_compete"] or 0)
            )
            assert row["loss_total"] == pytest.approx(expected, rel=1e-4)
            nats = -math.log(row["teacher_prob"])
            assert row["loss_classification"] == pytest.approx(nats, rel=1e-3, abs=1e-5)


def test_the_parquet_schema(tiny: Params, tmp_path: Path) -> None:
    make(tiny)
    table = pq.read_table(dataset(tiny) / "metadata" / "000001.parquet")
    assert table.schema.equals(SCHEMA)
    for field in table.schema:
        assert field.metadata[b"description"]
        assert field.nullable == (field.name in NULLABLE)
    facts = json.loads(table.schema.metadata[b"dreamshard"])
    record = json.loads((dataset(tiny) / "metadata" / "000001.json").read_bytes())
    assert facts["spec"] == record["spec"]
    assert facts["teacher"]["classes"] == 3
    assert "weights" not in facts["teacher"]


def test_the_record_tells_the_truth_of_its_shard(tiny: Params) -> None:
    make(tiny)
    root = dataset(tiny)
    for number, images in ((0, 12), (1, 8)):
        record = json.loads((root / "metadata" / f"{number:06d}.json").read_bytes())
        found = rows(root, number)
        assert (record["images"], record["first"]) == (images, 12 * number)
        for name in (f"train/{number:06d}.tar", f"metadata/{number:06d}.parquet"):
            facts = record["files"].pop(name)
            assert facts == {
                "sha256": digest_file(root / name),
                "md5": digest_file(root / name, "md5"),
                "size": (root / name).stat().st_size,
            }
        assert record["files"] == {}
        for label in range(3):
            assert record["class_counts"][str(label)] == sum(r["cls"] == label for r in found)
        agree = sum(row["cls"] == row["teacher_pred"] for row in found) / images
        assert record["agreement"] == pytest.approx(agree, abs=1e-6)
        confidence = sum(row["teacher_prob"] for row in found) / images
        assert record["confidence"] == pytest.approx(confidence, abs=1e-5)
        assert [point["iteration"] for point in record["curve"]] == [0, 1, 2, 3, 4]


def test_images_per_class(tiny: Params) -> None:
    table = {"synthesis.images": None, "synthesis.images_per_class": {0: 9, 2: 5}}
    params = changed(tiny, table)
    assert make(params) == [0, 1]
    labels = [row["cls"] for number in (0, 1) for row in rows(dataset(params), number)]
    assert (labels.count(0), labels.count(1), labels.count(2)) == (9, 0, 5)
