"""Say which shards of an earlier run will be replaced, and why, before one of them is lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeline.config.schema import Config
from pipeline.dataset.layout import record_name, shard_of
from pipeline.dataset.plan import plan_of
from pipeline.errors import UserError
from pipeline.storage import Stat, location
from pipeline.synthesis.round_students import remade_students
from pipeline.synthesis.shard_states import survey
from pipeline.synthesis.spec import parameters_digest
from pipeline.synthesis.staleness import changes, joined
from pipeline.teachers.teacher import Teacher

log = logging.getLogger(__name__)


def announce_replacement(
    config: Config,
    teacher: Teacher,
    files: Mapping[str, Stat],
    only: range | None,
    keep: bool,
) -> None:
    """Warn about shards that other parameters made and that this run replaces or deletes.

    Args:
        config: all parameters.
        teacher: the teacher of ``config``.
        files: the listing of the dataset's folder.
        only: the run replaces only these shards, and deletes none.
        keep: refuse instead of warning.

    Raises:
        UserError: ``keep`` is set and there are such shards.
    """
    planned = len(plan_of(config))
    numbers = range(planned) if only is None else only
    present = [n for n in numbers if n < planned and record_name(n) in files]
    stale, reasons = 0, dict[str, None]()  # the keys are the reasons, in their order
    students = remade_students(config, teacher.digest)
    for found in survey(config, teacher.digest, present, files, students):
        changed = changes(found, teacher.parts)
        stale += bool(changed)
        reasons |= dict.fromkeys(changed)
    surplus = {n for name in files if (n := shard_of(name)) is not None and n >= planned}
    surplus = surplus if only is None else set()
    if not stale and not surplus:
        return
    losses = [f"{stale} of {planned} shards are made again ({joined(list(reasons))})"]
    losses = losses if stale else []
    losses += [f"{len(surplus)} shards are deleted (the plan has fewer)"] if surplus else []
    root, text = location(config.paths.dataset), " and ".join(losses)
    if keep:
        version = parameters_digest(config, teacher.digest)[:8]
        raise UserError(
            f"paths.dataset {root} holds a dataset of other parameters, which --keep protects. "
            f"Without it {text}. Name a new directory: --set paths.dataset={root}-{version}"
        )
    log.warning("paths.dataset %s holds a dataset of other parameters: %s", root, text)
