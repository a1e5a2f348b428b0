"""Rows of a table of calibrations: measured one at a time, kept in a file, printed together."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.tools import TOOLS, Bits, Classes
from pipeline.consumers.images import CalibrationImages
from pipeline.errors import first_line
from pipeline.storage import write_json
from pipeline.teachers.teacher import Teacher

Sources = Mapping[str, Callable[[int], CalibrationImages]]
"""The images of each source by the seed of the subset: ``real``, ``synthetic`` and ``noise``."""


def noise(like: CalibrationImages, seed: int) -> CalibrationImages:
    """As many images of uniform pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, like.pixels.shape, np.uint8)
    return dataclasses.replace(like, pixels=pixels)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is measured.

    Attributes:
        teacher: the network.
        out: a folder for the models and for ``rows.json``. A second call continues from it.
        sources: where the images of the calibration come from.
        tested: real images on which the quantised networks are compared.
        expected: the class of each of them: its label, or the float network's answer.
    """

    teacher: Teacher
    out: Path
    sources: Sources
    tested: CalibrationImages
    expected: Classes

    def measure(self, tools: Sequence[str], widths: Sequence[Bits], seeds: Sequence[int]) -> None:
        """Measure the rows that ``rows.json`` lacks, and write each at once."""
        self.out.mkdir(parents=True, exist_ok=True)
        for key, tool, bits, source, seed in self._rows(tools, widths, seeds):
            if isinstance(self.known().get(key), float):
                continue
            began = time.monotonic()
            try:
                images = self.sources[source](seed)
                classes = TOOLS[tool](self.teacher, self.out, images, bits)(self.tested)
                row: Any = round(100 * float((classes == self.expected).mean()), 2)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                row = first_line(error)
            sys.stderr.write(f"{key}: {row} ({time.monotonic() - began:.0f} s)\n")
            write_json(self.out / "rows.json", {**self.known(), key: row})

    def known(self) -> dict[str, Any]:
        """All rows that were measured, by tool, bits, source, seed and number of images."""
        path = self.out / "rows.json"
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def table(
        self, tools: Sequence[str], widths: Sequence[Bits], seeds: Sequence[int]
    ) -> Iterator[str]:
        """The means over the seeds, with the lowest and the highest, in Markdown."""
        known = self.known()
        yield f"| tool | bits | {' | '.join(self.sources)} | synthetic - real | noise - real |"
        yield f"|---|---|{'---|' * (len(self.sources) + 2)}"
        for tool in tools:
            for bits in widths:
                found = {
                    source: [
                        known[key]
                        for key, *_ in self._rows([tool], [bits], seeds, [source])
                        if isinstance(known.get(key), float)
                    ]
                    for source in self.sources
                }
                cells = [cell(values) for values in found.values()]
                gaps = [gap(found[source], found["real"]) for source in ("synthetic", "noise")]
                yield f"| {tool} | {_name(bits)} | {' | '.join(cells + gaps)} |"

    def _rows(
        self,
        tools: Sequence[str],
        widths: Sequence[Bits],
        seeds: Sequence[int],
        sources: Sequence[str] | None = None,
    ) -> Iterator[tuple[str, str, Bits, str, int]]:
        for seed in seeds:
            for tool in tools:
                for bits in widths:
                    for source in sources or self.sources:
                        tested = len(self.tested.pixels)
                        yield (
                            f"{tool} {_name(bits)} {source} {seed} {tested}",
                            tool,
                            bits,
                            source,
                            seed,
                        )


def parse_bits(text: str) -> Bits:
    """``W8A4`` as ``(8, 4)``."""
    weights, _, activations = text.removeprefix("W").partition("A")
    return int(weights), int(activations)


def _name(bits: Bits) -> str:
    return f"W{bits[0]}A{bits[1]}"


def cell(values: Sequence[float]) -> str:
    """The mean of the seeds, with the lowest and the highest."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"


def gap(values: Sequence[float], real: Sequence[float]) -> str:
    """The difference of the means."""
    if not values or not real:
        return "-"
    return f"{sum(values) / len(values) - sum(real) / len(real):+.2f}"
