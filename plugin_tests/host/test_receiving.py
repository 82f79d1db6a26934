"""FedML's own receiver in a defended job: what comes to it is read without running anything."""

import io
import pickle
from types import SimpleNamespace

import pytest
import torch

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.unpickling import load

OVER_GRPC = """
import os, pickle, socket
from types import SimpleNamespace

import fedml_keylock
fedml_keylock.activate()
import grpc
from fedml.core.distributed.communication.grpc import grpc_comm_manager_pb2 as made
from fedml.core.distributed.communication.grpc.grpc_comm_manager_pb2_grpc import (
    gRPCCommManagerStub,
)
from fedml.core.distributed.communication.message import Message
from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
from fedml_keylock.errors import UpdateRefused

class Evil:
    def __reduce__(self):
        return os.mkdir, (str(FOLDER / "ran"),)

class Server(FedMLCommManager):
    def register_message_receive_handlers(self):
        self.register_message_receive_handler(0, lambda message: None)
        self.register_message_receive_handler("evil", lambda message: self.finish())

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
table, place = FOLDER / "grpc.csv", f"127.0.0.1:{port}"
rows = ["eid,rank,grpc_server_ip,grpc_server_port", f"0,0,127.0.0.1,{port}", "1,1,127.0.0.1,1"]
table.write_text("\\n".join(rows))
args = SimpleNamespace(
    training_type="cross_silo", backend="GRPC", federated_optimizer="FedAvg", worker_num=1,
    client_num_in_total=1, client_num_per_round=1, comm_round=1, rank=0, role="server",
    grpc_ipconfig_path=str(table), enable_defense=DEFENDED, defense_type="keylock",
    keylock={"lock": "paper"})
server = Server(args, None, 0, 2, "GRPC")
message = Message("evil", 1, 0)
message.add("x", Evil())
with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
    gRPCCommManagerStub(channel).sendMessage(made.CommRequest(message=pickle.dumps(message)))
try:
    server.run()
except UpdateRefused as error:
    print(error)
finally:
    server.com_manager.stop_receive_message()
"""


@pytest.mark.parametrize("defended", [True, False])
def test_fedml_s_grpc_receiver_runs_nothing_that_comes(defended, with_fedml, tmp_path):
    pytest.importorskip("grpc")
    head = f"from pathlib import Path\nDEFENDED, FOLDER = {defended}, Path({str(tmp_path)!r})\n"
    ended = with_fedml(head + OVER_GRPC)
    assert ended.status == 0, ended.stderr[-2000:]
    assert (tmp_path / "ran").exists() != defended  # the control: FedML runs it
    said = "the server: a message held posix.mkdir, which no model or number needs; nothing of it"
    assert ended.stdout.startswith(said) == defended


UNDEFENDED = """
from types import SimpleNamespace

import fedml
from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
from mpi4py import MPI

from fedml_keylock.host.mailbox import TAG

class Silo(FedMLCommManager):
    def register_message_receive_handlers(self):
        pass

comm = MPI.COMM_WORLD
rank = comm.Get_rank()
if rank == 1:
    comm.Send(b"a hello", 2, TAG)
elif rank == 2:
    args = SimpleNamespace(training_type="simulation", backend="MPI", rank=rank, comm=comm)
    Silo(args, comm, rank, 3, "MPI").run()
"""


def test_a_rank_that_is_not_defended_says_so_when_others_are(on_three_ranks):
    done = on_three_ranks(UNDEFENDED)
    said = "fedml-keylock: rank 2: rank 1 is defended and this rank is not: its YAML does not ask"
    assert done.returncode != 0
    assert any(line.startswith(said) for line in done.stdout.splitlines()), done.stdout[-2000:]
    assert "Traceback" not in done.stdout


class Stored:
    """A storage as torch.save writes it in its older format, of another place."""

    def __init__(self, place):
        written = io.BytesIO()
        storage = torch.ones(3)._typed_storage()
        torch.save(storage, written, _use_new_zipfile_serialization=False)
        sizes = [len(name).to_bytes(4, "little") + name for name in (b"cpu", place.encode())]
        self.bytes = written.getvalue().replace(*sizes)

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.bytes,)


@pytest.mark.parametrize("place", ["meta", "xla:0", "cpu:0", "cuda:0\n", "mps:", ""])
def test_a_storage_names_no_place_but_those_of_models(place):
    def read(place):
        return load(io.BytesIO(pickle.dumps(Stored(place))), message=SimpleNamespace, who="rank 2")

    assert read("cpu")._size() == 3
    with pytest.raises(UpdateRefused, match="_load_from_bytes with other arguments"):
        read(place)
