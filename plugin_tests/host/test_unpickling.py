"""What other ranks send is read without running anything: attempts, and what must pass."""

from __future__ import annotations

import codecs
import copyreg
import functools
import io
import os
import pickle
import subprocess
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.unpickling import load


class Message:
    """As FedML's."""

    def __init__(self):
        self.type = "default"
        self.msg_params = {}

    def get_params(self):
        return self.msg_params


def read(data):
    return load(io.BytesIO(data), message=Message, who="rank 2")


class Calls:
    """Its pickle calls a function, and may then give a state to what that returns."""

    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


def told(data, expected):
    with pytest.raises(UpdateRefused) as refused:
        read(data)
    said = str(refused.value)
    assert said.startswith("rank 2: a message ")
    assert said.endswith("; nothing of it was run")
    assert "\n" not in said
    assert expected in said


def code(*calls):
    """A pickle in Python's older opcodes, as nothing but a hand writes it."""
    return b"".join(part if isinstance(part, bytes) else part.encode() for part in calls) + b"."


def by_name(module, name):
    return (
        b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
        + b"\x93"
    )


def called(module, name, path):
    """A call of what STACK_GLOBAL finds with a shell's line."""
    return (
        by_name(module, name)
        + b"X"
        + len(touch(path)).to_bytes(4, "little")
        + touch(path).encode()
        + b"\x85R."
    )


def touch(path):
    return f"touch {path}"


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def inside_torch(path, **how):
    evil = saved(Calls(os.system, (touch(path),)), **how)
    return pickle.dumps({"w": Calls(torch.storage._load_from_bytes, (evil,))})


def looked_up(path):
    imported = "cbuiltins\n__import__\n(Vos\ntR"
    return code(f"cbuiltins\ngetattr\n({imported}Vsystem\ntR(V{touch(path)}\ntR")


RUN = {
    "system": lambda p: (pickle.dumps(Calls(os.system, (touch(p),))), "posix.system"),
    "deep": lambda p: (
        pickle.dumps({"a": [1, ({"b": Calls(os.system, (touch(p),))},)]}),
        "posix.system",
    ),
    "old opcodes": lambda p: (
        pickle.dumps(Calls(os.system, (touch(p),)), protocol=0),
        "posix.system",
    ),
    "eval": lambda p: (pickle.dumps(Calls(eval, (f"open({str(p)!r}, 'w')",))), "builtins.eval"),
    "exec": lambda p: (pickle.dumps(Calls(exec, (f"open({str(p)!r}, 'w')",))), "builtins.exec"),
    "getattr": lambda p: (looked_up(p), "builtins.getattr"),
    "subprocess": lambda p: (
        pickle.dumps(Calls(subprocess.call, (["touch", str(p)],))),
        "subprocess.call",
    ),
    "open": lambda p: (pickle.dumps(Calls(open, (str(p), "w"))), "io.open"),
    "torch's older format": lambda p: (
        inside_torch(p, _use_new_zipfile_serialization=False),
        "posix.system",
    ),
    "torch's format": lambda p: (inside_torch(p), "no pickle of a model"),
    "objects": lambda p: (
        pickle.dumps(np.array([Calls(os.system, (touch(p),))], dtype=object)),
        "posix.system",
    ),
    "dotted": lambda p: (called("torch", "os.system", p), "torch.os.system"),
    "INST": lambda p: (code(f"(V{touch(p)}\niposix\nsystem\n"), "posix.system"),
    "OBJ": lambda p: (
        code(f"(csubprocess\nPopen\n(lVtouch\naV{p}\nao"),
        "subprocess.Popen",
    ),
}


@pytest.mark.parametrize("attempt", RUN)
def test_nothing_is_run(attempt, tmp_path):
    data, expected = RUN[attempt](tmp_path / "ran")
    told(data, expected)
    time.sleep(0.05 if attempt == "OBJ" else 0)  # it would run beside this process
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attempt", RUN)
def test_python_would_run_it(attempt, tmp_path):
    """The control."""
    data, _ = RUN[attempt](tmp_path / "ran")
    made = pickle.loads(data)
    if attempt == "OBJ":
        made.wait()
    assert (tmp_path / "ran").exists()


