"""`fedml-keylock audit`: attack a job's capture, or a model without a job, with every control."""

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
    help="With CAPTURE: the silos' training images, as written by "
    "fedml_keylock.evaluation.audit.save_truth.",
)
@click.option(
    "--model",
    "builder",
    metavar="MODEL",
    required=True,
    help="MODULE:CALLABLE that makes the model without arguments, searched in this folder first. "
    "Or torchvision:NAME.",
)
@click.option(
    "--data",
    type=FOLDER,
    help="A folder of PNG or JPEG pictures with a sub-folder for each class, numbered by name; "
    "hidden ones are ignored. Without CAPTURE, pictures that are not attacked are the attacker's "
    "public data. With CAPTURE, all are public, and accuracy is measured on them.",
)
@click.option("--labels", type=FILE, help="With --data: classes, as CSV lines like cat.png,3.")
@click.option(
    "--size",
    type=click.IntRange(11),
    help="Height and width of the model's pictures. Default: the size that a torchvision model was "
    "published for, else the first of 32, 28, 64 and 224 that fits.",
)
@click.option(
    "--weights",
    type=FILE,
    help="Without CAPTURE: the model's state_dict, in safetensors or by torch.save.",
)
@click.option("--defense", help="Without CAPTURE: keylock (the default), none, or a plugin's.")
@click.option("--config", type=FILE, help="A job's fedml_config.yaml, for its keylock section.")
@lock_options
@click.option(
    "--vault",
    type=FOLDER,
    help="With CAPTURE: the silos' vaults, kept with keep_history; needed for the oracle.",
)
@click.option(
    "--attacks",
    default="inverting_gradients",
    show_default=True,
    help="Names, separated by commas; fedml-keylock plugins lists them.",
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
    help="Levels, separated by commas: oblivious, adaptive, statistics, insider, temporal, "
    "simulating. oblivious is the report's defense-unaware attacker, insider its colluding silo. "
    "The oracle, its key-knowing upper bound, runs if the private state is known.",
)
@click.option(
    "--loss",
    help="Loss that silos minimise: a loss of torch.nn with its arguments, such as "
    "BCEWithLogitsLoss or 'CrossEntropyLoss(label_smoothing=0.1)', or MODULE:FUNCTION of outputs "
    "and targets. Default: the captured job's loss, or else cross entropy, with a notice.",
)
@click.option(
    "--sum",
    "sums",
    metavar="K,K",
    help="Also attack sums of this many silos' updates, such as 1,2,4,9. A silo that colludes with "
    "the server has such sums under lock: sealed, and under any secure aggregation.",
)
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="To attack.")
@click.option("--batch", type=click.IntRange(1), help="Images behind an update. [default: 1]")
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
    """Attack updates as a server could, and report what leaked.

    The report has numbers, and reconstructions beside the silos' own pictures.

    \b
    A model without a job:
      fedml-keylock audit --model torchvision:resnet18 --data photos --size 64
    A job's capture (attack_type: gradient_inversion):
      fedml-keylock audit leakage/capture --truth truth.safetensors --model main:Net \\
          --vault keylock_vault
    On many hosts:
      mpiexec -n 16 fedml-keylock audit --model main:Net --data photos --images 20 --seeds 3

    The audit also runs the controls that its figures need: public pictures without any gradient,
    the same updates without a defense, the lock's normalisation with nothing secret, and the
    key-knowing upper bound, which has the private state. If the upper bound or the undefended
    baseline fails, there is no verdict.

    How to read a row of its output:

    \b
      adaptive attacker  0.57 [0.23, 0.92]  images recovered

    An attacker who knows the kind of lock recovered pictures with a mean aligned SSIM of 0.57
    (95 % interval in brackets); 1 is the picture itself. The score counts only if it is above
    that of public data alone. fedml-keylock report --help says more. The page ends with a
    section for auditors.

    With the defaults a LeNet takes about a minute on two cores, torchvision:resnet18 at --size 64
    about an hour. An interrupted audit continues when it is run again. OUTPUT/work holds its
    results, with pictures of the data; only you can read it.
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    request = Request(**options)

    from .attacking import attacks_of, levels_of, sums_of

    attacks, levels, sums = attacks_of(request), levels_of(request), sums_of(request)

    from ..evaluation.audit import muster
    from .auditing import run_audit

    with muster(request.workers) as crew:
        if crew is not None:  # on the other ranks the crew is None
            run_audit(request, attacks, levels, sums, crew)
