"""The table of all teacher sources: a new source needs one entry here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.teachers.factory import Factory
from pipeline.teachers.huggingface import HuggingFace
from pipeline.teachers.in_memory import SCHEME, InMemory
from pipeline.teachers.onnx import Onnx
from pipeline.teachers.source import Source
from pipeline.teachers.timm import Timm
from pipeline.teachers.torchhub import TorchHub
from pipeline.teachers.torchvision import Torchvision

SOURCES: Mapping[str, Source] = {
    "torchvision": Torchvision(),
    "timm": Timm(),
    "hf": HuggingFace(),
    "hub": TorchHub(),
    "onnx": Onnx(),
    SCHEME: InMemory(),
}
FACTORY = Factory()  # a source without a scheme of the table


def find_source(text: str) -> tuple[Source, str]:
    """``timm:resnet18`` as the source timm and ``resnet18``; other texts name a factory."""
    scheme, colon, name = text.partition(":")
    if colon and scheme in SOURCES:
        return SOURCES[scheme], name
    return FACTORY, text


def scheme_of(text: str) -> str:
    """``timm`` for ``timm:resnet18``; empty where the text names a factory."""
    scheme, colon, _ = text.partition(":")
    return scheme if colon and scheme in SOURCES else ""


def source_forms() -> str:
    """All forms of a source, for an error message."""
    *forms, last = [f"`{source.form}`" for source in SOURCES.values() if source.form]
    return f"`module:factory`, `path/to/file.py:factory`, {', '.join(forms)} or {last}"
