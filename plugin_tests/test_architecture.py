"""What may import what, what an import costs, and that whatever is public is explained and runs."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fedml_keylock
import fedml_keylock.evaluation.audit

ROOT = Path(fedml_keylock.__file__).parent
HOST_OF_FEDML = "fedml_keylock.host.fedml"

# the parts of the package, from the ground up; a part may import what stands under it
LAYERS = [
    {"errors"},
    {"types", "defense", "settings", "files", "disk", "lazy", "mpi", "tensors", "privacy"},
    {"locks", "inversion", "evaluation", "hookspecs"},
    {"plugins", "builtin", "silos"},
    {"host"},
]
# and beside it, only this
BESIDE = {("evaluation", "inversion")}
# a folder of locks/ that is a world of its own; who may look into one from outside of it
ROOMS = sorted(path.parent.name for path in (ROOT / "locks").glob("*/__init__.py"))
LOCKS = "fedml_keylock.locks"
TABLE = f"{LOCKS}.model"
# what is made of two locks looks into both
COMPOSED = f"{LOCKS}.composed"
# what only a room's lock.py has to do with
CONTRACT = {f"{LOCKS}.{name}" for name in ("protocol", "on_model", "wire", "vault")}
# names that are used more than once, each in its own room
OFTEN = {"__init__.py", "__main__.py", "lock.py"}
RETIRED = ("module: whole", "is_whole", "lock_of", "SharesSecret", "Disguise")
# the shared records know nothing of their users
KNOWS_NOTHING = {"errors", "types"}


def modules():
    return sorted(
        module.name for module in pkgutil.walk_packages([str(ROOT)], prefix="fedml_keylock.")
    )


MODULES = [*modules()]
IMPORTABLE = {*MODULES, "fedml_keylock"}
READABLE = [name for name in MODULES if not name.startswith(HOST_OF_FEDML)]


def source_of(name):
    path = ROOT.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def part_of(name):
    """The part of the package that a module belongs to: the name under the package's own."""
    return name.split(".")[1]


def rank(part):
    for height, layer in enumerate(LAYERS):
        if part in layer:
            return height
    return len(LAYERS)  # cli, __main__, demo and their like, on top of everything


def imported(name):
    """Absolute names of what a module imports anywhere in it, functions and all."""
    path = source_of(name)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return imports_in(ast.parse(path.read_text()), package)


def imports_in(tree, package):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield ".".join([*base, alias.name])


def broken_rules(name, imports):
    own = part_of(name)
    for target in imports:
        if not target.startswith("fedml_keylock."):
            continue
        other = part_of(target)
        if other == own or (own, other) in BESIDE:
            continue
        if (
            own in KNOWS_NOTHING
            or rank(other) > rank(own)
            or (rank(other) == rank(own) and {own, other} <= LAYERS[2])
        ):
            yield f"{name} imports {target}"


def test_there_is_something_to_hold():
    parts = {part_of(name) for name in MODULES}
    assert set().union(*LAYERS) <= parts


def test_no_file_is_overlooked():
    """A folder without an __init__.py can be imported, and would not be found here."""
    found = {source_of(name) for name in MODULES}
    assert found == {*ROOT.rglob("*.py")} - {ROOT / "__init__.py"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    assert list(broken_rules(name, imported(name))) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fedml_keylock.types", "from .errors import ConfigError"),
        ("fedml_keylock.settings", "from .locks import KeyLockConfig"),
        ("fedml_keylock.locks.entropy", "from ..inversion import dlg"),
        ("fedml_keylock.locks.paper.module", "from ...inversion import dlg"),
        ("fedml_keylock.locks.paper.module", "from ... import evaluation"),
        ("fedml_keylock.locks.vault.silo", "from ...silos import own_locks"),
        ("fedml_keylock.inversion.attack", "from ..evaluation import metrics"),
        ("fedml_keylock.inversion.attack", "import fedml_keylock.locks.entropy"),
        ("fedml_keylock.evaluation.metrics", "def f():\n    from ..locks import KeyLock"),
        ("fedml_keylock.evaluation.metrics", "from ..plugins import attacks"),
        ("fedml_keylock.plugins", "from .host import gate"),
        ("fedml_keylock.silos", "from .host.gate import EntryNames"),
        ("fedml_keylock.host.gate", "from ..cli import main"),
    ],
)
def test_an_import_that_points_upwards_is_seen(name, line):
    package = name.split(".")[:-1]
    assert list(broken_rules(name, imports_in(ast.parse(line), package)))


