"""Where FedML takes and unpickles what other ranks send, before any gate sees it."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...errors import HostError, UpdateRefused
from ..mailbox import TAG
from ..patching import Function, Seam, around
from ..progress import tell_received
from ..session import Session
from ..silo_session import SiloSession
from ..unpickling import load
from .communicator import guarded
from .current_job import begin, final

if TYPE_CHECKING:
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager

__all__ = ["seams", "with_pickle"]


def seams() -> tuple[Seam, ...]:
    """What of the making of FedML's receivers is wrapped."""
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager

    return (Seam(FedMLCommManager, "_init_manager", ("self",), _init_manager),)


@around
def _init_manager(original: Function, self: FedMLCommManager) -> None:
    session = begin(self.args)
    if session is None or session.defense is None:
        if self.backend == "MPI":
            self.comm = _undefended(self.comm)
        original(self)
        return
    if self.backend == "MPI":
        self.comm = _careful(self.comm, session)
    original(self)
    if self.backend == "GRPC":
        _make_careful(self.com_manager, session)


def _undefended(comm: Any) -> Any:
    """The same communicator, which says so if other ranks of the job are defended.

    FedML would unpickle what silos tell one another, and end in a traceback.
    """
    from mpi4py import MPI

    class Undefended(MPI.Intracomm):
        def recv(
            self,
            buf: Any = None,
            source: int = MPI.ANY_SOURCE,
            tag: int = MPI.ANY_TAG,
            status: MPI.Status | None = None,
        ) -> Any:
            arrived = MPI.Status()
            self.Probe(source, tag, arrived)
            if not self.Get_rank():
                tell_received(arrived.Get_source(), arrived.Get_count(MPI.BYTE))
            if arrived.Get_tag() == TAG:
                with final():
                    raise HostError(
                        f"rank {arrived.Get_source()} is defended and this rank is not: its YAML "
                        "does not ask for the defense; give every rank the same YAML"
                    )
            return super().recv(buf, source, tag, status)

    return Undefended(comm)


def _careful(comm: Any, session: Session) -> Any:
    """The same communicator, which reads FedML's messages without running anything in them.

    In a silo it sends nothing else than messages of FedML's.

    Not by `MPI.pickle`: that is a job's own to set, does not say what it was, and does not know
    who sent what it reads.
    """
    from fedml.core.distributed.communication.message import Message
    from mpi4py import MPI

    base = guarded(session) if isinstance(session, SiloSession) else MPI.Intracomm

    class Careful(base):  # type: ignore[misc, valid-type]  # made for this session
        def recv(
            self,
            buf: Any = None,
            source: int = MPI.ANY_SOURCE,
            tag: int = MPI.ANY_TAG,
            status: MPI.Status | None = None,
        ) -> Any:
            status = MPI.Status() if status is None else status
            arrived = self.Mprobe(source, tag, status)
            size, file = status.Get_count(MPI.BYTE), io.BytesIO()
            file.seek(size)
            file.write(b"\0")  # there is room now, and what is behind a pickle is not read
            with file.getbuffer() as room:
                arrived.Recv([room, size, MPI.BYTE], status)
            file.seek(0)
            source = status.Get_source()
            if not self.Get_rank():
                tell_received(source, size)
            with final():
                read = load(file, message=Message, who=f"rank {source}")
                _check_sender(read, source, server=not self.Get_rank())
                return read

    return Careful(comm)


def _check_sender(message: Any, source: int, *, server: bool) -> None:
    """Refuse what a silo sends in another's name, and to another silo: FedML takes both.

    A silo's update would replace another's, and a silo would train on a model of another one's.

    Raises:
        UpdateRefused: naming the rank that sent it.

    """
    if source and not server:
        raise UpdateRefused(f"rank {source}: a silo sent a message to a silo")
    named = message.get_params().get(message.MSG_ARG_KEY_SENDER)
    if named != source or message.get_sender_id() != source:
        raise UpdateRefused(f"rank {source}: a message came in the name of rank {named!r:.20}")


def _make_careful(manager: Any, session: Session) -> None:
    """Give FedML's loop over gRPC messages, in this manager, another `pickle`."""
    from fedml.core.distributed.communication.message import Message

    def careful(data: bytes) -> Any:
        with final():
            if session.link is None:  # whoever sends says who he is
                read = load(io.BytesIO(data), message=Message, who=session.who)
                sender = read.get_sender_id()
            else:
                data, sender = session.link.check(data)
                read = load(io.BytesIO(data), message=Message, who=f"rank {sender}")
            _check_sender(read, sender, server=session.args.role == "server")
            return read

    loop = with_pickle(type(manager).message_handling_subroutine, loads=careful)
    manager.message_handling_subroutine = loop.__get__(manager)


def with_pickle(function: Function, **calls: Callable[..., Any]) -> FunctionType:
    """A function of FedML's over gRPC, with another `pickle`.

    Raises:
        HostError: it has none.

    """
    if "pickle" not in function.__code__.co_names:
        raise HostError("this FedML pickles gRPC's messages elsewhere than where it was tested")
    known = function.__globals__ | {"pickle": SimpleNamespace(**calls)}
    return FunctionType(function.__code__, known)
