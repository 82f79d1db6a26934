"""What sealing costs beside other ways, and how exact it is: ratios from one run.

python plugin_tests/benchmarks/sealing.py --help

Times are CPU seconds of one thread, so that other work on the machine counts for little. Ways that
are compared take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from fedml_keylock.locks.sealed.encoding import Counts, Encoding, Shares
from fedml_keylock.locks.sealed.neighbours import neighbours, reach
from fedml_keylock.locks.sealed.noise import ClippedUpdate, RoundNoise
from fedml_keylock.locks.sealed.rounds import Rounds
from fedml_keylock.locks.sealed.sealing import RoundKeys, add_up, open_sum, seal
from fedml_keylock.types import JobSecrets

State = dict[str, Tensor]
HERE = Path(__file__).parent
TAG = "research/layer-locks"
SAMPLES = (100, 250, 77)
ASKED = {
    "former": 1 / 20,
    "ckks": 1 / 60,
    "secagg": 1 / 4,
    "error": 3.0,
    "silos": 4.0,
    "linear": 1.002,
    "noise": 3.0,
}
"""What was asked of each ratio, at the most."""
NAMES = {
    "former": "the former default (rotation, float masks)",
    "ckks": "TenSEAL's CKKS (8192; 60, 40, 40)",
    "secagg": "Flower's SecAgg+ functions",
}


# --- what is sealed


def linear() -> nn.Module:
    """A net of 34 million parameters, nearly all of them in two matrices."""
    sizes = [16, 4096, 4096, 4096, 10]
    layers = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


NETS: dict[str, Callable[[], nn.Module]] = {
    "linear 16-4096-4096-4096-10": linear,
    "ResNet-18": lambda: models.resnet18(num_classes=10),
    "MobileNetV2": lambda: models.mobilenet_v2(num_classes=10),
}


def state_of(net: str) -> State:
    """A net's first state."""
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in NETS[net]().state_dict().items()}


def trained(state: Mapping[str, Tensor], seed: int) -> State:
    """A state after a round: each number moved by some thousandth of its tensor's mean size."""
    draw = torch.Generator().manual_seed(seed)
    moved: State = OrderedDict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            step = 1e-3 * tensor.abs().mean()
            moved[name] = tensor + step * torch.randn(tensor.shape, generator=draw)
        else:
            moved[name] = tensor + 3
    return moved


def keys_of(place: int, participants: int, colluders: int | None) -> RoundKeys:
    """A silo's keys of a round, each as good as any."""
    near = neighbours(place, participants, reach(participants, colluders))
    pairs = {other: bytes([min(place, other), max(place, other)] * 16) for other in near}
    return RoundKeys(b"benchmark" + bytes(23), pairs, place, participants, b"benchmark")


def round_of_a_silo(state: State) -> Callable[[], float]:
    """CPU seconds of a round of three: one seals, the server adds up, the one verifies and opens.

    The other silos do the same beside it, and are not counted.
    """
    moved = [trained(state, seed) for seed in range(3)]
    steps = [{name: one[name] - tensor for name, tensor in state.items()} for one in moved]
    samples = dict(enumerate(map(float, SAMPLES)))
    silos = []
    for place in range(3):
        pairs = {other: bytes([place + other] * 32) for other in range(3) if other != place}
        silos.append(Rounds(JobSecrets(bytes(32), place, pairs, samples)))
        silos[place].begin(state)

    def once() -> float:
        taken, sent = [0.0], []
        for place, (silo, step) in enumerate(zip(silos, steps, strict=True)):
            payload = {name: tensor + step[name] for name, tensor in silo.base.items()}
            began = time.process_time()
            sent.append(silo.seal(payload, samples=SAMPLES[place])[0])
            taken.append(time.process_time() - began if place == 0 else 0.0)
        began = time.process_time()
        total = add_up(sent)
        taken.append(time.process_time() - began)
        for silo in silos:
            began = time.process_time()
            silo.open(total)
            taken.append(time.process_time() - began if silo is silos[0] else 0.0)
        return sum(taken)

    return once


def sealing_under_noise(state: State) -> tuple[Callable[[], object], Callable[[], object]]:
    """Sealing one of three silos' states with noise, and without."""
    keys, own = keys_of(0, 3, None), trained(state, 0)
    noise = RoundNoise(1.0, 3, 2, {"update": 1.0})
    parts = {name: "update" for name, tensor in state.items() if tensor.is_floating_point()}
    shares = Shares((1, 1, 1))

    def noised() -> object:
        release = ClippedUpdate(noise, state, own, parts)
        return seal(release.encoding(state, shares), own, keys, release)

    return noised, lambda: seal(Encoding.of(state, shares), own, keys)


