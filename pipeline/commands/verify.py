"""The command verify, which can also repair."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from pipeline.config.schema import Config
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.execution.runner import open_runner
from pipeline.stages.repair import repair
from pipeline.stages.verify import verify
from pipeline.synthesis.check import load_checked_teacher
from pipeline.teachers.teacher import Teacher


def run_verify(config: Config, options: argparse.Namespace) -> int:
    """Print every problem of the dataset; with ``--repair`` also repair and verify again."""
    if not 0 <= options.agreement <= 1:
        raise UserError(f"--agreement is {options.agreement}: write a share from 0 to 1, as 0.9")
    teacher = load_checked_teacher(config)
    if _verified(config, teacher, options.agreement):
        return 0
    if not options.repair:
        return 1
    with open_runner(config, config.synthesis.threads) as run:
        again = repair(config, teacher, run)
    for name in again:
        print(f"made again: {name}")
    return 0 if _verified(config, teacher, options.agreement) else 1


def _verified(config: Config, teacher: Teacher, agreement: float) -> bool:
    total = len(plan_of(config).labels)
    with tqdm(total=total, desc="verify", unit="img") as bar:
        problems = verify(config, teacher, agreement, bar.update)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else f"{total} images verified")
    return not problems