HELD = {
    "a function": (pickle.dumps(eval), "builtins.eval"),
    "a partial": (pickle.dumps(functools.partial(os.system, "true")), "functools.partial"),
    "codecs": (pickle.dumps(Calls(codecs.encode, (b"", "hex"))), "_codecs.encode"),
    "torch.load": (pickle.dumps(Calls(torch.load, ("file",))), "torch.serialization.load"),
    "torch.load by name": (by_name("torch", "load") + b".", "torch.load"),
    "a builtin by name": (by_name("builtins", "getattr") + b".", "builtins.getattr"),
    "a known name that goes on": (
        by_name("collections", "OrderedDict.fromkeys") + b".",
        "collections.OrderedDict.fromkeys",
    ),
    "a module": (pickle.dumps(nn.Linear(1, 1)), "torch.nn.modules.linear.Linear"),
    "a class": (pickle.dumps(OrderedDict), "collections.OrderedDict itself"),
    "a class of ours": (pickle.dumps(UpdateRefused), "fedml_keylock.errors.UpdateRefused"),
    "a persistent id": (b"Pname\n.", "persistent id"),
    "a persistent id on the stack": (b"Vname\nQ.", "persistent id"),
    "an extension code": (b"\x82\x07.", "unregistered extension code 7"),
    "a name of many lines": (by_name("os", "a\nb\x1b") + b".", "os.a?b?"),
    "objects by dtype": (pickle.dumps(np.dtype(object)), "numpy.dtype with other arguments"),
    "fields": (pickle.dumps(np.zeros(1, [("a", "f4")])), "numpy.dtype with other arguments"),
    "a masked array": (pickle.dumps(np.ma.array([1])), "numpy.ma.core._mareconstruct"),
    "sparse": (pickle.dumps(torch.ones(2).to_sparse()), "_rebuild_sparse_tensor"),
    "meta": (pickle.dumps(torch.ones(2, device="meta")), "_rebuild_meta_tensor"),
    "a text": (b"text", "no pickle"),
    "nothing": (b"", "no pickle"),
    "half": (pickle.dumps({"w": torch.ones(9)})[:-40], "no pickle"),
}


@pytest.mark.parametrize("thing", HELD)
def test_what_no_model_needs_is_refused(thing):
    told(*HELD[thing])


def test_an_extension_code_is_no_way_around(tmp_path):
    data = b"\x82\x77(V" + touch(tmp_path / "ran").encode() + b"\ntR."
    copyreg.add_extension("posix", "system", 0x77)
    try:
        told(data, "posix.system")
        assert not (tmp_path / "ran").exists()
        pickle.loads(data)  # from now on Python knows the code without its name
        (tmp_path / "ran").unlink()
        told(data, "posix.system")
        assert not (tmp_path / "ran").exists()
    finally:
        copyreg.remove_extension("posix", "system", 0x77)


def test_extension_codes_of_others_stand_for_what_they_did():
    copyreg.add_extension("collections", "OrderedDict", 0x77)
    try:
        assert read(b"\x82\x77)R.") == OrderedDict()
        assert pickle.loads(b"\x82\x77.") is OrderedDict
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 0x77)


def test_no_class_is_changed():
    """A state of two parts sets attributes, in Python, of whatever it is given to."""
    name = f"c{Message.__module__}\nMessage\n"
    change = code(name, "(N(dVget_params\nccollections\nOrderedDict\nstb")
    before = dict(vars(Message))
    told(change, "no pickle")
    assert dict(vars(Message)) == before
    try:
        pickle.loads(change)
        assert Message.get_params is OrderedDict  # the control
    finally:
        Message.get_params = before["get_params"]


def shadowed(**more):
    message = Message()
    vars(message).update(more)
    return message


def ordered(**more):
    made = OrderedDict(a=1)
    vars(made).update(more)
    return made


def rebuilt(*args, state=None):
    how = (torch._utils._rebuild_tensor_v2, args)
    return Calls(*how) if state is None else Calls(*how, state)


