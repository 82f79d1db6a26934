"""Results on disk: one JSON file each, whole or not at all, bound to what it was made with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedml_keylock.files import replacing


def save(path: Path, result: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Keep a result with the settings that it was made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=0o666) as part:
        part.write_text(json.dumps({"settings": settings, **result}, indent=1) + "\n")


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """A result that was made with these settings; None if there is none, or none that could be."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found.pop("settings") != json.loads(json.dumps(settings)) or "refused" in found:
        return None
    return found
