"""The source ``hub:OWNER/REPO:ENTRY``: models of a repository or folder with a ``hubconf.py``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.teachers.source import Source
from pipeline.teachers.user_code import user_code


class TorchHub(Source):
    """``OWNER/REPO[:REF]:ENTRY`` is on GitHub, ``FOLDER:ENTRY`` a local folder.

    The entry's code runs because the user named it, and sets the weights itself.
    """

    form = "hub:OWNER/REPO:ENTRY"

    def build(self, name: str, arguments: Mapping[str, Any], weights: str | None, role: str) -> Any:
        repository, _, entry = name.rpartition(":")
        if not repository or not entry:
            raise UserError(f"{role}.source is 'hub:{name}': write {self.form}")
        local = Path(repository).is_dir()
        if not local and (repository.startswith(("/", ".")) or repository.count("/") != 1):
            raise UserError(f"{role}.source: there is no folder {repository} with a hubconf.py")
        with user_code(f"hub:{name}", role, "loaded"):
            return torch.hub.load(
                repository,
                entry,
                source="local" if local else "github",
                trust_repo=True,
                skip_validation=True,
                verbose=False,
                **arguments,
            )

    def code_file(self, name: str, role: str) -> Path | None:
        """The ``hubconf.py``, if it is on this machine."""
        repository = name.rpartition(":")[0]
        if Path(repository).is_dir():
            return Path(repository) / "hubconf.py"
        project, _, reference = repository.partition(":")
        folder = f"{project.replace('/', '_')}_{reference.replace('/', '_') or '*'}"
        return next(iter(sorted(Path(torch.hub.get_dir()).glob(f"{folder}/hubconf.py"))), None)

    def public(self, name: str) -> str:
        repository, _, entry = name.rpartition(":")
        if Path(repository).is_dir():
            return f"{Path(repository).resolve().name}:{entry}"
        return super().public(name)
