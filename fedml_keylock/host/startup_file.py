"""Writes the start-up file in site-packages that activates the plugin by itself."""

from __future__ import annotations

import py_compile
import site
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

from ..errors import HostError
from ..files import replacing

__all__ = ["MARK", "StartUp"]

NAME = "fedml_keylock_startup"
MARK = "written by 'fedml-keylock enable'; 'fedml-keylock disable' removes it"
"""Text that marks our files, of any release."""

LINE = (
    'import sys; exec("try:\\n import fedml_keylock_startup as s; s.arm()\\n'
    'except Exception: pass")'
)
"""The line must neither fail nor print, whatever happens to the module."""


@dataclass(frozen=True)
class StartUp:
    """The start-up file and its module in a folder of packages.

    Attributes:
        folder: the site-packages.

    Example:
        >>> import tempfile
        >>> here = StartUp(Path(tempfile.mkdtemp()))
        >>> here.write(), here.write()
        (True, False)
        >>> here.enabled, here.current
        (True, True)
        >>> [path.name for path in here.remove()]
        ['fedml_keylock_startup.pth', 'fedml_keylock_startup.py']
        >>> here.enabled, here.remove()
        (False, [])

    """

    folder: Path

    @classmethod
    def of_this_interpreter(cls) -> StartUp:
        """The site-packages that this interpreter reads at its start.

        Raises:
            HostError: it reads none.

        """
        folder = Path(sysconfig.get_path("purelib"))
        if sys.flags.no_site:
            raise HostError(f"{sys.executable} -S reads no start-up files: start it without -S")
        if folder.resolve() not in {Path(read).resolve() for read in site.getsitepackages()}:
            raise HostError(
                f"{folder}: {sys.executable} does not read it at its start; use a virtual "
                "environment, or python -m fedml_keylock"
            )
        return cls(folder)

    @property
    def line(self) -> Path:
        """The file that the interpreter reads at its start."""
        return self.folder / f"{NAME}.pth"

    @property
    def module(self) -> Path:
        """The module that it imports."""
        return self.folder / f"{NAME}.py"

    @property
    def enabled(self) -> bool:
        """Whether the file that enables the plugin exists."""
        return self.line.exists()

    @property
    def current(self) -> bool:
        """Whether both files are those of this release."""
        return all(_read(path) == text for path, text in self._texts().items())

    def write(self) -> bool:
        """Write the missing files: the module, and last the line that imports it.

        Returns:
            Whether anything was written.

        Raises:
            HostError: the folder cannot be written, or has other files of these names.

        """
        texts = self._texts()
        self._refuse_others()
        if self.current:
            return False
        for path, text in texts.items():
            _replace(path, text)
        # compile now, not at the first start by someone who may write here
        try:
            py_compile.compile(str(self.module), doraise=True)
        except OSError as error:
            raise _cannot("be compiled", self.module, error) from None
        return True

    def remove(self) -> list[Path]:
        """Remove what `write` wrote, and nothing else: first the line that enables the plugin.

        Returns:
            The files that existed, without the module's compiled form.

        Raises:
            HostError: the folder cannot be written, or has other files of these names.

        """
        self._refuse_others()
        removed = []
        cache = Path(cache_from_source(str(self.module))).parent
        compiled = sorted(cache.glob(f"{NAME}.*.pyc")) if self.module.exists() else []
        for path in (self.line, self.module, *compiled):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _cannot("be removed", path, error) from None
            removed.append(path)
        if compiled and not any(cache.iterdir()):
            cache.rmdir()
        return [path for path in removed if path not in compiled]

    def _texts(self) -> dict[Path, str]:
        """The content of each file, in the order of writing."""
        source = Path(__file__).with_name("startup.py")
        return {
            self.module: f"# {MARK}\n{source.read_text(encoding='utf-8')}",
            self.line: f"# {MARK}\n{LINE}\n",
        }

    def _refuse_others(self) -> None:
        for path in (self.line, self.module):
            text = _read(path)
            if text is not None and not text.startswith(f"# {MARK}\n"):
                raise HostError(
                    f"{path}: it was not written by fedml-keylock enable, or was changed since; "
                    "move it away"
                )


def _read(path: Path) -> str | None:
    """The text of a file, or None if there is none.

    Raises:
        HostError: the file cannot be read.

    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("be read", path, error) from None


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
            part.chmod(0o644)  # for every user of the environment, whatever the umask
    except OSError as error:
        raise _cannot("be written", path, error) from None


def _cannot(what: str, path: Path, error: OSError) -> HostError:
    return HostError(
        f"{path}: cannot {what}: {error.strerror}; do it as the owner of {path.parent}, or use a "
        "virtual environment of your own"
    )
