"""The job that this process takes part in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ...errors import KeyLockError
from ..abort import end_job, in_mpi_job
from ..gate import EntryNames
from ..session import Session
from ..session_of import session_of

__all__ = ["begin", "entry_names", "final", "forget", "tell_undefended"]

_job: tuple[Any, Session | None] | None = None
"""Its arguments, and its session if they ask for one."""
_told = False


def tell_undefended() -> None:
    """From now on say of a job that it asks for nothing: it was started for the plugin's sake."""
    global _told
    _told = True


def begin(args: Any) -> Session | None:
    """The session of the job with these arguments; made when first asked for."""
    global _job
    if _job is None or _job[0] is not args:
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


def _tell(wandb: bool, metrics: dict[str, Any]) -> None:
    """Send metrics where FedML sends its own: its platform, and wandb where it is enabled."""
    from fedml import mlops

    mlops.log(metrics)
    if wandb:
        import wandb as board

        if board.run is not None:
            board.log(metrics)


def forget() -> None:
    """Another job may follow."""
    global _job, _told
    _job, _told = None, False


@contextmanager
def final() -> Iterator[None]:
    """End the job at once when a gate refuses: FedML swallows what is raised in some handlers."""
    try:
        yield
    except KeyLockError as error:
        if in_mpi_job():
            end_job(error)
        raise


def entry_names() -> EntryNames:
    """How FedML names the entries of its messages."""
    from fedml.core.distributed.communication.message import Message
    from fedml.cross_silo.server.message_define import MyMessage

    return EntryNames(
        state=str(Message.MSG_ARG_KEY_MODEL_PARAMS),
        samples=str(MyMessage.MSG_ARG_KEY_NUM_SAMPLES),
        silo=str(MyMessage.MSG_ARG_KEY_CLIENT_INDEX),
    )
