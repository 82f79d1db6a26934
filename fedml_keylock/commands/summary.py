"""The closing summary of a job that ended well."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .console import Console, duration
from .job_file import JobFile

__all__ = ["line", "summary"]


def summary(console: Console, job: JobFile | None) -> list[str]:
    """Lines on ranks and rounds, lock, accuracy, bytes, what the server read, and the model.

    Args:
        console: the console that has read the job's whole output.
        job: the job's YAML; None if the job names none.

    """
    facts, keylock = console.facts, None if job is None else job.keylock
    if "round" not in facts:
        ended = f"{console.ranks} ranks, in {duration(console.seconds)}"
        return [line("ended", ended), line("rounds", "none was seen: see the log")]
    rounds = facts["rounds"]
    ran = f"{console.ranks} ranks, {rounds} rounds"
    lines = [("done", f"{ran}, in {duration(console.seconds)}")]
    lock, reads = _lock(facts, job)
    lines.append(("lock", lock.removeprefix("keylock:")))
    if console.accuracy is not None:
        index, share = console.accuracy
        read = keylock is not None and not keylock.tell_accuracy
        where = f"; silos wrote it to {keylock.vault}/silo-N.log" if keylock and read else ""
        lines.append(("accuracy", f"{share:.4f} after round {index + 1}{where}"))
    if "privacy" in facts:
        lines.append(("privacy", str(facts["privacy"])))
    if console.sent:
        most = max(console.sent.values())
        lines.append(("a silo sent", f"{size(most)}, {size(most / rounds)} a round"))
    lines.append(("the server could read", reads))
    lines.append(("final model", _model(job, time.time() - console.seconds)))
    if console.more_warnings:
        lines.append(("more warnings", f"{console.more_warnings}, in the log"))
    return [line(name, text) for name, text in lines]


def _lock(facts: Mapping[str, Any], job: JobFile | None) -> tuple[str, str]:
    """A job's lock, and what the server could read, as its ranks report.

    Any program could print such a line. So a report that contradicts the job's YAML is not shown.
    """
    told = facts.get("defense")
    if told is None:
        return "none: this job was not defended", "every silo's update as it is"
    if job is None or job.keylock is None:
        return str(told), str(facts.get("server_reads", "not told"))
    from ..locks import make_lock

    lock = make_lock(job.keylock)
    if told == lock.title:
        return lock.title, lock.server_reads
    return f"not known: its YAML asks for {lock.title}, and ranks tell of {told}", "not known"


def line(name: str, text: str) -> str:
    """One line of a summary."""
    return f"{name:<22} {text}"


def _model(job: JobFile | None, began: float) -> str:
    """Where a job's final model is; files from before its start do not count."""
    keylock = None if job is None else job.keylock
    if job is None or keylock is None:
        return "where the job's own code saves it; FedML writes none"
    found = []
    if keylock.save_model is not None:
        there = Path(keylock.save_model).glob("silo-*.safetensors")
        # a file's time may be some milliseconds early
        files = [path for path in there if path.stat().st_mtime >= began - 1]
        named = f"{keylock.save_model}/silo-N.safetensors"
        count = f"{len(files)} file{'s' * (len(files) != 1)}"
        found.append(f"{named} ({count})" if files else f"{named}, where the silos are")
    if keylock.checkpoint is not None:
        found.append(f"{keylock.checkpoint}, sealed: fedml-keylock export opens it")
    if found:
        return "; ".join(found)
    if "sealed" in keylock.locks and job.args.training_type == "simulation":
        return "written nowhere; with keylock.checkpoint: FILE the server writes it, sealed"
    if "sealed" in keylock.locks:
        return "written nowhere; with keylock.save_model: FOLDER each silo writes it"
    return f"where the job's own code saves it; what is the silos' own is in {keylock.vault}"


def size(count: float) -> str:
    """A number of bytes, in words.

    Example:
        >>> size(812), size(57_240), size(1_144_800)
        ('812 bytes', '57.2 kB', '1.1 MB')

    """
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count:.0f} bytes"
