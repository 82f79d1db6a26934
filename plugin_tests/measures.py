"""Figures of the structure: `python plugin_tests/measures.py`, in the project's folder."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

ROOT = Path("fedml_keylock")
WHICH_LOCK = re.compile(
    r"\.locks?\b|['\"](sealed|rotated|paper|whole|affine)['\"]|\b(Sealed|Rotated|Paper)Lock\b"
    r"|\b(Whole|Layers)Defense\b|SharesSecret|is_whole|lock_of\(|turns_state|\.disguise\b"
)
"""What a condition holds that asks which lock it is; the last line is of the time before."""


def conditions(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def branches(files):
    found = []
    for path in files:
        for test in conditions(ast.parse(path.read_text())):
            if WHICH_LOCK.search(ast.unparse(test)):
                found.append(f"{path}:{test.lineno}: {ast.unparse(test)}")
    return found


def walk():
    """The rooms that a silo's update enters on the server, by a profile of the real code."""
    import torch
    from torch import nn

    from fedml_keylock.host.gate import MARK, EntryNames
    from fedml_keylock.host.session_of import session_of

    job = {
        "training_type": "cross_silo",
        "backend": "MPI",
        "federated_optimizer": "FedAvg",
        "rank": 0,
        "role": "server",
        "client_num_in_total": 2,
        "client_num_per_round": 2,
        "worker_num": 2,
        "comm_round": 1,
        "enable_defense": True,
        "defense_type": "keylock",
        "comm": object(),
        "keylock": {},
        "learning_rate": 0.1,
    }
    session = session_of(SimpleNamespace(**job))
    model = nn.Linear(2, 2)
    session.adopt(model)
    names = EntryNames("model_params", "num_samples", "client_idx")
    state = {n: t.detach() for n, t in model.state_dict().items()}
    if session.agreement.sealed if hasattr(session.agreement, "sealed") else False:
        state = {n: torch.zeros(t.shape, dtype=torch.int32) for n, t in state.items()}
    entries = {"model_params": state, "num_samples": 3, MARK: session.agreement.mark}
    rooms = []

    def room_of(code):
        path = Path(code.co_filename)
        return path.relative_to(ROOT.resolve()) if ROOT.resolve() in path.parents else None

    def see(frame, event, _argument):
        room = room_of(frame.f_code)
        carried = any(value is entries or value is state for value in frame.f_locals.values())
        if room is None or not carried or not frame.f_code.co_argcount:
            return
        now = room if event == "call" else frame.f_back and room_of(frame.f_back.f_code)
        if now and event in ("call", "return") and (not rooms or rooms[-1] != str(now)):
            rooms.append(str(now))

    sys.setprofile(see)
    try:
        session.admit(entries, names, 1)
    finally:
        sys.setprofile(None)
    return rooms


def main():
    files = sorted(ROOT.rglob("*.py"))
    lines = {path: len(path.read_text().splitlines()) for path in files}
    code = [path for path in files if path.name != "__init__.py"]
    print(f"product lines: {sum(lines.values()):,} in {len(files)} files")
    print(f"over 300 lines: {[f'{p} {n}' for p, n in lines.items() if n > 300]}")
    print(f"under 30 lines: {[f'{p} {n}' for p, n in lines.items() if n < 30 and p in code]}")
    names = Counter(path.name for path in code)
    print(f"basenames used twice: {[name for name, count in names.items() if count > 1]}")
    asked = branches(files)
    print(f"conditions that ask which lock: {len(asked)}")
    print(*(f"  {line}" for line in asked), sep="\n")
    rooms = walk()
    top = rooms[0]
    print(f"an incoming update: {' > '.join(rooms)}")
    print(f"returns to the session that had handed it on: {rooms.count(top) - 1}")


if __name__ == "__main__":
    main()
