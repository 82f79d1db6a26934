"""Print the table of the README: model families x (locks, trains, exports), with counts.

    python plugin_tests/coverage/table.py [--only NAME] [--threads N]

Every torchvision classifier and FedML's hub, under the published lock on all layers; two SGD steps;
the export against the locked model in eval mode. The largest has 645 million parameters: 10 minutes
on two cores, and 16 GiB.
"""

from __future__ import annotations

import gc
import sys
from collections import defaultdict

import click
import torch
from tqdm import tqdm
from trial import try_all
from zoo import (
    cheap_start,
    family_of,
    fedml_hub,
    fedml_refused,
    torchvision_model,
    torchvision_names,
)

from fedml_keylock import KeyLockConfig, check_model

CONFIG = KeyLockConfig(lock="paper", layers="all")
STAGES = ("locks", "trains", "exports")


@click.command(help=__doc__)
@click.option("--only", default="", help="Only models whose name contains this.")
@click.option("--threads", type=int, default=2, show_default=True)
def main(only: str, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = [(f"torchvision {family_of(n)}", torchvision_model(n)) for n in torchvision_names()]
    rows += [("FedML model hub", model) for model in fedml_hub()]
    rows = [(family, model) for family, model in rows if only in model.name]
    counts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    failed = []
    for family, model in tqdm(rows, unit="model", disable=not sys.stderr.isatty()):
        with cheap_start():
            found = try_all(model, CONFIG)
        gc.collect()
        for stage in STAGES:
            counts[family][stage].append(found.get(stage) == "")
        failed += [f"{model.name}, {s}: {why}" for s, why in found.items() if why]
        click.echo(f"{model.name}: {found}", err=True)
    click.echo("| models | " + " | ".join(STAGES) + " |")
    click.echo("|---|" + "---|" * len(STAGES))
    for family, stages in counts.items():
        cells = (f"{sum(stages[s])} of {len(stages[s])}" for s in STAGES)
        click.echo(f"| {family} | " + " | ".join(cells) + " |")
    for model in fedml_refused() if not only else ():
        reason = check_model(model.make(), CONFIG).issues[0].reason
        click.echo(f"refused: FedML {model.name}: {reason}")
    for line in failed:
        click.echo(f"failed: {line}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
