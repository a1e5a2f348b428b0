"""Check that a network gives logits, and is a fixed, differentiable function of one image.

Losses, answers in the rows and the verification all assume it: the same image must get the same
logits alone, among other images and after other images.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.device.seeding import seed_all
from pipeline.errors import UserError
from pipeline.teachers.user_code import taking_images

# Largest differences of logits, as a share of the largest logit. A batch of another size may use
# another kernel, whose sums round differently; the same batch uses the same.
SAME_BATCH, OTHER_BATCH = 1e-5, 1e-3
_IN_PLACE = re.compile("in-place|inplace")
_COUNT = 2  # images whose logits are compared
_REPEATS = 3  # further answers, since weak chance does not change each one


def check_weights_exist(network: nn.Module, role: str) -> None:
    """Check that all weights of a network have values, and are real numbers.

    Raises:
        UserError: A tensor is on the meta device, or a parameter is complex.
    """
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.device.type == "meta":
            raise UserError(
                f"{role}.source returns a network on the meta device, where {name} has no value: "
                "build it on the CPU"
            )
        if tensor.is_complex() and isinstance(tensor, nn.Parameter):
            raise UserError(f"the {role}'s weight {name} is complex: only real weights are taken")


def check_classes(
    network: nn.Module, shape: tuple[int, int, int], classes: int, role: str = "teacher"
) -> None:
    """Check that a blank image gives finite logits ``[B, classes]``.

    Args:
        network: The network, on the CPU.
        shape: Channels, height and width of an image.
        classes: The expected number of logits.
        role: The network that error messages name.

    Raises:
        UserError: The network refuses the image, or its output is something else.
    """
    with taking_images(network, shape, role), torch.no_grad():
        logits = network(torch.zeros(2, *shape))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = f"{logits.ndim} dimensions" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the {role} must return logits [batch, classes], but returns {kind}: wrap the network "
            "in its factory"
        )
    if logits.shape[1] != classes:
        raise UserError(
            f"teacher.classes is {classes}, but the {role} returns {logits.shape[1]} logits: "
            f"correct teacher.classes, or set {role}.arguments so that the network has {classes} "
            "outputs (num_classes for torchvision and timm, num_labels for Hugging Face)"
        )
    if not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise UserError(f"the {role} must return logits of floating point, but returns {kind}")
    if not torch.isfinite(logits).all():
        raise UserError(f"the {role} answers a blank image with NaN or infinite logits")
    if classes > 1 and logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-5:
        raise UserError(
            f"the {role} returns probabilities, but logits are needed: remove its softmax"
        )


def check_fixed_function(
    network: nn.Module,
    shape: tuple[int, int, int],
    normalise: Callable[[Tensor], Tensor],
    role: str,
) -> None:
    """Check that the logits of an image depend on nothing but the image.

    It asks for random images twice, alone, among others and after others: eight forward passes of
    two to four images.

    Args:
        network: The network in eval mode, on the CPU. It has passed
            :func:`check_classes`.
        shape: Channels, height and width of an image.
        normalise: From uint8 pixels to the network's input.
        role: The network that error messages name.

    Raises:
        UserError: The logits differ, or have no gradient with respect to the image.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * _COUNT, *shape), generator=generator, dtype=torch.uint8)
    inputs = normalise(pixels)
    images, others = inputs[:_COUNT], inputs[_COUNT:]
    _check_gradient(network, images, role)  # first: later passes free what a network kept of it
    with torch.no_grad():
        logits = network(images)
        if not bool(torch.isfinite(logits).all()):
            raise UserError(f"the {role} answers random images with NaN or infinite logits")
        if _differ(network(images), logits, SAME_BATCH):
            raise UserError(f"the {role} is not a fixed function: {_unsteady(network, images)}")
        try:
            alone = network(images[:1])
        except Exception as error:
            raise UserError(
                f"the {role} cannot take a single image, so its logits depend on the whole batch: "
                f"{_batch_layers(network)} ({str(error).strip().partition(chr(10))[0]})"
            ) from error
        mixed = network(torch.cat([others, images]))
        # A student may begin so, where its last layer is initialised with zeros.
        if not role.startswith("student") and _are_equal(mixed) and _are_equal(alone, logits):
            raise UserError(
                f"the {role} gives every image the same logits: name trained weights, and check "
                "its forward pass"
            )
        if (
            _differ(alone, logits[:1], OTHER_BATCH)
            or mixed.shape[0] != 2 * _COUNT
            or _differ(mixed[_COUNT:], logits, OTHER_BATCH)
        ):
            if any(_differ(network(images), logits, SAME_BATCH) for _ in range(_REPEATS)):
                raise UserError(f"the {role} is not a fixed function: {_unsteady(network, images)}")
            raise UserError(
                f"the {role} is not a function of one image: it gives an image other logits alone "
                f"than among other images. {_batch_layers(network)}"
            )
        if any(_differ(network(images), logits, SAME_BATCH) for _ in range(_REPEATS)):
            raise UserError(
                f"the {role} is not a fixed function: it gives an image other logits after other "
                "images, or by chance. Remove what its forward pass remembers from call to call, "
                "and random numbers"
            )


