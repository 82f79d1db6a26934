"""What a defense's silos must share before a job's first message, and how they come to it."""

from __future__ import annotations

from ..errors import ConfigError
from ..types import Defense
from .flags import Arguments

__all__ = ["share"]


def share(defense: Defense | None, args: Arguments, *, samples: int, in_turn: bool) -> str | None:
    """Let this silo agree with the others on secrets, if the defense wants any.

    Args:
        defense: of the job. One that shares something says so by `needs_secret`.
        args: FedML's.
        samples: how many this silo has; 0 where it serves others in turn.
        in_turn: whether there are more silos than ranks.

    Returns:
        What was agreed on, for the log; None where nothing was, as on the server.

    Raises:
        ConfigError: they must agree, and in this kind of job cannot talk to one another.
        HostError: they did not agree.

    """
    needs, comm = getattr(defense, "needs_secret", None), getattr(args, "comm", None)
    if needs is None:
        return None
    if needs and comm is None:
        raise ConfigError(
            "keylock.group_key: without MPI silos cannot agree on a secret by themselves; name "
            "an owner-only file with one that all have: openssl rand -out FILE 32"
        )
    if comm is None or args.role == "server":
        return None
    from ..keylock.whole import NONE, Masks
    from .agree import agree

    agreed = agree(comm, number=samples)
    wanted = getattr(defense, "wants_pairs", False) and not in_turn
    masked = wanted and bool(agreed.pairs) and all(agreed.numbers.values())
    masks = Masks.of(int(args.rank), agreed.pairs, agreed.numbers) if masked else NONE
    defense.share(agreed.secret, masks, samples=samples)  # type: ignore[union-attr]
    how = "masked" if masked else "not masked"
    return f"the silos have agreed on a secret; updates are {how}"
