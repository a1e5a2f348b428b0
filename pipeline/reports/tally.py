"""Sums over the records of all shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from pipeline.dataset.records import ShardRecord
from pipeline.reports.pictures import Curve


@dataclass(slots=True)
class RecordTally:
    """Sums over the records of all shards, each weighted by its number of images.

    Records are added one at a time, because all of them may not fit into memory.
    """

    shards: int = 0
    images: int = 0
    stored: int = 0  # bytes of tars and Parquet files
    agreement: float = 0.0
    confidence: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    flaws: Counter[str] = field(default_factory=Counter)
    round_images: Counter[int] = field(default_factory=Counter)
    curves: dict[int, Curve] = field(default_factory=dict)

    def add(self, record: ShardRecord) -> None:
        self.shards += 1
        self.images += record.images
        self.stored += sum(facts["size"] for facts in record.files.values())
        self.agreement += (record.agreement or 0.0) * record.images
        self.confidence += (record.confidence or 0.0) * record.images
        self.counts.update({int(label): count for label, count in record.class_counts.items()})
        self.replaced.update(record.replaced)
        self.flaws.update(record.flaws)
        self.round_images[record.round] += record.images
        names = record.curve[0]
        curve = {name: np.array([point[name] for point in record.curve]) for name in names}
        sums = self.curves.setdefault(record.round, {"iteration": curve["iteration"]})
        for name in curve.keys() - {"iteration"}:
            sums[name] = sums.get(name, 0) + curve[name] * record.images

    def mean_curves(self) -> dict[int, Curve]:
        """Return the mean of each term over the images of a round, sorted by name."""
        return {
            round_: {
                name: values if name == "iteration" else values / self.round_images[round_]
                for name, values in sorted(sums.items())
            }
            for round_, sums in self.curves.items()
        }
