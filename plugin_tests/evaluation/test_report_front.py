"""What a report opens with, in words, and its page for the file."""

from __future__ import annotations

import hashlib
import html
import re

import pytest
import torch

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.audit.trial import Trial
from fedml_keylock.evaluation.leakage import NOT_SCORED, LeakageRow, sum_label, title_of
from fedml_keylock.evaluation.outcome import outcomes
from fedml_keylock.evaluation.provenance import file_hash
from fedml_keylock.evaluation.report import Gallery, LeakageReport
from fedml_keylock.evaluation.report.dossier import dossier, untested
from fedml_keylock.evaluation.report.front import columns_of
from fedml_keylock.evaluation.vocabulary import KNOWLEDGE, attacker, claim_of, defense_name

SEALED, SUMS = "keylock:sealed", sum_label(2)


def row(score, knowledge="none", defense="none", *, attack="dlg", stage="untrained"):
    metrics = {"ssim_aligned": {"mean": score, "low": None, "high": None, "n": 1}}
    worst = {"ssim_aligned": {"score": score, "picture": 3}}
    return LeakageRow(attack, knowledge, defense, 0, stage, 20, metrics, {}, worst=worst)


FLOOR = row(0.41, "no gradient", attack="mean image")
ALL = [
    FLOOR,
    row(0.9),
    row(0.1, "oblivious", SEALED),
    row(0.12, "adaptive", SEALED),
    row(0.8, SUMS, SEALED),
    row(0.9, "oracle", SEALED),
]


def said(rows, defense=SEALED):
    """Level in words to verdict and its kind."""
    (group,) = [one for one in outcomes(rows) if one.defense == defense]
    return {line.attacker: (line.verdict, line.kind) for line in group.lines}


def test_each_attacker_has_a_line_and_who_knows_least_is_first():
    groups = outcomes(ALL)
    assert [one.name for one in groups] == [
        "no defense (undefended baseline)", "sealed lock", "public data alone, no gradient"
    ]  # fmt: skip
    assert said(ALL, "none") == {"honest-but-curious server": ("images recovered", "leaks")}
    assert list(said(ALL).items()) == [
        ("defense-unaware attacker", ("images not recovered", "withstood")),
        ("adaptive attacker", ("images not recovered", "withstood")),
        ("colluding silo, sum of 2 others", ("images recovered", "leaks")),
        ("key-knowing upper bound", ("self-test passed", "control")),
    ]
    assert groups[1].lines[1].got == "SSIM 0.12 by DLG, 20 images"
    assert "sum of the others" in groups[1].claim


@pytest.mark.parametrize(
    ("rows", "who", "verdict", "kind"),
    [
        ([row(0.9), row(0.1, "adaptive", SEALED)], "adaptive attacker", "self-test did not", "no_"),
        (
            [row(0.9), row(0.1, "adaptive", SEALED), row(0.2, "oracle", SEALED)],
            "key-knowing upper bound",
            "self-test failed",
            "no_verdict",
        ),
        (
            [row(0.2), row(0.1, "adaptive", SEALED), row(0.4, "oracle", SEALED)],
            "adaptive attacker",
            "fails undefended, too",
            "no_verdict",
        ),
        (
            [FLOOR, row(0.9), row(0.4, "adaptive", SEALED), row(0.9, "oracle", SEALED)],
            "adaptive attacker",
            "no more than public data alone",
            "withstood",
        ),
        ([row(0.9), row(0.4, "adaptive", SEALED)], "adaptive attacker", "images rec", "leaks"),
        (
            [row(0.9), row(0.4, SUMS, SEALED)],
            "colluding silo, sum of 2 others",
            "not shown to work",
            "no_verdict",
        ),
        (
            [row(0.9), row(float("nan"), "adaptive", SEALED)],
            "adaptive attacker",
            "nothing to score",
            "no_verdict",
        ),
    ],
)
def test_a_line_promises_no_more_than_its_controls_allow(rows, who, verdict, kind):
    text, found = said(rows)[who]
    assert verdict in text
    assert found.startswith(kind)


def pictures(rows):
    titles = [
        title_of(one.defense, one.attack, one.knowledge)
        for one in rows
        if one.knowledge != "no gradient"
    ]
    made = [Gallery(title, torch.rand(5, 1, 12, 12), "untrained") for title in titles]
    return torch.rand(5, 1, 12, 12), made


def test_the_pictures_of_each_defense_stand_side_by_side():
    rows = [*ALL, row(0.3, "adaptive", SEALED, attack="ggl"), row(0.5, "none", "public norm")]
    rows.append(row(0.99, "adaptive", SEALED, attack="grnn", stage="trained"))  # not what is shown
    originals, galleries = pictures(rows)
    found = columns_of(originals, galleries, rows)
    assert [(one.heading, one.caption) for one in found] == [
        ("original", "what the silo trained on"),
        ("no defense (undefended baseline)", "honest-but-curious server, DLG: SSIM 0.90"),
        ("sealed lock", "adaptive attacker, GGL: SSIM 0.30"),
        ("sealed lock, with a colluding silo", "colluding silo, sum of 2 others, DLG: SSIM 0.80"),
    ]
    assert all(len(one.images) == 4 for one in found)
    assert torch.equal(found[0].images, originals[:4])
    by_title = {gallery.title: gallery.images for gallery in galleries}
    assert torch.equal(found[3].images, by_title[f"{SEALED}, dlg, {SUMS}"][:4])


