"""The command verify, which can also repair."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.config.schema import Config
from pipeline.dataset.layout import SIGNATURE
from pipeline.dataset.plan import plan_of
from pipeline.dataset.signature import key_id, read_public_key
from pipeline.errors import UserError
from pipeline.execution.runner import open_runner
from pipeline.stages.authenticate import authenticate
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline.storage import exists, location
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def run_verify(config: Config, options: argparse.Namespace) -> int:
    """Print every problem of the dataset; with ``--repair`` also repair and verify again."""
    if not 0 <= options.agreement <= 1:
        raise UserError(f"--agreement is {options.agreement}: write a share from 0 to 1, as 0.9")
    key = read_public_key(Path(options.key)) if options.key else None
    teacher = load_checked_teacher(config)
    verified = functools.partial(_verified, config, teacher, options.agreement, key)
    if verified():
        return 0
    if not options.repair:
        return 1
    with open_runner(config, config.synthesis.threads) as run:
        again = repair(config, teacher, run)
    for name in again:
        print(f"made again: {name}")
    return 0 if verified() else 1


def _verified(
    config: Config, teacher: Teacher, agreement: float, key: Ed25519PublicKey | None
) -> bool:
    root, total = location(config.paths.dataset), len(plan_of(config).labels)
    with tqdm(total=total, desc="verify", unit="img") as bar:
        problems = verify(config, teacher, agreement, bar.update)
    if key is not None:
        problems += [text for text in authenticate(root, key) if text not in problems]
    for problem in problems:
        print(problem)
    if problems:
        print("1 problem" if len(problems) == 1 else f"{len(problems)} problems")
    elif key is not None:
        print(f"{total} images verified, signed by {key_id(key)}")
    elif exists(root / SIGNATURE):
        print(f"{total} images verified, signed: name the public key by --key to check by whom")
    else:
        print(f"{total} images verified, unsigned")
    return not problems
