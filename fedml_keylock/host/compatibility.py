"""What of FedML the defense was tested with: releases, kinds of jobs, and its own defenses.

It imports neither fedml nor torch, so that `doctor` can ask whatever the environment lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, HostError
from .job_configuration import INVERSION, Arguments, our_defense, word

if TYPE_CHECKING:
    import torch

__all__ = [
    "NO_GROUP_KEY",
    "ROBUST_AGGREGATIONS",
    "SUPPORTED",
    "check_job",
    "check_model",
    "check_sealing",
    "unsupported",
]

SUPPORTED = ("0.9.6",)
"""The FedML releases that every seam was tested with."""

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

_PLAIN = f"training_type: cross_silo with federated_optimizer: {_OPTIMIZER}"
"""The jobs whose server runs what FedML has beside averaging: noise, attacks, defenses."""

ROBUST_AGGREGATIONS = (
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

NO_GROUP_KEY = (
    "keylock.group_key: without MPI silos cannot agree on a secret by themselves; name "
    "an owner-only file with one that all have: (umask 077; openssl rand -out FILE 32)"
)
"""What is said of a job whose silos have no way to one another, and no secret."""

_ON_STATES = ("byzantine", "model_replacement")
"""Attacks of FedML's that change what silos have sent."""

_NO_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")
"""What FedML's own defenses do not count as weights; wise_median then loses count."""


def unsupported(version: str, problems: Sequence[str] = ()) -> str | None:
    """Why a FedML cannot be used, in one line that names both versions; None if it can.

    Args:
        version: of the FedML that was found.
        problems: what differs in it from the releases that were tested.

    Example:
        >>> print(unsupported("0.9.7").split(";")[0])
        fedml 0.9.7 is not supported
        >>> unsupported(SUPPORTED[-1]) is None
        True

    """
    remedy = f"pip install 'fedml=={SUPPORTED[-1]}'"
    tested = f"fedml_keylock was tested with fedml {', '.join(SUPPORTED)}"
    if version not in SUPPORTED:
        return f"fedml {version} is not supported; {tested}: {remedy}"
    if problems:
        what = "; ".join(problems).replace("\n", " ")
        again = remedy.replace("install", "install --force-reinstall")
        return f"this fedml {version} is not as released: {what}; {tested}: {again}"
    return None


def check_job(args: Arguments, defense: str | None, robust_aggregation: str | None) -> None:
    """Check that a defense, and FedML's own beside it, were tested in this kind of job.

    Raises:
        HostError: naming the field, its value and what is supported.
        ConfigError: FedML's server cannot run its own defense here, or is to assess single silos.

    Example:
        >>> from types import SimpleNamespace
        >>> check_job(SimpleNamespace(training_type="cross_device"), "keylock", None)
        Traceback (most recent call last):
        fedml_keylock.errors.HostError: training_type: 'cross_device' is not supported by\
 fedml_keylock yet; it supports cross_silo and simulation

    """
    for fits, field, found, supported in _rules(args):
        if not fits:
            raise HostError(
                f"{field}: {found!r} is not supported by fedml_keylock yet; it supports {supported}"
            )
    if defense is not None and getattr(args, "enable_contribution", False):
        # contribution_alg alone does nothing
        how = word(args, "contribution_alg") or "no contribution_alg"
        raise ConfigError(
            f"enable_contribution: FedML assesses silos ({how}) by testing single silos' models on "
            f"its server, which defense_type: {defense} keeps from it; leave it out"
        )
    settings = getattr(args, defense or "", None) or {}
    if settings.get("link_key") is not None and args.backend != "GRPC":
        raise ConfigError(
            f"{defense}.link_key: it is for jobs over gRPC, and backend is {args.backend}; leave "
            "it out"
        )
    if robust_aggregation is None:
        return
    field = f"{defense}.robust_aggregation: {robust_aggregation!r}"
    if not _is_plain(args):
        raise ConfigError(
            f"{field} is not run by the server of this kind of job; leave it out, or use {_PLAIN}"
        )
    if robust_aggregation not in ROBUST_AGGREGATIONS:
        raise ConfigError(
            f"{field} is not a defense of FedML's that its server can run; allowed: "
            f"{', '.join(ROBUST_AGGREGATIONS)}"
        )


