"""Keeps every byte string that this rank hands to MPI or gRPC, as pickled, in the job's folder."""

import json
import pickle
from pathlib import Path


def start(rank: int, folder: str = ".", backend: str = "MPI") -> None:
    # open as long as the rank lives, and unbuffered: it may be ended at any moment
    wire = Path(folder, f"wire-{rank}.bin").open("wb", buffering=0)  # noqa: SIM115
    index = Path(folder, f"wire-{rank}.jsonl").open("w", buffering=1)  # noqa: SIM115

    def keep(data, message):
        wire.write(data)
        entries = message.get_params()
        line = {"bytes": len(data), "model": "model_params" in entries}
        index.write(json.dumps(line | {"type": str(entries["msg_type"])}) + "\n")

    def recording(message, *args):
        data = pickle.dumps(message, *args)
        keep(data, message)
        return data

    if backend == "GRPC":
        from fedml.core.distributed.communication.grpc import grpc_comm_manager_pb2_grpc as made

        class Recording(made.gRPCCommManagerStub):
            def __init__(self, channel):
                super().__init__(channel)
                send = self.sendMessage

                def recorded(request):
                    keep(request.message, pickle.loads(request.message))
                    return send(request)

                self.sendMessage = recorded

        made.gRPCCommManagerStub = Recording
    elif backend == "MPI":
        from mpi4py import MPI

        MPI.pickle.__init__(recording, pickle.loads)
