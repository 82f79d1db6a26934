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

    How to read one row, on the page and on the terminal:

    \b
      sealed lock
        adaptive attacker        0.01 [0.01, 0.02]  images not recovered
        key-knowing upper bound  0.99 [0.98, 0.99]  self-test passed

    The heading is the defense. The row's first words say who attacks it: a defense-unaware attacker
    takes sealed words for weights, an adaptive one knows the lock's kind, a colluding silo has what
    a silo has. The number is the mean aligned SSIM of his best attack, with its 95 % interval: 1 is
    the picture itself, and only what is above "public data alone" counts. "images not recovered"
    stands only where the upper bound, which is given the key, passed its self-test; else there is
    no verdict.

    report.html ends with a page for the file, to print: what was tested, settings, versions, hashes
    of inputs, and what was not tested.
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
