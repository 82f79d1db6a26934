"""The files of a report: schema, numbers, what is left out of them, and reading them."""

from __future__ import annotations

import csv
import json
import math
import re
from base64 import b64encode
from dataclasses import replace

import jsonschema
import pytest
import torch
from click.testing import CliRunner

from fedml_keylock import cli
from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.leakage import CostCurve, LeakageRow
from fedml_keylock.evaluation.picture import data_uris
from fedml_keylock.evaluation.report import (
    Gallery,
    LeakageReport,
    compare,
    read_report,
    report_schema,
)

LOCK = "keylock:paper:all"


def of(mean, half=0.05, n=20):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def row(score, knowledge="adaptive", defense=LOCK, at=0, **rest):
    metrics = {"ssim_aligned": of(score), "psnr": of(20.0), **rest}
    return LeakageRow("dlg", knowledge, defense, at, "trained", 20, metrics, of(0.01, 0.001))


def make(score=0.1, share=0.9, seed=0):
    generator = torch.Generator().manual_seed(0)
    originals, guesses = (torch.rand(3, 1, 12, 12, generator=generator) for _ in range(2))
    rows = [row(0.9, "none", "none"), row(score), row(score / 2, at=4), row(0.8, "oracle")]
    rows.append(
        LeakageRow("mean", "no gradient", "none", 4, "trained", 20, {"ssim_aligned": of(0.3)}, {})
    )
    return LeakageReport(
        {"none": {"server": of(0.97, 0.01)}, LOCK: {"own_lock": of(share, 0.01), "server": None}},
        rows,
        originals,
        [Gallery(f"{LOCK}, dlg, adaptive", guesses)],
        {"seed": seed, "versions": {"torch": "2.6"}},
        [CostCurve(f"{LOCK}, dlg, adaptive", (0, 10, 20), (1.0, math.nan, 0.01))],
        {"none": {"server": [(0, 0.1), (4, 0.97)]}, LOCK: {"own_lock": [(0, 0.1), (4, share)]}},
    )


def schema():
    return jsonschema.Draft202012Validator(json.loads(report_schema()))


def stored(tmp_path, made=None):
    (made or make()).save(tmp_path)
    return json.loads((tmp_path / "report.json").read_text())


def test_a_report_fits_its_schema(tmp_path):
    jsonschema.Draft202012Validator.check_schema(json.loads(report_schema()))
    schema().validate(stored(tmp_path))
    empty = LeakageReport({}, [], torch.rand(0, 1, 8, 8), [], {})
    schema().validate(empty.to_dict())
    broken = replace(make(), leakage=[row(math.nan, mine=of(math.inf))])
    schema().validate(stored(tmp_path, broken))


