"""Patches go in as one and come out as one, and what they leave is what they found."""

import functools
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedml_keylock.errors import HostError
from fedml_keylock.host.patching import Patches, Seam


def wrapping(mark, log=None):
    """A wrapper that puts its mark in front of what the original says."""

    def wrap(original):
        if log is not None:
            log.append(mark)

        @functools.wraps(original)
        def replacement(*args, **kwargs):
            return f"{mark}{original(*args, **kwargs)}"

        return replacement

    return wrap


def host():
    """A class with every kind of entry, its base, and a module with a function."""

    class Base:
        def inherited(self):
            return "inherited"

    class Host(Base):
        limit = 3

        def plain(self, a, b=2):
            return f"plain {a} {b}"

        def other(self):
            return "other"

        @staticmethod
        def fixed(a):
            return f"fixed {a}"

        @classmethod
        def made(cls, a):
            return f"{cls.__name__} {a}"

        def __init__(self):
            self.own = 1

    module = ModuleType("host_module")
    module.function = lambda x: f"function {x}"
    return SimpleNamespace(Base=Base, Host=Host, module=module)


def entries(*owners):
    """The raw entries of each owner, in order: identity is what counts."""
    return [[(name, id(value)) for name, value in vars(owner).items()] for owner in owners]


def all_of(h):
    return (h.Base, h.Host, h.module)


PARAMETERS = {
    "plain": ("self", "a", "b"),
    "other": ("self",),
    "fixed": ("a",),
    "made": ("a",),
    "__init__": ("self",),
}


def seam(h, name, wrap):
    if name == "function":
        return Seam(h.module, name, ("x",), wrap)
    return Seam(h.Host, name, PARAMETERS[name], wrap)


def test_patches_do_what_they_are_for_and_undo_it():
    h = host()
    before = entries(*all_of(h))
    patches = Patches((seam(h, "plain", wrapping("<")), seam(h, "function", wrapping(">"))))
    assert entries(*all_of(h)) == before  # making them changes nothing
    patches.apply()
    assert patches.applied
    assert h.Host().plain(1, b=3) == "<plain 1 3"
    assert h.module.function(4) == ">function 4"
    assert h.Host().other() == "other"
    patches.restore()
    assert not patches.applied
    assert h.Host().plain(1) == "plain 1 2"
    assert entries(*all_of(h)) == before


@pytest.mark.parametrize("name", ["fixed", "made"])
def test_a_static_or_class_method_is_one_again(name):
    h = host()
    raw = vars(h.Host)[name]
    assert isinstance(raw, (staticmethod, classmethod))
    patches = Patches((seam(h, name, lambda f: staticmethod(wrapping("<")(f))),))
    patches.apply()
    assert h.Host().__getattribute__(name)(5).startswith("<")
    patches.restore()
    # not the function that it gives when it is asked for, but the entry itself
    assert vars(h.Host)[name] is raw
    assert getattr(h.Host(), name)(5) == ("fixed 5" if name == "fixed" else "Host 5")