def round_of(state: State) -> Callable[[], None]:
    """The same as a step that a benchmark times: seal a state, and open a sum of three."""
    encoding = Encoding.of(state, Shares(SAMPLES))
    keys = [keys_of(place, 3, None) for place in range(3)]
    own = trained(state, 0)
    total = add_up([seal(encoding, own, key)[0] for key in keys])

    def once() -> None:
        fresh = Encoding.of(state, Shares(SAMPLES))
        seal(fresh, own, keys[0])
        open_sum(fresh, total, pad_key=keys[0].pad_key(0), tag_key=keys[0].tag_key())

    return once


def sealing_among(state: State, participants: int, colluders: int | None) -> Callable[[], None]:
    """What one of so many silos does to seal a state."""
    encoding = Encoding.of(state, Shares((1,) * participants))
    own, keys = trained(state, 0), keys_of(3, participants, colluders)
    return lambda: (seal(encoding, own, keys), None)[1]


def bytes_over_plain(net: str) -> float:
    """Of a sealed message over the plain state, both as FedML's MPI backend pickles them."""
    state = state_of(net)
    message, _ = seal(Encoding.of(state, Shares((1, 1))), state, keys_of(0, 2, None))
    return len(pickle.dumps(message)) / len(pickle.dumps(OrderedDict(state)))


# --- how exact an average is


def _uniform(state: State, size: float) -> State:
    """A state whose tensors are all of one size."""
    return {
        name: size * (1 + 0.1 * torch.arange(tensor.numel()).sin().view(tensor.shape))
        for name, tensor in state.items()
    }


def cases() -> dict[str, tuple[State, State]]:
    """Case to what silos received, and what they have after a round but for each silo's own step.

    Norms begin at 1 and biases near 0, and in one round may be elsewhere: the grid is that of what
    was received.
    """
    first = {n: t for n, t in state_of("ResNet-18").items() if t.is_floating_point()}
    found = {"ResNet-18": (first, first)}
    for ending, size in (("running_var", 1e-3), ("running_var", 1e4), ("fc.bias", 1e5)):
        received = {name: tensor for name, tensor in first.items() if name.endswith(ending)}
        there = _uniform(received, size)
        found[f"{ending} of {size:g}"] = (there, there)
        found[f"{ending} to {size:g} in one round"] = (received, there)
    return found


def errors(case: str, silos: int) -> tuple[float, float, float]:
    """The error of an average, rms over rms of the right one.

    Masks and pads cancel exactly: to leave them out changes no bit of the sum.

    Args:
        case: of `cases`.
        silos: how many are averaged.

    Returns:
        That of FedML's float32, that of sealing, and of all tensors the largest ratio of the two.

    """
    base, there = cases()[case]
    draw = np.random.default_rng(0)
    samples = SAMPLES if silos == 3 else tuple(int(n) for n in draw.integers(50, 500, silos))
    encoding = Encoding.of(base, Shares(samples))
    sums = [np.zeros(math.prod(e.wire_shape), np.int32) for e in encoding.entries]
    exact = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in base.items()}
    plain: State = {}
    for place, number in enumerate(samples):
        own, weight = trained(there, place), number / sum(samples)
        for name in base:
            exact[name] += own[name].double() * number
            # as FedML's torch_aggregator
            if place:
                plain[name] += own[name] * weight
            else:
                plain[name] = own[name] * weight
        for entry, step, total in zip(encoding.entries, encoding.steps, sums, strict=True):
            words = encoding.encode(entry, step, own[entry.name], place, Counts())
            total += np.concatenate([*words])
    wrong: list[list[float]] = []
    size = 0.0
    for entry, step, total in zip(encoding.entries, encoding.steps, sums, strict=True):
        right = exact[entry.name] / sum(samples)
        sealed = encoding.decode(entry, step, [total])
        both = (plain[entry.name].double() - right, sealed.double() - right)
        wrong.append([float(off.square().sum()) for off in both])
        size += float(right.square().sum())
    of_plain, of_sealed = (math.sqrt(sum(column) / size) for column in zip(*wrong, strict=True))
    worst = max(math.sqrt(sealed / plain) for plain, sealed in wrong if plain)
    return of_plain, of_sealed, worst


# --- beside others


def seconds(step: Callable[[], None]) -> float:
    """CPU seconds of a step."""
    began = time.process_time()
    step()
    return time.process_time() - began


