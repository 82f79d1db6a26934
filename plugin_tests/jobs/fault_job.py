"""A real FedML job on a task that can be learned, in which JOB_CASE says what breaks, and when.

Silo 1 (rank 2) is the one that it happens to, in round 1 unless JOB_ROUND says another.
"""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import fedml
import job_recorder
import torch
from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
from fedml.ml.trainer.my_model_trainer_classification import ModelTrainerCLS
from job_parts import Net
from mpi4py import MPI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedml_keylock

CASE = os.environ.get("JOB_CASE", "")
ROUND = int(os.environ.get("JOB_ROUND", "1"))
RANK = MPI.COMM_WORLD.Get_rank()
OWN = f"fedml_config-{RANK}.yaml"
"""A rank's own YAML, where the case has given it one."""


def now() -> None:
    """Note when it broke: the job is to end soon after."""
    Path("fault").write_text(str(time.time()))


def kill() -> None:
    now()
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk() -> None:
    now()
    with open("disk/ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(512)):
                pass
        except OSError:
            pass


def lose_vault() -> None:
    now()
    shutil.move("own_vault", "moved_vault")
    Path("own_vault").write_text("a file where the folder was")


class Faulty(ModelTrainerCLS):
    """FedML's own trainer until the round in which it breaks."""

    def breaks(self, *cases) -> bool:
        return CASE in cases and RANK == 2 and self.args.round_idx == ROUND

    def train(self, train_data, device, args):
        if self.breaks("full_disk"):
            fill_disk()
        if self.breaks("lost_vault"):
            lose_vault()
        if self.breaks("unlocked"):
            now()
            fedml_keylock.unlock_model(self.model)
        if CASE == "killed_between_rounds" and RANK == 1 and args.round_idx == ROUND:
            time.sleep(4)  # so that silo 1 has to wait
        super().train(train_data, device, args)
        if self.breaks("killed_in_training"):
            kill()

    def get_model_params(self):
        if self.breaks("replayed"):
            now()
            return self.kept
        self.kept = {n: t.clone() for n, t in super().get_model_params().items()}
        return super().get_model_params()


class Dying:
    """A communicator whose process is killed while it sends."""

    def __init__(self, comm):
        self.comm = comm

    def send(self, message, dest):
        self.comm.isend(message, dest=dest)
        kill()


def break_the_sending(trainer) -> None:
    sending = MpiCommunicationManager.send_message

    def send_message(self, message):
        upload = message.get("model_params") is not None
        if upload and trainer.breaks("killed_in_upload"):
            self.comm = Dying(self.comm)
        sending(self, message)
        if upload and trainer.breaks("killed_between_rounds"):
            threading.Timer(0.5, kill).start()

    MpiCommunicationManager.send_message = send_message


def break_the_server(args) -> None:
    adding = FedMLAggregator.add_local_trained_result

    def add_local_trained_result(self, *update):
        adding(self, *update)
        if args.round_idx == ROUND:
            kill()

    FedMLAggregator.add_local_trained_result = add_local_trained_result


def samples(count: int, seed: int) -> TensorDataset:
    """Pictures ``(count, 1, 8, 8)`` of three kinds, in more noise than signal."""
    kinds = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draw)
    noise = torch.randn(count, 1, 8, 8, generator=draw)
    return TensorDataset(0.6 * kinds[labels] + noise, labels)


def load(args):
    test = DataLoader(samples(1000, seed=99), 500)
    loaders = {s: DataLoader(samples(320, seed=s), 16) for s in range(args.client_num_in_total)}
    sizes = dict.fromkeys(loaders, 320)
    return 320 * len(loaders), 1000, None, test, sizes, loaders, dict.fromkeys(loaders, test), 3


if __name__ == "__main__":
    if os.path.exists(OWN):
        sys.argv[sys.argv.index("--cf") + 1] = OWN
    args = fedml.init(check_env=False)
    job_recorder.start(args.rank)
    device = fedml.device.get_device(args)
    torch.manual_seed(0)
    model = Net()
    if RANK == 2 and CASE == "other_model":
        model[9] = nn.Linear(8, 4)
    if RANK == 2 and CASE.startswith("other_"):
        now()
    trainer = Faulty(model, args)
    break_the_sending(trainer)
    if RANK == 0 and CASE == "server_killed":
        break_the_server(args)
    fedml.FedMLRunner(args, device, load(args), model, trainer, None).run()
