"""What a job's YAML asks for: whether we are wanted in it, and what cannot be had beside us."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import ConfigError, HostError
from ..plugins import defenses

__all__ = [
    "INVERSION",
    "THEN",
    "Arguments",
    "check_masked",
    "check_noise",
    "check_supported",
    "check_then",
    "our_attack",
    "our_defense",
    "word",
]

Arguments = Any
"""FedML's `args`: one attribute for each key of each section of the YAML."""

INVERSION = "gradient_inversion"

_BACKENDS: Mapping[str, tuple[str, ...]] = {
    "cross_silo": ("MPI", "GRPC"),
    "simulation": ("MPI", "sp"),
}
"""Training types that were tested, with the backends tested there."""

_OPTIMIZER = "FedAvg"
"""The federated optimizer that was tested in all of them.

Not LSA: each of its silos begins twice, with another mask than the server takes off, so that the
model is noise with and without a lock (plugin_tests/jobs/test_matrix.py).
"""

THEN = (
    "3sigma",
    "3sigma_foolsgold",
    "anomaly_detection",
    "cclip",
    "crfl",
    "foolsgold",
    "geo_median",
    "krum",
    "multikrum",
    "norm_diff_clipping",
    "rfa",
    "slsgd",
    "trimmed_mean",
    "wise_median",
)
"""FedML's own defenses that its cross-silo server can run, with the lock and without."""

_ON_STATES = ("byzantine", "model_replacement")
"""Attacks of FedML's that change what silos have sent."""

_NO_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")
"""What FedML's own defenses do not take for weights; wise_median then loses count."""


def our_defense(args: Arguments) -> str | None:
    """The `defense_type` when the flag is on and a plugin registered it; otherwise None."""
    if not getattr(args, "enable_defense", False):
        return None
    name = word(args, "defense_type")
    return name if name in defenses() else None


def our_attack(args: Arguments) -> bool:
    """Whether the job asks for gradient inversion."""
    return bool(getattr(args, "enable_attack", False)) and word(args, "attack_type") == INVERSION


def _is_plain(args: Arguments) -> bool:
    """Whether FedML's server runs what it has beside averaging: noise, attacks, defenses."""
    kind = getattr(args, "training_type", None), getattr(args, "federated_optimizer", None)
    return kind == ("cross_silo", "FedAvg")


def check_supported(args: Arguments) -> None:
    """Check that the job is of a kind that the defense has been shown to work in.

    Raises:
        HostError: naming the field, its value and what is supported.

    """
    for what, found, supported in _unsupported(args):
        raise HostError(
            f"{what}: {found!r} is not supported by fedml_keylock yet; it supports {supported}"
        )


def check_then(
    args: Arguments, name: str | None, then: str | None, names: Iterable[str] = ()
) -> None:
    """Check that FedML's server can run its own defense beside ours.

    Args:
        args: the job's.
        name: of our defense, as the YAML's section is called.
        then: of FedML's, None for none.
        names: of the model's public state, as far as they are known yet.

    Raises:
        ConfigError: it cannot, or not on this model.

    Example:
        >>> from types import SimpleNamespace
        >>> job = SimpleNamespace(training_type="cross_silo", federated_optimizer="FedAvg")
        >>> check_then(job, "keylock", "krum", ["1.running_mean"])

    """
    if then is not None and not _is_plain(args):
        raise ConfigError(
            f"{name}.then: {then!r} is not run by the server of this kind of job; leave it out, or "
            "use training_type: cross_silo with federated_optimizer: FedAvg"
        )
    if then not in (None, *THEN):
        raise ConfigError(
            f"{name}.then: {then!r} is not a defense of FedML's that its server can run; allowed: "
            f"{', '.join(THEN)}"
        )
    counted = [n for n in names if n.endswith(_NO_WEIGHTS)]
    if then == "wise_median" and counted:
        raise ConfigError(
            f"{name}.then: FedML's wise_median cannot run on a model with batch norm statistics, "
            f"such as {counted[0]}"
        )


def check_noise(args: Arguments, dtypes: Mapping[str, torch.dtype]) -> None:
    """Check that FedML can clip the model where it is to.

    Args:
        args: the job's.
        dtypes: of the model's public state, name to dtype.

    Raises:
        ConfigError: it cannot.

    Example:
        >>> from types import SimpleNamespace
        >>> check_noise(SimpleNamespace(enable_dp=False), {"1.num_batches_tracked": torch.int64})

    """
    integers = [name for name, dtype in dtypes.items() if not dtype.is_floating_point]
    if _clips(args) and integers:
        raise ConfigError(
            f"max_grad_norm: FedML cannot clip a model with integers, such as {integers[0]}; leave "
            "max_grad_norm out"
        )