CHANGES = {
    "another version": lambda r: r.update(schema="fedml-keylock/report/2"),
    "a part too many": lambda r: r.update(more=1),
    "a part too few": lambda r: r.pop("costs"),
    "text for a mean": lambda r: r["leakage"][0]["ssim_aligned"].update(mean="0.9"),
    "a round that is not whole": lambda r: r["leakage"][0].update(round=0.5),
    "a row without its attack": lambda r: r["leakage"][0].pop("attack"),
    "a plugin's metric as a number": lambda r: r["leakage"][0].update(mine=0.5),
    "a curve of text": lambda r: r["costs"][0].update(cost=["1"]),
    "a round without its share": lambda r: r["accuracy_rounds"]["none"].update(server=[[0]]),
    "an accuracy as a number": lambda r: r["accuracy"]["none"].update(server=0.9),
    "no mean": lambda r: r["leakage"][0]["psnr"].pop("mean"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_report_that_was_changed_does_not(change, tmp_path):
    report = stored(tmp_path)
    CHANGES[change](report)
    with pytest.raises(jsonschema.ValidationError):
        schema().validate(report)


def test_the_command_prints_the_schema():
    result = CliRunner().invoke(cli.main, ["report", "schema"])
    assert result.exit_code == 0
    assert json.loads(result.output) == json.loads(report_schema())


def test_numbers_stand_in_one_line(tmp_path):
    stored(tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert '"cost": [1.0,null,0.01]' in text
    assert '"steps": [0,10,20]' in text
    strange = replace(make(), job={"a": ["[\n 1,\n 2]", "x"], "b": [1, -2.5e-9, True]})
    assert stored(tmp_path, strange)["job"] == {"a": ["[\n 1,\n 2]", "x"], "b": [1, -2.5e-9, True]}


def test_the_csv_has_a_line_a_row(tmp_path):
    made = replace(make(), leakage=[*make().leakage, row(math.nan, mine=of(2.0, 0.5))])
    *_, path = made.save(tmp_path)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(made.leakage)
    first, last = lines[0], lines[-1]
    assert (first["attack"], first["knowledge"], first["round"], first["seeds"]) == (
        "dlg",
        "none",
        "0",
        "1",
    )
    ends = [float(first[f"ssim_aligned_{end}"]) for end in ("mean", "low", "high")]
    assert ends == pytest.approx([0.9, 0.85, 0.95])
    assert first["mine_mean"] == first["lpips_mean"] == last["ssim_aligned_mean"] == ""
    assert float(last["mine_high"]) == 2.5
    assert float(first["cost_mean"]) == 0.01
    assert lines[-2]["cost_mean"] == ""


def pictures_in(folder, made):
    """What of a report's pictures is in its files, as PNG, base64, or the array's own bytes."""
    every = torch.cat([made.originals, *(gallery.images for gallery in made.galleries)])
    forms = [uri.split(",")[1].encode() for uri in data_uris(every)]
    for image in every:
        whole = (image * 255).round().to(torch.uint8).numpy().tobytes()
        forms += [whole, b64encode(whole), image.numpy().tobytes(), whole.hex().encode()]
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    found = [name for name, text in content.items() if any(form in text for form in forms)]
    found += [
        name for name, text in content.items() if re.search(rb"<img|data:image|\x89PNG", text)
    ]
    return sorted(set(found)), sorted(content)


def test_no_picture_is_in_any_file_where_none_is_wanted(tmp_path):
    made = make()
    made.save(tmp_path)
    found, names = pictures_in(tmp_path, made)  # the control: they are found where they are
    assert found == ["leakage.png", "report.html"]
    written = made.save(tmp_path, images=False)  # and an earlier report's go
    found, names = pictures_in(tmp_path, made)
    assert found == []
    assert names == ["leakage.csv", "report.html", "report.json"]
    assert sorted(path.name for path in written) == names
    text = (tmp_path / "report.html").read_text()
    assert "They were left out of this report on request" in text
    assert text.count('class="chart"') == 3  # curves are of numbers, and stay


def test_a_picture_that_cannot_be_removed_is_named(tmp_path):
    (tmp_path / "leakage.png").mkdir()
    with pytest.raises(ConfigError, match=r"leakage\.png: cannot be removed"):
        make().save(tmp_path, images=False)


# reading


def test_what_was_written_is_read(tmp_path):
    report = stored(tmp_path)
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == report


BROKEN = {
    "nothing": (None, "there is no report.json in this folder"),
    "cut off": (lambda t: t[: len(t) // 2], "not a whole report"),
    "cut off in a number": (lambda t: t[:200], "not a whole report"),
    "empty": (lambda t: "", "not a whole report: it ends too early"),
    "a list": (lambda t: "[]", "the file must be a JSON object"),
    "another's": (lambda t: '{"schema": "other/1"}', "does not say 'fedml-keylock/report/1'"),
    "no schema": (lambda t: "{}", "not a report of fedml-keylock"),
    "a later version": (
        lambda t: t.replace("report/1", "report/12", 1),
        "a report of version 12; this fedml-keylock reads version 1",
    ),
    "NaN": (lambda t: t.replace("0.9,", "NaN,", 1), "NaN is no JSON"),
    "beyond a float": (
        lambda t: t.replace("0.9,", "1" + "0" * 400 + ",", 1),
        "must be a number or",
    ),
    "too large": (lambda t: t.replace("0.9,", "1e999,", 1), "must be a number or null"),
    "deep": (lambda t: "[" * 200_000, "not a report|not a whole report"),
    "a mean of text": (lambda t: t.replace('"mean": 0.9,', '"mean": "x",', 1), "must be a number"),
    "no rows": (lambda t: '{"schema": "fedml-keylock/report/1"}', "verdict must be text"),
    "an attack in colour": (
        lambda t: t.replace('"attack": "dlg"', '"attack": "\\u001b[31mdlg"', 1),
        "leakage row 0: attack must be printable text",
    ),
    "a round of text": (
        lambda t: t.replace('"round": 0', '"round": "0"', 1),
        "leakage row 0: round must be a whole number",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_report_is_refused_in_one_line(case, tmp_path):
    stored(tmp_path)
    change, says = BROKEN[case]
    path = tmp_path / "report.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=says) as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    result = CliRunner().invoke(cli.main, ["report", "compare", str(tmp_path), str(tmp_path)])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "report.json").write_bytes(b"\x80\x04\x95cos\nsystem\n")  # a pickle: not run
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read_report(tmp_path / "report.json")


# comparing


def test_two_runs_side_by_side(tmp_path):
    one, other = make(0.1, 0.9), make(0.4, 0.905, seed=1)
    extra = row(0.5, "insider")
    one = replace(one, leakage=[*one.leakage, extra])
    other = replace(other, leakage=[*other.leakage, row(0.6, at=9)])
    one.save(tmp_path / "a")
    other.save(tmp_path / "b")
    page = tmp_path / "out" / "page.html"
    arguments = ["report", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "report.json")]
    result = CliRunner().invoke(cli.main, [*arguments, "--output", str(page)])
    assert result.exit_code == 0, result.output
    said = result.output
    assert re.search(
        r"dlg +adaptive +0.10 \[0.05, 0.15\] +0.40 \[0.35, 0.45\] +\+0.30 +apart", said
    )
    assert re.search(
        r"dlg +adaptive +0.05 \[0.00, 0.10\] +0.20 \[0.15, 0.25\] +\+0.15 +apart", said
    )
    assert re.search(r"dlg +oracle +.* \+0.00 +overlap", said)
    assert re.search(r"silos +90.0 % \[89.0, 91.0\] +90.5 % \[89.5, 91.5\] +\+0.5 +overlap", said)
    assert re.search(rf"{LOCK} +server +- +- +- +not measured", said)
    assert re.search(r"dlg +insider +0.50 \[0.45, 0.55\] +- +- +only in A", said)
    assert f"Only A has {LOCK}, dlg, insider, trained, 0." in said
    assert f"Only B has {LOCK}, dlg, adaptive, trained, 9." in said
    assert "no test of significance" in said
    table = said[: said.index("Accuracies in both")]
    assert max(map(len, table.splitlines()[3:])) <= 100
    text = page.read_text()
    for words in ("only in A", "only in B", "+0.30", "overlap", "apart", "no test of significance"):
        assert words in text
    assert '<tr class="differs"><th scope="row">seed</th><td>0</td><td>1</td></tr>' in text
    assert "<img" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_run_beside_itself(tmp_path):
    report = stored(tmp_path)
    same = compare(report, report)
    assert {pair.said for pair in same.leakage} == {"overlap"}
    assert {pair.difference for pair in same.leakage} == {0.0}
    assert "Only" not in same.summary()


def test_one_value_has_no_interval_and_doubles_are_told_apart(tmp_path):
    one = {"mean": 0.5, "low": None, "high": None, "n": 1}
    rows = [replace(row(0.5), metrics={"ssim_aligned": one}), row(0.7)]
    report = stored(tmp_path, replace(make(), leakage=rows))
    found = compare(report, report)
    assert [pair.said for pair in found.leakage] == ["no interval", "overlap"]
    assert "dlg (2)" in found.table()
    assert "not known: 1" in found.summary()


def test_a_foreign_report_is_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    report = stored(tmp_path)
    report["leakage"][0]["attack"] = report["verdict"] = report["job"]["seed"] = bad
    report["accuracy"][bad] = {bad: None}
    assert compare(report, report, (bad, bad)).html().count("<script>") == 1


def test_a_cost_curve_has_a_cost_a_step():
    with pytest.raises(ConfigError, match="cost curve 'x' has 2 steps and 1 costs"):
        CostCurve("x", (0, 1), (1.0,))
