"""What a source read to build a network that came with its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn

from pipeline.errors import UserError
from pipeline.teachers.checkpoints import WeightsFile
from pipeline.teachers.tensor_checks import broken_values

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """The files of such a network, and what to say about them.

    Attributes:
        files: The files that were read, the one that the source names first.
        notes: What the user should know, for the log.
        warnings: What the user should change if possible.
    """

    files: tuple[WeightsFile, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def checked_files(
        self, network: nn.Module, source: str, sha256: str | None, role: str
    ) -> tuple[WeightsFile, ...]:
        """Return the files after a check of their digest and of the network's values.

        Args:
            network: The network that was built from them.
            source: The source, for error messages.
            sha256: The expected digest of the file; None: no check.
            role: The section that error messages name.

        Raises:
            UserError: The digest is another, or there are several files, or a weight is NaN.
        """
        place = f"{role}.source {source}"
        if sha256 is not None and len(self.files) > 1:
            raise UserError(
                f"{role}.sha256 is the digest of one file, but {place} keeps its weights in "
                f"{self.files[1].name}: set {role}.sha256 to null"
            )
        if sha256 is not None and sha256.lower() != self.files[0].sha256:
            raise UserError(
                f"{place} has sha256 {self.files[0].sha256}, {role}.sha256 says {sha256}"
            )
        if broken := broken_values(network):
            raise UserError(f"{place} holds NaN or infinite values (first: {broken[0]})")
        return self.files

    def tell(self, place: str) -> None:
        """Log the notes and warnings, after the words that name the source."""
        for note in self.notes:
            log.info("%s: %s", place, note)
        for warning in self.warnings:
            log.warning("%s: %s", place, warning)
