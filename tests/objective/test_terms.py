from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pipeline.dataset import records
from pipeline.dataset.stream import ordered_batches
from pipeline.inversion.engine import Engine
from pipeline.objective import terms as terms_module
from pipeline.objective.bn_statistics import FeatureStatistics
from pipeline.objective.presets import FeatureForm, Objective
from pipeline.objective.terms import (
    TERMS,
    Term,
    TermInputs,
    Terms,
    draw_factors,
    evaluate_terms,
    reported_names,
)
from tests.conftest import Params, changed, dataset, load, make
from tests.objective.samples import layers, random


def inputs(**changes: Any) -> TermInputs:
    """A batch of two images, with a student."""
    batch = TermInputs(
        images=random(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        logits=random(2, 3, seed=1),
        layers=layers(),
        student_logits=random(2, 3, seed=2),
        objective=Objective(),
    )
    return replace(batch, **changes)


class Brightness:
    """Registers one more term: the mean of each image.

    It borrows the weight of R_l2, because a dataclass cannot get a field while it runs.
    """

    NAME = "brightness"
    TERM = Term(
        name=NAME,
        weight="l2",
        function=lambda batch: batch.images.mean((1, 2, 3)),
        per_image=True,
        description="mean of the image",
    )

    @classmethod
    def register(cls, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(terms_module, "TERMS", (*TERMS, cls.TERM))
        monkeypatch.setattr(records, "SCHEMA", records.parquet_schema())


def test_a_new_term_is_one_entry_of_the_table(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears in the names, the total, the curve and the Parquet rows of a made shard."""
    before = evaluate_terms(inputs(), torch.ones(2, 2)).total(Objective(l2=0.5))
    columns, names = records.SCHEMA.names, reported_names(False)
    Brightness.register(monkeypatch)
    assert reported_names(False) == [*names, "brightness"]
    terms = evaluate_terms(inputs(), torch.ones(2, 2))
    assert list(terms.values)[-1] == "brightness"
    expected = before + 0.5 * inputs().images.mean((1, 2, 3))
    torch.testing.assert_close(terms.total(Objective(l2=0.5)), expected)

    params = changed(tiny, {"synthesis.images": 6, "synthesis.objective.l2": 0.5})
    make(params)
    config, teacher = load(params)
    weights = config.objective
    metadata = dataset(params) / "metadata"
    table = pq.read_table(metadata / "000000.parquet")
    place = columns.index(f"loss_{TERMS[-1].name}") + 1
    assert table.schema.names == [*columns[:place], "loss_brightness", *columns[place:]]
    rows = table.to_pylist()
    ((pixels, _),) = ordered_batches([dataset(params) / "train" / "000000.tar"], 6)
    means = teacher.space().pixels.normalise(pixels).mean((1, 2, 3))
    assert [row["loss_brightness"] for row in rows] == pytest.approx(means.tolist(), abs=1e-5)
    for row in rows:
        others = (
            weights.classification * row["loss_classification"]
            + weights.tv * row["loss_tv"]
            + 0.5 * row["loss_l2"]
            + weights.feature * row["loss_feature"]
        )
        total = pytest.approx(others + 0.5 * row["loss_brightness"], rel=1e-5)
        assert row["loss_total"] == total and row["loss_total"] != pytest.approx(others, rel=1e-5)
    curve = json.loads((metadata / "000000.json").read_bytes())["curve"]
    assert curve[-1]["brightness"] == pytest.approx(means.mean().item(), abs=1e-5)
    assert all("brightness" in point for point in curve)


def test_a_new_term_changes_the_gradient(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    _, teacher = load(tiny)
    batch = random(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.ones(3, 2)
    with Engine(teacher, Objective(l2=6.0)) as engine:
        plain, _ = engine.step(*batch)
        plain = plain.clone()
        Brightness.register(monkeypatch)
        gradient, means = engine.step(*batch)
        assert len(means) == len(engine.names)
    # Of the mean over 3 images of the mean over 64 pixels, with the weight 6.
    torch.testing.assert_close(
        gradient - plain, torch.full_like(plain, 6 / 3 / 64), atol=1e-6, rtol=0
    )


def test_a_new_term_may_be_compiled(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table leaves the objective one graph: a graph break would cost time in every step."""
    Brightness.register(monkeypatch)
    _, teacher = load(tiny)
    student = copy.deepcopy(teacher.network)
    for rival in (None, student):
        with Engine(teacher, Objective(l2=0.5, masked=True), student=rival) as engine:
            batch = random(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.ones(3, 2)
            torch._dynamo.reset()
            found = torch._dynamo.explain(engine._total)(*batch)
        assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_a_term_whose_weight_is_not_declared_is_an_error() -> None:
    for field in ({"weight": "brightness"}, {"spread": "brightness"}):
        with pytest.raises(TypeError, match="no field 'brightness': declare it in"):
            replace(Brightness.TERM, **field)


def test_the_columns_and_their_order() -> None:
    """Readers of published datasets rely on them."""
    names = records.SCHEMA.names
    first = names.index("factor_classification")
    assert names[first : names.index("loss_compete") + 1] == [
        "factor_classification",
        "factor_tv",
        "loss_total",
        "loss_classification",
        "loss_tv",
        "loss_l2",
        "loss_feature",
        "loss_compete",
    ]
    assert {name for name in records.NULLABLE if name.startswith("loss")} == {"loss_compete"}


def test_a_term_of_the_whole_batch_is_repeated_for_each_image() -> None:
    terms = evaluate_terms(inputs(), torch.ones(2, 2))
    assert [terms[term.name].shape == (2,) for term in TERMS] == [t.per_image for t in TERMS]
    expanded = terms.expanded()
    assert expanded["feature"].tolist() == [terms["feature"].item()] * 2
    assert torch.equal(expanded.total(Objective()), terms.total(Objective()))


def test_total_is_the_weighted_sum() -> None:
    values = {
        "classification": torch.tensor([1.0, 2.0]),
        "tv": torch.tensor([3.0, 4.0]),
        "l2": torch.tensor([5.0, 6.0]),
        "feature": torch.tensor(7.0),
        "compete": torch.tensor([0.5, 0.25]),
    }
    terms = Terms(values, torch.ones(2, 2))
    weights = Objective(classification=2, tv=3, l2=5, feature=7, compete=11)
    expected = [2 + 9 + 25 + 49 + 5.5, 4 + 12 + 30 + 49 + 2.75]
    assert terms.total(weights).tolist() == pytest.approx(expected)
    own = replace(terms, factors=torch.tensor([[10.0, 1.0], [1.0, 100.0]]))
    own_expected = [20 + 9 + 25 + 49 + 5.5, 4 + 1200 + 30 + 49 + 2.75]
    assert own.total(weights).tolist() == pytest.approx(own_expected)
    del values["compete"]
    assert terms.total(weights).tolist() == pytest.approx([85, 95])


def test_factors_are_drawn_within_their_spread() -> None:
    objective = Objective(classification_spread=1.5, tv_spread=0.5)
    factors = draw_factors(objective, 2000, torch.Generator().manual_seed(0))
    assert factors.shape == (2000, 2)
    for column, spread in zip(factors.log().unbind(1), (1.5, 0.5), strict=True):
        assert column.abs().max() <= spread
        assert column.std().item() == pytest.approx(spread / 3**0.5, rel=0.05)
        assert column.mean().item() == pytest.approx(0, abs=0.1 * spread)
    none = draw_factors(Objective(), 5, torch.Generator())
    assert torch.equal(none, torch.ones(5, 2))


@pytest.mark.parametrize("name", ["classification", "tv", "l2", "feature", "compete"])
def test_each_weight_reaches_its_own_term_only(name: str) -> None:
    off = Objective(classification=0, tv=0, l2=0, feature=0, compete=0)
    terms = evaluate_terms(inputs(objective=off), torch.ones(2, 2))
    value = terms[name]
    changes: dict[str, Any] = {name: 2.0}
    total = terms.total(replace(off, **changes))
    assert total.tolist() == pytest.approx((2 * value).expand(2).tolist())


def test_terms_without_student_or_batchnorm() -> None:
    terms = evaluate_terms(inputs(layers=[], student_logits=None), torch.ones(2, 2))
    assert "compete" not in terms
    assert terms["feature"].item() == 0


@pytest.mark.parametrize("form", ["published", "normalised"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_gradients_of_a_constant_image_are_finite(form: FeatureForm, value: float) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    images = torch.full((2, 1, 6, 6), value, requires_grad=True)
    with FeatureStatistics(network) as statistics:
        logits = network(images)
        seen = statistics.collect()
    batch = TermInputs(
        images, torch.tensor([0, 1]), logits, seen, logits.detach(), Objective(feature_form=form)
    )
    terms = evaluate_terms(batch, torch.ones(2, 2))
    terms.total(Objective(tv=1, l2=1, compete=1)).mean().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