class Contender:
    """A process that answers; see contenders.py.

    Args:
        kind: of it.
        python: to run it.
        state: a .npz file.
        path: folders to import from.

    """

    def __init__(self, kind: str, python: str, state: Path, path: Sequence[Path] = ()) -> None:
        keep = os.environ if path else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        more = {"PYTHONPATH": os.pathsep.join(map(str, path))} if path else {}
        self._process = subprocess.Popen(
            [python, str(HERE / "contenders.py"), kind, str(state)],
            env={**keep, **threads, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def round(self) -> dict[str, float]:
        """One round.

        Raises:
            RuntimeError: with the last line that the process said.

        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip().splitlines() or ["it ended"]
            raise RuntimeError(said[-1])
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def checkout(given: Path | None) -> Iterator[Path]:
    """A checkout of the former default: the one that is given, or else a worktree for a while.

    Raises:
        RuntimeError: there is no such tag here.

    """
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "former"
        git = [shutil.which("git") or "git", "-C", str(HERE), "worktree"]
        done = subprocess.run(
            [*git, "add", "--detach", str(path), TAG], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"no checkout of {TAG}: {done.stderr.strip().splitlines()[-1]}")
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def beside(kind: str, repeats: int, *, python: str, former: Path | None) -> None:
    """Say how long sealing and opening a ResNet-18 takes over another way's time."""
    state = state_of("ResNet-18")
    times: list[tuple[float, float]] = []
    wires: list[tuple[float, float]] = []
    bare: list[float] = []
    with ExitStack() as held:
        try:
            path: list[Path] = []
            if kind == "former":
                path = [held.enter_context(checkout(former))]
            file = Path(held.enter_context(tempfile.TemporaryDirectory())) / "state.npz"
            np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
            ours = Contender("sealed", sys.executable, file, [HERE.parents[1], HERE])
            held.callback(ours.close)
            other = Contender(kind, sys.executable if path else python, file, path)
            held.callback(other.close)
            for _ in range(repeats + 1):
                own, found = ours.round(), other.round()
                times.append((own["seconds"], found["seconds"]))
                wires.append((own["wire"], found.get("wire", 0.0)))
                bare.append(found["seconds"] / own["unverified"])
        except RuntimeError as error:
            say(f"over {NAMES[kind]}", f"not measured: {error}")
            return
    (first, cold), *later = times
    ratios = [theirs / own for own, theirs in later]
    own, theirs = (statistics.median(column) for column in zip(*later, strict=True))
    say(
        f"protect, verify, open, over {NAMES[kind]}",
        f"1/{statistics.median(ratios):.1f} ({', '.join(f'1/{r:.1f}' for r in ratios)}; {own:.2f} "
        f"and {theirs:.2f} s), in a process's first round 1/{cold / first:.1f} ({first:.2f} and "
        f"{cold:.2f} s); it sends {found['bytes']:.2f} times the plain bytes; asked: "
        f"1/{1 / ASKED[kind]:.0f}",
    )
    if kind != "former":
        text = f"1/{statistics.median(bare[1:]):.1f}"
        say("the same without tags and digest, which it has not", text)
    if "wire" in found:
        whole = [
            (a + wire) / (b + more) for (b, a), (more, wire) in zip(later, wires[1:], strict=True)
        ]
        say("the same with making bytes and back", f"1/{statistics.median(whole):.1f}")


def silos(repeats: int) -> None:
    """Say how long a silo seals among 100 with 30 colluding ones, over among 10."""
    state, ratios = state_of("ResNet-18"), []
    many, few = sealing_among(state, 100, 30), sealing_among(state, 10, None)
    few()
    for _ in range(max(3, repeats)):
        ratios.append(seconds(many) / seconds(few))
    say(
        "sealing among 100 silos, 30 colluding, over among 10",
        f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)}); asked: "
        f"{ASKED['silos']:g}",
    )


def exactness() -> None:
    """Say the error of each case's average over that of FedML's float32."""
    for case in cases():
        for count in (3, 100):
            plain, sealed, worst = errors(case, count)
            say(
                f"error of the average, {case}, {count} silos, over FedML's float32",
                f"{sealed / plain:.2f} ({sealed:.1e} and {plain:.1e}; of one tensor at the most "
                f"{worst:.2f}); asked: {ASKED['error']:g}",
            )


def sizes() -> None:
    """Say how many bytes a sealed message has over the plain state."""
    for net in NETS:
        say(f"bytes over plain, {net}", f"{bytes_over_plain(net):.4f}")


def say(what: str, found: str) -> None:
    """One line."""
    sys.stdout.write(f"{what}: {found}\n")
    sys.stdout.flush()


def main() -> None:
    """Print what was asked for."""
    parts = ["bytes", "silos", "former", "secagg", "ckks", "error"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of each comparison (3)")
    parser.add_argument(
        "--peers",
        default=sys.executable,
        metavar="PYTHON",
        help="of an environment with 'flwr==1.42.*' and tenseal, which needs nothing of this one",
    )
    parser.add_argument(
        "--former", type=Path, metavar="FOLDER", help=f"a checkout of {TAG}, if one is at hand"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for part in asked.only:
        if part == "bytes":
            sizes()
        elif part == "silos":
            silos(asked.repeat)
        elif part == "error":
            exactness()
        else:
            beside(part, asked.repeat, python=asked.peers, former=asked.former)


if __name__ == "__main__":
    main()
