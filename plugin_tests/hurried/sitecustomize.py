"""What every Python that a test starts runs first: a job of 15 seconds takes 5, and does the same.

FedML asks its own servers for settings, five times half a second apart, and its server waits five
seconds before it ends. Python looks for cycles among the objects of torch and FedML while it
imports them, and once more when it ends: half of the time that both take.
"""

import atexit
import gc
import sys
import time

WAITING = ("fedml.core.mlops", "fedml.cross_silo.server.fedml_server_manager")

_sleep = time.sleep


def sleep(seconds: float) -> None:
    if sys._getframe(1).f_globals.get("__name__") in WAITING:
        seconds = min(seconds, 0.05)
    _sleep(seconds)


time.sleep = sleep
gc.set_threshold(50_000)
atexit.register(gc.freeze)
