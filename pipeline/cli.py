"""The command line, ``python -m pipeline COMMAND``: see ``--help`` for the commands.

Exit codes: 0 done, 1 something failed or is wrong, 2 bad input (one line on stderr), 130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline import cores
from pipeline.config import Config, load_config, parse_overrides
from pipeline.errors import BadShardError, TryAgainError, UserError

if TYPE_CHECKING:
    from pipeline.plan import Plan

GO_ON = "Stopped. What is complete is kept: run the same command again to go on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with report_errors() as outcome:
        options = _parser().parse_args(arguments)
        config = load_config(Path(options.params), parse_overrides(options.set))
        outcome.code = options.command(config, options)
    return outcome.code


class Outcome:
    """An exit code that :func:`report_errors` may replace."""

    code = 0


@contextlib.contextmanager
def report_errors() -> Iterator[Outcome]:
    """Turn what the user can mend into one line and an exit code; SIGTERM stops like Ctrl-C."""
    outcome = Outcome()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield outcome
    except BadShardError as error:
        outcome.code = _fail(f"{error}: a shard of the dataset `verify --repair` makes again", 2)
    except UserError as error:
        outcome.code = _fail(str(error), 1 if isinstance(error, TryAgainError) else 2)
    except KeyboardInterrupt:
        outcome.code = _fail(GO_ON, 130)
    except (RuntimeError, OSError, FloatingPointError) as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        outcome.code = _fail(str(error), 1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def parse_range(text: str | None) -> range | None:
    """``0:8`` as the shards 0 to 7."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UserError(f"--shards {text!r}: write FIRST:END, as in 0:8 for the first eight")
    return range(int(start), int(stop))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m pipeline", description=__doc__)
    parser.set_defaults(set=[])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--params", default="params.yaml", metavar="FILE")
        sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
        sub.set_defaults(command=command)
        return sub

    tried = add("probe", _probe, "try the teacher for two minutes and suggest parameters")
    tried.add_argument("--seconds", type=float, default=120.0, help="of short inversions")
    tried.add_argument("--write", action="store_true", help="put the findings into the file")
    planned = add("plan", _plan, "print what would be made, and what it would cost")
    planned.add_argument("--list", action="store_true", help="every shard")
    planned.add_argument("--devices", type=_count, nargs="+", default=[1], metavar="N")
    speed = planned.add_mutually_exclusive_group()
    speed.add_argument("--probe", action="store_true", help="measure the speed of a device here")
    speed.add_argument("--images-per-second", type=_rate, metavar="X", help="of one device")
    made = add("synthesize", _synthesize, "make the shards that are missing or stale")
    made.add_argument("--shards", metavar="FIRST:END", help="only these, as in 0:8")
    add("finalize", _finalize, "write the dataset-level files, once all shard ranges are made")
    checked = add("verify", _verify, "read everything again and prove it")
    checked.add_argument("--repair", action="store_true", help="make again just what is broken")
    checked.add_argument(
        "--agreement", type=float, default=0.9, help="least share of labels the teacher confirms"
    )
    add("status", _status, "which shards are complete, running, failed, stale or missing")
    add("distill", _distill, "train the students on the dataset")
    add("measure", _measure, "how varied the images are, and what they lack")
    add("evaluate", _evaluate, "measure teacher and students on real images")
    add("summary", _summary, "the result, for a person")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of devices")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images above 0")
    return value


def _probe(config: Config, options: argparse.Namespace) -> int:
    import torch

    from pipeline.running import open_executor
    from pipeline.synthesis import check
    from pipeline.teacher import load_teacher
    from pipeline.trial import findings_text, try_teacher, write_findings

    if not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds is {options.seconds}: write a time, as 120")
    teacher = check(config, "reports")
    with open_executor(config, config.synthesis.threads) as executor:
        workers = executor.workers
    wanted = config.execution.device
    if wanted != "cpu" and torch.cuda.is_available():
        teacher = load_teacher(config.teacher, torch.device("cuda"))
    cores.use(config.synthesis.threads)
    picture = Path(config.paths.reports) / "probe.png"
    findings = try_teacher(config, teacher, workers, options.seconds, picture)
    for line in findings_text(findings, config, workers):
        print(line)
    print(f"look at    {picture}")
    if options.write:
        write_findings(Path(options.params), config, findings)
        print(f"written    {options.params}")
    return 0


