"""Retired words stay out of the package, and each module says what it is for."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedml_keylock"
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}

RETIRED = {
    r"turned back|Turns": "rotated, rotated back; OrthogonalMatrix, RoundRotation",
    r"[Cc]onceal\w*|RevealedLock": "protect, recover; AttackerLock",
    "effective_state": "secret_variables",
    "invariants": "observable",
    "stays? at home": "is not sent",
    r"take[ns]? in": "accepted, received",
}
"""Each retired word, as a pattern, and what is said in its place."""


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_is_not_used(word):
    found = [name for name, source in SOURCES.items() if re.search(rf"\b({word})\b", source)]
    assert found == [], RETIRED[word]


def test_every_module_says_in_one_sentence_what_it_is_for():
    first = {
        n: (ast.get_docstring(ast.parse(s)) or "").partition("\n\n")[0] for n, s in SOURCES.items()
    }
    assert [name for name, line in first.items() if not line.endswith((".", ":"))] == []
    assert [name for name, line in first.items() if len(line.split()) > 25] == []
