"""Checks what a rank sends below FedML's manager, and refuses what bypasses the gate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import HostError
from ..message_type import check_type
from ..session import Session
from ..silo_session import SiloSession
from .current_job import entry_names, final, model_types

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["gated", "guarded"]

_HARMLESS = re.compile(
    "(?i)i?recv|i?m?probe|improbe|i?barrier|get_(?!.*parent).*|is_.*|abort|compare|handle|group|"
    "info|name|rank|size|topology|free|set_name"
)
"""Methods of a communicator that send nothing of the caller's and make no other communicator."""

_SENDS = ("send", "isend", "ssend", "issend", "bsend", "ibsend")
"""Methods that send a Python object to one rank."""

_passed: ContextVar[Any] = ContextVar("passed", default=None)
"""The message that passed the gate and is being sent."""


@contextmanager
def gated(session: Session, message: Any) -> Iterator[None]:
    """Pass one of FedML's messages through the session's gate, and report it sent afterwards.

    Raises:
        UpdateRefused: the message must not leave.

    """
    receiver, who = int(message.get_receiver_id()), f"{session.who}: what it would send"
    with final():
        if session.defense is not None:
            carriers = model_types(to_server=isinstance(session, SiloSession))
            check_type(message.get_params(), message.get_type(), carriers, who=who)
        session.emit(message.get_params(), entry_names(), receiver)
    token = _passed.set(message)
    try:
        yield
    finally:
        _passed.reset(token)
    session.sent()


def guarded(session: SiloSession) -> type[MPI.Intracomm]:
    """A communicator class that a silo's code may use.

    It sends FedML's messages after they pass the gate. Its methods that receive, wait or inform
    work as usual; all others are refused. Code can still reach `mpi4py.MPI.COMM_WORLD`, which is
    unguarded.
    """
    from fedml.core.distributed.communication.message import Message
    from mpi4py import MPI

    class Guarded(MPI.Intracomm):
        """The communicator of this session."""

    def sending(name: str) -> Any:
        send = getattr(MPI.Intracomm, name)

        def sent(self: Any, obj: Any, dest: int, tag: int = 0) -> Any:
            if _passed.get() is obj:
                return send(self, obj, dest, tag)
            if not isinstance(obj, Message) or obj.get_receiver_id() != dest:
                _refuse(session, name)
            with gated(session, obj):
                return send(self, obj, dest, tag)

        return sent

    for name in dir(MPI.Intracomm):
        if name in _SENDS:
            setattr(Guarded, name, sending(name))
        elif not (name.startswith("_") or _HARMLESS.fullmatch(name)):
            setattr(Guarded, name, lambda *_, _name=name, **__: _refuse(session, _name))
    return Guarded


def _refuse(session: SiloSession, name: str) -> NoReturn:
    with final():
        raise HostError(
            f"{session.who}: the job's own code calls {name} of FedML's communicator, which "
            "bypasses keylock's gate; send a Message of FedML's by its manager's send_message"
        )
