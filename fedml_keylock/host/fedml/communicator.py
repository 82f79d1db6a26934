"""Where a rank sends below FedML's manager: what passes its gate there, and what is refused."""

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
"""What of a communicator sends nothing of its caller's, and makes no other communicator."""

_SENDS = ("send", "isend", "ssend", "issend", "bsend", "ibsend")
"""What sends a Python object to one rank."""

_passed: ContextVar[Any] = ContextVar("passed", default=None)
"""The message that has passed the gate and is being sent."""


@contextmanager
def gated(session: Session, message: Any) -> Iterator[None]:
    """Have a message of FedML's pass the session's gate, send it within, and say that it is sent.

    Raises:
        UpdateRefused: it must not leave.

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
    """MPI's communicators as a silo's code may use them.

    They send messages of FedML's, which pass the gate. All else that they have receives, waits or
    says something, or is refused. `mpi4py.MPI.COMM_WORLD` is not one of them, and anybody has it.
    """
    from fedml.core.distributed.communication.message import Message
    from mpi4py import MPI

    class Guarded(MPI.Intracomm):
        """Of this session."""

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
            f"{session.who}: the job's own code calls {name} of FedML's communicator, which goes "
            "around keylock's gate; send a Message of FedML's by its manager's send_message"
        )
