"""`fedml-keylock roster`: the silos' public keys, against who answers in a silo's name."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE

__all__ = ["roster"]


@click.group()
def roster() -> None:
    """Make the roster of a job's silos: who is who, by public keys.

    Without one, whoever controls the network between the silos, or passes their messages on, can
    answer in a silo's name. With one each silo signs what it agrees on, and a stranger ends the
    job.

    \b
    On each silo, once:     fedml-keylock roster init identity.key
    Where they are joined:  fedml-keylock roster add roster.yaml 1 KEY_OF_RANK_1
                            fedml-keylock roster add roster.yaml 2 KEY_OF_RANK_2
    What is in it:          fedml-keylock roster show roster.yaml

    Compare the keys with the silos' people by another way than the one they came: that is all that
    a roster is worth. It is no secret; give each silo the same file. Then in the YAML:

    \b
      keylock:
        roster: roster.yaml
        identity: identity.key    # {rank} in it stands for the silo's rank
    """  # noqa: D301  # click's mark for lines that are to stay as they are


@roster.command()
@click.argument("keyfile", type=FILE)
def init(keyfile: Path) -> None:
    """Make a silo's identity.

    Writes a new private key to KEYFILE, for its owner only, and prints the public key, which
    everybody may know. The private key never leaves the silo. A file that is there is not replaced.

    Example: fedml-keylock roster init identity.key
    """
    from ..host.roster import new_identity

    click.echo(new_identity(keyfile))


@roster.command()
@click.argument("file", metavar="ROSTER", type=FILE)
@click.argument("rank", type=click.IntRange(min=1))
@click.argument("key")
def add(file: Path, rank: int, key: str) -> None:
    """Add a silo's public key to ROSTER.

    RANK is the silo's in the job, from 1: the server, rank 0, has none. KEY is what init printed.
    The file is made if there is none. Another key for a rank that has one is refused.

    Example: fedml-keylock roster add roster.yaml 1 "$(fedml-keylock roster init identity.key)"
    """
    from ..host.roster import add_key, read_roster

    add_key(file, rank, key.strip().lower())
    click.echo(f"{file}: {len(read_roster(file))} silos")


@roster.command()
@click.argument("file", metavar="ROSTER", type=FILE)
def show(file: Path) -> None:
    """Show the silos of ROSTER, a line each: RANK, KEY.

    Example: fedml-keylock roster show roster.yaml
    """
    from ..host.roster import read_roster

    for rank, key in sorted(read_roster(file).items()):
        click.echo(f"{rank:4}  {key}")
