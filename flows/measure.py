"""The end of the flow ``dream``: accuracies, measures and the report page."""

from __future__ import annotations

from pipeline.config.schema import Config
from pipeline.evaluation.accuracy import evaluate_classes
from pipeline.evaluation.dataset_measures import measure
from pipeline.reports.files import report_evaluation, report_measures
from pipeline.reports.page.write import write_page
from pipeline.teachers.teacher import Teacher


def measure_all(config: Config, teacher: Teacher) -> None:
    """Measure dataset and students, and write the page. Real images are used where there are some.

    Args:
        config: The parameters.
        teacher: Their teacher.
    """
    if config.evaluation.data is not None:
        report_evaluation(config, *evaluate_classes(config, teacher))
    report_measures(config, *measure(config, teacher))
    write_page(config)