def test_a_title_is_what_a_trial_is_headed():
    for level in ("oblivious", "adaptive", "oracle"):
        trial = Trial(SEALED, "dlg", level)
        assert title_of(SEALED, "dlg", level) == trial.title
    assert title_of("none", "dlg", "none") == Trial("none", "dlg", "oblivious").title


def make(rows=ALL, **job):
    originals, galleries = pictures(rows)
    return LeakageReport({}, rows, originals, galleries, job)


def test_the_page_opens_with_pictures_then_attackers_then_the_verdict():
    text = make().html()
    order = ["side-by-side", "attackers", "verdict", "leakage", "pictures", "file"]
    places = [text.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    head = text[: text.index('id="leakage"')]
    assert head.count("<img") == 4 * 4
    assert "keylock:sealed</th>" not in text
    assert '<td class="withstood">images not recovered</td>' in head
    assert claim_of(SEALED) in html.unescape(head)
    bare = make().html(images=False)
    assert "side-by-side" not in bare
    assert 'id="attackers"' in bare


def test_rows_carry_goal_knowledge_and_stage():
    text = make().html()
    for level in ("none", "oblivious", "adaptive", "oracle"):
        assert (
            '<td class="nist">privacy compromise: data reconstruction</td>'
            f'<td class="nist">{KNOWLEDGE[level].knowledge}</td><td class="nist">training</td>'
        ) in text
    assert attacker("oracle").knowledge.startswith("white-box")
    assert all(one.knowledge[:8] in ("gray-box", "white-bo") for one in KNOWLEDGE.values())


JOB = {
    "command": "fedml-keylock audit --seeds 2",
    "seed": 7,
    "versions": {"torch": "2.6"},
    "inputs": {"weights": "ab" * 32},
    "attacks": {"dlg": {}, "spear": {"steps": 3}},
    "attacks not run": ["grnn", "ggl"],
    "not run": {f"{SEALED}, spear, adaptive": "it needs a linear layer"},
    NOT_SCORED: {f"{SEALED}, dlg, oblivious": 2},
}


def test_the_file_says_what_was_tested_and_what_was_not():
    text = html.unescape(make(**JOB).html())
    own = text[text.index('id="file"') :]
    heads = ["Likelihood of extraction", "Means reasonably likely", "Documentation", "Not tested"]
    assert re.findall(r"<h3>\d\. ([^<]+)</h3>", own) == [
        heads[0], heads[1] + " to be used", heads[2], heads[3]
    ]  # fmt: skip
    for words in (
        "fedml-keylock audit --seeds 2",
        "<dt>seed</dt><dd>7</dd>",
        "<div>dlg: its own settings</div><div>spear: steps 3</div>",
        "<dt>version of torch</dt><dd>2.6</dd>",
        f'<dt>weights, SHA-256</dt><dd class="hash">{"ab" * 32}</dd>',
        "<td>SSIM 0.12 (picture 3, adaptive attacker, DLG)</td>"
        "<td>SSIM 0.80 (picture 3, colluding silo, sum of 2 others, DLG)</td>",
        "Attacks that are installed and were not run: GRNN and GGL.",
        "Attackers of the defense that were not tried: adaptive attacker with shared statistics, "
        "multi-round adaptive attacker and learned adaptive attacker.",
        "Refused: sealed lock, SPEAR, adaptive attacker: it needs a linear layer",
        "counted for nobody: sealed lock, DLG, defense-unaware attacker: 2 updates.",
        "Membership inference",
        "A malicious server that chooses the model",
    ):
        assert words in own, words
    before = text[: text.index('id="file"')]
    assert "Some rows have fewer images than were attacked." in before
    assert "Not scored, as no search gave a picture: sealed lock, DLG" in make(**JOB).table()


def test_what_was_tested_is_not_said_to_be_untested():
    every = [row(0.1, level, SEALED) for level in KNOWLEDGE if level != "none"]
    text = " ".join(untested([*every, row(0.1, SUMS, SEALED)], {"who is in an average of 3": "x"}))
    for words in ("not tried", "Colluding", "Membership", "installed", "Refused", "picture,"):
        assert words not in text
    assert dossier(make(every)).worst[SEALED].startswith("SSIM 0.10 (picture 3, ")
    assert "Colluding silos" in " ".join(untested(every, {}))


@pytest.mark.parametrize(
    ("title", "name", "claim"),
    [
        (
            "keylock:paper:all:chained",
            "published lock, on all layers, chained",
            "none against whoever knows",
        ),
        ("keylock:paper:conv*", "published lock, on conv*", "defense-unaware attackers"),
        ("keylock:rotated:group", "rotated lock, group key", "Colluding silos have the key"),
        ("keylock:paper:first+sealed", "published lock, on the first layer, sealed", "AES-256"),
        ("keylock:sealed", "sealed lock", "X25519"),
        ("a plugin's", "a plugin's", ""),
    ],
)
def test_defenses_are_named_in_words_and_claim_what_they_rest_on(title, name, claim):
    assert defense_name(title) == name
    assert claim in claim_of(title)
    assert bool(claim) == bool(claim_of(title))


def test_sentences_are_short():
    claims = [claim_of(f"keylock:{lock}") for lock in ("paper", "rotated", "sealed")]
    for text in (*claims, *untested(ALL, {}), *(one.does for one in KNOWLEDGE.values())):
        for sentence in re.split(r"(?<=[.:;]) ", text):
            assert len(sentence.split()) <= 25, sentence


def test_a_file_is_hashed_as_sha256sum_does(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"x" * 3_000_000)
    assert file_hash(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file"):
        file_hash(tmp_path / "nowhere")
