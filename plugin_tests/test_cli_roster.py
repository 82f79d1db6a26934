"""`fedml-keylock roster`: identities and rosters, made so that a job takes them."""

from __future__ import annotations

import stat

import pytest
from click.testing import CliRunner

from fedml_keylock import cli
from fedml_keylock.host.roster import Roster

OTHER = "ab" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments):
    result = CliRunner().invoke(cli.main, ["roster", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ok(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def fails(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("fedml-keylock: ")
    return line.removeprefix("fedml-keylock: ")


def test_what_was_made_is_what_a_job_takes(folder):
    keys = {}
    for rank in (1, 2):
        (keys[rank],) = ok("init", f"silo-{rank}.key")
        assert stat.S_IMODE((folder / f"silo-{rank}.key").stat().st_mode) == 0o600
        assert ok("add", "roster.yaml", rank, keys[rank]) == [f"roster.yaml: {rank} silos"]
    assert ok("show", "roster.yaml") == [f"{rank:4}  {key}" for rank, key in keys.items()]
    one, two = (Roster.load(folder / "roster.yaml", "silo-{rank}.key", rank=r) for r in (1, 2))
    two.verify(b"hello", one.sign(b"hello"), rank=1)


def test_a_private_key_is_not_shown_and_not_replaced(folder):
    (public,) = ok("init", "a.key")
    kept = (folder / "a.key").read_bytes()
    assert kept.decode() != public
    assert "a.key" in fails("init", "a.key")
    assert (folder / "a.key").read_bytes() == kept
    assert "nowhere" in fails("init", "nowhere/a.key")


def test_adding_again_changes_nothing_and_another_key_is_refused(folder):
    ok("add", "roster.yaml", 1, OTHER.upper())
    assert ok("add", "roster.yaml", 1, OTHER) == ["roster.yaml: 1 silos"]
    kept = (folder / "roster.yaml").read_bytes()
    assert fails("add", "roster.yaml", 1, "cd" * 32) == (
        "roster.yaml: rank 1 has another key already; take its line out first"
    )
    assert fails("add", "roster.yaml", 2, "short").endswith("it is 64 hexadecimal digits")
    assert (folder / "roster.yaml").read_bytes() == kept


def test_one_identity_is_one_rank(folder):
    ok("add", "roster.yaml", 1, OTHER)
    assert fails("add", "roster.yaml", 2, OTHER) == (
        "roster.yaml: rank 1 has this key: each silo needs an identity of its own"
    )


def test_the_server_has_no_place_in_it():
    result = invoke("add", "roster.yaml", 0, OTHER)
    assert result.exit_code == 2
    assert "0 is not in the range x>=1" in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no keys: fedml-keylock roster add"),
        ("[", "is not YAML"),
        ("a: b", "must hold lines of RANK: KEY"),
        ("1: abc", "must hold lines of RANK: KEY"),
        (f"true: {OTHER}", "must hold lines of RANK: KEY"),
    ],
)
def test_what_is_no_roster_is_refused_in_one_line(folder, content, said):
    (folder / "roster.yaml").write_text(content)
    assert said in fails("show", "roster.yaml")


def test_a_key_of_digits_alone_is_a_key(folder):
    """YAML would take one for a number where it is not in quotes."""
    ok("add", "roster.yaml", 1, "12" * 32)
    assert ok("show", "roster.yaml") == [f"   1  {'12' * 32}"]


def test_a_roster_that_is_not_there_is_named():
    assert fails("show", "none.yaml") == "keylock.roster: none.yaml: No such file or directory"
