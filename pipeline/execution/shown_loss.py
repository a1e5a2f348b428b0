"""The loss that a job shows next to the progress bar."""

from __future__ import annotations

from collections.abc import Callable

_show: Callable[[float], object] | None = None


def show_loss(loss: float) -> None:
    """Show the present loss of the job of this process. Without a progress bar nothing happens."""
    if _show is not None:
        _show(loss)


def show_losses_by(show: Callable[[float], object] | None) -> None:
    """From now on :func:`show_loss` calls ``show`` in this process."""
    global _show
    _show = show
