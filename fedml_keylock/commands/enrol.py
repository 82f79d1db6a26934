"""`fedml-keylock roster`: the silos' public keys, which stop others from posing as a silo."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FILE

__all__ = ["roster"]


@click.group()
def roster() -> None:
    """Make a job's roster: the public key of each silo.

    Without a roster, an attacker who controls the network or relays the silos' messages can pose
    as a silo. With one, each silo signs its key agreement, and the job ends if a signature is
    wrong.

    \b
    On each silo, once:     fedml-keylock roster init identity.key
    Where they are joined:  fedml-keylock roster add roster.yaml 1 KEY_OF_RANK_1
                            fedml-keylock roster add roster.yaml 2 KEY_OF_RANK_2
    What is in it:          fedml-keylock roster show roster.yaml

    Compare the keys with the silos' people over another channel: the roster's security rests on
    this. It is not secret; give each silo the same file. Then in the YAML:

    \b
      keylock:
        roster: roster.yaml
        identity: identity.key    # {rank} in it stands for the silo's rank
    """  # noqa: D301  # click's mark for lines that are to stay as they are


@roster.command()
@click.argument("keyfile", type=FILE)
def init(keyfile: Path) -> None:
    """Make a silo's identity.

    Writes a new private key to KEYFILE, which only its owner can read, and prints the public key,
    which is not secret. The private key never leaves the silo. An existing file is not replaced.

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

    RANK is the silo's rank in the job, from 1; the server, rank 0, has no key. KEY is the public
    key that init printed. A missing file is made. A second key for a rank is refused.

    Example: fedml-keylock roster add roster.yaml 1 "$(fedml-keylock roster init identity.key)"
    """
    from ..host.roster import add_key, read_roster

    add_key(file, rank, key.strip().lower())
    click.echo(f"{file}: {len(read_roster(file))} silos")


@roster.command()
@click.argument("file", metavar="ROSTER", type=FILE)
def show(file: Path) -> None:
    """Show the silos of ROSTER, one per line: RANK, KEY.

    Example: fedml-keylock roster show roster.yaml
    """
    from ..host.roster import read_roster

    for rank, key in sorted(read_roster(file).items()):
        click.echo(f"{rank:4}  {key}")
