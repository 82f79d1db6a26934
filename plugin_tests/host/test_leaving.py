"""What leaves a rank of a defended job beside agreed messages: nothing, or one line says why."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fedml_keylock.errors import UpdateRefused, first_line, keep_texts
from fedml_keylock.host.abort import end_job
from fedml_keylock.host.message_type import check_type

TWICE = [1]
TWICE += [TWICE, TWICE]
HOLD = {
    "a model": {"w": torch.ones(2)},
    "a tensor": torch.ones(()),
    "an array": np.ones(2),
    "a storage": torch.ones(1)._typed_storage(),
    "deep": [1, ({"a": (torch.ones(1),)},)],
}


@pytest.mark.parametrize("what", HOLD)
@pytest.mark.parametrize("kind", [5, 99, "3", None, [3], torch.tensor(3)])
def test_a_tensor_in_a_message_of_another_type_is_refused(what, kind):
    with pytest.raises(UpdateRefused, match=r"held a tensor in its entry a\?b; .* type 1, 2 only"):
        check_type({"a\nb": HOLD[what]}, kind, (1, 2), who="silo 0")


def test_models_go_in_their_types_and_all_else_in_any():
    check_type({"model_params": HOLD["a model"]}, 3, (3,), who="silo 0")
    check_type({"a": "b", "c": [1.0, None, TWICE], "d": np.float32(1)}, 99, (3,), who="silo 0")


BEGIN = """
from types import SimpleNamespace

import torch
from mpi4py import MPI
from fedml.core.distributed.communication.message import Message
from fedml_keylock.errors import KeyLockError
from fedml_keylock.host.fedml import communicator, cross_silo, current_job, receiving
from fedml_keylock.host.server_session import ServerSession
from fedml_keylock.host.silo_session import SiloSession

passed = []

def session_of(kind, rank):
    made = object.__new__(kind)
    args = SimpleNamespace(rank=rank, role="client", client_num_in_total=1, client_num_per_round=1)
    vars(made).update(args=args, defense=1, link=None, silo=0)
    made.emit = lambda entries, names, receiver: passed.append((entries["msg_type"], receiver))
    made.admit = lambda entries, names, sender: passed.append((entries["msg_type"], sender))
    made.sent = lambda: passed.append("sent")
    current_job._job = (args, made)
    return made

def message(kind, sender, receiver, **entries):
    made = Message(kind, sender, receiver)
    made.msg_params.update(entries)
    return made

def tried(call, *args):
    try:
        call(*args)
    except KeyLockError as error:
        print(error)
"""

TYPES = (
    BEGIN
    + """
state = {"model_params": {"w": torch.ones(1)}}
for kind, rank, right in ((ServerSession, 0, (1, 2)), (SiloSession, 1, (3,))):
    session = session_of(kind, rank)
    send = cross_silo._send_message(lambda self, msg: None)
    for each in (1, 2, 3, 5, 99):
        tried(send, None, message(each, rank, 1 - rank, **state))
        tried(send, None, message(each, rank, 1 - rank, client_status="ONLINE"))
    assert [x for x in passed if x != "sent"].count((99, 1 - rank)) == 1
    assert {x[0] for x in passed if x != "sent" and passed.count(x) == 2} == {*right}, passed
    passed.clear()
    cross_silo.begin = lambda args: session
    receive = cross_silo._receive_message(lambda self, kind, message: None)
    silo = SimpleNamespace(args=None)
    for each in (0, 1, 2, 3, 5, 99):
        tried(receive, silo, each, message(each, 1 - rank, rank, **state))
        tried(receive, silo, each, message(each, 1 - rank, rank))
    tried(receive, silo, 0, message(0, 1, 1, **state))  # a name as both
    assert {x[0] for x in passed if passed.count(x) == 2} == {3} if not rank else {1, 2}, passed
    passed.clear()