STORAGE = torch.ones(4)._typed_storage()
OTHER = {
    "a message with a method's name": shadowed(get_params=1),
    "a message of no entries": shadowed(msg_params=[1]),
    "a dictionary with a method's name": ordered(get=1),
    "a dictionary with more": ordered(_metadata=OrderedDict(), get=1),
    "a longer tensor": rebuilt(STORAGE, 0, (5,), (1,), False, OrderedDict()),
    "a tensor further on": rebuilt(STORAGE, 3, (2,), (1,), False, OrderedDict()),
    "a wider tensor": rebuilt(STORAGE, 0, (2, 2), (3, 1), False, OrderedDict()),
    "a tensor before": rebuilt(STORAGE, -1, (1,), (1,), False, OrderedDict()),
    "a tensor with hooks": rebuilt(STORAGE, 0, (4,), (1,), True, OrderedDict(a=1)),
    "a tensor with a state": rebuilt(
        STORAGE, 0, (4,), (1,), False, OrderedDict(), state=(True, None, {0: 1})
    ),
    "a tensor of none": rebuilt(None, 0, (4,), (1,), False, OrderedDict()),
    "a longer array": Calls(
        np.core.multiarray._reconstruct,
        (np.ndarray, (0,), b"b"),
        (1, (9,), np.dtype("f4"), False, b"1234"),
    ),
}


@pytest.mark.parametrize("thing", OTHER)
@pytest.mark.parametrize("protocol", [4, 5])
def test_what_is_known_is_held_to_its_form(thing, protocol):
    told(pickle.dumps(OTHER[thing], protocol), "with other arguments")


def again(module, name, shared, times, more=b""):
    """Calls, each with what the pickle holds once."""
    one = pickle.dumps(shared, 4)[2:-1]  # without the protocol and the end
    call = by_name(module, name)[2:]
    begin = b"\x80\x04" + one + b"q\xc8" + call + b"q\xc9("
    return begin + (b"h\xc9h\xc8" + more + b"R") * times + b"l."


BIG = bytes(100_000)
MEMORY = {
    "lists": b"\x80\x04(" + b"]" * 200_000 + b"l.",
    "dicts": b"\x80\x04(" + b"}" * 200_000 + b"l.",
    "marks": b"\x80\x04" + b"(" * 300_000,
    "places": b"\x80\x04N" + b"\x94" * 300_000 + b".",
    "an array of bytes many times": again("builtins", "bytearray", BIG, 999, b"\x85"),
    "a storage many times": again(
        "torch.storage",
        "_load_from_bytes",
        saved(torch.zeros(25_000)._typed_storage(), _use_new_zipfile_serialization=False),
        999,
        b"\x85",
    ),
    "an array many times": again(
        "numpy.core.numeric", "_frombuffer", (BIG, np.dtype("u1"), (len(BIG),), "C"), 999
    ),
    "a scalar many times": again(
        "numpy.core.multiarray", "scalar", (np.dtype(f"S{len(BIG)}"), BIG), 999
    ),
    "a dictionary many times": again(
        "collections", "OrderedDict", dict.fromkeys(range(9999)), 999, b"\x85"
    ),
    "a size many times": again("torch", "Size", tuple(range(9999)), 999, b"\x85"),
    "arguments many times": again("torch", "Size", tuple(range(9999)), 9999),
    "a wide tensor of one number": pickle.dumps(torch.ones(1).expand(10**9)),
    "bytes that are to come": b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_message_takes_no_more_memory_than_a_multiple_of_its_bytes(name):
    data = MEMORY[name]
    tracemalloc.start()
    try:
        with pytest.raises(UpdateRefused) as refused:
            read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if "to come" not in name:
        assert "held what takes over 20 times its bytes and 16 MB of memory" in str(refused.value)
    assert peak < 21 * len(data) + 16 * 2**20


def test_a_place_far_away_takes_no_memory():
    """Python's own reader makes all places before it: of four bytes 64 GB."""
    assert read(b"\x80\x04Nr" + (2**32 - 1).to_bytes(4, "little") + b".") is None


TOWER = b")" + b"\x85" * 20_000
KEYED = {
    "a tower": b"\x80\x04}" + TOWER + b"Ns.",
    "a tower in one call": b"\x80\x04(" + TOWER + b"Nd.",
    "a tower among others": b"\x80\x04}(Va\nN" + TOWER + b"Nu.",
    "a tower in a set": b"\x80\x04\x8f(" + TOWER + b"\x90.",
    "a tower in a frozen set": b"\x80\x04(" + TOWER + b"\x91.",
    "a tree": b"\x80\x04}N" + b"2\x86" * 60 + b"Ns.",  # its hash has 2^60 leaves
    "nothing": pickle.dumps({None: 1}),
    "bytes": pickle.dumps({b"a": 1}),
    "a type": pickle.dumps({torch.float32: 1}),
    "in an ordered dictionary": pickle.dumps(OrderedDict({(1,): 1})),
}


@pytest.mark.parametrize("name", KEYED)
def test_keys_are_text_and_numbers(name):
    told(KEYED[name], "held a key that is neither text nor a number")


def test_a_state_of_thousands_of_tensors_is_read():
    state = {f"layer{n}.weight": torch.ones(1) for n in range(10_000)}
    for protocol in (3, 5):
        assert len(read(pickle.dumps(state, protocol))) == len(state)


def test_a_storage_has_the_bytes_that_came():
    """Of a storage whose file has fewer torch would leave the memory as it was."""
    whole = saved(torch.arange(4.0)._typed_storage(), _use_new_zipfile_serialization=False)
    load_it = torch.storage._load_from_bytes
    assert read(pickle.dumps(Calls(load_it, (whole,))))._size() == 4
    for data in (whole[:-1], whole[:-16], whole + b"\0", whole[:-24]):
        told(
            pickle.dumps(Calls(load_it, (data,))),
            "torch.storage._load_from_bytes with other arguments",
        )


def test_what_holds_itself_is_refused():
    held = [1]
    held.append(held)
    told(pickle.dumps(held), "something that holds itself")
    told(b"]" * 10_000 + b"a" * 9_999 + b".", "RecursionError")


SENDABLE = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex128,
    torch.complex64,
)


