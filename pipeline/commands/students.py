"""The commands that train and judge students: distill, measure, evaluate, summary."""

from __future__ import annotations

import argparse

from pipeline.config.schema import Config
from pipeline.evaluation.accuracy import evaluate_classes
from pipeline.evaluation.dataset_measures import measure
from pipeline.evaluation.held_out import describe_held_out, held_out_agreement
from pipeline.execution.runner import open_runner
from pipeline.execution.torchrun import is_first, joined
from pipeline.quantities import counted
from pipeline.reports.files import (
    report_distillation,
    report_evaluation,
    report_measures,
)
from pipeline.reports.summary import summarise
from pipeline.stages.distill import distill_students
from pipeline.synthesis.check import load_checked_teacher


def run_distill(config: Config, options: argparse.Namespace) -> int:
    """Train the missing and stale students, alone or as one of torchrun's processes."""
    with joined(config.execution.device) as rank_device:
        teacher = load_checked_teacher(config)
        with open_runner(
            config, config.distillation.threads, rank_device, ("dataset", "students")
        ) as run:
            trained = distill_students(config, teacher, run, options.keep)
            held_out = held_out_agreement(config, teacher, run)
        if is_first():
            report_distillation(config, trained, held_out)
            print(f"trained {counted(len(trained), 'student')} in {config.paths.students}")
            if held_out is not None:
                print(describe_held_out(held_out))
    return 0


def run_measure(config: Config, options: argparse.Namespace) -> int:
    """Print the measures of the images' variety."""
    report, pairs, answers = measure(config, load_checked_teacher(config))
    path = report_measures(config, report, pairs, answers)
    for name, value in report.items():
        print(f"{name:<30} {value}")
    print(f"most alike pairs: {path}")
    return 0


def run_evaluate(config: Config, options: argparse.Namespace) -> int:
    """Write the accuracies on real images into the reports, and print them."""
    report, answers = evaluate_classes(config, load_checked_teacher(config))
    report_evaluation(config, report, answers)
    print(f"teacher {report['teacher_accuracy']:.1%} of {report['real_images']} real images")
    for seed, accuracy in report.get("student_accuracies", {}).items():
        print(f"student, seed {seed} {accuracy:.1%}")
    return 0


def run_summary(config: Config, options: argparse.Namespace) -> int:
    """Print the results of the last run."""
    print(summarise(config))
    return 0
