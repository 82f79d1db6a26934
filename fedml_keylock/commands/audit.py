"""`fedml-keylock audit`: attack a job's capture, or a model alone, with every control beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import FILE, FOLDER, lock_options
from .request import Request

__all__ = ["audit"]


@click.command()
@click.argument("capture", required=False, type=FOLDER)
@click.option(
    "--truth",
    type=FILE,
    help="With CAPTURE: what the silos trained on, as "
    "fedml_keylock.evaluation.audit.save_truth writes it.",
)
@click.option(
    "--model",
    "builder",
    metavar="MODEL",
    required=True,
    help="MODULE:CALLABLE that makes the model without arguments, looked for in this folder first; "
    "or torchvision:NAME.",
)
@click.option(
    "--data",
    type=FOLDER,
    help="A folder of PNG or JPEG pictures, a sub-folder for each class, numbered in the order of "
    "their names; hidden ones do not count. Without CAPTURE, those that are not attacked are the "
    "attacker's public data; beside one, all of them are, and accuracy is measured on them.",
)
@click.option("--labels", type=FILE, help="With --data: a CSV of lines like cat.png,3 instead.")
@click.option(
    "--size",
    type=click.IntRange(11),
    help="Height and width of the model's pictures. By default what a torchvision model was "
    "published for, else the first of 32, 28, 64 and 224 that fits.",
)
@click.option(
    "--weights",
    type=FILE,
    help="Without CAPTURE: the model's state_dict, as safetensors or torch.save wrote it.",
)
@click.option("--defense", help="Without CAPTURE: keylock (the default), none, or a plugin's.")
@click.option("--config", type=FILE, help="A job's fedml_config.yaml, for its keylock section.")
@lock_options
@click.option(
    "--vault",
    type=FOLDER,
    help="With CAPTURE: the silos' own vaults, kept with keep_history: the oracle's knowledge.",
)
@click.option(
    "--attacks",
    default="inverting_gradients",
    show_default=True,
    help="Names with commas between them; fedml-keylock plugins lists them.",
)
@click.option(
    "--set",
    "fields",
    multiple=True,
    metavar="ATTACK.FIELD=VALUE",
    help="A setting of an attack, such as dlg.restarts=4. May be repeated.",
)
@click.option(
    "--knowledge",
    default="oblivious,adaptive",
    show_default=True,
    help="Levels with commas between them: oblivious, adaptive, statistics, insider, temporal, "
    "simulating. oblivious is the report's defense-unaware attacker, insider its colluding silo. "
    "The oracle, its key-knowing upper bound, runs wherever the private state is known.",
)
@click.option(
    "--loss",
    help="What silos minimise: a loss of torch.nn with its arguments, such as BCEWithLogitsLoss or "
    "'CrossEntropyLoss(label_smoothing=0.1)', or MODULE:FUNCTION of outputs and targets. Left out: "
    "that of the captured job, or else cross entropy, which is then said.",
)
@click.option(
    "--sum",
    "sums",
    metavar="K,K",
    help="Also attack sums of so many silos' updates, such as 1,2,4,9: what a silo that colludes "
    "with the server has of the others under lock: sealed, and any secure aggregation.",
)
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="To attack.")
@click.option("--batch", type=click.IntRange(1), help="Images of an update; 1 without it.")
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="That a silo trains; without it one step, or those of the captured job.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs; without CAPTURE each with other locks, and other weights if they are drawn.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes; one a core by default.")
@click.option(
    "--output", type=FOLDER, default=Path("keylock-audit"), show_default=True, help="Folder."
)
@click.option("--no-images", is_flag=True, help="Leave all pictures out of the report.")
def audit(**options: Any) -> None:
    """Attack updates as a server could, and say what leaked.

    In numbers, and in pictures beside the silo's own.

    \b
    A model alone, without any job:
      fedml-keylock audit --model torchvision:resnet18 --data photos --size 64
    What a job captured (attack_type: gradient_inversion):
      fedml-keylock audit leakage/capture --truth truth.safetensors --model main:Net \\
          --vault keylock_vault
    On the cores of many hosts:
      mpiexec -n 16 fedml-keylock audit --model main:Net --data photos --images 20 --seeds 3

    Beside the attacks it runs what their figures need: public pictures with no gradient, the same
    updates without a defense, the lock's normalisation with nothing secret, and the key-knowing
    upper bound, who has the private state. Where that or the undefended baseline fails, there is no
    verdict.

    How to read one row of what it prints:

    \b
      adaptive attacker  0.57 [0.23, 0.92]  images recovered

    An attacker who knows the kind of lock got pictures of a mean aligned SSIM of 0.57 (95 %
    interval in brackets); 1 is the picture itself. It counts, as it is above what public data
    alone gives. fedml-keylock report --help says more. The page ends with a sheet for the file.

    With the defaults a LeNet takes about a minute on two cores, torchvision:resnet18 at --size 64
    about an hour. Stopped, it goes on where it was when it is run again: OUTPUT/work keeps what is
    done, pictures of the data among it, for you only.
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    request = Request(**options)

    from .attacking import attacks_of, levels_of, sums_of

    attacks, levels, sums = attacks_of(request), levels_of(request), sums_of(request)

    from ..evaluation.audit import muster
    from .auditing import run_audit

    with muster(request.workers) as crew:
        if crew is not None:  # else this rank has worked for the one that leads
            run_audit(request, attacks, levels, sums, crew)