def _plan(config: Config, options: argparse.Namespace) -> int:
    from pipeline.costs import RoundSpeed, cost_table, dataset_bytes, show_bytes
    from pipeline.probe import describe, mean_speeds, probe_devices, sample_bytes
    from pipeline.synthesis import plan_of

    layout = plan_of(config)
    print(
        f"{len(layout.labels)} images of {config.teacher.classes} classes in {len(layout)} shards"
    )
    counts = Counter(layout.labels.tolist())
    few, many = (pick(counts[c] for c in range(config.teacher.classes)) for pick in (min, max))
    print(f"{few if few == many else f'{few} to {many}'} images a class, seed {layout.seed}")
    sample = sample_bytes(config)
    total = show_bytes(dataset_bytes(len(layout.labels), len(layout), sample))
    print(f"at most {total} on disk, and to upload: {show_bytes(sample)} an image")
    if options.list:
        _list_shards(layout)
    if options.probe:
        probed = probe_devices(config)
        print("\n".join(describe(probed, layout)))
        speeds = mean_speeds(probed)
    elif options.images_per_second:
        speeds = [RoundSpeed(image=1 / options.images_per_second)] * (config.adaptive.rounds + 1)
    else:
        print("time: measure it here with --probe, or give one device's --images-per-second")
        return 0
    print("\n".join(cost_table(layout.bounds, speeds, options.devices)))
    if config.adaptive.rounds and not options.probe:
        print("without the students' training between the rounds, which --probe measures")
    return 0


def _list_shards(layout: Plan) -> None:
    print(f"{'shard':>8} {'round':>5} {'images':>7} {'batches':>8} {'classes':>8}  first key")
    for shard in layout:
        classes = len(set(shard.labels.tolist()))
        print(
            f"{shard.name:>8} {shard.round:>5} {len(shard.labels):>7} {len(shard.batches):>8} "
            f"{classes:>8}  {shard.key(0)}"
        )


def _synthesize(config: Config, options: argparse.Namespace) -> int:
    from pipeline.adaptive import synthesize
    from pipeline.reports import report_synthesis
    from pipeline.running import open_runner

    only = parse_range(options.shards)
    with open_runner(config, config.synthesis.threads) as run:
        made = synthesize(config, run, only)
    print(f"made {len(made)} shards in {config.paths.dataset}")
    if only is None:
        print(f"images to look at: {report_synthesis(config, made)}")
    return 0


def _finalize(config: Config, options: argparse.Namespace) -> int:
    from pipeline.adaptive import finalize
    from pipeline.reports import report_synthesis

    finalize(config)
    print(f"images to look at: {report_synthesis(config, [])}")
    return 0


def _verify(config: Config, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pipeline.running import open_runner
    from pipeline.synthesis import check, plan_of
    from pipeline.verification import repair, verify

    if not 0 <= options.agreement <= 1:
        raise UserError(f"--agreement is {options.agreement}: write a share, as 0.9")
    teacher = check(config)
    total = len(plan_of(config).labels)

    def verified() -> bool:
        with tqdm(total=total, desc="verify", unit="img") as bar:
            problems = verify(config, teacher, options.agreement, bar.update)
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problems" if problems else f"{total} images verified")
        return not problems

    if verified():
        return 0
    if not options.repair:
        return 1
    with open_runner(config, config.synthesis.threads) as run:
        for name in repair(config, run):
            print(f"made again: {name}")
    return 0 if verified() else 1


def _status(config: Config, options: argparse.Namespace) -> int:
    from pipeline.status import dataset_status, describe
    from pipeline.synthesis import check

    for line in describe(dataset_status(config, check(config).digest)):
        print(line)
    return 0


def _distill(config: Config, options: argparse.Namespace) -> int:
    from pipeline.ranks import is_first, joined
    from pipeline.reports import report_distillation
    from pipeline.running import open_runner
    from pipeline.students import distill_students
    from pipeline.synthesis import check

    with joined(config.execution.device) as rank_device:
        teacher = check(config)
        with open_runner(
            config, config.distillation.threads, rank_device, ("dataset", "students")
        ) as run:
            trained = distill_students(config, teacher, run)
        if is_first():
            report_distillation(config, trained)
            print(f"trained {len(trained)} students in {config.paths.students}")
    return 0


def _measure(config: Config, options: argparse.Namespace) -> int:
    from pipeline.diversity import measure
    from pipeline.reports import report_measures
    from pipeline.synthesis import check

    report, pairs = measure(config, check(config))
    path = report_measures(config, report, pairs)
    for name, value in report.items():
        print(f"{name:<30} {value}")
    print(f"most alike pairs: {path}")
    return 0


def _evaluate(config: Config, options: argparse.Namespace) -> int:
    from pipeline.evaluation import evaluate
    from pipeline.reports import report_evaluation
    from pipeline.synthesis import check

    report = evaluate(config, check(config))
    report_evaluation(config, report)
    return 0


def _summary(config: Config, options: argparse.Namespace) -> int:
    from pipeline.reports import summarise

    print(summarise(config))
    return 0


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"dreamshard: {' '.join(message.split())}", file=sys.stderr)
    return code
