"""How many images of one batch the memory of a device holds, as far as an engine has found out."""

from __future__ import annotations


class Capacity:
    """The batch sizes that were found to fit into the memory, and those that were not.

    A size that did not fit is not tried again, nor is a larger one.

    Example:
        >>> capacity = Capacity()
        >>> capacity.record_failure(256)
        >>> capacity.may_hold(256), capacity.may_hold(128)
        (False, True)
    """

    def __init__(self) -> None:
        self._held = 0
        self._too_large: int | None = None

    @property
    def too_large(self) -> int | None:
        """The smallest number of images that did not fit, or None if all did."""
        return self._too_large

    def may_hold(self, images: int) -> bool:
        """Whether a batch of ``images`` is worth a try: no batch of this size or less failed."""
        return self._too_large is None or images < self._too_large

    def record_success(self, images: int) -> None:
        """A batch of ``images`` fitted."""
        self._held = max(self._held, images)

    def record_failure(self, images: int) -> None:
        """A batch of ``images`` did not fit.

        Raises:
            RuntimeError: A batch of this size fitted earlier. So something else occupies the memory
                now, and the failure says nothing about the device. It must not decide how a batch
                is divided, because that changes the images. Another process may take the job.
        """
        if images <= self._held:
            raise RuntimeError(
                f"the memory held {self._held} images at once before but does not hold {images} "
                "now: something else occupies it"
            )
        self._too_large = images
