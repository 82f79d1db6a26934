"""Whether a job's YAML asks for us in a way that FedML would not hear: then it does not run.

A typing error in one field is not to be how a job comes to run undefended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..locks import KeyLockConfig
from ..plugins import defenses
from .flags import INVERSION, Arguments, word

__all__ = ["check_asked", "misplaced"]


def check_asked(args: Arguments, read: Any = None) -> None:
    """Refuse a job that names one of our defenses or attacks, and would run without it.

    What is switched off by its flag, `enable_defense: false`, is off.

    Args:
        args: FedML's.
        read: what is in the job's YAML, of whose sections FedML keeps nothing. None: look again.

    Raises:
        ConfigError: naming the field, and where it belongs.

    Example:
        >>> from types import SimpleNamespace
        >>> check_asked(SimpleNamespace(enable_defence=True, defense_type="keylock"))
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: enable_defense: it is missing, and defense_type: keylock\
 would be ignored; set enable_defense: true, or false to run without it

    """
    for what, names in _ours().items():
        flag, kind = f"enable_{what}", word(args, f"{what}_type")
        named = [f"{what}_type: {kind}"] if kind in names else []
        named += [f"the {name} section" for name in names if _is_section(args, name)]
        if not named:
            continue
        if not hasattr(args, flag):
            raise ConfigError(
                f"{flag}: it is missing, and {named[0]} would be ignored; set {flag}: true, or "
                "false to run without it"
            )
        if getattr(args, flag) and kind not in names:
            found = repr(kind) if kind else "missing"
            raise ConfigError(
                f"{what}_type: it is {found}, and {named[0]} would be ignored; name "
                f"{' or '.join(names)} there, or take the section out"
            )
    for problem in misplaced(_yaml_of(args) if read is None else read):
        raise ConfigError(problem)


def misplaced(read: Any) -> Iterator[str]:
    """What stands in a job's YAML where nobody looks for it, each in one line.

    Args:
        read: the YAML's contents: sections of fields.

    Example:
        >>> list(misplaced({"defense_args": {"defense_type": "keylock", "preset": "strong"}}))
        ['preset: it is of keylock and stands beside it; put it into defense_args.keylock']

    """
    if not isinstance(read, Mapping):
        return
    for what, names in _ours().items():
        for name in names:
            if isinstance(read.get(name), Mapping):
                yield (
                    f"{name}: it stands on the YAML's top level, where FedML does not look for it; "
                    f"put it into {what}_args"
                )
    for section, fields in read.items():
        if isinstance(fields, Mapping) and fields.get("defense_type") == KeyLockConfig.section:
            for name in KeyLockConfig.model_fields.keys() & fields.keys():
                yield (
                    f"{name}: it is of keylock and stands beside it; put it into {section}.keylock"
                )


def _ours() -> dict[str, tuple[str, ...]]:
    """What of ours a job may name, by FedML's two words for it."""
    return {"defense": tuple(defenses()), "attack": (INVERSION,)}


def _is_section(args: Arguments, name: str) -> bool:
    found = getattr(args, name, None)
    return isinstance(found, Mapping) and bool(found)


def _yaml_of(args: Arguments) -> Any:
    """What FedML has read, or None where it has read nothing."""
    paths = getattr(args, "yaml_paths", None)
    try:
        return yaml.safe_load(Path(paths[0]).read_text()) if paths else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # FedML has said what it makes of it