"""
)


def test_every_message_is_held_to_its_type_in_both_directions(with_fedml):
    ended = with_fedml(TYPES)
    assert ended.status == 0, ended.stderr[-2000:]
    lines = ended.stdout.splitlines()
    assert len(lines) == 3 + 4 + 6 + 5  # types that do not carry a model there
    assert all("held a tensor in its entry model_params; models go in" in x for x in lines)


BELOW = (
    BEGIN
    + """
session = session_of(SiloSession, 1)

def sent(send, *args):
    arriving = MPI.Intracomm(MPI.COMM_SELF).irecv()  # a message to oneself waits for it
    send(*args)
    return arriving.wait()

for comm in (
    communicator.guarded(session)(MPI.COMM_SELF), receiving._careful(MPI.COMM_SELF, session)
):
    calls = [x for x in dir(MPI.Intracomm) if callable(getattr(comm, x)) and x[0] != "_"]
    refused = 0
    for name in calls:
        if communicator._HARMLESS.fullmatch(name):
            continue
        try:
            getattr(comm, name)(torch.ones(1), 0)
        except KeyLockError as error:
            refused += f"calls {name} of FedML's communicator" in str(error)
        else:
            raise AssertionError(name)
    print(refused > 100, sorted({*calls} & {"isend", "bcast", "Dup", "Get_parent"}))
    tried(comm.send, torch.ones(1), 0)
    tried(comm.send, message(3, 1, 7), 0)  # to another than it says
    assert not comm.Iprobe() and not passed
    print(type(sent(comm.send, message(5, 1, 0), 0)).__name__)
    assert passed == [(5, 0), "sent"]
    manager = SimpleNamespace(comm=comm)
    from fedml.core.distributed.communication.mpi.com_manager import MpiCommunicationManager
    send = cross_silo._send_message(MpiCommunicationManager.send_message)
    passed.clear()
    sent(send, manager, message(5, 1, 0))
    assert passed == [(5, 0), "sent"], passed  # by the manager it passes once
    passed.clear()
server = receiving._careful(MPI.COMM_SELF, session_of(ServerSession, 0))
print(server.bcast(1))
"""
)


def test_below_fedmls_manager_a_silo_sends_by_the_gate_or_not_at_all(with_fedml):
    ended = with_fedml(BELOW)
    assert ended.status == 0, ended.stderr[-2000:]
    lines = ended.stdout.splitlines()
    told = (
        "silo 0 (rank 1), round 0: the job's own code calls send of FedML's communicator, which "
        "bypasses keylock's gate; send a Message of FedML's by its manager's send_message"
    )
    each = ["True ['Dup', 'Get_parent', 'bcast', 'isend']", told, told, "Message"]
    assert lines == [*each, *each, "1"]


UPLOADS = """
import io, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
os.chdir(FOLDER)
os.environ["HOME"] = FOLDER

came = []

class Endpoint(BaseHTTPRequestHandler):
    def do_PUT(self):
        if self.headers.get("Expect"):
            self.send_response_only(100); self.end_headers()
        came.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.send_response(200); self.send_header("ETag", '"1"'); self.end_headers()
    do_POST = do_PUT
    def log_message(self, *_): pass

server = HTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
place = {"BUCKET_NAME": "b", "CN_S3_AKI": "a", "CN_S3_SAK": "s",
         "CN_S3_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}

import torch, fedml
from fedml.core import mlops
from fedml.core.distributed.communication.s3.remote_storage import S3Storage
from fedml.core.mlops.mlops_configs import MLOpsConfigs
from fedml_keylock.host import activate
from fedml_keylock.host.fedml import current_job
activate()
MLOpsConfigs.fetch_all_configs = staticmethod(lambda: (None, place, None, None))
mlops.MLOpsStore.mlops_log_agent_config = {"s3_config": place}
mlops.MLOpsStore.mlops_run_id = mlops.MLOpsStore.mlops_edge_id = 1
mlops.setup_log_mqtt_mgr = lambda: None
args = SimpleNamespace(using_mlops=True, rank=0, role="server", run_id=1)
mlops.MLOpsStore.mlops_args = args
mlops.set_realtime_params = lambda: setattr(mlops.MLOpsStore, "mlops_bind_result", True)

state, picture = {"w": torch.full((40,), 7.5)}, torch.full((1, 40), 7.5)
torch.save(state, "model.pt")
artifact = fedml.mlops.Artifact(name="m", type=fedml.mlops.ARTIFACT_TYPE_NAME_MODEL)
artifact.add_file("model.pt")
store = S3Storage(place)
model = torch.nn.Linear(40, 2)
WAYS = {
    "write_model": lambda: store.write_model("k", state),
    "write_model_web": lambda: store.write_model_web("k", state),
    "upload_file": lambda: store.upload_file("model.pt", "k", {}),
    "artifact": lambda: mlops._log_artifact_sync(artifact, version="release"),
    "model net": lambda: mlops.log_training_model_net_info(model, picture),
    "model input": lambda: mlops.log_training_model_input_info([1, 40], ["float"]),
}
for job in (None, SimpleNamespace(defense=1, who="silo 0 (rank 1), round 0")):
    current_job._job = None if job is None else (args, job)
    for name, way in WAYS.items():
        came.clear()
        try:
            way()
        except Exception as error:
            print("!", name, error, file=ANSWERS)
        print(name, len(came), file=ANSWERS)
"""


def test_nothing_is_put_into_fedmls_object_store(with_fedml, tmp_path):
    answers = tmp_path / "answers"
    head = f"FOLDER = {str(tmp_path)!r}\nANSWERS = open({str(answers)!r}, 'w', buffering=1)\n"
    ended = with_fedml(head + UPLOADS)
    assert ended.status == 0, ended.stderr[-2000:]
    lines = answers.read_text().splitlines()
    ways = ["write_model", "write_model_web", "upload_file", "artifact", "model net", "model input"]
    assert lines[:6] == [f"{way} 1" for way in ways]  # the control
    assert [x for x in lines[6:] if x[0] != "!"] == [f"{way} 0" for way in ways]
    said = [x for x in lines[6:] if x[0] == "!"]
    assert len(said) == 5  # FedML leaves it out where an artifact does not go
    assert all("silo 0 (rank 1), round 0: FedML's " in x and "nothing was sent" in x for x in said)


KEPT = {"cross_silo/server/fedml_aggregator.py": "pickle.dump("}
"""Its save_dummy_input_tensor, which has no caller: a sample of the server's own test data."""


def test_no_other_part_of_fedml_that_jobs_run_keeps_or_uploads_a_model():
    """Read, not run: a part that a release adds is to be noticed."""
    root = Path(find_spec("fedml").submodule_search_locations[0])
    parts = ("cross_silo/client", "cross_silo/server", "simulation/mpi/fedavg", "ml/trainer")
    parts += (
        "simulation/sp/fedavg",
        "ml/aggregator",
        "core/alg_frame",
        "core/distributed/communication/grpc",
    )
    words = re.compile(
        r"torch\.save\(|pickle\.dump\(|log_artifact\(|log_model\(|wandb\.(?:save|Artifact|watch)\("
        r"|save_dummy_input_tensor\(\)|boto3|requests\.(?:post|put)\("
    )
    found = {}
    for part in parts:
        for path in (root / part).rglob("*.py"):
            code = "\n".join(x for x in path.read_text().splitlines() if x.strip()[:1] != "#")
            for word in words.findall(code):
                found[str(path.relative_to(root))] = word
    assert found == KEPT


HOOK = """
import sys
from types import SimpleNamespace
from fedml_keylock.host import activate, deactivate
from fedml_keylock.host.abort import HOOKS
activate()
from fedml.core.mlops.mlops_runtime_log import MLOpsRuntimeLog
MLOpsRuntimeLog(SimpleNamespace(run_id=0, rank=1, client_id_list="[1]", role="client"))
print(sys.excepthook == HOOKS._main)
deactivate()
print(sys.excepthook == MLOpsRuntimeLog.handle_exception)
"""


def test_fedmls_own_hook_for_errors_stands_behind_ours(with_fedml):
    ended = with_fedml(HOOK)
    assert ended.stdout.split() == ["True", "True"], ended.stderr[-2000:]


@pytest.fixture
def kept():
    """What is kept of errors' texts, as in a silo of a defended job."""
    found = []
    keep_texts(lambda text: found.append(text) or "kept")
    yield found
    keep_texts(None)


def fails():
    try:
        raise IndexError("Target 7 is out of bounds")
    except IndexError:
        raise ValueError("the patient's label is 7") from None


def error_of(call):
    try:
        call()
    except Exception as error:
        return error


def chained():
    try:
        fails()
    except ValueError as error:
        raise RuntimeError("image 7 of 9") from error


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (fails, "ValueError"),
        (chained, "ValueError RuntimeError"),
        (lambda: int("seven, 7"), "ValueError"),
    ],
)
def test_of_an_error_in_a_silo_kind_and_place_are_printed(call, kinds, kept, capsys):
    error = error_of(call)
    end_job(error)
    said = capsys.readouterr().err
    assert "7" not in re.sub(r'File ".*", line \d+', "", said), said
    lines = said.splitlines()
    assert lines[-1] == (
        f"fedml-keylock: rank 0 failed ({type(error).__name__}; kept); the job ends on every rank"
    )
    assert [x for x in lines[:-1] if not x.startswith("  File ")] == kinds.split()
    assert f'File "{__file__}", line {call.__code__.co_firstlineno}' in said or "in fails" in said
    assert "Traceback" in kept[0]
    assert str(error) in kept[0]


