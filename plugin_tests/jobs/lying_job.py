"""A real FedML job whose server lies below our checks: JOB_CASE says how, JOB_ROUND when."""

import copy
import os
from pathlib import Path

import fedml
import job_recorder
import torch
from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
from fedml.cross_silo.server.message_define import MyMessage
from fedml.ml.trainer.my_model_trainer_classification import ModelTrainerCLS
from job_parts import Net, load
from mpi4py import MPI

CASE = os.environ.get("JOB_CASE", "")
ROUND = int(os.environ.get("JOB_ROUND", "1"))
RANK = MPI.COMM_WORLD.Get_rank()
VICTIM = 2
FIRST, AVERAGE = MyMessage.MSG_TYPE_S2C_INIT_CONFIG, MyMessage.MSG_TYPE_S2C_SYNC_MODEL_TO_CLIENT


class Server:
    """What a server that lies has seen, and what it sends in place of the truth."""

    def __init__(self):
        self.round = 0
        self.uploads = {}
        self.first = None
        self.sums = []
        self.greeted = set()

    def model(self, message, dest):
        """The model that goes to a rank in a message of this type."""
        kind, true = message.get_type(), message.get(MyMessage.MSG_ARG_KEY_MODEL_PARAMS)
        if kind == FIRST:
            self.first = true
            other = {n: t + 0.01 if t.is_floating_point() else t for n, t in true.items()}
            told_another = {"first": True, "other": dest == VICTIM and ROUND == 0}
            return other if told_another.get(CASE) else true
        if not self.sums or self.sums[-1] is not true:
            self.sums.append(true)
        if len(self.sums) - 1 != ROUND or (CASE.endswith("one") and dest != VICTIM):
            return true
        uploads = list(self.uploads.values())
        lies = {
            "other": lambda: self.first if dest == VICTIM else true,
            "shifted_one": lambda: changed(true, lambda n, t: t + (n == "3.weight")),
            "stale": lambda: self.sums[-2],
            "subset": lambda: changed(true, lambda n, t: t - uploads[2][n]),
            "again": lambda: self.first,
        }
        return lies[CASE]() if CASE in lies else true


def changed(state, how):
    return type(state)((name, how(name, tensor)) for name, tensor in state.items())


class Lying:
    """FedML's communicator on the server, below all that the plugin sees of a message."""

    def __init__(self, comm, server):
        self.comm, self.server = comm, server

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def send(self, message, dest):
        if message.get_type() in (FIRST, AVERAGE):
            said, lie = message.get_params(), self.server.model(message, dest)
            message = copy.copy(message)
            message.msg_params = {**said, MyMessage.MSG_ARG_KEY_MODEL_PARAMS: lie}
            now = message.get_type() == AVERAGE and len(self.server.sums) - 1 == ROUND
            if CASE == "seat" and now and dest == VICTIM:  # the silo of rank 1 again
                message.msg_params[MyMessage.MSG_ARG_KEY_CLIENT_INDEX] = self.server.seat
            if CASE == "anew" and (message.get_type() == FIRST or now):
                # FedML counts its rounds anew from a first model's message, of which it takes one
                if not now and dest in self.server.greeted:
                    return
                self.server.greeted.add(dest)
                message.msg_params[MyMessage.MSG_ARG_KEY_TYPE] = FIRST if now else AVERAGE
            self.server.seat = said[MyMessage.MSG_ARG_KEY_CLIENT_INDEX]
            if CASE == "unread" and now:  # FedML loads the model of such a message once
                message.msg_params[MyMessage.MSG_ARG_KEY_TYPE] = FIRST
                self.comm.send(message, dest=dest)
            if CASE in ("finish", "unread") and now:
                finish = type(message)(MyMessage.MSG_TYPE_S2C_FINISH, 0, dest)
                client = MyMessage.MSG_ARG_KEY_CLIENT_INDEX
                finish.add_params(client, said[client])
                message = finish
        self.comm.send(message, dest=dest)


def lie():
    server, made = Server(), MpiCommunicationManager.__init__
    adding = FedMLAggregator.add_local_trained_result

    def constructor(self, *given):
        made(self, *given)
        self.comm = Lying(self.comm, server)

    def add_local_trained_result(self, index, state, samples):
        server.uploads[index] = {n: t.clone() for n, t in state.items()}
        adding(self, index, state, samples)

    MpiCommunicationManager.__init__ = constructor
    FedMLAggregator.add_local_trained_result = add_local_trained_result


class Trainer(ModelTrainerCLS):
    """FedML's own, which notes what it loads."""

    def set_model_params(self, model_parameters):
        with Path(f"loaded-{RANK}").open("a") as noted:
            noted.write(f"{float(model_parameters['3.weight'].double().sum())}\n")
        super().set_model_params(model_parameters)


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    job_recorder.start(args.rank)
    device = fedml.device.get_device(args)
    torch.manual_seed(0)
    model = Net()
    if RANK == 0:
        lie()
    fedml.FedMLRunner(args, device, load(args), model, Trainer(model, args), None).run()
