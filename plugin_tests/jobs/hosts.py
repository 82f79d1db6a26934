"""Two hosts on one machine: namespaces of network, name, IPC and mounts, and a veth pair.

MPICH takes them for two hosts: they have other names, share no memory, and reach each other by TCP
alone. Each has a folder of its own under one path, as hosts without a common file system have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedml_keylock.host.launch import find_mpiexec

HERE = Path(__file__).parent
LINK = "veth0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def missing() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    for tool in ("ip", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--ipc", "--mount", "mount", "-t", "sysfs", "sysfs", "/sys"],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        return "the kernel denies namespaces"
    version = subprocess.run(
        [find_mpiexec(), "--version"], capture_output=True, text=True, check=False
    )
    return "" if "HYDRA" in version.stdout else "needs MPICH's mpiexec"


@dataclass
class Host:
    """One host: a process that holds its namespaces, and the folder that it sees as `shared`."""

    name: str
    address: str
    folder: Path
    shared: Path
    _holder: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        # without a sysfs of its own UCX looks for the other namespace's devices, and finds none
        script = (
            f"hostname {self.name} && ip link set lo up && mount -t sysfs sysfs /sys"
            f" && mount --bind '{self.folder}' '{self.shared}' && echo up && exec cat"
        )
        # it ends when its input does: at the latest with the process of the tests
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--mount", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n", "the host did not come up"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def within(self, *line: str) -> list[str]:
        """The command line that runs another one on this host, in its folder."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m"]
        # within: nsenter's own option is for the folder as it is seen from outside
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.shared), *line]

    def run(self, *line: str) -> str:
        return subprocess.run(
            self.within(*line), stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def sent(self) -> int:
        """Bytes that this host has put on the link."""
        return int(self.run("cat", f"/sys/class/net/{LINK}/statistics/tx_bytes"))

    def await_link(self) -> None:
        """Wait for the link: UCX leaves out one that does not run yet."""
        limit = time.monotonic() + 10
        while self.run("cat", f"/sys/class/net/{LINK}/operstate") != "up\n":
            assert time.monotonic() < limit, "the link does not come up"
            time.sleep(0.1)

    def running(self) -> list[int]:
        """The processes on this host but the one that holds it."""
        own = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "ns/net").stat().st_ino == own:
                    found.append(int(process.name))
        return [pid for pid in found if pid != self.pid]

    def close(self) -> None:
        """End all that runs on this host; its namespaces and the link go with the last of it."""
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._holder.kill()
        self._holder.wait()


@dataclass(frozen=True)
class Hosts:
    """Both, and the folder that each sees as its own."""

    first: Host
    second: Host
    launcher: Path

    @property
    def both(self) -> tuple[Host, Host]:
        return self.first, self.second

    def mpiexec(
        self, ranks: Sequence[int], *more: str, started_on: Host | None = None
    ) -> list[str]:
        """A host's mpiexec, the first's unless named, with so many ranks on each of both.

        Up to the program.
        """
        places = ",".join(f"{a}:{n}" for a, n in zip(ADDRESSES, ranks, strict=True))
        remote = ["-launcher", "ssh", "-launcher-exec", str(self.launcher), "-hosts", places]
        return (started_on or self.first).within(
            str(find_mpiexec()), *remote, *more, "-n", str(sum(ranks)), sys.executable
        )

    @contextlib.contextmanager
    def captured(self, to: Path) -> Iterator[None]:
        """Keep every frame that crosses the link meanwhile; fail if one was missed."""
        script = [sys.executable, str(HERE / "link_capture.py"), LINK, str(to)]
        capture = subprocess.Popen(
            self.first.within(*script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert capture.stdout is not None
        assert capture.stdout.readline() == "listening\n"
        try:
            yield
            time.sleep(0.5)  # the last frames are on their way
        finally:
            capture.terminate()
            missed, complaint = capture.communicate()
        assert missed == "0\n", f"frames missed: {missed}{complaint}"


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Two hosts that reach each other, gone afterwards in any case."""
    shared = folder / "job"
    shared.mkdir()
    with contextlib.ExitStack() as open_hosts:
        hosts = []
        for name, address in zip(("host-a", "host-b"), ADDRESSES, strict=True):
            hosts.append(Host(name, address, folder / name, shared))
            open_hosts.callback(hosts[-1].close)
        pair = ["type", "veth", "peer", "name", LINK, "netns", str(hosts[1].pid)]
        hosts[0].run("ip", "link", "add", LINK, *pair)
        for host in hosts:
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", LINK)
            host.run("ip", "link", "set", LINK, "up")
        for host in hosts:
            host.await_link()
        yield Hosts(hosts[0], hosts[1], _launcher(folder, hosts))


def _launcher(folder: Path, hosts: Sequence[Host]) -> Path:
    """What hydra calls in ssh's place, as `-x HOST COMMAND ...`.

    Like ssh it gives the command to a shell, in the root folder, without the caller's environment.
    """
    cases = "\n".join(f"  {host.address}) holder={host.pid} ;;" for host in hosts)
    script = folder / "launcher.sh"
    script.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -x ] && shift\n'
        f"case $1 in\n{cases}\n  *) exit 1 ;;\nesac\n"
        "shift\n"
        "exec nsenter -t $holder -n -u -i -m env -i PATH=/usr/bin:/bin HOME=/root"
        ' sh -c "cd / && $*"\n'
    )
    script.chmod(0o755)
    return script