def check_model(
    args: Arguments,
    defense: str | None,
    robust_aggregation: str | None,
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Check that FedML's own defense and clipping can run on a model's public state.

    Raises:
        ConfigError: one of them cannot, naming the part of the model.

    """
    statistics = [name for name in dtypes if name.endswith(_NO_WEIGHTS)]
    if robust_aggregation == "wise_median" and statistics:
        raise ConfigError(
            f"{defense}.robust_aggregation: FedML's wise_median cannot run on a model with batch "
            f"norm statistics, such as {statistics[0]}"
        )
    integers = [name for name, dtype in dtypes.items() if not dtype.is_floating_point]
    if _clips(args) and integers:
        raise ConfigError(
            f"max_grad_norm: FedML cannot clip a model with integers, such as {integers[0]}; leave "
            "max_grad_norm out"
        )


def check_sealing(args: Arguments) -> None:
    """Check that FedML's server neither reads single updates nor changes their sum.

    Raises:
        ConfigError: it would, naming the field and the remedy.

    Example:
        >>> from types import SimpleNamespace
        >>> check_sealing(SimpleNamespace(enable_dp=True, dp_solution_type="cdp"))
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: dp_solution_type: cdp clips and adds noise on the server,\
 which lock: sealed keeps from reading; use ldp, in the silos

    """
    attack = word(args, "attack_type")
    if getattr(args, "enable_attack", False) and attack in _ON_STATES:
        raise ConfigError(
            f"attack_type: {attack} changes single updates on the server, which lock: sealed keeps "
            "from reading; use lock: rotated, or leave it out"
        )
    if getattr(args, "enable_dp", False) and word(args, "dp_solution_type") == "cdp":
        raise ConfigError(
            "dp_solution_type: cdp clips and adds noise on the server, which lock: sealed keeps "
            "from reading; use ldp, in the silos"
        )
    settings = getattr(args, our_defense(args) or "", None) or {}
    if getattr(args, "training_type", None) != "simulation":
        return
    # its silos do not get the last average over MPI; in one process it is in the open
    unwritten = {"save_model": "use checkpoint, which fedml-keylock export opens"}
    if getattr(args, "backend", None) == "sp":
        remedy = "save FedML's own model, which is in the open"
        unwritten = dict.fromkeys(("save_model", "checkpoint"), remedy)
        unwritten["keep_history"] = "leave it out: no message is kept"
    elif (settings.get("noise") or {}).get("canaries"):
        raise ConfigError(
            "keylock.noise.canaries: silos of a simulation over MPI do not get the last average, "
            "which tells of them; use backend: sp, or training_type: cross_silo"
        )
    for name, remedy in unwritten.items():
        if settings.get(name):
            raise ConfigError(
                f"keylock.{name}: nothing writes it in this kind of simulation; {remedy}, or use "
                "training_type: cross_silo"
            )


def _clips(args: Arguments) -> bool:
    """Whether FedML's differential privacy clips models."""
    limit = getattr(args, "max_grad_norm", None)
    return limit is not None and bool(getattr(args, "enable_dp", False))


def _is_plain(args: Arguments) -> bool:
    """Whether the job is of the kind that _PLAIN names."""
    kind = getattr(args, "training_type", None), getattr(args, "federated_optimizer", None)
    return kind == ("cross_silo", _OPTIMIZER)


def _rules(args: Arguments) -> list[tuple[bool, str, Any, str]]:
    """Each rule for a job: whether it fits, the field, its value, and what is supported."""

    def field(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    kind, backend, optimizer = map(field, ("training_type", "backend", "federated_optimizer"))
    where, tested = f"training_type: {kind}", _BACKENDS.get(str(kind), ())
    both = f"{where} and backend: {backend}"
    scenario, engine = field("scenario", "horizontal"), field("ml_engine", "torch")
    encrypts, noise = bool(field("enable_fhe")), bool(field("enable_dp"))
    solution, attack = word(args, "dp_solution_type"), word(args, "attack_type")
    theirs = attack if field("enable_attack") and attack != INVERSION else None
    noise_fits, attack_fits = (_is_plain(args) or unused for unused in (not noise, theirs is None))
    known = not noise or solution in ("ldp", "cdp")
    accountant = noise and field("enable_rdp_accountant")
    total, each, workers = map(field, ("client_num_in_total", "client_num_per_round", "worker_num"))
    enough = total is not None and each is not None and total >= each
    # FedML's server waits for every rank, and asks only so many; the simulation counts itself
    silos = workers - 1 if kind == "simulation" and isinstance(workers, int) else workers
    ranks = f"worker_num ({silos})" if silos == workers else f"{silos}"
    asked = backend == "sp" or silos == each
    return [
        (bool(tested), "training_type", kind, " and ".join(_BACKENDS)),
        (backend in tested, "backend", backend, f"{' and '.join(tested)} with {where}"),
        (optimizer == _OPTIMIZER, "federated_optimizer", optimizer, f"{_OPTIMIZER} with {both}"),
        (scenario == "horizontal", "scenario", scenario, "horizontal"),
        (engine == "torch", "ml_engine", engine, "torch"),
        (not encrypts, "enable_fhe", encrypts, "False"),
        (noise_fits, "enable_dp", noise, f"it with {_PLAIN}: FedML adds no noise elsewhere"),
        (attack_fits, "attack_type", theirs, f"FedML's own attacks with {_PLAIN}"),
        (known, "dp_solution_type", solution, "ldp and cdp, which FedML adds"),
        (not accountant, "enable_rdp_accountant", True, "False: FedML's accountant cannot be made"),
        (theirs != "dlg", "attack_type", theirs, f"{INVERSION}: FedML's own dlg never optimises"),
        (enough, "client_num_in_total", total, f"client_num_per_round ({each}) or more"),
        (asked, "client_num_per_round", each, f"{ranks}: every rank but the server's"),
    ]
