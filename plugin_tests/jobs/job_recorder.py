"""Keeps every byte string that this rank hands to MPI, as pickled, in the job's folder."""

import json
import pickle
from pathlib import Path

from mpi4py import MPI


def start(rank: int, folder: str = ".") -> None:
    # open as long as the rank lives, and unbuffered: it may be ended at any moment
    wire = Path(folder, f"wire-{rank}.bin").open("wb", buffering=0)  # noqa: SIM115
    index = Path(folder, f"wire-{rank}.jsonl").open("w", buffering=1)  # noqa: SIM115

    def recording(message, *args):
        data = pickle.dumps(message, *args)
        wire.write(data)
        entries = message.get_params()
        line = {"bytes": len(data), "model": "model_params" in entries}
        index.write(json.dumps(line | {"type": str(entries["msg_type"])}) + "\n")
        return data

    MPI.pickle.__init__(recording, pickle.loads)
