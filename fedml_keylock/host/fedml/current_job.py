"""Holds the job that this process takes part in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ...defense import Defense
from ...errors import KeyLockError, keep_texts
from ...plugins import defense_of
from ..abort import end_job, in_mpi_job
from ..gate import EntryNames
from ..job_configuration import our_defense
from ..session import Session
from ..session_of import session_of

__all__ = [
    "begin",
    "current",
    "entry_names",
    "final",
    "forget",
    "keep_errors",
    "model_types",
    "tell_undefended",
]

_job: tuple[Any, Session | None] | None = None
"""The job's arguments, and its session if they ask for one."""
_told = False


def tell_undefended() -> None:
    """Warn from now on about a job without the defense: it was started with the plugin."""
    global _told
    _told = True


def begin(args: Any) -> Session | None:
    """The session of the job with these arguments; created on the first call."""
    global _job
    if _job is None or _job[0] is not args:
        keep_errors(args)
        session = session_of(args)
        if session is not None:
            session.tell = partial(_tell, bool(getattr(args, "enable_wandb", False)))
        elif _told and not int(getattr(args, "rank", 0) or 0):
            sys.stderr.write(
                "fedml-keylock: this job is NOT defended: its defense_args have no enable_defense: "
                "true with a defense_type of ours\n"
            )
        _job = (args, session)
    return _job[1]


def current() -> Session | None:
    """The session of this process's job, if one has begun."""
    return None if _job is None else _job[1]


def _tell(wandb: bool, metrics: dict[str, Any]) -> None:
    """Send metrics where FedML sends its own: to its platform, and to wandb if enabled."""
    from fedml import mlops

    mlops.log(metrics)
    if wandb:
        import wandb as board

        if board.run is not None:
            board.log(metrics)


def keep_errors(args: Any) -> None:
    """In a silo of a defended job over MPI, withhold errors' texts; see `errors.keep_texts`."""
    is_silo = our_defense(args) is not None and int(getattr(args, "rank", 0) or 0) > 0
    if is_silo and getattr(args, "comm", None) is not None:
        keep_texts(partial(_keep, args))


def _keep(args: Any, text: str) -> str | None:
    """Write a text to the silo's own log and return where; None if the job lets it out."""
    try:
        session = current()
        defense = session.defense if session else _defense(args)  # the session may not have begun
        if defense is None or defense.log_training:
            return None
        silo = getattr(session, "silo", None)
        silo = int(args.rank) - 1 if silo is None else silo
        defense.note(text, silo=silo)
    except Exception as error:  # a job that cannot begin has no log
        return f"its text was not kept: {type(error).__name__}"
    return f"its text is in the silo's own log, silo-{silo}.log, as log_training is false"


def _defense(args: Any) -> Defense | None:
    name = our_defense(args)
    return None if name is None else defense_of(name, getattr(args, name, None) or {})


def forget() -> None:
    """Forget the job: another may follow."""
    global _job, _told
    _job, _told = None, False
    keep_texts(None)


@contextmanager
def final() -> Iterator[None]:
    """End the job at once when a gate refuses: FedML swallows exceptions in some handlers."""
    try:
        yield
    except KeyLockError as error:
        if in_mpi_job():
            end_job(error)
        raise


def entry_names() -> EntryNames:
    """FedML's names for the entries of its messages."""
    from fedml.core.distributed.communication.message import Message
    from fedml.cross_silo.server.message_define import MyMessage

    return EntryNames(
        state=str(Message.MSG_ARG_KEY_MODEL_PARAMS),
        samples=str(MyMessage.MSG_ARG_KEY_NUM_SAMPLES),
        silo=str(MyMessage.MSG_ARG_KEY_CLIENT_INDEX),
    )


def model_types(*, to_server: bool) -> tuple[int, ...]:
    """FedML's types of messages that carry a model."""
    from fedml.cross_silo.server.message_define import MyMessage

    if to_server:
        return (MyMessage.MSG_TYPE_C2S_SEND_MODEL_TO_SERVER,)
    return (MyMessage.MSG_TYPE_S2C_INIT_CONFIG, MyMessage.MSG_TYPE_S2C_SYNC_MODEL_TO_CLIENT)
