"""The attack tables: attack by net by data, with the lock and without, on what real jobs sent.

    python run.py --output tables

For each net and data set it runs the job of ../mnist_cross_silo over MPI under each lock, three
silos that train one step on one picture in the first and the last two rounds, and audits what the
server captured: the published measure and the aligned one; the attacker who ignores the lock, who
knows its kind, and who has the silo's private state. "Without" is the undefended twin: the same
pictures at the same weights. Run again, it does what is left.
"""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import click
import torch
import yaml

from fedml_keylock.builtin import KeyLockDefense
from fedml_keylock.commands.subjects import locked_copy, silo_secrets
from fedml_keylock.evaluation.audit import Protection, Truth, audit, from_capture, muster
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.launch import command, environment
from fedml_keylock.inversion import PublicData, dlg, grnn, inverting_gradients
from fedml_keylock.keylock import Vault

JOB = Path(__file__).resolve().parent.parent / "mnist_cross_silo"
sys.path.insert(0, str(JOB))

from data import load_data  # noqa: E402  # the job's own
from model import MODELS  # noqa: E402

LOCKS = ({"module": "affine", "targets": "first"}, {"module": "mixing", "targets": "all"})
SINGLE, SILOS = 2, 3
SEARCH = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
ATTACKS = {
    # DLG's L-BFGS is the paper's attack on LeNet; on a ResNet it finds nothing without any lock
    "lenet": {
        "dlg": lambda: dlg(start="uniform", labels="recover", steps=40, restarts=2),
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
    folder.mkdir(parents=True)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
    ranks = SILOS + 1
    with (folder / "job.log").open("w") as log:
        subprocess.run(  # noqa: S603  # this environment's own mpiexec
            command(ranks, [str(JOB / "main.py"), "--cf", "fedml_config.yaml"]),
            cwd=folder,
            env=environment(ranks),
            stdout=log,
            stderr=log,
            check=True,
        )


def read_data(folder: Path):
    """The job's dataset tuple, as its silos had it."""
    sections = yaml.safe_load((folder / "fedml_config.yaml").read_text()).values()
    return load_data(SimpleNamespace(**{k: v for section in sections for k, v in section.items()}))


def tell_accuracy(folder: Path, net: str, defense: KeyLockDefense, dataset) -> dict:
    """Accuracy of the final model: on the server, and under each silo's own lock."""
    images, labels = dataset[3].dataset.tensors

    def correct(model) -> float:
        with torch.no_grad():
            return float((model.eval()(images).argmax(1) == labels).float().mean())

    plain = MODELS[net]()
    plain.load_state_dict(Capture.open(folder / "leakage" / "capture").final())
    layout = defense.describe(plain).layout
    vaults = [Vault(folder / "keylock_vault", silo, layout) for silo in range(SILOS)]
    own = [correct(locked_copy(plain, defense, vault)) for vault in vaults]
    mean = sum(own) / len(own)
    none = {"low": None, "high": None}
    return {
        "server": {"mean": correct(plain), **none, "n": 1},
        "own_lock": {"mean": mean, "low": min(own), "high": max(own), "n": SILOS},
    }


def make_subject(folder: Path, net: str, defense: KeyLockDefense, dataset):
    """What crossed the wire, the pictures behind it, and the silos' private state."""
    capture = Capture.open(folder / "leakage" / "capture")
    truth: Truth = {
        (index, silo): dataset[5][silo].single_digit(index) for index, silo in capture.entries()
    }
    model, (images, labels) = MODELS[net](), dataset[3].dataset.tensors
    return from_capture(
        capture,
        truth,
        model,
        protection=Protection(defense.title, defense.surrogate(model)),
        secrets_of=partial(silo_secrets, model, defense, folder / "keylock_vault"),
        public=PublicData(images, labels),
        trained_from=SINGLE,
    )


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("tables"))
@click.option("--nets", default=",".join(ATTACKS), show_default=True)
@click.option("--data", default="mnist,fashion_mnist", show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Of each job.")
@click.option("--workers", type=int, help="Processes that attack; as many as cores without it.")
def main(output: Path, nets: str, data: str, rounds: int, workers: int | None) -> None:
    torch.set_num_threads(1)
    for net in nets.split(","):
        for one in data.split(","):
            for lock in LOCKS:
                defense = KeyLockDefense(lock)
                folder = output / f"{net}-{one}-{defense.title.replace(':', '-')}"
                run_job(folder, net, one, lock, rounds)
                dataset = read_data(folder)
                with muster(workers) as crew:
                    report = audit(
                        make_subject(folder, net, defense, dataset),
                        {attack: make() for attack, make in ATTACKS[net].items()},
                        output=folder,
                        crew=crew,
                        job={"data": one, "model": net, "silos": SILOS, "rounds": rounds},
                    )
                accuracy = tell_accuracy(folder, net, defense, dataset)
                report = replace(report, accuracy={defense.title: accuracy})
                report.save(folder)
                click.echo(
                    f"== {net}, {one}, {defense.title}\n{report.table()}\n\n{report.verdict()}\n"
                )


if __name__ == "__main__":
    main()
