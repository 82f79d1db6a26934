"""`mpiexec -n 4 python -m fedml_keylock main.py --cf fedml_config.yaml`: run an unmodified job.

Like `python -m mpi4py`: the script runs as if started by itself, with fedml_keylock active, and an
error on one rank ends the job on all of them. Each rank is a child of what mpiexec starts, which
says what the rank was doing if it is killed.
"""

from __future__ import annotations

import os
import runpy
import sys
from itertools import pairwise
from pathlib import Path

USAGE = "usage: mpiexec -n RANKS python -m fedml_keylock SCRIPT [ARGUMENT ...]"


def main(argv: list[str]) -> int:
    """Activate, then run the script that the arguments name."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stderr.write(f"{USAGE}\n\n{__doc__}")
        return 0 if argv else 2
    from .errors import HostError
    from .host.abort import end_job
    from .host.progress import watch

    script = argv[0]
    if not os.path.exists(script):
        end_job(HostError(f"{script}: no such script; {USAGE}"), 2)
        return 2
    watch()
    try:
        from .host.job_configuration import read_yaml

        for option, value in pairwise(argv):
            if option in ("--cf", "--yaml_config_file"):
                read_yaml(Path(value))  # of one that it cannot read FedML says something else
        from .host.launch import check_world

        check_world()
        from .host import activate

        activate()
        from .host.fedml.current_job import tell_undefended

        tell_undefended()
        sys.argv = argv
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if stop.code not in (None, 0):
            end_job(SystemExit(stop.code), 1)
            return 1
    except BaseException as error:
        end_job(error)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    if status:
        # FedML's receiver thread may still run, and would keep a failed process alive
        sys.stdout.flush()
        os._exit(status)
