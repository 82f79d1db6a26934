"""Wraps FedML's jobs of many processes, in which a server and silos exchange messages."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import fedml

from ...errors import ConfigError, HostError
from ..message_type import check_type
from ..patching import Function, Seam, around, replaced
from ..silo_session import SiloSession
from .communicator import gated, guarded
from .current_job import begin, current, entry_names, final, keep_errors, model_types
from .receiving import with_pickle

if TYPE_CHECKING:
    from fedml.core.alg_frame.client_trainer import ClientTrainer
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
    from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
    from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter
    from fedml.runner import FedMLRunner

__all__ = ["seams"]


def seams() -> tuple[Seam, ...]:
    """Seams of a job's start, of its silos, of its server and of its messages."""
    from fedml.core.alg_frame.client_trainer import ClientTrainer
    from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
    from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
    from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
    from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter
    from fedml.runner import FedMLRunner
    from fedml.simulation.mpi.fedavg.FedAVGTrainer import FedAVGTrainer

    job = ("args", "device", "dataset", "model", "client_trainer", "server_aggregator")
    runner = ("self", *job, "algorithm_flow")
    messages = ("self", "msg_type", "msg_params")
    # below FedML's manager, so that nothing that it sends bypasses them
    senders: list[type] = [MpiCommunicationManager]
    if find_spec("grpc"):  # fedml has grpc in an extra
        from fedml.core.distributed.communication.grpc.grpc_comm_manager import GRPCCommManager

        senders.append(GRPCCommManager)
    return (
        Seam(ClientTrainer, "__init__", ("self", "model", "args"), _trainer_constructor),
        Seam(FedMLRunner, "__init__", runner, _runner_constructor),
        Seam(FedMLTrainer, "train", ("self", "round_idx"), _train),
        Seam(FedMLTrainer, "update_model", ("self", "weights"), _update_model),
        Seam(FedMLTrainer, "update_dataset", ("self", "client_index"), _update_dataset),
        Seam(TrainerDistAdapter, "update_dataset", ("self", "client_index"), _same_dataset),
        # FedML's MPI simulation has classes of its own for the same purpose
        Seam(FedAVGTrainer, "train", ("self", "round_idx"), _simulated_train),
        Seam(FedAVGTrainer, "update_dataset", ("self", "client_index"), _update_dataset),
        *(Seam(each, "send_message", ("self", "msg"), _send_message) for each in senders),
        Seam(FedMLCommManager, "receive_message", messages, _receive_message),
        Seam(fedml, "_manage_mpi_args", ("args",), _manage_mpi_args),
        Seam(fedml, "_init_simulation_mpi", ("args",), _init_simulation_mpi),
    )


@around
def _trainer_constructor(original: Function, self: ClientTrainer, model: Any, args: Any) -> None:
    # a job's own trainer may make its optimizer right after this, long before the runner gets the
    # model; both trainer and aggregator are constructed on every rank
    session = begin(args)
    if isinstance(session, SiloSession):
        session.adopt(model)
    original(self, model, args)


@around
def _runner_constructor(
    original: Function,
    self: FedMLRunner,
    args: Any,
    device: Any,
    dataset: Any,
    model: Any,
    client_trainer: Any = None,
    server_aggregator: Any = None,
    algorithm_flow: Any = None,
) -> None:
    session = begin(args)
    if session is not None:
        if algorithm_flow is not None:
            raise HostError("algorithm_flow is not supported by fedml_keylock yet")
        session.see_data(dataset)
        session.see_trainer(client_trainer)
        if isinstance(session, SiloSession):
            session.greeting = _greeting()
        session.adopt(model)
        session.agree(dataset)
        if isinstance(session, SiloSession) and session.defense and getattr(args, "comm", None):
            args.comm = guarded(session)(args.comm)
    # FedML trains inside this constructor, unless it simulates in one process
    original(self, args, device, dataset, model, client_trainer, server_aggregator, algorithm_flow)
    if session is not None:
        session.finish()


def _greeting() -> bytes:
    """A message that FedML's silo ignores: without the plugin it would read hellos as messages."""
    from fedml.core.distributed.communication.message import Message
    from fedml.cross_silo.client.message_define import MyMessage

    return pickle.dumps(Message(MyMessage.MSG_TYPE_CONNECTION_IS_READY))


