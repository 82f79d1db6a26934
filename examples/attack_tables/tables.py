"""The reports of many jobs as four tables: raw and aligned, oblivious and adaptive."""

import json
from pathlib import Path

SHOWN = {"ssim": "SSIM", "ssim_aligned": "Aligned SSIM"}
LEVELS = ("oblivious", "adaptive")
WORKS = 0.5
"""Aligned SSIM from which an attack counts as working, as in the reports' verdicts."""
NOTE = (
    "Each row is the mean over the updates that a real job's server captured, each of one SGD "
    "step on one picture. *Without*: the undefended baseline, the same pictures at the same "
    "weights. "
    "*Public norm*: the lock's normalisation with nothing secret in it. *Oracle*: the attacker "
    "who is given the silo's private state. *No gradient*: the mean public image of the picture's "
    "class. † the attack does not work without a lock either, so that its failure says nothing. "
    "How many updates, intervals, PSNR and costs are in each job's own report."
)
HEAD = (
    "| attack | net | data | weights | lock | without | public norm | **with** | oracle | "
    "no gradient |"
)


def mean(rows: list[dict], metric: str, **wanted: str) -> float | None:
    """The mean of the row that is wanted, or None where there is no such row."""
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            return float(row[metric]["mean"])
    return None


def table(reports: list[dict], metric: str, level: str) -> list[str]:
    """One of the four, line by line."""
    lines = []
    for report in reports:
        rows, job = report["leakage"], report["job"]
        (lock,) = report["accuracy"]
        locked = [row for row in rows if (row["defense"], row["knowledge"]) == (lock, level)]
        for row in locked:
            of = {"attack": row["attack"], "stage": row["stage"]}
            plain = mean(rows, metric, **of, defense="none")
            fails = (mean(rows, "ssim_aligned", **of, defense="none") or 0) < WORKS
            floor = {"attack": "mean image of the class", "stage": row["stage"]}
            found = (
                mean(rows, metric, **of, defense="public norm"),
                row[metric]["mean"],
                mean(rows, metric, **of, defense=lock, knowledge="oracle"),
                mean(rows, metric, **floor),
            )
            norm, with_lock, oracle, public = ("-" if x is None else f"{x:.2f}" for x in found)
            name = lock.removeprefix("keylock:")
            what = (row["attack"], job["model"], job["data"], row["stage"], name)
            lines.append(
                f"| {' | '.join(what)} | {plain:.2f}{'†' if fails else ''} | {norm} | "
                f"**{with_lock}** | {oracle} | {public} |"
            )
    return sorted(lines)


def tables(output: Path) -> str:
    """A page of all reports in the folders under this one."""
    reports = [json.loads(path.read_text()) for path in sorted(output.glob("*/report.json"))]
    text = ["# Attack tables\n", f"`python run.py`, in this folder. {NOTE}"]
    for metric, called in SHOWN.items():
        for level in LEVELS:
            text += [f"\n## {called}, {level} attacker\n", HEAD, "|---" * 10 + "|"]
            text += table(reports, metric, level)
    text += ["\n## Accuracy of the final model\n"]
    text += ["| net | data | lock | in the silos | without a key |"]
    text += ["|---" * 5 + "|"]
    for report in reports:
        ((lock, roles),) = report["accuracy"].items()
        own, server = (f"{100 * roles[role]['mean']:.1f} %" for role in ("own_lock", "server"))
        what = (report["job"]["model"], report["job"]["data"], lock.removeprefix("keylock:"))
        text.append(f"| {' | '.join(what)} | {own} | {server} |")
    return "\n".join(text) + "\n"
