"""`fedml-keylock report`: compares two reports, and prints the schema of report.json."""

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

    The heading is the defense. A row begins with the attacker: a defense-unaware attacker takes
    sealed words for weights, an adaptive one knows the kind of lock, a colluding silo knows what a
    silo knows. The number is the mean aligned SSIM of the attacker's best attack, with its 95 %
    interval. 1 is the picture itself, and only scores above "public data alone" count. "images not
    recovered" needs a key-knowing upper bound that passed its self-test; else there is no verdict.

    report.html ends with a section for auditors, to print: what was tested, settings, versions,
    hashes of inputs, and what was not tested.
    """  # noqa: D301  # click wants the character that the escape stands for


@report.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=FILE,
    default=Path("compare.html"),
    show_default=True,
    help="The page to write, self-contained.",
)
def compare(a: Path, b: Path, output: Path) -> None:
    """Compare the reports A and B, on the terminal and as a page.

    Each is a folder with a report.json, or such a file. For every row of both reports it shows the
    two aligned SSIMs, their difference and whether their intervals overlap; likewise for
    accuracies. Rows of only one report are named. No pictures are shown.

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

    Any validator reads it, such as check-jsonschema from PyPI:

    \b
    Example: fedml-keylock report schema > report.schema.json
             check-jsonschema --schemafile report.schema.json keylock-demo/report.json
    """  # noqa: D301  # click wants the character that the escape stands for
    from ..evaluation.report.reading import report_schema

    click.echo(report_schema(), nl=False)
