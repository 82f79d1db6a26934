"""Reads and checks a job's YAML, without importing FedML; torch is imported for attacks only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import yaml

from ..errors import ConfigError, KeyLockError
from ..evaluation.section import InversionSettings
from ..host.compatibility import NO_GROUP_KEY, check_job, check_sealing
from ..host.job_configuration import (
    INVERSION,
    Arguments,
    check_switches,
    our_attack,
    our_defense,
    read_yaml,
)
from ..locks.config import FIELDS_OF, KeyLockConfig
from ..settings import whole_number

__all__ = ["JobFile", "check_job_file", "keylock_settings", "lock_settings", "read_job"]


@dataclass(frozen=True)
class JobFile:
    """The contents of a job's YAML.

    Attributes:
        args: the fields of its sections, as FedML flattens them.
        defense: name of the defense; None if the job is not defended.
        keylock: the defense's settings, if it is keylock.

    """

    args: Arguments
    defense: str | None
    keylock: KeyLockConfig | None

    @property
    def ranks(self) -> int | None:
        """Number of ranks that the job needs; None if its YAML does not say.

        Example:
            >>> JobFile(SimpleNamespace(client_num_per_round=3), None, None).ranks
            4

        """
        silos = getattr(self.args, "client_num_per_round", None)
        return silos + 1 if isinstance(silos, int) else None

    @property
    def start(self) -> str:
        """The command that starts the job, or each rank over gRPC, without its YAML.

        Example:
            >>> JobFile(SimpleNamespace(backend="sp"), None, None).start
            'python -m fedml_keylock SCRIPT'

        """
        backend = getattr(self.args, "backend", "MPI")
        if backend == "MPI":
            return f"fedml-keylock run -n {self.ranks} SCRIPT"
        each = "" if backend == "sp" else " --rank RANK --role ROLE"
        return f"python -m fedml_keylock SCRIPT{each}"


def check_job_file(path: Path, *, ranks: int | None = None) -> JobFile:
    """Check all of a job's YAML that does not depend on its code, model and data.

    Args:
        path: path of the YAML.
        ranks: number of ranks that start; None if unknown.

    Raises:
        KeyLockError: one line with the file's name, the error and what to do about it.

    """
    read = _read(path)
    args = _fields(read)
    try:
        check_switches(args, read)
        defense, attacked = our_defense(args), our_attack(args)
        config = None
        if defense == KeyLockConfig.section:
            config = KeyLockConfig.from_mapping(getattr(args, defense, None))
        if defense is not None or attacked:
            _check_counts(args, ranks)
            check_job(args, defense, config.robust_aggregation if config else None)
        if config is not None:
            if "sealed" in config.locks:
                check_sealing(args)
            alone = args.backend == "GRPC" and config.group_key is None
            if alone and config.kind in FIELDS_OF["group_key"]:
                raise ConfigError(NO_GROUP_KEY)
        if attacked:
            _check_attacks(args, defense)
        job = JobFile(args, defense, config)
        if ranks is not None and getattr(args, "backend", "MPI") != "MPI":
            raise ConfigError(
                f"backend: run starts jobs over MPI, and this is {args.backend!r}; start it with: "
                f"{job.start} --cf {path}"
            )
    except KeyLockError as error:
        raise type(error)(f"{path}: {error}") from None
    return job


def _read(path: Path) -> Mapping[str, Any]:
    """The sections of a job's YAML.

    Raises:
        ConfigError: there are none, FedML would fail on one, or a name is there twice, of which
            YAML keeps the last.

    """
    read = read_yaml(path)
    if not isinstance(read, Mapping) or not read:
        raise ConfigError(
            f"{path}: it has no sections; a job's YAML has fields in sections such as train_args"
        )
    for name, section in read.items():
        if not isinstance(section, Mapping):
            found = "nothing" if section is None else " ".join(repr(section).split())[:80]
            raise ConfigError(
                f"{path}: {name}: it must be a section of fields, not {found}; put fields in it, "
                "or take it out"
            )
    nodes, seen = [yaml.compose(path.read_text(), yaml.SafeLoader)], set()
    for node in nodes:
        if id(node) in seen:  # an alias may be inside its own anchor
            continue
        seen.add(id(node))
        entries = node.value if isinstance(node, yaml.MappingNode) else ()
        names = set()
        for key, value in entries:
            if key.value in names:
                raise ConfigError(
                    f"{path}, line {key.start_mark.line + 1}: {key.value} stands there again, and "
                    "only the last would count; leave one"
                )
            names |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
            nodes.append(value)
    return read


def _fields(read: Mapping[str, Any]) -> Arguments:
    """The fields of a YAML as FedML flattens them: it ignores the sections' names."""
    fields: dict[str, Any] = {}
    for section in read.values():
        fields |= section
    return SimpleNamespace(**{str(name): value for name, value in fields.items()})


