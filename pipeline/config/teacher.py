"""The section ``teacher``; ``evaluation.verifier`` has the same fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import FilePath, Name, Rate, Section, Side


class InputConfig(Section):
    """The images that a network takes: ``(pixel / 255 - mean) / std``, channel by channel."""

    channels: Annotated[int, Field(ge=1, le=256)]
    """Channels of an image, 1 to 256. Images with 1, 3 or 4 channels are stored as PNG, images
    with another number as ``.npy``."""

    height: Side
    """Height of an image in pixels, 1 to 4096."""

    width: Side
    """Width of an image in pixels, 1 to 4096."""

    mean: tuple[float, ...]
    """Mean of ``pixel / 255``, one value for each channel."""

    std: tuple[Rate, ...]
    """Standard deviation of ``pixel / 255``, one value above 0 for each channel."""

    interpolation: Name | None = None
    """How real images are resized to this size. Only the dataset card reports it; null: unknown."""

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} must have one value for each of {self.channels} channels")
        if max(map(abs, self.mean)) > 3 or max(self.std) > 10:
            raise ValueError(
                "mean and std describe pixels / 255, but these values look like values for pixels "
                "of 0 to 255: divide both by 255"
            )
        return self


class TeacherConfig(Section):
    """The trained network to invert."""

    source: Name
    """Where the architecture comes from: ``module:factory``, ``path/to/file.py:factory``, or a
    library and the name of its model, such as ``torchvision:NAME``, ``timm:NAME``, ``hf:ORG/NAME``
    or ``hub:OWNER/REPO:ENTRY``; or ``onnx:FILE``, which holds the weights too."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory or of the library's model. The default is none."""

    weights: FilePath | None
    """The trained weights: a ``.safetensors``, ``.pt`` or ``.pth`` file with a state dict;
    ``pretrained`` for the weights that the library publishes; null to keep the weights that the
    factory itself sets."""

    weights_key: Name | None = None
    """Which state dict of the weights file to take, such as ``state_dict_ema`` or
    ``ema.state_dict``, where the file holds several. Null: the first that fits."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Expected SHA-256 of the weights file, or of the file of ``onnx:FILE``, 64 hexadecimal digits.
    It is checked on the bytes that are then loaded. Null: no check."""

    labels: Literal["class", "none"] = "class"
    """What an image is labelled with: its ``class``, or ``none`` for a network that is no
    classifier, such as a segmenter. Its images follow from its BatchNorm statistics and
    priors alone."""

    classes: Annotated[int, Field(ge=0, le=32767)]
    """Number of classes, 1 to 32767. May be left out where the source or the network knows it, and
    must be with ``labels: none``."""

    class_names: tuple[str, ...] | None = None
    """One name for each class: a list, or the path of a file (JSON, or one name a line). Null: the
    names that the source publishes, if any."""

    license: Name | None = None
    """License of the weights, for the dataset card. Null: the license that the source states."""

    input: InputConfig
    """The images that the teacher takes. May be left out where the source knows it."""

    @property
    def labelled(self) -> bool:
        """Whether the images have labels. Without labels ``classes`` is 0."""
        return self.labels != "none"

    @model_validator(mode="after")
    def _classes_fit_labels(self) -> Self:
        if self.labelled and self.classes < 1:
            raise ValueError("classes is 0: a classifier has 1 or more classes")
        for name in ("classes", "class_names"):
            if not self.labelled and getattr(self, name):
                raise ValueError(f"labels is none, so there are no classes: leave {name} out")
        return self

    @model_validator(mode="after")
    def _one_name_a_class(self) -> Self:
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} names for {self.classes} classes"
            )
        return self

    @model_validator(mode="after")
    def _key_needs_a_file(self) -> Self:
        if self.weights_key is not None and self.weights is None:
            raise ValueError(
                "weights_key is a key of a weights file, but weights is null: name the file, or "
                "set weights_key to null"
            )
        return self