def _check_gradient(network: nn.Module, images: Tensor, role: str) -> None:
    given, images = images, images.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            total = network(images).sum()
            gradient = torch.autograd.grad(total, images, allow_unused=True)[0]
    except RuntimeError as error:
        if _IN_PLACE.search(str(error)):
            raise UserError(
                f"the {role}'s forward pass changes a tensor in place that its gradient needs "
                f"({str(error).strip().partition(chr(10))[0]}): replace the in-place operation, "
                "as x.mul_(0.5) by x * 0.5"
            ) from error
        raise UserError(
            f"the {role}'s logits have no gradient with respect to the image "
            f"({str(error).strip().partition(chr(10))[0]}): remove torch.no_grad(), detach() and "
            "rounding from its forward pass"
        ) from error
    if gradient is None:
        raise UserError(f"the {role}'s logits do not depend on the image")
    if not torch.equal(images.detach(), given):
        raise UserError(
            f"the {role}'s forward pass changes its input in place: replace the in-place "
            "operation, as x.mul_(0.5) by x * 0.5"
        )


def _are_equal(*logits: Tensor) -> bool:
    """Whether all images got exactly the same logits, with more than one class."""
    rows = torch.cat(logits)
    return rows.shape[1] > 1 and bool((rows == rows[0]).all())


def _differ(left: Tensor, right: Tensor, tolerance: float) -> bool:
    if left.shape != right.shape:
        return True
    size = right.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return not bool((left - right).abs().max() <= tolerance * size)


def _unsteady(network: nn.Module, images: Tensor) -> str:
    """Why the same batch got other logits: chance or memory. It seeds the random generators."""
    answers = []
    for _ in range(2):
        seed_all(0)
        answers.append(network(images))
    if _differ(answers[0], answers[1], SAME_BATCH):
        return (
            "the same images get other logits each time, because its forward pass changes the "
            "network. Remove what it remembers from call to call"
        )
    names = [
        name
        for name, module in network.named_modules()
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd)
    ]
    where = f" (training mode: {names[0]})" if names else ""
    return (
        f"the same images get other logits each time, because it draws random numbers{where}. "
        "Dropout must end in eval mode, as F.dropout(x, p, self.training) does"
    )


def _batch_layers(network: nn.Module) -> str:
    """Name the layers that use the statistics of the batch in eval mode."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            reason = (
                "is in training mode even after eval()"
                if module.training
                else "has no running statistics (track_running_stats=False)"
            )
            return f"Its BatchNorm layer {name} {reason}"
    return (
        "Its forward pass uses statistics of the batch: use those of each image, or running "
        "statistics (F.batch_norm with training=self.training)"
    )
