"""What other ways of hiding a state take, each in a process of its own: see sealing.py.

python contenders.py sealed|former|ckks|secagg STATE

STATE is a .npz file of a model's state. For each line that it reads, the process protects the state
of one of three silos, adds up three and opens the average. It answers with one line of JSON: CPU
seconds of that, where it is no array those of making bytes and back, and the bytes sent over the
plain state's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

State = dict[str, Any]
Round = Callable[[], dict[str, float]]


def sealed(state: State) -> Round:
    """Sealing, as sealing.py has it; it needs this project on PYTHONPATH."""
    import pickle
    from unittest.mock import Mock, patch

    import torch
    from sealing import SAMPLES, Encoding, Shares, keys_of, round_of_a_silo, seal

    from fedml_keylock.locks.sealed import sealing
    from fedml_keylock.locks.sealed.tag import Tag

    torch.set_num_threads(1)
    first = {name: torch.from_numpy(array) for name, array in state.items()}
    again = round_of_a_silo(first)
    idle = Mock()
    idle.sha256().digest.return_value = bytes(32)

    def once() -> dict[str, float]:
        seconds = again()
        message, _ = seal(Encoding.of(first, Shares(SAMPLES)), first, keys_of(0, 3, None))
        began = time.process_time()
        pickle.loads(pickle.dumps(message))
        wire = time.process_time() - began
        with patch.object(Tag, "update"), patch.object(sealing, "hashlib", idle):
            return {"seconds": seconds, "wire": wire, "unverified": again()}

    return once


def former(state: State) -> Round:
    """The default lock at the tag research/layer-locks: a secret rotation, and Gaussian masks.

    What it does in a silo in a round, as that tag's own benchmark has it: rotate back what came,
    load it, rotate what is sent, and mask it. It needs that checkout on PYTHONPATH, and a state of
    torchvision's ResNet-18.
    """
    import torch
    from torchvision import models

    from fedml_keylock.builtin import keylock

    torch.set_num_threads(1)
    model, defense = models.resnet18(num_classes=10), keylock({})
    first = {name: torch.from_numpy(array) for name, array in state.items()}
    model.load_state_dict(first)
    defense.protect(model, silo=None, agreement=defense.describe(model))
    pairs = {other: os.urandom(32) for other in (1, 2)}
    defense.share(os.urandom(32), pairs=pairs, samples={0: 100, 1: 250, 2: 77})
    defense.receive(model, first, round_index=-1)
    defense.begin_round(model, round_index=0)
    received = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounds = iter(range(1 << 30))

    def once() -> dict[str, float]:
        index, began = next(rounds), time.process_time()
        defense.receive(model, received, round_index=index)
        model.load_state_dict(received)
        defense.begin_round(model, round_index=index + 1)
        sent = defense.release(model, model.state_dict(), samples=100)
        seconds = time.process_time() - began
        plain = sum(tensor.nbytes for tensor in first.values())
        return {"seconds": seconds, "bytes": sum(t.nbytes for t in sent.values()) / plain}

    return once


def ckks(state: State) -> Round:
    """TenSEAL's CKKS, tensor by tensor under one symmetric key, as NVFlare's HE filters use it."""
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.generate_relin_keys()
    context.global_scale = 2**40
    plain = sum(array.nbytes for array in state.values())

    def once() -> dict[str, float]:
        seconds, wire, sent = 0.0, 0.0, 0
        for array in state.values():
            times = [time.process_time()]
            vector = tenseal.ckks_vector(context, array.astype("float64").ravel())
            times.append(time.process_time())
            packed = vector.serialize()
            vector = tenseal.ckks_vector_from(context, packed)
            times.append(time.process_time())
            vector = vector + vector + vector
            vector.decrypt()
            times.append(time.process_time())
            protect, move, reveal = (later - now for now, later in pairwise(times))
            seconds, wire, sent = seconds + protect + reveal, wire + move, sent + len(packed)
        return {"seconds": seconds, "wire": wire, "bytes": sent / plain}

    return once


def secagg(state: State) -> Round:
    """The functions of Flower's SecAgg+, in the order of its client's and its server's code.

    Not Shamir's shares, nor the messages: what is done to the state only.
    """
    import numpy as np
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arrays
    from flwr.common.secure_aggregation.quantization import dequantize, quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    clipping, target, modulus = 8.0, 1 << 22, 1 << 32
    given = [np.atleast_1d(array) for array in state.values()]
    plain = sum(array.nbytes for array in given)

    def once() -> dict[str, float]:
        began = time.process_time()
        words = quantize(arrays.parameters_multiply(given, 0.25), clipping, target)
        shapes = [array.shape for array in words]
        own, *pairs = (pseudo_rand_gen(os.urandom(32), modulus, shapes) for _ in range(3))
        words = arrays.parameters_addition(words, own)
        for pair in pairs:
            words = arrays.parameters_addition(words, pair)
        words = arrays.parameters_mod(words, modulus)
        sent = sum(array.nbytes for array in words)
        total = words
        for _ in range(2):  # the server adds up three, and takes off each silo's own mask
            total = arrays.parameters_addition(total, words)
        total = arrays.parameters_mod(total, modulus)
        for _ in range(3):
            mask = pseudo_rand_gen(os.urandom(32), modulus, shapes)
            total = arrays.parameters_subtraction(total, mask)
        for average in dequantize(arrays.parameters_mod(total, modulus), clipping, target):
            average += -2 * clipping
            average *= 4 / 3
        return {"seconds": time.process_time() - began, "bytes": sent / plain}

    return once


def main() -> None:
    """Answer each line with one round."""
    import numpy as np

    kinds: dict[str, Callable[[State], Round]] = {
        "sealed": sealed,
        "former": former,
        "ckks": ckks,
        "secagg": secagg,
    }
    # what libraries print goes elsewhere
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with np.load(Path(sys.argv[2])) as file:
        once = kinds[sys.argv[1]](dict(file))
    for _line in sys.stdin:
        answers.write(json.dumps(once()) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
