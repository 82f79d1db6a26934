"""Activates the plugin when fedml is imported; `fedml-keylock enable` copies it to site-packages.

It runs at every start of the interpreter. So it stands alone, imports only modules that the
interpreter has loaded already, and affects no import but fedml's. If fedml_keylock is gone, fedml
is imported as usual.
"""

import sys

# like typing's, whose import would cost more than all of this
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["Hook", "arm"]

_HOST = "fedml_keylock.host.fedml"


class Hook:
    """A finder before the others that acts after fedml's own import has finished.

    It finds nothing itself: it returns what the others find for fedml. Only the loader's
    `exec_module` is replaced, for that one import, to activate the plugin afterwards.

    Example:
        >>> hook = Hook()
        >>> hook.arm(); hook in sys.meta_path
        True
        >>> hook.find_spec("json") is None  # nobody's import but fedml's
        True
        >>> hook.disarm(); hook in sys.meta_path
        False

    """

    def arm(self) -> None:
        """Put the hook before all other finders."""
        sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Remove the hook. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """What the other finders find for fedml, with the activation added; else None."""
        if name != "fedml":
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        if not hasattr(loader, "exec_module") or not hasattr(loader, "__dict__"):
            return None  # only a folder of that name
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            vars(loader).pop("exec_module", None)  # restores the loader
            execute(module)
            self.disarm()  # not before: a failed import may be tried again
            _activate()

        vars(loader)["exec_module"] = exec_module
        return spec


def arm() -> None:
    """Activate fedml_keylock when, and only when, something imports fedml. Idempotent.

    Example:
        >>> before = list(sys.meta_path)
        >>> arm(); arm()
        >>> len(sys.meta_path) - len(before)
        1
        >>> sys.meta_path.pop(0).disarm(); sys.meta_path == before
        True

    """
    if not any(isinstance(finder, Hook) for finder in sys.meta_path):
        Hook().arm()


def _activate() -> None:
    """Activate, or print in one line why not; an import of fedml never fails because of this."""
    if _HOST in sys.modules:
        return  # this package itself imports fedml, and activates when asked to
    try:
        from fedml_keylock.host.fedml import activate_or_guard

        problem = activate_or_guard()
    except Exception as error:  # a program that imports fedml must not end
        if isinstance(error, ModuleNotFoundError) and error.name == "fedml_keylock":
            folder = __file__.rpartition("/")[0]
            problem = (
                "enabled in this environment, but not installed: jobs are not defended; "
                f"install it again, or delete {folder}/fedml_keylock_startup.*"
            )
        else:
            problem = (
                f"enabled, but cannot be activated: {type(error).__name__}: {error}; "
                "fedml-keylock doctor says more"
            ).replace("\n", " ")
    if problem and sys.stderr is not None:
        sys.stderr.write(f"fedml-keylock: {problem}\n")
