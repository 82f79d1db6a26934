"""The reports of many jobs as a few tables."""

import json
from pathlib import Path

SHOWN = {"ssim": "SSIM", "ssim_aligned": "Aligned SSIM", "psnr": "PSNR, dB"}
NOTE = (
    "each row is the mean over the updates that a real job's server captured, of one SGD step on "
    "one picture. Without: the undefended twin, the same pictures at the same weights. Public "
    "norm: the lock's normalisation with nothing secret. No gradient: the mean public image of the "
    "picture's class. Which updates, intervals and costs: each job's own report."
)


def cell(rows: list[dict], metric: str, **wanted: str) -> str:
    """The mean of a row's metric, or a dash."""
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            return f"{row['metrics'][metric]['mean']:.2f}"
    return "-"


def tables(output: Path) -> str:
    """The reports of all jobs in one page: for each metric and level, without and with the lock."""
    reports = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(output.glob("*/report.json"))
    }
    text = [f"# Attack tables\n\n`python run.py` in this folder; {NOTE}\n"]
    for metric, called in SHOWN.items():
        for level in ("oblivious", "adaptive", "oracle"):
            text += [
                f"\n## {called}, {level} attacker\n",
                "| attack | net | data | weights | lock | without | public norm | **with** | "
                "no gradient |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
            for report in reports.values():
                rows, job = report["leakage"], report["job"]
                lock = next(iter(report["accuracy"]))
                keys = dict.fromkeys(
                    (r["attack"], r["stage"]) for r in rows if r["defense"] == lock
                )
                for attack, stage in keys:
                    of = {"attack": attack, "stage": stage}
                    found = cell(rows, metric, **of, defense=lock, knowledge=level)
                    if found == "-":
                        continue
                    plain = cell(rows, metric, **of, defense="none")
                    norm = cell(rows, metric, **of, defense="public norm")
                    floor = cell(rows, metric, stage=stage, attack="mean image of the class")
                    text.append(
                        f"| {attack} | {job['model']} | {job['data']} | {stage} | "
                        f"{lock.removeprefix('keylock:')} | {plain} | {norm} | **{found}** | "
                        f"{floor} |"
                    )
    text += ["\n## Accuracy\n", "| net | data | lock | under the own lock | on the server |"]
    text.append("|---|---|---|---|---|")
    for report in reports.values():
        ((lock, roles),) = report["accuracy"].items()
        own, server = (f"{100 * roles[role]['mean']:.1f} %" for role in ("own_lock", "server"))
        job = report["job"]
        text.append(
            f"| {job['model']} | {job['data']} | {lock.removeprefix('keylock:')} | {own} | "
            f"{server} |"
        )
    return "\n".join(text) + "\n"
