"""Files that are whole or not there."""

import os
import socket

import pytest

from fedml_keylock.files import check_place, replacing


def test_a_file_that_was_not_finished_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")

    def fill_the_disk():
        with replacing(path) as part:
            part.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["result"]


def test_it_is_its_owners_whatever_was_there_before(tmp_path):
    path, left = tmp_path / "result", tmp_path / ".result.part"
    left.write_text("of a process that was killed")
    for open_file in (path, left):
        open_file.touch()
        open_file.chmod(0o666)
    with replacing(path) as part:
        assert part.read_text() == ""
        assert part.stat().st_mode & 0o777 == 0o600
        part.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_results_for_everybody_have_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "table", mode=0o666) as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "table").stat().st_mode & 0o777 == 0o640


def test_a_link_that_somebody_put_in_its_place_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / ".result.part").symlink_to(other)
    with replacing(tmp_path / "result") as part:
        part.write_text("new")
    assert other.read_text() == "kept"


PLACES = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a symbolic link": lambda path: path.symlink_to("file"),
}


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_file_is_not_replaced_by_one(what, tmp_path):
    path = tmp_path / "result"
    PLACES[what](path)
    before = path.lstat()
    with pytest.raises(OSError, match=f"it is {what}, not a file"), replacing(path):
        raise AssertionError("began to write")
    assert os.path.samestat(path.lstat(), before)
    assert [one.name for one in tmp_path.iterdir()] == ["result"]


def test_a_socket_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has 108 characters at most
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("result")
        with pytest.raises(OSError, match="it is a socket"):
            check_place(tmp_path / "result")
