"""The commands about signatures: sign, authenticate."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.dataset.signature import key_id, new_key, read_private_key, read_public_key
from pipeline.stages.authenticate import authenticate, sign_dataset
from pipeline.storage import location


def run_sign(config: Config, options: argparse.Namespace) -> int:
    """Sign the dataset with a key from a file, or with a new one."""
    key = new_key(Path(options.new_key)) if options.new_key else read_private_key(Path(options.key))
    files = sign_dataset(location(config.paths.dataset), key)
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