def home_of(target):
    """The module that an imported name is in."""
    while target and target not in IMPORTABLE:
        target = target.rpartition(".")[0]
    return target


def room_of(name):
    parts = f"{name}.".removeprefix(f"{LOCKS}.").split(".")
    return parts[0] if name.startswith(f"{LOCKS}.") and parts[0] in ROOMS else None


def broken_rooms(name, imports):
    """What a module imports of the rooms of locks/, and may not."""
    own, is_lock = room_of(name), name.endswith(".lock")
    for target in map(home_of, imports):
        other = room_of(target)
        if own is None:
            allowed = other in (None, "vault") or name in (TABLE, COMPOSED)
        elif is_lock:  # it may have to do with the vault, through the protocol
            allowed = other in (None, own, "vault")
        else:
            allowed = other in (None, own)
            allowed = allowed and (own == "vault" or target not in CONTRACT)
        if not allowed or (own is not None and target in (LOCKS, TABLE)):
            yield f"{name} imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_a_lock_is_a_room_of_its_own_into_which_only_the_table_looks(name):
    assert list(broken_rooms(name, imported(name))) == []


def test_the_table_has_each_lock_from_its_room():
    found = {home_of(target) for target in imported(TABLE)}
    assert {f"{LOCKS}.{room}.lock" for room in ROOMS if room != "vault"} <= found
    assert COMPOSED in found


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fedml_keylock.locks.paper.module", "from ..rotated.rotation import Rotation"),
        ("fedml_keylock.locks.paper.lock", "from ..rotated.round_rotation import digest"),
        ("fedml_keylock.locks.paper.export.folding", "from ...rotated import round_rotation"),
        ("fedml_keylock.locks.rotated.rotation", "from ..paper.module import KeyLock"),
        ("fedml_keylock.locks.rotated.rotation", "from ..vault import Vault"),
        ("fedml_keylock.locks.rotated.round_rotation", "def f():\n    from ..protocol import Lock"),
        ("fedml_keylock.locks.sealed.rounds", "from ..wire import WireLock"),
        ("fedml_keylock.locks.wire", "from .sealed.rounds import Rounds"),
        ("fedml_keylock.locks.paper.attach", "from ..model import lock_model"),
        ("fedml_keylock.locks.paper.attach", "from .. import lock_model"),
        ("fedml_keylock.locks.vault.silo", "from ..rotated.lock import RotatedLock"),
        ("fedml_keylock.locks.protocol", "from .paper.lock import PaperLock"),
        ("fedml_keylock.builtin", "from .locks.rotated.lock import RotatedLock"),
        ("fedml_keylock.commands.check", "from ..locks.paper import placement"),
    ],
)
def test_a_look_into_anothers_room_is_seen(name, line):
    package = name.split(".")[:-1]
    assert list(broken_rooms(name, imports_in(ast.parse(line), package)))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fedml_keylock.locks.paper.lock", "from ..protocol import Lock"),
        ("fedml_keylock.locks.rotated.lock", "from ..vault import Vault"),
        ("fedml_keylock.locks.rotated.lock", "from .rotation import Rotation"),
        ("fedml_keylock.locks.rotated.lock", "from ..wire import WireLock"),
        ("fedml_keylock.locks.sealed.model_files", "from ...disk import write_private"),
        ("fedml_keylock.locks.composed", "from .sealed.lock import SealedLock"),
        ("fedml_keylock.locks.paper.export.folding", "from ..attach import detach"),
        ("fedml_keylock.locks.vault.file", "from .cipher import Cipher"),
        ("fedml_keylock.locks.model", "from .paper.lock import PaperLock"),
        ("fedml_keylock.commands.deploy", "from ..locks.vault.file import Stored"),
    ],
)
def test_what_a_room_may_use_is_let_through(name, line):
    package = name.split(".")[:-1]
    assert not list(broken_rooms(name, imports_in(ast.parse(line), package)))


def circles(graph):
    """Groups of modules that import one another, each by way of the others."""
    reached = {}
    for start in graph:
        seen, todo = set(), [*graph[start]]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += graph.get(here, ())
        reached[start] = seen
    return {
        tuple(sorted(other for other in graph if other in reached[name] and name in reached[other]))
        for name in graph
        if name in reached[name]
    }


def test_no_module_imports_itself_by_way_of_others():
    """Not in a function or for type checking either: what is apart can be read apart."""
    graph = {name: {home_of(target) for target in imported(name)} - {name, ""} for name in MODULES}
    assert circles(graph) == set()


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}
    assert circles(graph) == {("a", "b", "c")}


