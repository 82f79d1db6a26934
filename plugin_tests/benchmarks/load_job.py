"""A FedML job that counts and times itself; it knows nothing of any plugin.

On the server: when the first model left and when the last update was averaged, how long each
aggregation took, and the memory at each round's end. In a silo: the bytes of each upload, and what
its parts cost. All of it stays in memory until the job is over, so that it weighs on nothing.
"""

from __future__ import annotations

import importlib
import json
import pickle
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import fedml
import torch
from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
from fedml.cross_silo.client.fedml_trainer import FedMLTrainer
from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
from fedml.cross_silo.server.fedml_server_manager import FedMLServerManager
from fedml.model.cv.resnet import resnet20
from mpi4py import MPI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Function = Callable[..., Any]


class Record:
    """What one rank has seen of the job."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.began = self.ended = 0.0
        self.cpu_began = self.cpu_ended = 0.0
        self.memory: list[int] = []
        self.seconds: dict[str, list[tuple[float, float]]] = {}

    def start(self) -> None:
        """Have FedML's own functions counted and timed."""
        MPI.pickle.__init__(self._counted, pickle.loads)  # type: ignore[misc]  # what it is made for
        for of, name, what in (
            (FedMLAggregator, "aggregate", "aggregation"),
            (FedMLServerManager, "receive_message", "server"),
            (FedMLTrainer, "train", "training"),
            (FedMLTrainer, "update_model", "loading"),
            (FedMLCommManager, "send_message", "sending"),
        ):
            setattr(of, name, self._timed(getattr(of, name), what))
        handle = FedMLServerManager.handle_message_receive_model_from_client

        def handled(server: Any, message: Any) -> None:
            before = server.args.round_idx
            handle(server, message)
            if server.args.round_idx != before:
                self.memory.append(resident())

        FedMLServerManager.handle_message_receive_model_from_client = handled

    def write(self, rank: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = vars(self) | {"cpu": used.ru_utime + used.ru_stime, "peak": 1024 * used.ru_maxrss}
        Path(f"load-{rank}.json").write_text(json.dumps(found))

    def _counted(self, message: Any, *how: Any) -> bytes:
        data = pickle.dumps(message, *how)
        if "model_params" in message.get_params():
            if not self.sent:
                self.began, self.cpu_began = time.monotonic(), time.process_time()
            self.sent.append(len(data))
            self.ended, self.cpu_ended = time.monotonic(), time.process_time()
        return data

    def _timed(self, function: Function, what: str) -> Function:
        taken = self.seconds.setdefault(what, [])

        def run(*args: Any, **more: Any) -> Any:
            wall, own = time.perf_counter(), time.thread_time()
            result = function(*args, **more)
            taken.append((time.perf_counter() - wall, time.thread_time() - own))
            if what == "aggregation":
                self.ended, self.cpu_ended = time.monotonic(), time.process_time()
            return result

        return run


def resident() -> int:
    """Bytes of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class ThreeChannels(TensorDataset):
    """Digits as ResNet-20 wants pictures; made when asked for, so that they take no memory."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = (tensor[index] for tensor in self.tensors)
        return image.expand(3, -1, -1), label


def load(args: Any) -> tuple[Any, ...]:
    """FedML's dataset tuple, of the digits that the benchmark has put into the job's folder."""
    images, labels = torch.load("digits.pt")
    kind = ThreeChannels if args.model == "ResNet-20" else TensorDataset
    share, silos = args.digits_each, args.client_num_in_total
    parts = {
        s: kind(images[s * share :][:share], labels[s * share :][:share]) for s in range(silos)
    }
    loaders = {s: DataLoader(part, args.batch_size, shuffle=True) for s, part in parts.items()}
    test = DataLoader(kind(images[-args.test_digits :], labels[-args.test_digits :]), 100)
    sizes = {s: len(part) for s, part in parts.items()}
    total = sum(sizes.values())
    return total, args.test_digits, None, test, sizes, loaders, dict.fromkeys(parts, test), 10


def make(name: str) -> nn.Module:
    """The example's LeNet, or FedML's own ResNet-20."""
    if name == "ResNet-20":
        return cast("nn.Module", resnet20(10))
    example = importlib.import_module("model")  # copied beside this
    return cast("nn.Module", example.LeNet())


if __name__ == "__main__":
    record = Record()
    args = fedml.init(check_env=False)
    record.start()
    device = fedml.device.get_device(args)
    model = make(args.model)
    fedml.FedMLRunner(args, device, load(args), model).run()
    record.write(int(args.rank))
    sys.stdout.flush()