def check_masked(args: Arguments) -> None:
    """Check that FedML's server does nothing to single states: masks cancel in their average only.

    Raises:
        ConfigError: it does.

    Example:
        >>> from types import SimpleNamespace
        >>> check_masked(SimpleNamespace(enable_dp=False, max_grad_norm=1.0))

    """
    attack, what = word(args, "attack_type"), ""
    if getattr(args, "enable_attack", False) and attack in _ON_STATES:
        what = f"attack_type: {attack} changes"
    if _clips(args) and adds_noise(args):
        what = "max_grad_norm clips"
    if what:
        raise ConfigError(
            f"{what} single silos' states, so that their masks would not cancel: leave it out, or "
            "set keylock: {mask: false}"
        )


def adds_noise(args: Arguments) -> bool:
    """Whether FedML's server adds noise to what it has averaged.

    Example:
        >>> from types import SimpleNamespace
        >>> adds_noise(SimpleNamespace(enable_dp=True, dp_solution_type="cdp"))
        True

    """
    return bool(getattr(args, "enable_dp", False)) and word(args, "dp_solution_type") == "cdp"


def word(args: Arguments, name: str) -> str:
    """A field that is a word, as FedML itself reads it; empty where there is none."""
    return str(getattr(args, name, "")).strip()


def _clips(args: Arguments) -> bool:
    """Whether FedML's differential privacy is to clip models."""
    asked = getattr(args, "max_grad_norm", None) is not None
    return asked and bool(getattr(args, "enable_dp", False))


def _unsupported(args: Arguments) -> Iterator[tuple[str, Any, str]]:
    """What of the job has not been shown to work with the defense: (field, value, supported)."""
    kind, backend = getattr(args, "training_type", None), getattr(args, "backend", None)
    optimizer = getattr(args, "federated_optimizer", None)
    backends = _BACKENDS.get(str(kind), ())
    if not backends:
        yield "training_type", kind, " and ".join(_BACKENDS)
    if backend not in backends:
        yield "backend", backend, f"{' and '.join(backends)} with training_type: {kind}"
    if optimizer != _OPTIMIZER:
        where = f"training_type: {kind} and backend: {backend}"
        yield "federated_optimizer", optimizer, f"{_OPTIMIZER} with {where}"
    wanted: list[tuple[str, Any, Any]] = [
        ("scenario", "horizontal", getattr(args, "scenario", "horizontal")),
        ("ml_engine", "torch", getattr(args, "ml_engine", "torch")),
        ("enable_fhe", False, bool(getattr(args, "enable_fhe", False))),
    ]
    yield from ((name, value, str(only)) for name, only, value in wanted if value != only)
    yield from _beside(args)
    total = getattr(args, "client_num_in_total", None)
    each = getattr(args, "client_num_per_round", None)
    if total is None or each is None or total < each:
        yield "client_num_in_total", total, f"client_num_per_round ({each}) or more"
    # FedML's server waits for every rank, and asks only so many; the simulation counts itself
    workers = getattr(args, "worker_num", None)
    silos = workers - 1 if kind == "simulation" and isinstance(workers, int) else workers
    if backend != "sp" and silos != each:
        every = f"worker_num ({silos})" if silos == workers else f"{silos}"
        yield "client_num_per_round", each, f"{every}: every rank but the server's"


def _beside(args: Arguments) -> Iterator[tuple[str, Any, str]]:
    """What of FedML's own noise and attacks cannot run beside the lock."""
    plain = "training_type: cross_silo with federated_optimizer: FedAvg"
    attack = word(args, "attack_type")
    if getattr(args, "enable_dp", False) and not _is_plain(args):
        yield "enable_dp", True, f"it with {plain}: FedML adds no noise elsewhere"
    if getattr(args, "enable_attack", False) and attack != INVERSION and not _is_plain(args):
        yield "attack_type", attack, f"FedML's own attacks with {plain}"
    solution = word(args, "dp_solution_type")
    if getattr(args, "enable_dp", False) and solution not in ("ldp", "cdp"):
        yield "dp_solution_type", solution, "ldp and cdp, which FedML adds"
    if getattr(args, "enable_dp", False) and getattr(args, "enable_rdp_accountant", False):
        yield "enable_rdp_accountant", True, "False: FedML's accountant cannot be made"
    if getattr(args, "enable_attack", False) and attack == "dlg":
        yield "attack_type", attack, f"{INVERSION}: FedML's own dlg never optimises"
