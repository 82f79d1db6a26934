"""`fedml-keylock report`: two reports side by side, and the schema of one."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE

__all__ = ["report"]


@click.group()
def report() -> None:
    """Read the reports that demo and audit write.

    \b
    Two runs side by side:  fedml-keylock report compare keylock-demo other-demo
    What report.json holds: fedml-keylock report schema
    """  # noqa: D301  # click wants the character that the escape stands for


@report.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=FILE,
    default=Path("compare.html"),
    show_default=True,
    help="The page to write: one file that needs nothing else.",
)
def compare(a: Path, b: Path, output: Path) -> None:
    """Put the reports A and B side by side.

    On the terminal, and as a page. Each is a folder with a report.json, or such a file. Every row
    that both have is shown with both aligned SSIMs, their difference and whether their intervals
    overlap, and so are the accuracies; rows that only one has are named. Neither page nor terminal
    shows a picture.

    Example: fedml-keylock report compare before after --output before-and-after.html
    """
    from ..evaluation.report.comparison import compare as compared
    from ..evaluation.report.reading import read_report

    found = compared(read_report(a), read_report(b), (str(a), str(b)))
    found.save(output)
    click.echo(f"{found.table()}\n\npage: {output}")


@report.command()
def schema() -> None:
    """Print the JSON Schema of report.json.

    Any validator takes it. With Python's, from pip install check-jsonschema:

    \b
    Example: fedml-keylock report schema > report.schema.json
             check-jsonschema --schemafile report.schema.json keylock-demo/report.json
    """  # noqa: D301  # click wants the character that the escape stands for
    from ..evaluation.report.reading import report_schema

    click.echo(report_schema(), nl=False)