def test_of_others_errors_our_lines_say_the_kind(kept):
    assert first_line(ValueError("the patient's label is 7")) == "ValueError, kept"
    assert "label is 7" in kept[0]
    # ours hold nothing, and say what to do
    assert first_line(UpdateRefused("leave it out")) == "leave it out"
    assert len(kept) == 1


def test_where_nothing_is_kept_back_texts_are_said(capsys):
    keep_texts(lambda text: None)
    try:
        assert first_line(ValueError("label 7")) == "label 7"
        end_job(error_of(fails))
    finally:
        keep_texts(None)
    assert "the patient's label is 7" in capsys.readouterr().err


KEEPS = """
import os
from pathlib import Path
from types import SimpleNamespace
from fedml_keylock.errors import first_line
from fedml_keylock.host.fedml import current_job, cross_silo
os.chdir(FOLDER)

def said(after_init=cross_silo._manage_mpi_args, **changes):
    args = SimpleNamespace(
        comm=object(), rank=2, enable_defense=True, defense_type="keylock",
        keylock={"lock": "sealed", "vault": "vault"})
    vars(args).update(changes)
    after_init(lambda args: args)(args)
    print(first_line(ValueError("label 7")))
    current_job.forget()

said()
said(cross_silo._init_simulation_mpi)
print(Path("vault/silo-1.log").read_text().count("ValueError: label 7"))
said(rank=0)
said(comm=None)
said(enable_defense=False)
said(keylock={"lock": "sealed", "log_training": True})
said(keylock={"lock": "sealed", "vault": "/proc/none"})
"""


def test_a_silo_of_a_defended_job_keeps_texts_from_fedml_init_on(with_fedml, tmp_path):
    ended = with_fedml(f"FOLDER = {str(tmp_path)!r}\n{KEEPS}")
    assert ended.status == 0, ended.stderr[-2000:]
    where = "its text is in the silo's own log, silo-1.log, as log_training is false"
    lines = ended.stdout.splitlines()
    assert lines[:3] == [f"ValueError, {where}"] * 2 + ["2"]
    assert lines[3:] == ["label 7"] * 4 + ["ValueError, its text was not kept: VaultError"]
