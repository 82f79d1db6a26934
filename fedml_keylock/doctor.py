"""Checks the environment, and says what to do about each problem."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from .errors import KeyLockError, first_line
from .host.startup_file import StartUp
from .mpi import without_runtime

__all__ = ["Check", "examine", "start_up"]


@dataclass(frozen=True)
class Check:
    """One finding: what was checked, whether it is good, what was found, and a remedy."""

    name: str
    well: bool
    found: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """Run every check, the quick ones first, each when the iterator reaches it."""
    yield from (_python(), _setuptools(), _torch(), _fedml(), start_up(), _mpi())
    yield from _seams()
    yield from _plugins()


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), found, "use Python 3.11 or newer")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _setuptools() -> Check:
    found = _installed("setuptools")
    well = found[0].isdigit() and int(found.split(".")[0]) < 81
    return Check("setuptools", well, found, "fedml 0.9 needs it: pip install 'setuptools<81'")


def _torch() -> Check:
    found = f"torch {_installed('torch')}, torchvision {_installed('torchvision')}"
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        wants = [
            r for r in requires("torchvision") or [] if r.startswith("torch ") or "torch=" in r
        ]
        found += f": {first_line(error)}"
        remedy = f"they must be a pair; torchvision asks for {', '.join(wants)}"
        return Check("torch and torchvision", False, found, remedy)
    return Check("torch and torchvision", True, found)


def _fedml() -> Check:
    from .host.compatibility import SUPPORTED

    found = _installed("fedml")
    return Check("fedml", found in SUPPORTED, found, f"pip install 'fedml=={SUPPORTED[-1]}'")


def start_up(place: StartUp | None = None) -> Check:
    """Whether `fedml-keylock enable` was run, and where; by default in this environment.

    Example:
        >>> from pathlib import Path
        >>> start_up(StartUp(Path("nowhere"))).found
        'not enabled in nowhere'

    """
    name = "start-up file"
    try:
        place = place or StartUp.of_this_interpreter()
    except KeyLockError as error:
        return Check(name, True, f"not enabled: {error}")
    if not place.enabled:
        return Check(name, True, f"not enabled in {place.folder}")
    try:
        current = place.current
    except KeyLockError as error:
        return Check(name, False, "enabled, and does not work", str(error))
    if not current:
        found = f"enabled in {place.folder}, incomplete or by another release"
        return Check(name, False, found, "fedml-keylock enable")
    return Check(name, True, f"enabled in {place.folder}; fedml-keylock disable takes it back")


def _mpi() -> Check:
    from .host.launch import find_mpiexec

    try:
        mpiexec = find_mpiexec()
    except KeyLockError as error:
        return Check("MPI runtime", False, "no mpiexec", str(error))
    # only one rank prints: two outputs could mix in one line
    probe = (
        "from mpi4py import MPI; comm = MPI.COMM_WORLD; comm.Get_rank() or "
        "print(comm.Get_size(), MPI.Get_library_version())"
    )
    try:
        done = subprocess.run(  # noqa: S603  # this environment's own mpiexec and Python
            [str(mpiexec), "-n", "2", sys.executable, "-c", probe],
            env=without_runtime(os.environ),  # mpiexec may have started this process
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("MPI runtime", False, f"{mpiexec} does not end", _MPI_REMEDY)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        return Check("MPI runtime", False, f"{mpiexec} fails: {said}", _MPI_REMEDY)
    size, _, library = lines[0].partition(" ")
    if size != "2":
        found = f"{mpiexec} starts ranks that do not see each other (size {size})"
        return Check("MPI runtime", False, found, _MPI_REMEDY)
    return Check("MPI runtime", True, f"{mpiexec}: {library.strip()}")


_MPI_REMEDY = (
    "mpi4py and mpiexec must be of the same MPI: pip install 'fedml-keylock[mpich]', "
    "or build mpi4py against your cluster's MPI"
)


def _seams() -> Iterator[Check]:
    try:
        from .host.fedml import seams

        found = seams()
    except Exception as error:  # importing fedml may raise anything: that is the finding
        yield Check(
            "import fedml", False, f"{type(error).__name__}: {error}", "see the lines above"
        )
        return
    remedy = "this fedml differs from the release that was tested"
    for seam in found:
        problem = seam.problem()
        yield Check(f"seam {seam.label}", problem is None, problem or "fits", remedy)


def _plugins() -> Iterator[Check]:
    from .plugins import registered

    try:
        found = registered()
    except KeyLockError as error:
        yield Check("plugins", False, str(error), "mend it or uninstall it")
        return
    for plugin in dict.fromkeys(one.plugin for one in found):
        names = ", ".join(one.name for one in found if one.plugin == plugin)
        yield Check(f"plugin {plugin}", True, names)
