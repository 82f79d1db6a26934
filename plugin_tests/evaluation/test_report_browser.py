"""A report's pages as a reader has them: in Chromium, light and dark, on a phone and printed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from matplotlib.image import imread

from fedml_keylock.evaluation.leakage import CostCurve, LeakageRow
from fedml_keylock.evaluation.report import Gallery, LeakageReport, compare

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine")

LOCK = "keylock:paper:first"


def of(mean):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 20}


def make(shift=0.0):
    rows = [
        LeakageRow(
            "inverting_gradients",
            knowledge,
            defense,
            at,
            "trained",
            20,
            {"ssim_aligned": of(score - at / 40 + shift), "psnr": of(20 * score)},
            of(0.01),
        )
        for at in (0, 10)
        for defense, knowledge, score in (
            ("none", "none", 0.9),
            (LOCK, "oblivious", 0.35),
            (LOCK, "adaptive", 0.8),
        )
    ]
    rows.append(
        LeakageRow(
            "mean image", "no gradient", "none", 10, "trained", 20, {"ssim_aligned": of(0.3)}, {}
        )
    )
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(8, 3, 16, 16, generator=generator) for _ in range(3)]
    titles = ["none, inverting_gradients", f"{LOCK}, inverting_gradients, adaptive"]
    return LeakageReport(
        {"none": {"server": of(0.9)}, LOCK: {"own_lock": of(0.89), "fresh_lock": of(0.3)}},
        rows,
        images[0],
        [Gallery(title, image) for title, image in zip(titles, images[1:], strict=True)],
        {"command": "fedml-keylock demo --seed 0 " + "--long-option " * 20, "data": "d" * 300},
        [CostCurve(title, (0, 10, 20), (1.0, 0.1, 0.01)) for title in titles],
        {"none": {"server": [(0, 0.1), (10, 0.9)]}, LOCK: {"own_lock": [(0, 0.1), (10, 0.89)]}},
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    make().save(folder / "full")
    make().save(folder / "bare", images=False)
    reports = [make().to_dict(), make(0.2).to_dict()]
    compare(*reports, ("before", "after " * 40)).save(folder / "compare.html")
    return {
        "report": folder / "full" / "report.html",
        "no images": folder / "bare" / "report.html",
        "compare": folder / "compare.html",
    }


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    chromium.show()
    chromium.complaints.clear()
    chromium.requests.clear()
    return chromium


EVERY = pytest.mark.parametrize("name", ["report", "no images", "compare"])


@EVERY
def test_the_console_stays_empty_and_nothing_is_asked_for(browser, pages, name):
    browser.open(pages[name])
    assert browser.run("document.readyState") == "complete"
    assert browser.complaints == []
    own = pages[name].resolve().as_uri()
    assert [url for url in browser.requests if url != own and not url.startswith("data:")] == []
    assert browser.requests[0] == own


def test_a_complaint_and_a_request_would_be_seen(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='nowhere.png'><script>nothing.here</script>")
    browser.open(page)
    assert any("nowhere.png" in url for url in browser.requests)
    assert browser.complaints


def test_the_pictures_are_there_and_named(browser, pages):
    browser.open(pages["report"])
    found = browser.run("[...document.images].map((i) => [i.naturalWidth, i.alt, i.clientWidth])")
    assert len(found) == 3 * 4 + 2 * 2 * 8
    assert all(width == 16 and alt and shown > 40 for width, alt, shown in found)
    # the columns at the top are as high and as wide as each other, row by row
    fronts = browser.run(
        "[...document.querySelectorAll('.front tbody tr')].map((tr) => [...new Set([..."
        "tr.querySelectorAll('img')].map((i) => [i.getBoundingClientRect().top, "
        "i.clientWidth].join(' ')))].length)"
    )
    assert fronts == [1] * 4
    # each original right above its reconstruction
    places = browser.run(
        "[...document.querySelectorAll('.pairs li')].map((li) => [...li.children].map((i) => "
        "[i.getBoundingClientRect().left, i.getBoundingClientRect().top]))"
    )
    assert all(above[0] == below[0] and above[1] < below[1] for above, below in places)
    browser.open(pages["no images"])
    assert browser.run("document.images.length") == 0


COLUMN = (
    "[...document.querySelectorAll('table.sortable tbody tr')].map((r) => r.cells[{0}].textContent)"
)


def test_the_table_sorts_up_and_down_by_numbers_and_by_words(browser, pages):
    browser.open(pages["report"])
    heads = browser.run(
        "[...document.querySelectorAll('.sortable th button')].map(b => b.innerText)"
    )
    at = heads.index("SSIM aligned")
    button = f"document.querySelectorAll('.sortable th button')[{at}]"
    state = f"{button}.closest('th').getAttribute('aria-sort')"
    before = browser.run(COLUMN.format(at))
    assert browser.run(state) is None
    browser.run(f"{button}.click()")
    up = browser.run(COLUMN.format(at))
    assert browser.run(state) == "ascending"
    assert up != before
    numbers = [float(text[:4]) for text in up]
    assert numbers == sorted(numbers)
    browser.run(f"{button}.click()")
    assert browser.run(state) == "descending"
    assert [float(text[:4]) for text in browser.run(COLUMN.format(at))] == numbers[::-1]
    # by keyboard, another column, which takes the mark over; what was not measured comes last
    other = heads.index("PSNR, dB")
    browser.run(f"document.querySelectorAll('.sortable th button')[{other}].focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    decibels = browser.run(COLUMN.format(other))
    assert decibels[-1] == "-"
    assert decibels[0].startswith("7.0")
    assert browser.run(state) is None
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_without_scripts_the_tables_are_there_and_promise_no_sorting(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["report"])
        assert len(browser.run(COLUMN.format(0))) == 7
        hint = "getComputedStyle(document.querySelector('.sorting')).display"
        assert browser.run(hint) == "none"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    browser.open(pages["report"])
    assert browser.run(hint) == "block"


def test_every_curve_says_what_it_shows(browser, pages):
    browser.open(pages["report"])
    found = browser.run(
        "[...document.querySelectorAll('svg[role=img]')].map((s) => s.getAttribute("
        "'aria-labelledby').split(' ').map((i) => document.getElementById(i).textContent))"
    )
    assert [title for title, _ in found] == [
        "Accuracy by round",
        "inverting gradients: aligned SSIM by round",
        "inverting gradients: cost by step",
    ]
    assert "no defense, server: 10.0 % at round 0, 90.0 % at round 10." in found[0][1]
    assert "public data alone, no gradient: 0.30 throughout." in found[1][1]
    assert browser.run("document.querySelectorAll('details table').length") == 2
    # nothing is drawn outside of the picture, and the lines have a colour of the page's
    inside = browser.run(
        "[...document.querySelectorAll('svg.chart')].every((s) => { const b = s.getBBox(), "
        "v = s.viewBox.baseVal; return b.x >= 0 && b.y >= 0 && b.x + b.width <= v.width && "
        "b.y + b.height <= v.height; })"
    )
    assert inside


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def variable(browser, name):
    colour = browser.run(
        f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    )
    return "#" + "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_the_contrast_is_enough(browser, pages, scheme):
    browser.show(scheme="dark" if scheme == "dark" else "light")
    if scheme == "print":
        browser.call("Emulation.setEmulatedMedia", media="print")
    browser.open(pages["report"])
    try:
        page, panel = variable(browser, "page"), variable(browser, "panel")
        for name in ("ink", "soft"):
            assert contrast(variable(browser, name), page) >= 4.5, name
            assert contrast(variable(browser, name), panel) >= 4.5, name
        for name in ("red", "amber", "green", "grey"):
            assert contrast(variable(browser, name), page) >= 4.5, name
        for hue in range(6):
            assert contrast(variable(browser, f"hue{hue}"), page) >= 4.5, hue
        assert contrast(variable(browser, "focus"), page) >= 3
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def brightness(browser):
    pixels = imread(BytesIO(browser.screenshot()))
    return float(pixels[:20, -20:, :3].mean())  # a corner of the page that has no text


@EVERY
def test_light_and_dark_look_so(browser, pages, name):
    found = {}
    for scheme in ("light", "dark"):
        browser.show(scheme=scheme)
        browser.open(pages[name])
        found[scheme] = brightness(browser)
    assert found["light"] > 0.9
    assert found["dark"] < 0.2


@EVERY
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_page_scrolls_sideways(browser, pages, name, width):
    browser.show(width=width)
    browser.open(pages[name])
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.body.getBoundingClientRect().width") <= width
    assert browser.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


def test_on_a_phone_long_tables_scroll_inside_themselves(browser, pages):
    browser.show(width=390)
    browser.open(pages["report"])
    wide = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert browser.run(f"{wide}.some((e) => e.querySelector('.sortable'))")
    assert browser.run(f"{wide}.every((e) => getComputedStyle(e).overflowX == 'auto')")
    # who got what is read without scrolling
    outcomes = "document.querySelector('.outcomes')"
    assert browser.run(f"{outcomes}.closest('.scroll')") is None
    assert browser.run(f"{outcomes}.getBoundingClientRect().right") <= 390


def test_the_page_for_the_file_is_printed_on_sheets_of_its_own(browser, pages):
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        browser.open(pages["report"])
        begins = "[...document.querySelectorAll('section')].filter((s) => getComputedStyle(s)"
        found = browser.run(f"{begins}.breakBefore == 'page').map((s) => s.innerText.slice(0, 12))")
        assert found == ["For the file"]
        assert browser.run("document.querySelector('.file').offsetHeight") > 300
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


@EVERY
def test_it_prints_in_black_on_white_and_with_its_numbers(browser, pages, name, tmp_path):
    browser.show(scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        browser.open(pages[name])
        assert variable(browser, "page") == "#ffffff"
        assert brightness(browser) == pytest.approx(1)
        hidden = "[...document.querySelectorAll('.sorting, summary')].every((e) => !e.offsetHeight)"
        assert browser.run(hidden)
        # as wide as a sheet of A4 within its margins, everything fits: a browser need not shrink it
        browser.show(width=718, scheme="dark")
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.run("document.documentElement.scrollWidth") <= 718
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
    pdf = browser.pdf()
    assert pdf[:4] == b"%PDF"
    Path(tmp_path / "page.pdf").write_bytes(pdf)