@around
def _train(original: Function, self: FedMLTrainer, round_idx: Any = None) -> Any:
    session = begin(self.args)
    if not isinstance(session, SiloSession):
        return original(self, round_idx)
    self.args.round_idx = round_idx

    def run(data: Any) -> Any:
        with replaced(self, "train_local", data):
            return original(self, round_idx)

    return session.train(self.trainer, self.train_local, run)


@around
def _simulated_train(original: Function, self: Any, round_idx: Any = None) -> Any:
    _report(self)  # here the model arrives before the silo; after the last round it does not
    return _train(original)(self, round_idx)


@around
def _update_model(original: Function, self: FedMLTrainer, weights: Any) -> None:
    original(self, weights)
    _report(self)


def _report(trainer: Any) -> None:
    """Make a silo report the accuracy of the model that it just received, under its own lock."""
    session = begin(trainer.args)
    if isinstance(session, SiloSession):
        session.report_accuracy(trainer.trainer, trainer.test_local, trainer.device)


@around
def _update_dataset(original: Function, self: FedMLTrainer, client_index: Any) -> None:
    session = begin(self.args)
    if isinstance(session, SiloSession):
        with final():
            session.enter(int(client_index))
    original(self, client_index)
    if isinstance(session, SiloSession):
        with final():
            session.check_samples(self.local_sample_number)


@around
def _same_dataset(original: Function, self: TrainerDistAdapter, client_index: Any = None) -> None:
    if begin(self.args) is None or client_index is None:
        original(self, client_index)
    else:
        # FedML takes silo 0 for "none", and gives the rank the data of silo rank - 1 instead
        self.trainer.update_dataset(int(client_index))


@around
def _send_message(original: Function, self: Any, msg: Any) -> None:
    session = current()
    if session is None:
        original(self, msg)
        return
    if session.link is not None:
        protect, receiver = session.link.protect, int(msg.get_receiver_id())
        original = with_pickle(original, dumps=lambda sent: protect(pickle.dumps(sent), receiver))
    with gated(session, msg):
        original(self, msg)


@around
def _receive_message(
    original: Function, self: FedMLCommManager, msg_type: Any, msg_params: Any
) -> None:
    from fedml.core.distributed.communication.constants import CommunicationConstants
    from fedml.cross_silo.client.message_define import MyMessage

    ready = CommunicationConstants.MSG_TYPE_CONNECTION_IS_READY
    session = begin(self.args)
    sender, receiver = msg_params.get_sender_id(), msg_params.get_receiver_id()
    if session is not None and session.defense is not None:
        carriers = model_types(to_server=not isinstance(session, SiloSession))
        who = f"{session.who}: a message from rank {sender!r:.20}"
        with final():
            check_type(msg_params.get_params(), msg_type, carriers, who=who)
    # FedML tells itself that the connection is up; any sender can put its own rank in both fields
    if session is not None and not (msg_type == ready and sender == receiver):
        silo = session if isinstance(session, SiloSession) else None
        with final():
            if silo is not None and not _loads(self, msg_type):
                msg_params.get_params().pop(entry_names().state, None)
            session.admit(msg_params.get_params(), entry_names(), int(sender))
            if silo is not None and msg_type == MyMessage.MSG_TYPE_S2C_FINISH:
                silo.dismiss()
    original(self, msg_type, msg_params)


def _loads(silo: Any, msg_type: Any) -> bool:
    """Whether FedML's silo loads a model from a message of this type.

    A model that it does not load must not count as received. FedML's server sends the first model
    again if a silo reports twice that it is online.
    """
    from fedml.cross_silo.client.message_define import MyMessage

    if msg_type == MyMessage.MSG_TYPE_S2C_INIT_CONFIG:
        return not getattr(silo, "is_inited", False)
    return bool(msg_type == MyMessage.MSG_TYPE_S2C_SYNC_MODEL_TO_CLIENT)


@around
def _manage_mpi_args(original: Function, args: Any) -> None:
    try:
        original(args)
    except AssertionError:
        size = args.comm.Get_size()
        raise ConfigError(
            f"worker_num is {args.worker_num}, so the job needs {args.worker_num + 1} MPI ranks "
            f"(a server and its silos), and {size} were started: mpiexec -n {args.worker_num + 1}, "
            f"or worker_num: {size - 1}"
        ) from None
    keep_errors(args)


@around
def _init_simulation_mpi(original: Function, args: Any) -> Any:
    args = original(args)
    keep_errors(args)
    return args
