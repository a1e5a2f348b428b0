"""Procedural pictures: random textures and shapes from formulas, without any network or data.

A picture has edges, regions, textures and colours as photographs have, and costs almost nothing.
Students learn from new pictures in every step, next to the dataset. Inversions can start from such
pictures. Pictures that are only selected by the teacher's answers are the baseline that inverted
images have to beat. The ideas:

- Dead leaves, random shapes that occlude each other, with a power law of sizes: Lee, Mumford and
  Huang, "Occlusion Models for Natural Images", IJCV 2001.
- Networks learn from such pictures: Baradad et al., "Learning to See by Looking at Noise", NeurIPS
  2021.
- Students learn from them if the teacher selects: Frank and Davis, "What Makes a Good Dataset for
  Knowledge Distillation?", CVPR 2025, arXiv 2411.12817.

``docs/procedural.png`` shows some (``python -m benchmarks.students.procedural``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.teachers.preprocessing import NATURAL_DEVIATION, NATURAL_MEAN

CHUNK = 2**18  # pixels that are computed at once: their tensors fit into the cache of a processor
WAVES, LEAVES, STOPS = 5, 24, 4
Shape = tuple[int, int, int]


def procedural_pictures(
    count: int,
    shape: Shape,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw random pictures of textures and shapes.

    A picture is ``m a + (1 - m) b`` with two layers ``a`` and ``b`` and a mask ``m``. A layer is a
    field in random colours (:func:`sine_field`, :func:`power_law_field`) or :func:`dead_leaves`.
    A mask is 1 everywhere, a field above a threshold, or the inside of one :func:`blob`. A fifth of
    the pictures is mirrored about the middle. Brightness and contrast are random.

    Args:
        count: The number of pictures, B.
        shape: Channels, height and width of a picture.
        generator: The source of the random draws, on the CPU.
        device: Where the pictures are computed. The draws are made on the CPU.

    Returns:
        Pictures, float32 ``[B, C, H, W]``, on ``device``, as ``(pixel / 255 - 0.45) / 0.25``. They
        lie in the range of pixels.

    Example::

        procedural_pictures(8, (3, 32, 32), torch.Generator().manual_seed(0))
    """
    most = max(1, CHUNK // (shape[1] * shape[2]))
    sizes = [min(most, count - start) for start in range(0, count, most)]
    draws = Draws(generator, torch.device(device))
    parts = [_pictures(size, shape, draws) for size in sizes]
    pixels = torch.cat(parts) if parts else torch.zeros(0, *shape, device=device)
    return (pixels - NATURAL_MEAN) / NATURAL_DEVIATION


def procedural_pixels(count: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Draw pictures as :func:`procedural_pictures` does, as pixels: uint8 ``[B, C, H, W]``."""
    pictures = procedural_pictures(count, shape, generator)
    shares = NATURAL_DEVIATION * pictures + NATURAL_MEAN
    return (255 * shares).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class Draws:
    """Random draws: made on the CPU by ``generator``, returned on ``device``."""

    generator: torch.Generator
    device: torch.device

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Numbers uniform in ``[low, high)``."""
        return low + (high - low) * torch.rand(*size, generator=self.generator).to(self.device)

    def log_uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Numbers in ``[low, high)`` whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(max(low, high)), *size).exp()

    def normal(self, *size: int) -> Tensor:
        """Normal numbers of mean 0 and variance 1."""
        return torch.randn(*size, generator=self.generator).to(self.device)

    def chance(self, share: float, *size: int) -> Tensor:
        """Whether something happens, with the probability ``share``: bool."""
        return (torch.rand(*size, generator=self.generator) < share).to(self.device)

    def by_kind(
        self, count: int, shape: Shape, kinds: tuple[Callable[[int, Shape, Draws], Tensor], ...]
    ) -> Tensor:
        """Draw each of ``count`` pictures or fields by a random one of ``kinds``, ``[B, ...]``."""
        kind = torch.randint(len(kinds), (count,), generator=self.generator)
        rows = [(kind == number).nonzero()[:, 0] for number in range(len(kinds))]
        made = [
            draw(len(of_kind), shape, self)
            for draw, of_kind in zip(kinds, rows, strict=True)
            if len(of_kind)
        ]
        return torch.cat(made)[torch.cat(rows).argsort().to(self.device)]


def _pictures(count: int, shape: Shape, draws: Draws) -> Tensor:
    """Pictures with values from 0 to 1, ``[B, C, H, W]``."""
    back, front = (draws.by_kind(count, shape, LAYERS) for _ in range(2))
    mask = draws.by_kind(count, shape, MASKS)[:, None]
    pictures = back + mask * (front - back)
    half = pictures[..., : (shape[2] + 1) // 2]
    mirrored = torch.cat([half, half[..., : shape[2] // 2].flip(-1)], -1)
    pictures = torch.where(draws.chance(0.2, count, 1, 1, 1), mirrored, pictures)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    deviation = (pictures - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
    contrast = draws.uniform(0.08, 0.36, count, 1, 1, 1)
    brightness = draws.uniform(0.2, 0.8, count, 1, 1, 1)
    return (brightness + contrast * (pictures - mean) / (deviation + 0.02)).clamp(0, 1)


def grid_of(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """The coordinates ``y``, ``[H, 1]``, and ``x``, ``[1, W]``: the longer side is -1 to 1."""
    longest = max(shape[1:])
    y, x = ((2 * torch.arange(side, device=device) + 1 - side) / longest for side in shape[1:])
    return y[:, None], x[None, :]


def sine_field(count: int, shape: Shape, draws: Draws) -> Tensor:
    """Sums of waves, warped by other waves: ``s = sum_k a_k sin(2 pi f_k d_k + phi_k)``.

    ``d_k`` is the distance along a random direction, or from a random point, for rings. It is
    taken at ``x + w sin(2 pi g x' + psi)``: the warp makes straight waves bend.

    Returns:
        Fields ``[B, H, W]`` from 0 to 1.
    """
    y, x = grid_of(shape, draws.device)
    size = (count, 1, 1)
    warp, slow = draws.uniform(0, 0.25, *size), draws.log_uniform(0.2, 1.5, 2, *size)
    phase = draws.uniform(0, 2 * math.pi, 2, *size)
    bent_x = x + warp * (2 * math.pi * slow[0] * y + phase[0]).sin()
    bent_y = y + warp * (2 * math.pi * slow[1] * x + phase[1]).sin()
    base = draws.log_uniform(0.3, max(shape[1:]) / 8, *size)  # waves over half of the longer side
    field = torch.zeros(count, *shape[1:], device=draws.device)
    for _ in range(WAVES):
        frequency = base * (0.6 * draws.normal(*size)).exp()
        angle, centre = draws.uniform(0, 2 * math.pi, *size), draws.uniform(-1, 1, 2, *size)
        straight = bent_x * angle.cos() + bent_y * angle.sin()
        round_ = ((bent_x - centre[0]).square() + (bent_y - centre[1]).square()).sqrt()
        distance = torch.where(draws.chance(0.3, *size), round_, straight)
        field += draws.normal(*size) * (2 * math.pi * frequency * distance + 6.3 * angle).sin()
    return _to_unit(field)


def power_law_field(count: int, shape: Shape, draws: Draws) -> Tensor:
    """Textures whose spectrum falls as ``1 / f^a``, with ``a`` from 0.6 to 2.6.

    White noise is filtered by ``|A f|^-a``. The random matrix ``A`` stretches the plane of
    frequencies, so that a texture may have a direction, as wood has.

    Returns:
        Fields ``[B, H, W]`` from 0 to 1.
    """
    height, width = shape[1:]
    v = torch.fft.fftfreq(height, device=draws.device)[:, None]
    u = torch.fft.rfftfreq(width, device=draws.device)[None, :]
    angle, stretch = draws.uniform(0, math.pi, count, 1, 1), draws.log_uniform(1, 6, count, 1, 1)
    along, across = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
    frequency = (along.square() + (stretch * across).square()).sqrt()
    power = draws.uniform(0.6, 2.6, count, 1, 1)
    gain = torch.where(frequency > 0, frequency.clamp(min=1e-3) ** -power, 0.0)
    spectrum = torch.fft.rfft2(draws.normal(count, height, width)) * gain
    return _to_unit(torch.fft.irfft2(spectrum, s=(height, width)))


def dead_leaves(count: int, shape: Shape, draws: Draws) -> Tensor:
    """Random shapes that fall on a texture and occlude each other, ``[B, C, H, W]`` from 0 to 1.

    The shapes are ellipses, parallelograms and triangles. Their sizes ``r`` follow a power law: the
    number of shapes of size ``r`` is proportional to ``r^-3`` between a smallest and a largest
    size. With ``q`` uniform in [0, 1], ``r = (q r_0^-2 + (1 - q) r_1^-2)^(-1/2)``.
    """
    longest = max(shape[1:])
    y, x = grid_of(shape, draws.device)
    pictures = draws.by_kind(count, shape, TEXTURES)
    least = draws.log_uniform(min(0.4, 3 / longest), 0.5, count, 1, 1)
    colours = _colours(count, LEAVES, shape[0], draws)
    for leaf in range(LEAVES):
        share = draws.uniform(0, 1, count, 1, 1)
        size = (share * least**-2 + (1 - share) * 0.9**-2) ** -0.5
        aspect = draws.log_uniform(0.4, 1, count, 1, 1)
        angle = draws.uniform(0, 2 * math.pi, count, 1, 1)
        cos, sin = angle.cos() / size, angle.sin() / size
        centre = draws.uniform(-1, 1, 2, count, 1, 1)
        along = (x - centre[0]) * cos + (y - centre[1]) * sin
        across = ((y - centre[1]) * cos - (x - centre[0]) * sin) / aspect
        leaned = along + draws.uniform(-0.6, 0.6, count, 1, 1) * across
        kind = draws.uniform(0, 1, count, 1, 1)
        ellipse = (along.square() + across.square()).sqrt()
        box = torch.maximum(leaned.abs(), across.abs())
        triangle = torch.maximum(-2 * across, 1.73 * leaned.abs() + across)
        distance = torch.where(kind < 0.5, ellipse, torch.where(kind < 0.8, box, triangle))
        # The edge is one pixel wide: ``size * longest / 2`` pixels are a distance of 1.
        inside = ((1 - distance) * (size * aspect * longest / 2) + 0.5).clamp(0, 1)
        pictures += inside[:, None] * (colours[:, leaf, :, None, None] - pictures)
    return pictures


def blob(count: int, shape: Shape, draws: Draws) -> Tensor:
    """The inside of one smooth outline near the middle, ``[B, H, W]`` from 0 to 1.

    A point at the distance ``d`` and the angle ``t`` from the centre is inside if
    ``d < r (1 + sum_k a_k cos(k t + phi_k))``, ``k`` from 1 to 5.
    """
    y, x = grid_of(shape, draws.device)
    centre = draws.uniform(-0.3, 0.3, 2, count, 1, 1)
    aspect = draws.log_uniform(0.5, 2, count, 1, 1)
    down, right = (y - centre[0]) * aspect, x - centre[1]
    angle = torch.atan2(down, right)
    radius = torch.ones_like(angle)
    wild = draws.uniform(0, 0.4, count, 1, 1)
    for k in range(1, 6):
        phase = draws.uniform(0, 2 * math.pi, count, 1, 1)
        radius += wild * draws.normal(count, 1, 1) / k * (k * angle + phase).cos()
    radius *= draws.uniform(0.3, 0.8, count, 1, 1)
    distance = (down.square() + right.square()).sqrt()
    return ((radius - distance) * max(shape[1:]) / 2 + 0.5).clamp(0, 1)


def _everywhere(count: int, shape: Shape, draws: Draws) -> Tensor:
    return torch.ones(count, *shape[1:], device=draws.device)


def _threshold(count: int, shape: Shape, draws: Draws) -> Tensor:
    """A field above a threshold, or near it (a line), with a sharp or a soft edge."""
    field = draws.by_kind(count, shape, FIELDS)
    height = field - draws.uniform(0.3, 0.7, count, 1, 1)
    line = draws.uniform(0.03, 0.12, count, 1, 1) - height.abs()
    height = torch.where(draws.chance(0.3, count, 1, 1), line, height)
    return (height * draws.log_uniform(3, 40, count, 1, 1) + 0.5).clamp(0, 1)


def _texture(field: Callable[[int, Shape, Draws], Tensor]) -> Callable[[int, Shape, Draws], Tensor]:
    """The fields of ``field`` in random colours, ``[B, C, H, W]`` from 0 to 1.

    The values from 0 to 1 run along a polygon of random colours. A quarter of the fields is rounded
    to its corners first, for flat regions with sharp borders.
    """

    def draw(count: int, shape: Shape, draws: Draws) -> Tensor:
        place = field(count, shape, draws)[:, None] * (STOPS - 1)
        place = torch.where(draws.chance(0.25, count, 1, 1, 1), place.round(), place)
        colours = _colours(count, STOPS, shape[0], draws)
        painted = torch.zeros(count, *shape, device=draws.device)
        for stop in range(STOPS):
            weight = (1 - (place - stop).abs()).clamp(min=0)
            painted += weight * colours[:, stop, :, None, None]
        return painted

    return draw


def _colours(count: int, number: int, channels: int, draws: Draws) -> Tensor:
    """Random colours, ``[B, number, C]``, in each picture more or less colourful and alike."""
    grey = draws.uniform(0, 1, count, number, 1)
    colour = draws.uniform(0, 1, count, number, channels)
    tint = draws.uniform(0, 1, count, 1, channels)
    colourful, tinted = draws.uniform(0, 1, 2, count, 1, 1).square()
    mixed: Tensor = grey + colourful * (colour - grey)
    mixed += 0.5 * tinted * (tint - mixed)
    return mixed


def _to_unit(field: Tensor) -> Tensor:
    """The fields, shifted and scaled to values from 0 to 1."""
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low).clamp(min=1e-6)


FIELDS = (sine_field, power_law_field)
TEXTURES = tuple(_texture(field) for field in FIELDS)
LAYERS = (*TEXTURES, dead_leaves)
MASKS = (_everywhere, _threshold, blob)
