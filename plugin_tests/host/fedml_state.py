"""FedML as a process finds it: every attribute of its modules and of their classes, by identity."""

import sys
import threading
from contextlib import suppress
from importlib import import_module
from types import ModuleType

PARTS = (
    "fedml.core.distributed.communication.grpc.grpc_comm_manager",
    "fedml.core.distributed.communication.mpi.com_manager",
    "fedml.cross_silo.client.fedml_trainer_dist_adapter",
    "fedml.cross_silo.server.fedml_aggregator",
    "fedml.ml.aggregator.agg_operator",
    "fedml.simulation.mpi.fedavg.FedAVGAggregator",
    "fedml.simulation.mpi.fedavg.FedAVGTrainer",
    "fedml.simulation.sp.fedavg.fedavg_api",
)
"""Where there are seams, and what fedml does not import by itself."""


def owners():
    """Every module of fedml's, and every class that one of them defines."""
    for name, module in sorted(sys.modules.items()):
        if module is not None and name.split(".")[0] == "fedml":
            yield name, module
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == name:
                    yield f"{name}.{value.__qualname__}", value


def _around():
    """What of the interpreter's own the plugin changes, or might."""
    yield "sys.excepthook", sys.excepthook
    yield "threading.excepthook", threading.excepthook
    yield "sys.meta_path", list(sys.meta_path)
    yield "fedml's loader", dict(vars(sys.modules["fedml"].__spec__.loader))


def snapshot():
    """The raw entries of every owner, which keeps them alive, and what is around."""
    for part in PARTS:
        with suppress(ImportError):  # a release that is made to lack something
            import_module(part)
    return {label: (owner, dict(vars(owner))) for label, owner in owners()}, dict(_around())


def changes(before):
    """What is not as it was, in words; an import of one more part of fedml is no change."""
    entries, around = before
    found = [name for name, value in _around() if value != around[name]]
    for label, (owner, old) in entries.items():
        new = dict(vars(owner))
        if [name for name in new if name in old] != list(old):
            found.append(f"{label}: its names, or their order")
        found += [f"{label}.{name}" for name in old if new.get(name) is not old[name]]
        for name in new.keys() - old.keys() - {"__warningregistry__"}:
            value = new[name]
            if not (isinstance(value, ModuleType) and value.__name__ == f"{label}.{name}"):
                found.append(f"{label}.{name} is new")
    return found
