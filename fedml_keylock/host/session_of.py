"""Makes the session that a job's arguments ask for."""

from __future__ import annotations

from ..plugins import defense_of
from .compatibility import check_job
from .job_configuration import Arguments, check_switches, our_attack, our_defense, schedule_of
from .observer import Observer
from .one_process import OneProcess
from .server_session import ServerSession
from .session import Session
from .silo_session import SiloSession

__all__ = ["session_of"]


def session_of(args: Arguments) -> Session | None:
    """Make the session that this job's flags ask for, for a rank of its kind.

    Returns:
        None if the flags ask for nothing of ours.

    Raises:
        ConfigError: a field is wrong, or would be ignored.
        HostError: the defense was not tested in this kind of job.

    Example:
        >>> from types import SimpleNamespace
        >>> session_of(SimpleNamespace(enable_defense=False)) is None
        True

    """
    check_switches(args)
    name = our_defense(args)
    if name is None and not our_attack(args):
        return None
    defense = defense_of(name, getattr(args, name, None) or {}) if name else None
    check_job(args, name, defense.robust_aggregation if defense else None)
    if defense is not None:
        planned = schedule_of(args)
        rounds = defense.schedule(planned)
        if rounds < len(planned.rounds):  # a job need not say how many there are
            args.comm_round = rounds
    observer = Observer.begin(args, defense)
    if (args.training_type, args.backend) == ("simulation", "sp"):
        return OneProcess(args, name, defense, observer)
    kind = ServerSession if args.role == "server" else SiloSession
    return kind(args, name, defense, observer)
