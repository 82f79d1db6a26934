"""A silo's ledger: whole, its owner's, and never less than what was spent."""

import json
import stat

import pytest

from fedml_keylock.disk import open_private
from fedml_keylock.errors import UpdateRefused, VaultError
from fedml_keylock.privacy.accountant import Spending
from fedml_keylock.privacy.ledger import Ledger, Page

ONE, OTHER = Spending(2.0), Spending(1.5, 0.1, 4)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "vault", 2, "silo")


def test_it_counts_on_from_what_is_on_disk(ledger):
    assert (ledger.spent, ledger.read()) == ([], Page())
    for one in (ONE, OTHER, ONE):
        ledger.add(one)
    again = Ledger(ledger.folder, 2, "silo")
    assert again.spent == [Spending(2.0, count=2), OTHER]
    assert again.add(OTHER).rounds == 4
    assert again.read().spent[1] == Spending(1.5, 0.1, 8)
    assert Ledger(ledger.folder, 1, "silo").spent == []


def test_it_is_its_owners_only(ledger):
    ledger.add(ONE)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert ledger.path.name == "silo-2.privacy.json"
    ledger.path.chmod(0o644)
    with pytest.raises(VaultError, match="its mode is 0644"):
        ledger.add(ONE)


def test_what_may_not_be_spent_is_not_written(ledger):
    ledger.add(ONE)

    def refuse(page):
        assert page.rounds == 2
        raise UpdateRefused("no")

    with pytest.raises(UpdateRefused):
        ledger.add(ONE, check=refuse)
    assert ledger.read().rounds == 1
    assert ledger.add(ONE).rounds == 2  # and it is not claimed any more


@pytest.mark.parametrize(
    "change",
    [
        {"silo": 3},
        {"schema": "other"},
        {"spent": [{"multiplier": "NaN"}]},
        {"spent": [{"multiplier": 0.0, "rate": 1.0, "count": 1}]},
        {"spent": [{"multiplier": 1.0, "rate": 1.0, "count": -5}]},
        {"spent": 5},
        {"rounds": None},
        None,
    ],
)
def test_a_damaged_ledger_is_not_taken_for_an_empty_one(ledger, change):
    ledger.add(ONE)
    with open_private(ledger.path) as file:
        content = json.loads(file.read())
    ledger.path.write_text("{" if change is None else json.dumps(content | change))
    for use in (ledger.read, lambda: ledger.add(ONE)):
        with pytest.raises(VaultError, match="it is no ledger of silo 2, or is damaged"):
            use()


def test_units_do_not_add_up(ledger):
    ledger.add(ONE)
    with pytest.raises(VaultError, match="it counts unit: silo, this job's is example"):
        Ledger(ledger.folder, 2, "example").add(ONE)
