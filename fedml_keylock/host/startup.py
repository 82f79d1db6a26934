"""What `fedml-keylock enable` copies into site-packages: a lazy hook on the import of fedml.

It runs at every start of the interpreter. So it stands alone, imports nothing that the interpreter
has not loaded by itself, and touches no other import than fedml's; where fedml_keylock has gone
meanwhile, fedml is imported as ever.
"""

import sys

# as typing has it, whose import costs more than all of this
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["Hook", "arm"]

_HOST = "fedml_keylock.host.fedml"


class Hook:
    """A finder in front of the others that acts once fedml's own import has finished.

    It finds nothing itself: what the others find for fedml is given back as it is, but that the
    loader's `exec_module` is, for that one import, followed by the activation.

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
        """Put the hook in front of the finders of modules."""
        sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Take it out. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """What the other finders find for fedml, with the activation behind it; else None."""
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
            return None  # a mere folder of that name
        assert loader is not None
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            vars(loader).pop("exec_module", None)  # the loader is again as it was found
            execute(module)
            self.disarm()  # not before: an import that failed may be tried again
            _activate()

        vars(loader)["exec_module"] = exec_module
        return spec


def arm() -> None:
    """Have fedml_keylock activated when, and only when, something imports fedml. Idempotent.

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
    """Activate, or say in one line why not; an import of fedml never fails because of this."""
    if _HOST in sys.modules:
        return  # it is this package itself that imports fedml, and that activates as it is asked to
    try:
        from fedml_keylock.host.fedml import activate_or_guard

        problem = activate_or_guard()
    except Exception as error:  # a program that imports fedml is not to end by it
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
