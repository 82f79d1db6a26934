"""FedML's seams: the only module that imports fedml and names its parts.

`activate()` makes our names known to FedML; the job's YAML flag decides whether they do anything.
The parts are imported where they are used: another release may lack them, and that is to be said
as the misfit that it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import fedml

from ..errors import ConfigError, HostError, KeyLockError
from ..plugins import defenses
from .abort import AbortOnError, end_job, in_mpi_job
from .flags import INVERSION, our_attack, our_defense
from .patching import Patches, Seam
from .session import Session
from .supported import unsupported

if TYPE_CHECKING:
    from fedml.core.alg_frame.client_trainer import ClientTrainer
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
    from fedml.core.security.fedml_attacker import FedMLAttacker
    from fedml.core.security.fedml_defender import FedMLDefender
    from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
    from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
    from fedml.runner import FedMLRunner

__all__ = ["activate", "activate_or_guard", "deactivate", "is_active", "misfit", "seams"]

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
    global _patches
    if is_active():
        return
    problem = misfit()
    if problem is not None:
        raise HostError(problem)
    _guard.restore()
    _patches = Patches(seams())
    _patches.apply()
    _abort.install()


def activate_or_guard() -> str | None:
    """Put the seams in, or else what stops a job that asks for them. For the start-up file.

    A program that merely imports fedml is not to end because this package does not fit it; a job
    that asks for the defense is not to run without it.

    Returns:
        What is to be said at once: why nothing could be put in. None otherwise.

    Example:
        >>> activate_or_guard() is None, is_active()
        (True, True)
        >>> deactivate()

    """
    global _guard
    if _guard.applied:
        return None
    try:
        activate()
    except HostError as error:
        _guard = Patches(tuple(_guards(str(error))))
        _guard.apply()
        return None if _guard.seams else f"{error}; until then jobs are not defended"
    return None


def deactivate() -> None:
    """Take the seams out: FedML is as it was, attribute by attribute. Idempotent."""
    global _job
    _abort.remove()
    _patches.restore()
    _guard.restore()
    _job = None


def is_active() -> bool:
    """Whether the seams are in."""
    return _patches.applied


def misfit() -> str | None:
    """Why this FedML cannot be defended, naming it and what was tested; None if it can.

    Example:
        >>> misfit() is None
        True

    """
    version = str(getattr(fedml, "__version__", "of no version"))
    try:
        problems = Patches(seams()).problems()
        _state_key()
        _index_key()
    except (ImportError, AttributeError) as error:  # another release, with other parts
        problems = [str(error)]
    return unsupported(version, problems)


_GUARDED = (
    ("fedml.core.security.fedml_attacker", "FedMLAttacker", "init"),
    ("fedml.core.security.fedml_defender", "FedMLDefender", "init"),
    ("fedml.runner", "FedMLRunner", "__init__"),
)
"""Where FedML reads the flags, and where a job begins: a server and a silo pass by one of them."""


def _guards(problem: str) -> Iterator[Seam]:
    """A seam for each place of FedML's that a job's arguments pass by, as far as there are any."""
    places: list[tuple[Any, str]] = []
    for module, owner, name in _GUARDED:
        try:
            places.append((getattr(import_module(module), owner), name))
        except (ImportError, AttributeError):
            continue
    places = [place for place in places if _has_function(*place)]
    if not places and _has_function(fedml, "init"):
        places = [(fedml, "init")]
    for held, name in places:
        yield Seam(held, name, None, functools.partial(_guarded, problem))


def _has_function(owner: Any, name: str) -> bool:
    return inspect.isfunction(vars(owner).get(name))


def _guarded(problem: str, original: Function) -> Function:
    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _refuse(problem, (*args, *kwargs.values()))
        result = original(*args, **kwargs)
        _refuse(problem, (result,))  # fedml.init makes the arguments itself, and returns them
        return result

    return guarded


def _refuse(problem: str, values: Iterable[Any]) -> None:
    """Stop the job if one of the values is its arguments and they ask for what cannot be had."""
    for value in values:
        defense = our_defense(value)
        if defense is None and not our_attack(value):
            continue
        flag = f"attack_type: {INVERSION}" if defense is None else f"defense_type: {defense}"
        error = HostError(f"{flag} cannot be had: {problem}")
        if in_mpi_job():
            end_job(error)
        _abort.install()  # one line, where nobody catches it
        raise error


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
        session = _begin(args)
        if session is not None and session.then is not None:
            _fedmls_own(original, self, args, session)
            return
        self.args = args
        self.is_enabled = True
        self.defense_type = our_defense(args)
        self.defender = _LocksNobodyOut()

    return init


def _fedmls_own(original: Function, defender: FedMLDefender, args: Any, session: Session) -> None:
    """Have FedML make its own defense beside the lock, from the settings that it always reads."""
    theirs = copy.copy(args)
    theirs.defense_type = session.then
    try:
        original(defender, theirs)
    except AttributeError as error:
        if error.obj is not theirs:
            raise
        raise ConfigError(
            f"{session.name}.then: {session.then} needs {error.name}, which is not set; set it in "
            "defense_args"
        ) from None


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


def _update_dataset(original: Function) -> Function:
    @functools.wraps(original)
    def update_dataset(self: TrainerDistAdapter, client_index: Any = None) -> None:
        session = _begin(self.args)
        if session is None or client_index is None:
            original(self, client_index)
            return
        with _final():
            session.enter(int(client_index))
        # FedML takes silo 0 for none, and gives the rank the data of silo rank - 1 in its place
        self.trainer.update_dataset(int(client_index))

    return update_dataset


def _set_global_model_params(original: Function) -> Function:
    @functools.wraps(original)
    def set_global_model_params(self: FedMLAggregator, model_parameters: Any) -> None:
        session = _begin(self.args)
        if session is not None:
            session.pin(model_parameters)
        original(self, model_parameters)

    return set_global_model_params


def _send_message(original: Function) -> Function:
    state, index = _state_key(), _index_key()

    @functools.wraps(original)
    def send_message(self: FedMLCommManager, message: Any) -> None:
        session = _begin(self.args)
        if session is not None:
            if session.is_server and message.get(index) is not None:
                session.assign(int(message.get_receiver_id()), int(message.get(index)))
            with _final():
                session.outgoing(message.get_params(), state)
        original(self, message)

    return send_message


def _receive_message(original: Function) -> Function:
    state = _state_key()

    @functools.wraps(original)
    def receive_message(self: FedMLCommManager, msg_type: Any, msg_params: Any) -> None:
        session = _begin(self.args)
        # a message to oneself says that the connection is up
        if session is not None and msg_params.get_sender_id() != msg_params.get_receiver_id():
            with _final():
                session.incoming(msg_params.get_params(), state, int(msg_params.get_sender_id()))
        original(self, msg_type, msg_params)

    return receive_message


def _state_key() -> str:
    """Name of a message's entry that holds a model's state."""
    from fedml.core.distributed.communication.message import Message

    return str(Message.MSG_ARG_KEY_MODEL_PARAMS)


def _index_key() -> str:
    """Name of a message's entry that holds the index of the silo that the receiver works for."""
    from fedml.cross_silo.server.message_define import MyMessage

    return str(MyMessage.MSG_ARG_KEY_CLIENT_INDEX)


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
    """Every function of FedML that is wrapped, and the parameters it must have.

    Raises:
        ImportError: this FedML does not have a module or class that holds one.

    """
    from fedml.core.alg_frame.client_trainer import ClientTrainer
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
    from fedml.core.security.fedml_attacker import FedMLAttacker
    from fedml.core.security.fedml_defender import FedMLDefender
    from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
    from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
    from fedml.runner import FedMLRunner

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
        Seam(TrainerDistAdapter, "update_dataset", ("self", "client_index"), _update_dataset),
        Seam(
            FedMLAggregator,
            "set_global_model_params",
            ("self", "model_parameters"),
            _set_global_model_params,
        ),
        Seam(FedMLCommManager, "send_message", ("self", "message"), _send_message),
        Seam(
            FedMLCommManager,
            "receive_message",
            ("self", "msg_type", "msg_params"),
            _receive_message,
        ),
        Seam(fedml, "_manage_mpi_args", ("args",), _manage_mpi_args),
    )


_patches = Patches(())
_guard = Patches(())
_abort = AbortOnError()