def _check_counts(args: Arguments, ranks: int | None) -> None:
    """Check the counts, and that there is one rank for the server and each silo.

    Raises:
        ConfigError: a count is wrong; names the field.

    """
    for name in ("client_num_in_total", "client_num_per_round", "comm_round", "worker_num"):
        if hasattr(args, name):
            whole_number(name, getattr(args, name), least=1)
    if isinstance(silos := getattr(args, "data_silo_config", None), list):
        args.worker_num = len(silos)  # as FedML counts
    workers = getattr(args, "worker_num", None)
    if getattr(args, "training_type", None) == "simulation":
        # FedML uses the number of started ranks, whatever the YAML says
        each = getattr(args, "client_num_per_round", None)
        args.worker_num = ranks if ranks is not None or each is None else each + 1
    elif ranks is not None and workers is not None and ranks != workers + 1:
        raise ConfigError(
            f"worker_num: {workers} silos and a server are {workers + 1} ranks, and {ranks} were "
            f"asked for: use -n {workers + 1}, or set worker_num: {ranks - 1}"
        )


def _check_attacks(args: Arguments, defense: str | None) -> None:
    """Check the settings of a job's attacks as its ranks do; last, since it imports torch.

    Raises:
        KeyLockError: a setting is wrong; names the field.

    """
    args.comm_round = getattr(args, "comm_round", 1)
    InversionSettings.from_mapping(getattr(args, INVERSION, None)).rounds_of(args.comm_round)
    from ..host.observer import Observer
    from ..plugins import defense_of

    settings = getattr(args, defense or "", None) or {}
    Observer.begin(args, None if defense is None else defense_of(defense, settings))


def lock_settings(
    config: Path | None, *, lock_kind: str | None, layers: str | None
) -> dict[str, Any]:
    """A `keylock` section, from a YAML by `keylock_settings` or from `lock_options`.

    UsageError if both are given.

    Example:
        >>> lock_settings(None, lock_kind="paper", layers="conv*,head")
        {'lock': 'paper', 'layers': ['conv*', 'head']}

    """
    named = {"lock": lock_kind, "layers": layers}
    chosen: dict[str, Any] = {name: value for name, value in named.items() if value}
    if config is not None and chosen:
        raise click.UsageError("a job's YAML has lock and layers: give it, or these")
    if layers and layers not in ("first", "all"):
        chosen["layers"] = layers.split(",")
    return {**keylock_settings(config), **chosen}


def keylock_settings(config: Path | None) -> Mapping[str, Any]:
    """The `keylock` section of a job's YAML; empty without a file.

    ConfigError if the file cannot be read, or its job is not defended by keylock.

    Example:
        >>> keylock_settings(None)
        {}

    """
    return {} if config is None else read_job(config)[1]


def read_job(config: Path) -> tuple[SimpleNamespace, Mapping[str, Any]]:
    """The fields of a job's YAML as FedML flattens them, and its `keylock` section.

    ConfigError as for `keylock_settings`.
    """
    read = _read(config)
    args = _fields(read)
    try:
        check_switches(args, read)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from None
    named = getattr(args, "defense_type", None)
    if named != KeyLockConfig.section:
        raise ConfigError(
            f"{config}: its defense_type is {named!r}, not keylock; set it under defense_args"
        )
    settings = getattr(args, KeyLockConfig.section, None) or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{config}: keylock: must be a mapping of fields, not {settings!r}")
    return args, settings