def test_no_two_modules_have_one_name():
    names = Counter(path.name for path in ROOT.rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= OFTEN


def written_in(text):
    return [word for word in RETIRED if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]


def test_no_retired_word_is_left_in_the_package():
    texts = [path for path in ROOT.rglob("*") if path.suffix in (".py", ".html", ".j2", ".yaml")]
    assert len(texts) > len(MODULES)
    assert {str(path): words for path in texts if (words := written_in(path.read_text()))} == {}


def test_a_retired_word_is_found():
    assert written_in("of module: whole; is_whole(x), y.lock_of(m)") == list(RETIRED[:3])
    assert written_in("self._lock_of_job, block_of(x), Disguised") == []


def test_only_one_package_imports_fedml():
    found = {name for name in MODULES if any(t.split(".")[0] == "fedml" for t in imported(name))}
    assert found
    assert {name.rpartition(".")[0] for name in found} == {HOST_OF_FEDML}


@pytest.mark.parametrize("part", ["locks", "inversion", "errors", "types", "settings"])
def test_a_subject_needs_no_host(part):
    foreign = {"fedml", "mpi4py", "pluggy", "click", "matplotlib", "torchvision", "tqdm"}
    for name in MODULES:
        if part_of(name) == part:
            assert not foreign & {target.split(".")[0] for target in imported(name)}, name


def test_importing_the_package_imports_neither_torch_nor_fedml():
    script = (
        "import sys, fedml_keylock\n"
        "heavy = {'torch', 'fedml', 'numpy', 'mpi4py', 'pydantic', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "assert set(fedml_keylock.__all__) <= set(dir(fedml_keylock))\n"
        "import fedml_keylock.errors, fedml_keylock.types\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "fedml_keylock.lock_model\n"  # the control: a name does load them
        "print('torch' in sys.modules, 'fedml' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.splitlines() == ["[]", "[]", "True False"], run.stderr


def test_what_an_audit_is_of_costs_neither_its_scores_nor_its_report():
    script = (
        "import sys\n"
        "heavy = {'scipy', 'torchmetrics', 'torchvision', 'matplotlib', 'jinja2', 'mpi4py'}\n"
        "from fedml_keylock.evaluation.audit import Pool, load_pictures, probe, save_truth\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from fedml_keylock.evaluation.audit import audit\n"  # the control
        "print('matplotlib' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.stdout.splitlines() == ["[]", "True"], run.stderr


@pytest.mark.parametrize("package", [fedml_keylock, fedml_keylock.evaluation.audit])
def test_the_public_names_are_the_lazy_ones(package):
    assert sorted(package._WHERE) == sorted(package.__all__)
    for name in package.__all__:
        home = importlib.import_module(package._WHERE[name], package.__name__)
        assert getattr(package, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="no attribute 'lock_modle'"):
        package.lock_modle  # noqa: B018  # the attribute is the test


def public_objects(module):
    """The public classes and functions that a module defines, and the members of those classes."""
    for name in getattr(module, "__all__", []):
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not value.__module__.startswith("fedml_keylock"):
            continue
        yield name, value
        if inspect.isclass(value):
            for member, entry in vars(value).items():
                function = getattr(entry, "__func__", entry)
                documented = inspect.isfunction(function) or isinstance(entry, property)
                if documented and not member.startswith("_"):
                    yield f"{name}.{member}", function


@pytest.mark.parametrize("name", READABLE)
def test_everything_public_is_explained(name):
    module = importlib.import_module(name)
    source = source_of(name).read_text().strip()
    assert module.__doc__ or not source
    purpose = (module.__doc__ or ".").partition("\n\n")[0].strip()
    assert purpose.endswith((".", ":")), purpose  # one sentence
    assert len(purpose.split()) <= 25, purpose
    found = dict(public_objects(module))
    assert [label for label, value in found.items() if not (value.__doc__ or "").strip()] == []
    for label in getattr(module, "__all__", []):
        assert hasattr(module, label), label


def test_the_search_for_explanations_finds_something():
    found = dict(public_objects(importlib.import_module("fedml_keylock.locks.vault")))
    assert {"Vault", "Vault.path", "Vault.save", "Vault.load"} <= set(found)


@pytest.mark.parametrize("name", READABLE)
def test_every_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example that writes does not write here
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS, report=True)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = [
        name
        for name in READABLE
        if any(test.examples for test in finder.find(importlib.import_module(name)))
    ]
    assert len(with_examples) > len(READABLE) / 2
