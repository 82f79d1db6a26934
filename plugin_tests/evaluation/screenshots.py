"""Pictures of a report for the docs: light, dark, on a phone, and the sheets for the file.

`python plugin_tests/evaluation/screenshots.py keylock-demo docs/images` takes them of
`keylock-demo/report.html` in Chromium, in few colours, so that they are small.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from pathlib import Path

from browser import Browser
from PIL import Image

LOOKS = {
    "report-light": (1000, 1720, "light", "body"),
    "report-dark": (1000, 1720, "dark", "body"),
    "report-phone": (390, 1500, "light", "body"),
    "report-file": (1000, 1300, "light", "#file"),
}
"""Name of the picture to width, height, colours, and the heading that it begins with."""
COLOURS = 160


def main(report: Path, folder: Path) -> None:
    """Take all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            for name, (width, height, scheme, place) in LOOKS.items():
                browser.show(width=width, height=height, scheme=scheme)
                browser.open(report / "report.html")
                browser.run(f"document.querySelector('{place}').scrollIntoView()")
                image = Image.open(BytesIO(browser.screenshot())).convert("RGB")
                small = image.quantize(COLOURS, dither=Image.Dither.NONE)
                small.save(folder / f"{name}.png", optimize=True)
        finally:
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
