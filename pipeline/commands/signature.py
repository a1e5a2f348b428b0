"""The commands about signatures: sign, authenticate."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.config.paths import PathsConfig
from pipeline.config.schema import Config
from pipeline.dataset.signature import key_id, new_key, read_private_key, read_public_key
from pipeline.errors import UserError
from pipeline.stages.authenticate import authenticate, sign_dataset
from pipeline.storage import location


def run_sign(config: Config, options: argparse.Namespace) -> int:
    """Sign the dataset with a key from a file, or with a new one."""
    file, root = Path(options.new_key or options.key), location(config.paths.dataset)
    _check_place(config.paths, file, "--new-key" if options.new_key else "--key")
    if options.new_key:
        files, key = sign_dataset(root, lambda: new_key(file))
    else:
        given = read_private_key(file)
        files, key = sign_dataset(root, lambda: given)
    print(f"signed {files} files of {config.paths.dataset} with key {key_id(key.public_key())}")
    if options.new_key:
        print(f"keep {options.new_key} secret, and give {options.new_key}.pub to your readers")
    return 0


def run_authenticate(options: argparse.Namespace) -> int:
    """Print every difference between a dataset and what was signed."""
    key = read_public_key(Path(options.key))
    problems = authenticate(location(options.dataset), key)
    for problem in problems:
        print(problem)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(count if problems else f"every file is as signed by {key_id(key)}")
    return 1 if problems else 0


def _check_place(paths: PathsConfig, file: Path, option: str) -> None:
    """Refuse a private key in a directory that people publish.

    Raises:
        UserError: the file lies in the dataset, the students or the reports.
    """
    resolved = file.resolve()
    for name in ("dataset", "students", "reports"):
        place = location(getattr(paths, name))
        if isinstance(place, Path) and resolved.is_relative_to(place.resolve()):
            raise UserError(
                f"{option} {file} lies in paths.{name} ({place}), which people publish: keep a "
                "private key elsewhere"
            )