def test_an_inherited_function_is_not_this_classs_own():
    h = host()
    before = entries(*all_of(h))
    patches = Patches((Seam(h.Host, "inherited", ("self",), wrapping("<")),))
    with pytest.raises(HostError, match=r"Host\.inherited does not exist"):
        patches.apply()
    assert entries(*all_of(h)) == before
    assert "inherited" not in vars(h.Host)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("gone", ("self",), r"Host\.gone does not exist"),
        ("plain", ("self", "a"), r"Host\.plain takes \(self, a, b\), not \(self, a\)"),
        ("plain", ("self", "b", "a"), r"Host\.plain takes \(self, a, b\), not \(self, b, a\)"),
        ("plain", ("self", "a", "c"), r"not \(self, a, c\)"),
        ("other", ("self", "a"), r"Host\.other takes \(self\), not \(self, a\)"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_seam_that_does_not_fit_keeps_all_of_them_out(name, parameters, message, place):
    h = host()
    before, log = entries(*all_of(h)), []
    seams = [seam(h, "fixed", wrapping("1", log)), seam(h, "function", wrapping("2", log))]
    seams.insert(place, Seam(h.Host, name, parameters, wrapping("3", log)))
    patches = Patches(tuple(seams))
    with pytest.raises(HostError, match=message):
        patches.apply()
    assert log == []  # no wrapper was even made
    assert not patches.applied
    assert entries(*all_of(h)) == before


def test_every_seam_that_does_not_fit_is_named():
    h = host()
    seams = (Seam(h.Host, "gone", (), wrapping("")), Seam(h.module, "lost", (), wrapping("")))
    with pytest.raises(HostError) as caught:
        Patches(seams).apply()
    assert "Host.gone does not exist" in str(caught.value)
    assert "host_module.lost does not exist" in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_wrapper_that_raises_takes_all_of_them_out(error):
    h = host()
    before = entries(*all_of(h))

    def wrap(_original):
        assert entries(*all_of(h)) != before  # the first ones are in by now
        raise error

    patches = Patches(
        (
            seam(h, "fixed", wrapping("1")),
            seam(h, "plain", wrapping("2")),
            seam(h, "other", wrap),
            seam(h, "function", wrapping("3")),
        )
    )
    with pytest.raises(type(error)):
        patches.apply()
    assert entries(*all_of(h)) == before
    assert not patches.applied
    patches.restore()  # and there is nothing left to take out
    assert entries(*all_of(h)) == before


def test_an_owner_that_cannot_be_changed_takes_all_of_them_out():
    h = host()
    before = entries(*all_of(h))
    patches = Patches(
        (
            seam(h, "plain", wrapping("1")),
            Seam(int, "bit_length", ("self",), wrapping("2")),
        )
    )
    with pytest.raises(TypeError):
        patches.apply()
    assert entries(*all_of(h)) == before
    assert not patches.applied


def test_applying_twice_is_applying_once():
    h = host()
    before, log = entries(*all_of(h)), []
    patches = Patches((seam(h, "plain", wrapping("<", log)),))
    patches.apply()
    applied = entries(*all_of(h))
    patches.apply()
    assert entries(*all_of(h)) == applied
    assert log == ["<"]
    assert h.Host().plain(1) == "<plain 1 2"
    patches.restore()
    assert entries(*all_of(h)) == before
    patches.restore()
    assert entries(*all_of(h)) == before


def test_restoring_what_was_never_applied_changes_nothing():
    h = host()
    before = entries(*all_of(h))
    Patches((seam(h, "plain", wrapping("<")),)).restore()
    assert entries(*all_of(h)) == before


def test_an_entry_that_was_changed_between_is_found_again():
    """What is restored is what was there when the patches went in, and not when they were made."""
    h = host()
    patches = Patches((seam(h, "other", wrapping("<")),))

    def newer(self):
        return "newer"

    h.Host.other = newer
    patches.apply()
    assert h.Host().other() == "<newer"
    patches.restore()
    assert vars(h.Host)["other"] is newer


names = st.sampled_from([*PARAMETERS, "function"])


@given(chosen=st.lists(names, max_size=8), again=st.integers(1, 3))
def test_any_seams_in_any_order_are_taken_out_exactly(chosen, again):
    """The same function may be wrapped more than once: the wrappers stand on one another."""
    h = host()
    before = entries(*all_of(h))
    patches = Patches(tuple(seam(h, n, wrapping(str(i))) for i, n in enumerate(chosen)))
    for _ in range(again):
        patches.apply()
        marks = "".join(str(i) for i, n in reversed(list(enumerate(chosen))) if n == "plain")
        assert h.Host.plain(None, 1) == f"{marks}plain 1 2"
        patches.restore()
        assert entries(*all_of(h)) == before


@given(chosen=st.lists(names, min_size=1, max_size=6), data=st.data())
def test_any_seam_that_fails_leaves_nothing(chosen, data):
    h = host()
    before = entries(*all_of(h))
    failing = data.draw(st.integers(0, len(chosen) - 1))

    def fail(_original):
        raise OSError

    patches = Patches(
        tuple(seam(h, n, fail if i == failing else wrapping("<")) for i, n in enumerate(chosen))
    )
    with pytest.raises(OSError):  # noqa: PT011  # it has no message
        patches.apply()
    assert entries(*all_of(h)) == before
    assert not patches.applied


def test_a_function_that_became_something_else_is_named():
    h = host()
    with pytest.raises(HostError, match=r"Host\.limit"):
        Patches((Seam(h.Host, "limit", ("self",), wrapping("<")),)).apply()
