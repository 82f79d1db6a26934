"""`fedml-keylock check`: checks a job's YAML, and its lock on each layer of a model."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE, lock_options

__all__ = ["check"]


@click.command()
@click.argument("job", metavar="[JOB.yaml]", required=False, type=FILE)
@click.option(
    "--model",
    "builder",
    metavar="MODULE:CALLABLE",
    help="Makes the job's model, without arguments; searched in this folder first. Or "
    "torchvision:NAME.",
)
@lock_options
def check(job: Path | None, builder: str | None, **lock: str | None) -> None:
    """Find errors in a job's YAML, or in its model.

    \b
    A job's YAML, within a second:
      fedml-keylock check fedml_config.yaml
    Beside it the job's model, layer by layer:
      fedml-keylock check fedml_config.yaml --model main:Net
    A model without a job:
      fedml-keylock check --model torchvision:resnet18 --lock paper --layers all

    It prints the job's lock and how to start the job. With --model it prints a line for each layer:
    whether the lock protects it, and how or why not. Nothing is changed. On an error, or if the job
    would not be defended, it prints one line that says what to do, and exits with status 1.
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    if job is None and builder is None:
        raise click.UsageError("name a job's YAML, or a model by --model, or both")
    from ..errors import ConfigError, LockError
    from .job_file import check_job_file, lock_settings

    settings, said = lock_settings(job, **lock), []
    if job is not None:
        found = check_job_file(job)
        if found.keylock is None:
            raise ConfigError(f"{job}: enable_defense is off: this job is not defended")
        rounds = getattr(found.args, "comm_round", "?")
        said.append(
            f"{job}: lock: {found.keylock.kind}, {found.args.client_num_per_round} silos a round, "
            f"{rounds} rounds; start it with: {found.start} --cf {job}"
        )
    weaknesses: list[str] = []
    if builder is not None:
        from ..builtin import keylock
        from .job import build_model

        chosen = keylock(settings)
        checked = chosen.check(build_model(builder))
        if checked.issues:
            raise LockError(str(checked))
        said.append(str(checked))
        weaknesses = [chosen.weakness, checked.weakness]
    click.echo("\n".join(said))
    for weakness in filter(None, weaknesses):
        click.echo(weakness, err=True)
