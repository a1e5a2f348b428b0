"""What a run shows in Prefect's UI: its name, its summary, its pictures and its tables."""

from __future__ import annotations

import base64
import io
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from flows.running import publish, run_name
from pipeline.config.schema import Config

LARGEST_SIDE = 1200  # Pixels of a picture in the UI. The server keeps it in its database.


def name_run(flow: str, config: Config) -> None:
    """Name the present flow run, whose parameters are known only after it began."""

    def rename() -> None:
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None:
            with get_client(sync_client=True) as client:
                client.update_flow_run(context.flow_run.id, name=run_name(flow, config))

    publish(rename)


def publish_table(key: str, table: Sequence[dict[str, Any]], text: str) -> None:
    """Show rows as a table."""
    publish(lambda: create_table_artifact(key=key, table=list(table), description=text))


def publish_picture(key: str, path: Path, text: str) -> None:
    """Show a picture. It travels inside the artifact: Prefect's server cannot read the file."""
    if path.is_file():
        publish(lambda: create_image_artifact(image_url=_data_url(path), key=key, description=text))


def publish_summary(config: Config, summary: str) -> None:
    """Show the summary, with the place of the report."""
    publish(lambda: create_markdown_artifact(key="summary", markdown=_markdown(config, summary)))


def _markdown(config: Config, summary: str) -> str:
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in summary.splitlines()]
    table = [f"| **{row[0]}** | {row[-1].replace('|', '/')} |" for row in rows]
    report = (Path(config.paths.reports) / "index.html").resolve()
    link = f"The report: [{report}]({report.as_uri()}) on the host {socket.gethostname()}."
    lines = [f"# {config.teacher.source}", "", "| | |", "|---|---|", *table]
    return "\n".join([*lines, "", link] if report.is_file() else lines)


def _data_url(path: Path) -> str:
    """The picture as a URL that holds it, made smaller where it is large."""
    with Image.open(path) as picture:
        smaller = picture.convert("RGB")
    smaller.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    smaller.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
