"""The attack tables: attack by net by data, with the lock and without, on what real jobs sent.

    python run.py --output tables

For each net and data set it runs the job of ../mnist_cross_silo over MPI, under the published lock
and under the default one: three silos that train one step on one picture in the first and the last
two rounds. It audits what the server captured: the published measure and the aligned one; the
attacker who ignores the lock, who knows its kind, and who has the silo's private state. "Without"
is the undefended baseline: the same pictures at the same weights. Run again, it does what is left.
"""

import shutil
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import click
import torch
import yaml

from fedml_keylock.builtin import keylock
from fedml_keylock.demo.scoring import example_data
from fedml_keylock.errors import KeyLockError
from fedml_keylock.evaluation.audit import (
    Protection,
    Truth,
    accuracy_by_round,
    audit,
    from_capture,
    muster,
)
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.launch import follow
from fedml_keylock.inversion import Pixels, dlg, grnn, inverting_gradients
from fedml_keylock.locks import Lock
from fedml_keylock.silos import own_locks, silo_secrets

JOB = Path(__file__).resolve().parent.parent / "mnist_cross_silo"
sys.path.insert(0, str(JOB))

from model import MODELS  # noqa: E402  # the job's own
from tables import tables  # noqa: E402

LOCKS: dict[str, dict] = {"paper": {"lock": "paper"}, "sealed": {}}
SINGLE, SILOS = 2, 3
LIMIT = {"lenet": 6, "resnet20": 4}
"""Updates attacked at untrained weights, and as many at trained ones."""
UNIFORM = Pixels("uniform")
SEARCH = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
ATTACKS = {
    # DLG's L-BFGS is the paper's attack on LeNet; on a ResNet it finds nothing without any lock
    "lenet": {
        "dlg": lambda: dlg(parametrisation=UNIFORM, labels="recover", steps=40, restarts=2),
        "grnn": lambda: grnn(steps=600),
        "inverting_gradients": lambda: inverting_gradients(steps=400, restarts=2, **SEARCH),
    },
    "resnet20": {
        "grnn": lambda: grnn(steps=300),
        "inverting_gradients": lambda: inverting_gradients(steps=300, **SEARCH),
    },
}


def run_job(folder: Path, net: str, data: str, lock: dict, rounds: int) -> None:
    """Train, unless the folder has a finished capture of it."""
    if (folder / "leakage" / "capture" / "final.safetensors").exists():
        return
    sections = yaml.safe_load((JOB / "fedml_config.yaml").read_text())
    sections["data_args"] |= {"dataset": data, "single_digit_rounds": SINGLE}
    sections["model_args"]["model"] = net
    sections["train_args"]["comm_round"] = rounds
    sections["defense_args"]["keylock"] = lock | {"keep_history": True}
    sections["attack_args"] = {
        "enable_attack": True,
        "attack_type": "gradient_inversion",
        "gradient_inversion": {
            "when": "never",
            "rounds": [*range(SINGLE), *range(-SINGLE, 0)],
        },
    }
    for part in ("leakage", "keylock_vault"):  # of a job that failed
        shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
    script = [str(JOB / "main.py"), "--cf", "fedml_config.yaml"]
    with (folder / "job.log").open("w") as log:
        follow(SILOS + 1, script, folder, log, lambda: None)


def audit_job(folder: Path, net: str, defense: Lock, facts: dict, workers: int | None):
    """Attack what the job's server captured, with every control; and say how well its model works.

    What is left undone by an earlier run is done.
    """
    public, loaders = example_data(folder)
    model, capture = MODELS[net](), Capture.open(folder / "leakage" / "capture")
    own_lock = own_locks(model, defense, folder / "keylock_vault")
    known = defense.attacker_model(model)
    truth: Truth = {
        (index, silo): loaders[silo].single_digit(index) for index, silo in capture.entries()
    }
    subject = from_capture(
        capture,
        truth,
        model,
        protection=Protection(defense.title, known),
        secrets_of=partial(silo_secrets, model, own_lock),
        public=public,
        limit=LIMIT[net],
        trained_from=SINGLE,
    )
    attacks = {name: make() for name, make in ATTACKS[net].items()}
    with muster(workers) as crew:
        report = audit(subject, attacks, output=folder, crew=crew, job=facts, progress=True)
    final, rounds = accuracy_by_round(capture, model, public, own_lock, attacker_model=known)
    title = defense.title
    return replace(report, accuracy={title: final}, accuracy_rounds={title: rounds})


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("tables"))
@click.option("--nets", default=",".join(ATTACKS), show_default=True)
@click.option("--data", default="mnist,fashion_mnist", show_default=True)
@click.option("--locks", default=",".join(LOCKS), show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Of each job.")
@click.option("--workers", type=int, help="Processes that attack; as many as cores without it.")
def main(output: Path, nets: str, data: str, locks: str, rounds: int, workers: int | None) -> None:
    torch.set_num_threads(1)
    for net, one, name in product(nets.split(","), data.split(","), locks.split(",")):
        lock = LOCKS[name]
        defense = keylock(lock)
        folder = output / f"{net}-{one}-{defense.title.replace(':', '-')}"
        facts = {"data": one, "model": net, "silos": SILOS, "rounds": rounds}
        try:
            run_job(folder, net, one, lock, rounds)
            report = audit_job(folder, net, defense, facts, workers)
        except KeyLockError as error:
            raise click.ClickException(str(error)) from None
        report.save(folder)
        click.echo(f"== {net}, {one}, {defense.title}\n{report.table()}\n\n{report.verdict()}\n")
    page = output / "tables.md"
    page.write_text(tables(output))
    click.echo(f"tables: {page}")


if __name__ == "__main__":
    main()