def test_every_dtype_that_python_reads_is_read():
    found = set()
    for dtype in {d for d in vars(torch).values() if isinstance(d, torch.dtype)}:
        assert read(pickle.dumps(dtype)) is dtype
        try:
            data = pickle.dumps(torch.zeros(16, dtype=torch.uint8).view(dtype))
        except (AttributeError, KeyError, RuntimeError):
            continue
        try:
            read(data)
        except UpdateRefused:
            continue
        found.add(dtype)
    assert found == set(SENDABLE)


def bits(tensor):
    return bytes(tensor.detach().clone(memory_format=torch.contiguous_format).untyped_storage())


def same(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert one.requires_grad == two.requires_grad
        assert bits(one) == bits(two)
    elif isinstance(one, (np.ndarray, np.generic)):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()
        assert not isinstance(one, np.ndarray) or two.flags.writeable
    elif isinstance(one, dict):
        assert vars(one).keys() == vars(two).keys() if isinstance(one, OrderedDict) else True
        for pair in zip(one.items(), two.items(), strict=True):
            same(*pair)
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, two, strict=True):
            same(*pair)
    elif isinstance(one, (set, frozenset)):
        assert one == two
    else:
        assert repr(one) == repr(two)
    return True


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(SENDABLE))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    made = torch.randint(0, 255, (*shape, 16), dtype=torch.uint8)
    if dtype == torch.bool:
        made = made > 127
    made = made.view(dtype)
    kind = draw(st.sampled_from(["whole", "view", "turned", "parameter"]))
    if kind == "view":
        return made[..., 1:] if made.dim() else made
    if kind == "turned":
        return made.transpose(0, -1)
    if kind == "parameter" and (dtype.is_floating_point or dtype.is_complex):
        return nn.Parameter(made)
    return made


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.binary().map(bytearray),
)
KINDS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="?"),
    arrays.unsigned_integer_dtypes(endianness="?"),
    arrays.floating_dtypes(endianness="?"),
    arrays.complex_number_dtypes(endianness="?"),
    arrays.byte_string_dtypes(),
    arrays.unicode_string_dtypes(),
)
SMALL = arrays.array_shapes(min_dims=0, min_side=0, max_side=3)
ARRAYS = st.builds(
    lambda array, turned: array.T if turned else array,
    KINDS.flatmap(lambda dtype: arrays.arrays(dtype, SMALL)),
    st.booleans(),
)
LEAVES = st.one_of(NUMBERS, tensors(), ARRAYS, ARRAYS.filter(np.size).map(lambda a: a.flat[0]))
KEYS = st.one_of(st.text(), st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
        st.frozensets(st.integers()),
        st.sets(st.text()),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(VALUES, st.sampled_from([4, 5]))
def test_values_come_as_they_were(value, protocol):
    same(pickle.loads(pickle.dumps(value, protocol)), read(pickle.dumps(value, protocol)))


def test_a_message_comes_as_it_was():
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
    message = Message()
    message.msg_params |= {"model_params": state, "again": state, "shape": torch.Size([1, 2])}
    message.msg_params |= {"device": torch.device("cpu"), "gpu": torch.device("cuda", 1)}
    got = read(pickle.dumps(message)).get_params()
    assert got["again"] is got["model_params"]
    assert same(got["model_params"], state)
    assert got["model_params"]._metadata == state._metadata
    assert [got[k] for k in ("shape", "device", "gpu")] == [
        torch.Size([1, 2]),
        torch.device("cpu"),
        torch.device("cuda", 1),
    ]
    got["model_params"]["0.weight"].resize_(100)  # its memory is its own


SCRIPT = """
import os, sys, time
from types import SimpleNamespace

import fedml
from fedml.core.distributed.communication.message import Message
from fedml.core.distributed.fedml_comm_manager import FedMLCommManager
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank = comm.Get_rank()
args = SimpleNamespace(
    training_type="cross_silo", backend="MPI", federated_optimizer="FedAvg", worker_num=1,
    client_num_in_total=1, client_num_per_round=1, comm_round=1, rank=rank, comm=comm,
    role="client" if rank else "server", enable_defense=True, defense_type="keylock",
    keylock={"lock": "paper"})


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Server(FedMLCommManager):
    def register_message_receive_handlers(self):
        self.register_message_receive_handler(0, lambda message: None)
        self.register_message_receive_handler("evil", lambda message: self.finish())


if rank == TO:
    Server(args, comm, rank, 3, "MPI").run()
elif rank == 2:
    message = Message("evil", NAMED, TO)
    message.add("x", Evil() if EVIL else 1)
    comm.send(message, TO)
"""


@pytest.mark.parametrize("plugin", [pytest.param(True, marks=pytest.mark.long), False])
@pytest.mark.parametrize(
    ("evil", "named", "to", "said"),
    [
        (
            True,
            2,
            0,
            "rank 0: rank 2: a message held posix.system, which no model or number needs; nothing "
            "of it was run",
        ),
        (False, 1, 0, "rank 0: rank 2: a message arrived in the name of rank 1"),
        (False, 0, 1, "rank 1: rank 2: a silo sent a message to a silo"),
    ],
)
def test_a_malicious_rank_ends_the_job_and_runs_nothing(
    evil, named, to, said, plugin, tmp_path, on_three_ranks
):
    script = f"EVIL, NAMED, TO = {evil}, {named}, {to}\n{SCRIPT}"
    done = on_three_ranks(script, plugin=plugin)
    ours = [x for x in done.stdout.splitlines() if x.startswith("fedml-keylock: ")]
    assert (tmp_path / "ran").exists() == (evil and not plugin), done.stdout[-3000:]
    if plugin:
        assert done.returncode != 0
        assert ours == [f"fedml-keylock: {said}"]
        assert "Traceback" not in done.stdout
    else:
        assert (done.returncode, ours) == (0, [])


GRPC = """
import os, pickle, queue, sys, threading
from types import SimpleNamespace
from fedml.core.distributed.communication.grpc import grpc_comm_manager
from fedml.core.distributed.communication.message import Message
from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.fedml.receiving import _make_careful
from fedml_keylock.host.link import Link

class Evil:
    def __reduce__(self):
        return os.mkdir, (FOLDER,)

def message(value):
    made = Message("a type", 1, 0)
    made.add("value", value)
    return pickle.dumps(made)

def manager():
    grpc_comm_manager.lock = threading.Lock()
    made = object.__new__(grpc_comm_manager.GRPCCommManager)
    made.is_running, made.client_rank, made.grpc_mappings = True, 0, {1: None}
    made.grpc_servicer = SimpleNamespace(message_q=queue.Queue())
    made.got = []
    made._observers = [SimpleNamespace(receive_message=lambda kind, m: take(made, kind, m))]
    return made

def take(made, kind, message):
    if kind:
        made.got.append(message.get_params()["value"])
        made.is_running = False

args = SimpleNamespace(role="server")
for careful in (True, False):
    for value in (5, Evil()):
        made = manager()
        if careful:
            _make_careful(made, SimpleNamespace(who="the server", link=None, args=args))
        made.grpc_servicer.message_q.put(message(value))
        try:
            made.handle_receive_message()
        except UpdateRefused as error:
            print(error)
            assert careful and value != 5
        else:
            assert made.got == [5 if value == 5 else None]
            assert value == 5 or not careful
        assert os.path.exists(FOLDER) == (value != 5 and not careful)

os.rmdir(FOLDER)
for named, role in ((2, "server"), (1, "client")):
    made = manager()
    session = SimpleNamespace(who="rank 9", link=None, args=SimpleNamespace(role=role))
    _make_careful(made, session)
    sent = Message("a type", 1, 0)
    sent.add("sender", named)
    made.grpc_servicer.message_q.put(pickle.dumps(sent))
    try:
        made.handle_receive_message()
    except UpdateRefused as error:
        print(error)
for tag in (
    lambda sent: Link(bytes(32), 1).protect(sent, 0),
    lambda sent: sent,
    lambda sent: Link(bytes(32), 2).protect(sent, 0),
):
    made = manager()
    _make_careful(made, SimpleNamespace(who="the server", link=Link(bytes(32), 0), args=args))
    made.grpc_servicer.message_q.put(tag(message(5)))
    try:
        made.handle_receive_message()
        print(made.got)
    except UpdateRefused as error:
        print(error)
"""


def test_of_grpc_nothing_is_run(with_fedml, tmp_path):
    pytest.importorskip("grpc")
    ended = with_fedml(f"FOLDER = {str(tmp_path / 'ran')!r}\n" + GRPC)
    assert ended.status == 0, ended.stderr[-2000:]
    assert ended.stdout == (
        "the server: a message held posix.mkdir, which no model or number needs; "
        "nothing of it was run\n"
        "rank 1: a message arrived in the name of rank 2\n"
        "rank 1: a silo sent a message to a silo\n"
        "[5]\n"
        "a message arrived without the tag of keylock.link_key: it was changed on the network, or "
        "its sender has another link_key or none\n"
        "rank 2: a message arrived in the name of rank 1\n"
    )


SENT = """
import pickle
from types import SimpleNamespace
from fedml.core.distributed.communication.grpc import grpc_comm_manager
from fedml.core.distributed.communication.message import Message
from fedml_keylock.host.fedml import cross_silo
from fedml_keylock.host.link import Link

sent = []
Manager = grpc_comm_manager.GRPCCommManager
made = object.__new__(Manager)
place = SimpleNamespace(ingress_ip=None, grpc_server_ip="127.0.0.1", grpc_server_port=1)
made.client_rank = made.client_id = 1
made.grpc_mappings, made.opts = {0: place, 1: place}, []
grpc_comm_manager.grpc_comm_manager_pb2_grpc.gRPCCommManagerStub = lambda channel: (
    SimpleNamespace(sendMessage=lambda request: sent.append(request.message))
)
session = SimpleNamespace(
    link=Link(bytes(32), 1), emit=lambda *_: None, sent=lambda: None, who="silo 0", defense=None
)
cross_silo.current = lambda: session
send = cross_silo._send_message(Manager.send_message)
for _ in range(2):
    send(made, Message("a type", 1, 0))
server = Link(bytes(32), 0)
for one in sent:
    message, sender = server.check(one)
    print(sender, pickle.loads(message).get_type())
print(grpc_comm_manager.pickle is pickle)
"""


def test_what_is_sent_over_grpc_carries_its_tag(with_fedml):
    pytest.importorskip("grpc")
    ended = with_fedml(SENT)
    assert ended.status == 0, ended.stderr[-2000:]
    assert ended.stdout == "1 a type\n1 a type\nTrue\n"


GATE = """
from types import SimpleNamespace
from fedml.core.distributed.communication.message import Message
from fedml_keylock.host.fedml import cross_silo

gated = []
session = SimpleNamespace(
    admit=lambda entries, names, sender: gated.append(sender), who="the server", defense=1
)
cross_silo.begin = lambda args: session
receive = cross_silo._receive_message(lambda self, kind, message: None)
for kind, sender, receiver in ((0, 2, 2), (0, 1, 2), (5, 2, 2), ("5", 0, 0), (5, 1, 0)):
    receive(SimpleNamespace(args=None), kind, Message(kind, sender, receiver))
print(gated)
"""


def test_the_gate_takes_a_message_that_names_one_rank_twice(with_fedml):
    ended = with_fedml(GATE)
    assert ended.stdout.strip() == "[1, 2, 0, 1]", ended.stderr[-2000:]
