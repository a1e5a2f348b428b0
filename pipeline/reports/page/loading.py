"""Code for the page that loads the dataset and a student, and the facts of the networks."""

from __future__ import annotations

from typing import Any

from pipeline.dataset.layout import ALL_TARS, CLASS, NPY, PNG
from pipeline.reports.page.run import Run
from pipeline.reports.page.template import show_value

MODES = {1: "torchl", 3: "torchrgb", 4: "torchrgba"}
"""The names under which webdataset decodes a PNG of so many channels."""


def loading_code(run: Run) -> str:
    """Python code that reads the images in batches of 64, without this package where it can."""
    channels = run.parameters.get("teacher.input.channels")
    if "://" in run.place or not channels:
        return _by_dreamshard(run)
    part = PNG if channels in MODES else NPY
    parts = [part, CLASS] if run.labelled else [part]
    names = ", ".join(f'"{name}"' for name in parts)
    decode = f'"{MODES[channels]}", ' if channels in MODES else ""
    values = "float32 from 0 to 1" if channels in MODES else "uint8"
    shape = f"[64, {channels}, {_side(run, 'height')}, {_side(run, 'width')}]"
    turn = "images = images[:, None]" if channels == 1 else "..."  # torchl leaves the channel out
    found = "images, labels" if run.labelled else "(images,)"
    return f"""import glob
import webdataset as wds

tars = sorted(glob.glob({f"{run.place}/{ALL_TARS}"!r}))
data = wds.WebDataset(tars, shardshuffle=8, nodesplitter=wds.split_by_node, empty_check=False)
data = data.shuffle(1000).decode({decode}only=[{names}]).to_tuple({names}).batched(64)
for {found} in wds.WebLoader(data, num_workers=min(4, len(tars)), batch_size=None):
    {turn}  # images, {values}: {shape}"""


def _by_dreamshard(run: Run) -> str:
    return f"""import pipeline as ds

for images, labels in ds.Dataset({run.place!r}).batches(64):
    ...  # images, uint8: [64, channels, height, width]"""


def student_code(run: Run) -> str:
    """Python code that loads the weights of the first student; empty where there is none."""
    name = next((name for name in run.saved.logs if name.startswith("student-")), None)
    if name is None or not run.students:
        return ""
    return f"""from safetensors.torch import load_file

network = ...  # the network that {network(run, "student")} builds
network.load_state_dict(load_file({f"{run.students}/{name}.safetensors"!r}))"""


def network_lines(run: Run) -> list[tuple[str, str]]:
    """The teacher, the student and what both take: pairs of a name and a text."""
    known = ("teacher", "student") if run.labelled else ("teacher",)
    lines = [(part.capitalize(), network(run, part)) for part in known]
    found = [(name, text) for name, text in lines if text]
    values = run.parameters
    if "teacher.input.mean" in values:
        mean, std = (show_value(values[f"teacher.input.{key}"]) for key in ("mean", "std"))
        found.append(("Input", f"(pixel / 255 - mean) / std, mean {mean}, std {std}"))
    return found


def network(run: Run, part: str) -> str:
    """The source of ``teacher`` or ``student`` with its arguments; empty if it is unknown."""
    source: Any = run.parameters.get(f"{part}.source", "")
    prefix = f"{part}.arguments."
    arguments = [
        f"{key.removeprefix(prefix)}={show_value(value)}"
        for key, value in run.parameters.items()
        if key.startswith(prefix)
    ]
    return f"{source}({', '.join(arguments)})" if arguments else str(source)


def _side(run: Run, name: str) -> str:
    return str(run.parameters.get(f"teacher.input.{name}", name))
