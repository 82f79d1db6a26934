"""FedML's seams: the only module that imports fedml and names its parts.

`activate()` makes our names known to FedML; the job's YAML flag decides whether they do anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fedml
from fedml.core.alg_frame.client_trainer import ClientTrainer
from fedml.core.distributed.communication.message import Message
from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
from fedml.core.security.fedml_attacker import FedMLAttacker
from fedml.core.security.fedml_defender import FedMLDefender
from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
from fedml.runner import FedMLRunner

from ..errors import ConfigError, HostError, KeyLockError
from ..plugins import defenses
from .abort import AbortOnError, end_job, in_mpi_job
from .patching import Patches, Seam
from .session import INVERSION, Session, our_attack, our_defense
from .supported import SUPPORTED

__all__ = ["activate", "deactivate", "is_active", "seams"]

STATE = Message.MSG_ARG_KEY_MODEL_PARAMS
Function = Callable[..., Any]

_job: tuple[Any, Session | None] | None = None
"""The arguments of the job that this process takes part in, and its session if they ask for one."""


def activate() -> None:
    """Put the seams in. Idempotent.

    Raises:
        HostError: this FedML is not one that was tested, or a seam does not fit; nothing changed.

    Example:
        >>> activate(); is_active()
        True
        >>> deactivate(); is_active()
        False

    """
    if is_active():
        return
    if fedml.__version__ not in SUPPORTED:
        raise HostError(
            f"fedml {fedml.__version__} is not supported; fedml_keylock was tested with "
            f"{', '.join(SUPPORTED)}: pip install 'fedml=={SUPPORTED[-1]}'"
        )
    _patches.apply()
    _abort.install()


def deactivate() -> None:
    """Take the seams out: FedML is as it was, attribute by attribute. Idempotent."""
    global _job
    _abort.remove()
    _patches.restore()
    _job = None


def is_active() -> bool:
    """Whether the seams are in."""
    return _patches.applied


def _begin(args: Any) -> Session | None:
    """The session of the job with these arguments; made when first asked for."""
    global _job
    if _job is None or _job[0] is not args:
        _job = (args, Session.begin(args))
    return _job[1]


def _defender_init(original: Function) -> Function:
    @functools.wraps(original)
    def init(self: FedMLDefender, args: Any) -> None:
        if our_defense(args) is None:
            kind = getattr(args, "defense_type", None)
            try:
                original(self, args)
            except Exception as error:
                # FedML's word for an unknown name; it does not say which, nor what there is
                if "defense_type is not defined" not in str(error):
                    raise
                raise ConfigError(
                    f"defense_type: {kind!r} is unknown to FedML and to every plugin; "
                    f"plugins know: {', '.join(defenses())}"
                ) from None
            return
        self.args = args
        self.is_enabled = True
        self.defense_type = our_defense(args)
        self.defender = _LocksNobodyOut()

    return init


class _LocksNobodyOut:
    """What FedML's server asks of a defender that leaves aggregation as it is."""

    def get_malicious_client_idxs(self) -> list[int]:
        return []


def _attacker_init(original: Function) -> Function:
    @functools.wraps(original)
    def init(self: FedMLAttacker, args: Any) -> None:
        original(self, args)
        kind = str(getattr(args, "attack_type", "")).strip()
        if self.is_enabled and self.attacker is None and not our_attack(args):
            raise ConfigError(
                f"attack_type: {kind!r} is unknown to FedML and to every plugin; "
                f"plugins know: {INVERSION}"
            )

    return init


def _trainer_constructor(original: Function) -> Function:
    @functools.wraps(original)
    def init(self: ClientTrainer, model: Any, args: Any) -> None:
        # a job's own trainer may make its optimizer right after this, long before the runner has
        # the model; both trainer and aggregator are constructed on every rank
        session = _begin(args)
        if session is not None and not session.is_server:
            session.adopt(model)
        original(self, model, args)

    return init


def _runner_constructor(original: Function) -> Function:
    @functools.wraps(original)
    def init(
        self: FedMLRunner,
        args: Any,
        device: Any,
        dataset: Any,
        model: Any,
        client_trainer: Any = None,
        server_aggregator: Any = None,
        algorithm_flow: Any = None,
    ) -> None:
        session = _begin(args)
        if session is not None:
            if algorithm_flow is not None:
                raise HostError("algorithm_flow is not supported by fedml_keylock yet")
            session.see_data(dataset)
            session.adopt(model)
        # FedML trains inside this constructor
        original(
            self, args, device, dataset, model, client_trainer, server_aggregator, algorithm_flow
        )
        if session is not None:
            session.finish()

    return init


def _train(original: Function) -> Function:
    @functools.wraps(original)
    def train(self: FedMLTrainer, round_idx: Any = None) -> Any:
        session = _begin(self.args)
        if session is None:
            return original(self, round_idx)
        self.args.round_idx = round_idx
        return session.train(self.trainer, lambda: original(self, round_idx))

    return train


def _send_message(original: Function) -> Function:
    @functools.wraps(original)
    def send_message(self: FedMLCommManager, message: Any) -> None:
        session = _begin(self.args)
        if session is not None:
            with _final():
                session.outgoing(message.get_params(), STATE)
        original(self, message)

    return send_message


def _receive_message(original: Function) -> Function:
    @functools.wraps(original)
    def receive_message(self: FedMLCommManager, msg_type: Any, msg_params: Any) -> None:
        session = _begin(self.args)
        # a message to oneself says that the connection is up
        if session is not None and msg_params.get_sender_id() != msg_params.get_receiver_id():
            with _final():
                session.incoming(msg_params.get_params(), STATE, int(msg_params.get_sender_id()))
        original(self, msg_type, msg_params)

    return receive_message


@contextmanager
def _final() -> Iterator[None]:
    """End the job at once when a gate refuses: FedML swallows what is raised in some handlers."""
    try:
        yield
    except KeyLockError as error:
        if in_mpi_job():
            end_job(error)
        raise


def _manage_mpi_args(original: Function) -> Function:
    @functools.wraps(original)
    def manage_mpi_args(args: Any) -> None:
        try:
            original(args)
        except AssertionError:
            size = args.comm.Get_size()
            raise ConfigError(
                f"worker_num is {args.worker_num}, so the job needs {args.worker_num + 1} MPI "
                f"ranks (a server and its silos), and {size} were started: mpiexec -n "
                f"{args.worker_num + 1}, or worker_num: {size - 1}"
            ) from None

    return manage_mpi_args


def seams() -> tuple[Seam, ...]:
    """Every function of FedML that is wrapped, and the parameters it must have."""
    return (
        Seam(FedMLDefender, "init", ("self", "args"), _defender_init),
        Seam(FedMLAttacker, "init", ("self", "args"), _attacker_init),
        Seam(ClientTrainer, "__init__", ("self", "model", "args"), _trainer_constructor),
        Seam(
            FedMLRunner,
            "__init__",
            (
                "self",
                "args",
                "device",
                "dataset",
                "model",
                "client_trainer",
                "server_aggregator",
                "algorithm_flow",
            ),
            _runner_constructor,
        ),
        Seam(FedMLTrainer, "train", ("self", "round_idx"), _train),
        Seam(FedMLCommManager, "send_message", ("self", "message"), _send_message),
        Seam(
            FedMLCommManager,
            "receive_message",
            ("self", "msg_type", "msg_params"),
            _receive_message,
        ),
        Seam(fedml, "_manage_mpi_args", ("args",), _manage_mpi_args),
    )


_patches = Patches(seams())
_abort = AbortOnError()
