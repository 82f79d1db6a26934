"""The pages: every link leads somewhere, the README is short, and retired words stay out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md")]
    + [
        page
        for room in ("docs", "examples", "plugin_tests")
        for page in (ROOT / room).rglob("*.md")
    ]
)
RETIRED = {
    r"turned back": "rotated back",
    r"\bdisguises?\b": "update transform",
    r"\bconceals?\b": "protect",
    r"\btwins?\b(?!\.py)": "undefended baseline",
    r"ignores? the lock": "defense-unaware",
    r"follows the protocol": "honest-but-curious server",
    r"\bRevealedLock\b": "attacker's model",
    r"number that the job has to itself": "job nonce",
    r"\bpairs of masks\b": "pairwise masks",
}
"""A word that was ours alone, and the field's word for it."""


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page, and what the page names itself."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    made = set(re.findall(r'<a name="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        made.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_a_stranger_reads_the_readme_to_its_end() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1500


def test_every_page_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [
        page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text
    ]
    assert not missing


def _prose() -> Iterator[tuple[str, str]]:
    """What people read: pages, docstrings, and the texts of messages and help."""
    for page in (page for page in PAGES if "results" not in page.parts):  # made by commands
        yield (
            str(page.relative_to(ROOT)),
            re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S),
        )
    for file in sorted((ROOT / "fedml_keylock").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_stay_out(word: str) -> None:
    found = [where for where, text in _prose() if re.search(word, text, flags=re.I)]
    assert not found, f"{word} is {RETIRED[word]} now"
