"""What a job's YAML asks for: whether we are wanted in it, and what cannot be had beside us."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import ConfigError, HostError
from ..plugins import defenses

__all__ = [
    "INVERSION",
    "THEN",
    "Arguments",
    "check_noise",
    "check_supported",
    "check_then",
    "our_attack",
    "our_defense",
]

Arguments = Any
"""FedML's `args`: one attribute for each key of each section of the YAML."""

INVERSION = "gradient_inversion"

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

_NO_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")
"""What FedML's own defenses do not take for weights; wise_median then loses count."""


def our_defense(args: Arguments) -> str | None:
    """The `defense_type` when the flag is on and a plugin registered it; otherwise None."""
    if not getattr(args, "enable_defense", False):
        return None
    name = str(getattr(args, "defense_type", "")).strip()
    return name if name in defenses() else None


def our_attack(args: Arguments) -> bool:
    """Whether the job asks for gradient inversion."""
    kind = str(getattr(args, "attack_type", "")).strip()
    return bool(getattr(args, "enable_attack", False)) and kind == INVERSION


def check_supported(args: Arguments) -> None:
    """Check that the job is of a kind that the defense has been shown to work in.

    Raises:
        HostError: naming the field, its value and what is supported.

    """
    for what, found, supported in _unsupported(args):
        raise HostError(
            f"{what}: {found!r} is not supported by fedml_keylock yet; it supports {supported}"
        )


def check_then(name: str | None, then: str | None, names: Iterable[str] = ()) -> None:
    """Check that FedML's server can run its own defense beside ours.

    Args:
        name: of our defense, as the YAML's section is called.
        then: of FedML's, None for none.
        names: of the model's public state, as far as they are known yet.

    Raises:
        ConfigError: it cannot, or not on this model.

    Example:
        >>> check_then("keylock", "krum", ["1.running_mean"])

    """
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
    clips = getattr(args, "max_grad_norm", None) is not None
    if getattr(args, "enable_dp", False) and clips and integers:
        raise ConfigError(
            f"max_grad_norm: FedML cannot clip a model with integers, such as {integers[0]}; leave "
            "max_grad_norm out"
        )


def _unsupported(args: Arguments) -> list[tuple[str, Any, str]]:
    """What of the job has not been shown to work with the defense: (field, value, supported)."""
    wanted: list[tuple[str, Any, Any]] = [
        ("training_type", "cross_silo", getattr(args, "training_type", None)),
        ("scenario", "horizontal", getattr(args, "scenario", "horizontal")),
        ("backend", "MPI", getattr(args, "backend", None)),
        ("federated_optimizer", "FedAvg", getattr(args, "federated_optimizer", None)),
        ("ml_engine", "torch", getattr(args, "ml_engine", "torch")),
        ("enable_fhe", False, bool(getattr(args, "enable_fhe", False))),
    ]
    found = [(name, value, str(only)) for name, only, value in wanted if value != only]
    solution = str(getattr(args, "dp_solution_type", "")).strip()
    if getattr(args, "enable_dp", False) and solution not in ("ldp", "cdp"):
        found.append(("dp_solution_type", solution, "ldp and cdp, which FedML adds"))
    if getattr(args, "enable_dp", False) and getattr(args, "enable_rdp_accountant", False):
        found.append(("enable_rdp_accountant", True, "False: FedML's accountant cannot be made"))
    attack = str(getattr(args, "attack_type", "")).strip()
    if getattr(args, "enable_attack", False) and attack == "dlg":
        found.append(("attack_type", attack, f"{INVERSION}: FedML's own dlg never optimises"))
    workers, each = getattr(args, "worker_num", None), getattr(args, "client_num_per_round", None)
    total = getattr(args, "client_num_in_total", None)
    if total is None or each is None or total < each:
        found.append(("client_num_in_total", total, f"client_num_per_round ({each}) or more"))
    if workers != each:  # FedML's server waits for every rank, and asks only so many
        found.append(("client_num_per_round", each, f"worker_num ({workers}): every rank"))
    return found
