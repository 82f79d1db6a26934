"""Finds plugins by entry point, checks them on loading, and lists what they register.

Our own defense and attacks use the same hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .defense import Defense, DefenseFactory
from .errors import ConfigError, PluginError, first_line

if TYPE_CHECKING:
    from .inversion import Attack

__all__ = [
    "KINDS",
    "Registered",
    "attack_of",
    "defense_of",
    "defenses",
    "load",
    "manager",
    "metrics",
    "one_of",
    "registered",
]

KINDS = ("defenses", "attacks", "metrics")


@dataclass(frozen=True)
class Registered:
    """An object that a plugin registered: a defense's factory, an attack's preset, or a metric."""

    kind: str
    name: str
    plugin: str
    value: Callable[..., Any]


@cache
def manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every installed plugin.

    Raises:
        PluginError: naming the plugin that does not load, or whose hooks do not fit.

    Example:
        >>> "builtin" in dict(manager().list_name_plugin())
        True

    """
    return load(sorted(entry_points(group=hookspecs.PROJECT), key=lambda entry: entry.name))


def load(entries: list[EntryPoint]) -> pluggy.PluginManager:
    """A plugin manager with these entry points loaded.

    Raises:
        PluginError: naming the plugin that does not load, or whose hooks do not fit.

    """
    made = pluggy.PluginManager(hookspecs.PROJECT)
    made.add_hookspecs(hookspecs)
    for entry in entries:
        who = f"plugin {entry.name} ({entry.value})"
        try:
            plugin = entry.load()
        except Exception as error:  # importing a plugin may raise anything
            raise PluginError(
                f"{who} cannot be imported: {type(error).__name__}: {error}; "
                "mend it or uninstall it"
            ) from error
        try:
            made.register(plugin, entry.name)
            made.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            reason = str(error).replace("\n", " ")
            raise PluginError(f"{who} does not fit: {reason}") from None
    return made


def registered(
    made: pluggy.PluginManager | None = None, *, kinds: Sequence[str] = KINDS
) -> list[Registered]:
    """The registered objects, in the order of kind and plugin.

    Only the hooks of those kinds are called: a silo that asks for defenses does not pay for the
    import of metrics.

    Raises:
        PluginError: two plugins registered the same name.

    Example:
        >>> "keylock" in [one.name for one in registered() if one.kind == "defenses"]
        True

    """
    made = made or manager()
    found: dict[tuple[str, str], Registered] = {}
    for kind in kinds:
        hook = f"register_{kind}"
        for name, plugin in made.list_name_plugin():
            if plugin is None or not hasattr(plugin, hook):
                continue

            def register(
                what: str, value: Callable[..., Any], kind: str = kind, name: str = name
            ) -> None:
                other = found.get((kind, what))
                if other is not None:
                    raise PluginError(
                        f"plugins {other.plugin} and {name} both register {what!r} in {kind}; "
                        "uninstall one of them"
                    )
                found[kind, what] = Registered(kind, what, name, value)

            made.subset_hook_caller(
                hook, [p for _, p in made.list_name_plugin() if p is not plugin]
            )(register=register)
    return list(found.values())


def defenses() -> dict[str, DefenseFactory]:
    """Name to factory of every defense.

    Example:
        >>> "keylock" in defenses()
        True

    """
    return _named("defenses")


def metrics() -> dict[str, Callable[..., Any]]:
    """Name to function of every metric of an image.

    Example:
        >>> "ssim" in metrics()
        True

    """
    return _named("metrics")


def defense_of(name: str, settings: Mapping[str, Any]) -> Defense:
    """A defense made of its own section of the YAML.

    Raises:
        ConfigError: there is none of that name, or a field is wrong.
        PluginError: what its plugin makes is no defense.

    Example:
        >>> defense_of("keylock", {"lock": "paper"}).title
        'keylock:paper:first'

    """
    made = one_of("defenses", name)(settings)
    if not isinstance(made, Defense):
        raise PluginError(
            f"defense {name} is a {type(made).__name__}, which is not derived from "
            "fedml_keylock.defense.Defense; mend its plugin or uninstall it"
        )
    return made


def attack_of(name: str, fields: Mapping[str, Any]) -> Attack:
    """An attack made by its preset, with some fields of its own.

    Raises:
        ConfigError: there is none of that name, or a field is wrong.
        PluginError: what its plugin makes is no attack.

    Example:
        >>> attack_of("dlg", {"steps": 5}).steps
        5

    """
    from .inversion.base import Attack

    factory = one_of("attacks", name)
    try:
        made = factory(**fields)
    except ConfigError as error:
        raise ConfigError(f"attack {name}: {error}") from None
    except (TypeError, ValueError) as error:  # of a plugin's own, which may take anything
        raise ConfigError(
            f"attack {name}: does not take {dict(fields)}: {first_line(error)}"
        ) from None
    if not isinstance(made, Attack):
        lacking = [n for n in ("name", "needs", "uses", "reconstruct") if not hasattr(made, n)]
        raise PluginError(
            f"attack {name} is a {type(made).__name__} without {', '.join(lacking)}, which "
            "fedml_keylock.inversion.Attack has; mend its plugin or uninstall it"
        )
    return made


def one_of(kind: str, name: str) -> Any:
    """The registered value of that name.

    Raises:
        ConfigError: naming what there is instead.

    Example:
        >>> one_of("attacks", "dlg").__name__
        'dlg'

    """
    found = _named(kind)
    if name not in found:
        raise ConfigError(f"no {kind[:-1]} is named {name!r}; there are: {', '.join(found)}")
    return found[name]


def _named(kind: str) -> dict[str, Callable[..., Any]]:
    return {one.name: one.value for one in registered(kinds=[kind])}
