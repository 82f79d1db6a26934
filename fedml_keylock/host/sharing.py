"""What a defense's silos must share before a job's first message, and how they come to it."""

from __future__ import annotations

from ..errors import ConfigError, HostError
from ..types import Defense, SharesSecret
from .flags import Arguments, check_masked

__all__ = ["is_masked", "share"]

UNMASKED = "updates are not masked"


def is_masked(defense: Defense | None, args: Arguments, *, in_turn: bool) -> bool:
    """Whether what silos send is masked, where there is more than one.

    Args:
        defense: of the job.
        args: FedML's.
        in_turn: whether there are more silos than ranks.

    """
    wanted = isinstance(defense, SharesSecret) and defense.wants_pairs
    return wanted and getattr(args, "comm", None) is not None and not in_turn


def share(defense: Defense | None, args: Arguments, *, samples: int, in_turn: bool) -> str | None:
    """Let this silo agree with the others on secrets, if the defense wants any.

    Args:
        defense: of the job.
        args: FedML's.
        samples: how many this silo has; 0 where it serves others in turn.
        in_turn: whether there are more silos than ranks.

    Returns:
        What was agreed on, for the log; None where nothing was, as on the server.

    Raises:
        ConfigError: they must agree, and in this kind of job cannot talk to one another; or the
            job's server does what masks would not survive.
        HostError: they did not agree, or one has no samples.

    """
    if not isinstance(defense, SharesSecret):
        return None
    comm = getattr(args, "comm", None)
    if defense.needs_secret and comm is None:
        raise ConfigError(
            "keylock.group_key: without MPI silos cannot agree on a secret by themselves; name "
            "an owner-only file with one that all have: (umask 077; openssl rand -out FILE 32)"
        )
    masked = is_masked(defense, args, in_turn=in_turn)
    if masked:
        check_masked(args)
    if args.role == "server":
        return None
    if comm is None:
        return f"{UNMASKED}: over this backend silos cannot agree on masks"
    from .agree import agree

    agreed = agree(comm, number=samples)
    masked = masked and bool(agreed.pairs)
    empty = [rank for rank, number in agreed.numbers.items() if not number]
    if masked and empty:
        raise HostError(
            f"rank {empty[0]} (silo {empty[0] - 1}) has no samples by the job's dataset, so that "
            "masks would not cancel: give each silo's number (the dataset's fifth part), or set "
            "keylock: {mask: false}"
        )
    if masked:
        silos = {rank - 1: number for rank, number in agreed.numbers.items()}
        pairs = {rank - 1: secret for rank, secret in agreed.pairs.items()}
        defense.share(agreed.secret, silo=int(args.rank) - 1, pairs=pairs, samples=silos)
    else:
        defense.share(agreed.secret)
    return f"the silos have agreed on a secret; {'updates are masked' if masked else UNMASKED}"
