"""`fedml-keylock fields`: prints every field of a job's YAML, from the settings' docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
from pydantic_core import PydanticUndefined

__all__ = ["fields", "markdown"]

_HEAD = """\
# Configuration

`fedml-keylock fields` prints this page from the settings' docstrings; a test keeps it current.
`fedml-keylock check JOB.yaml` reports a YAML's first error in one line. A job that sets nothing of
this page runs as with FedML alone.

```yaml
defense_args:
  enable_defense: true
  defense_type: keylock
  keylock: {}                        # every field has a default that works
attack_args:
  enable_attack: true                # to attack one's own job
  attack_type: gradient_inversion
  gradient_inversion: {}
```
"""
_TAIL = """\
## Environment variables

| variable | what it is |
|---|---|
| `FEDML_KEYLOCK_PASSPHRASE` | passphrase of an encrypted vault |
| `FEDML_KEYLOCK_PASSPHRASE_FILE` | an owner-only file that holds the passphrase |
| `FEDML_KEYLOCK_NEW_PASSPHRASE`, or with `_FILE` | the new one, for `fedml-keylock vault rekey` |
| `FEDML_KEYLOCK_LPIPS` | file with AlexNet's weights, which reports need to show LPIPS |
"""
_WORDS = {
    "AdaptiveClip": "[section](#keylocknoiseadaptive)",
    "Any": "anything",
    "Attack": "name of an attack, or `{name: {field: value}}`",
    "Count": "whole number from 1",
    "DecoderFactory": "made in Python",
    "Delta": "number between 0 and 1",
    "FiniteFloat": "number",
    "Natural": "whole number from 0",
    "NoiseConfig": "[section](#keylocknoise)",
    "NotNegative": "number from 0",
    "Parametrisation": "made in Python",
    "Path": "path",
    "Positive": "number above 0",
    "Share": "number from 0, below 1",
    "StrictInt": "whole number",
    "bool": "true, false",
    "float": "number",
    "int": "whole number",
    "str": "text",
}
"""Type to the words that the page shows for it."""
_BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


@click.command()
def fields() -> None:
    """Print every field of a job's YAML, as Markdown.

    For each field: type, default, meaning and lock. For each attack: its settings, with those of
    its source. docs/configuration.md is this page.

    \b
    Example: fedml-keylock fields > configuration.md
             fedml-keylock fields | grep save_model
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    click.echo(markdown(), nl=False)


def markdown() -> str:
    """The page: a table for each section of the YAML and each kind of attack."""
    from ..evaluation.section import InversionSettings
    from ..locks.config import FIELDS_OF, KeyLockConfig
    from ..privacy.noise_config import AdaptiveClip, NoiseConfig

    parts = [_HEAD]
    for section in (KeyLockConfig, NoiseConfig, AdaptiveClip, InversionSettings):
        of = FIELDS_OF if section is KeyLockConfig else None
        parts.append(f"## `{section.section}`\n\n{_first_line(section)}\n\n{_table(section, of)}")
    parts.append(_attacks())
    return "\n".join([*parts, _TAIL])


def _table(cls: type[Any], locks: Any = None) -> str:
    """A Markdown table of a class's fields; KeyError for a type that `_WORDS` lacks."""
    head = ["field", "type", "default", *(["lock"] if locks else []), "what it does"]
    rows = [head, ["---"] * len(head)]
    for name, annotation, text in _declared(cls):
        row = [f"`{name}`", _words(annotation), _shown(_default(cls, name))]
        if locks:
            row.append(", ".join(locks.get(name, ("all",))))
        rows.append([*row, text])
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in r)} |\n" for r in rows)


def _attacks() -> str:
    """The attacks: the fields of each kind, and each source's changes to their defaults."""
    from ..errors import ConfigError
    from ..inversion import presets

    kinds: dict[type[Any], list[str]] = {}
    for name in presets.__all__:
        preset = getattr(presets, name)
        text = f"- `{name}`: {_first_line(preset)}"
        try:
            made = preset()
        except ConfigError:  # needs values that a YAML cannot hold
            kinds.setdefault(object, []).append(text)
            continue
        given = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        other = [
            f"{field} {_shown(value)}"
            for field, value in given.items()
            if field != "name" and value != _default(type(made), field) and _is_plain(value)
        ]
        kinds.setdefault(type(made), []).append(text + f" {', '.join(other)}." * bool(other))
    parts = [
        "## `gradient_inversion.attacks`\n\nAn attack's fields go under its name: `attacks: "
        "{dlg: {steps: 50}}`, or `--set dlg.steps=50` of `fedml-keylock\naudit`. Plugins add "
        "attacks; `fedml-keylock plugins` lists all.\n"
    ]
    for kind, texts in kinds.items():
        made_in_python = "Made in Python, and registered by a plugin:"
        title = made_in_python if kind is object else f"{_first_line(kind)}"
        table = "" if kind is object else f"\n{_table(kind)}"
        parts.append(f"{title}\n\n" + "\n".join(texts) + f"\n{table}")
    return "\n".join(parts)


def _declared(cls: type[Any]) -> Iterator[tuple[str, ast.expr, str]]:
    """A class's own and inherited fields: name, type, docstring."""
    for part in reversed(cls.__mro__):
        if part.__module__.startswith("fedml_keylock"):
            (tree,) = ast.parse(inspect.getsource(part)).body
            assert isinstance(tree, ast.ClassDef)
            listed = _attributes(part.__doc__ or "")
            for line, after in zip(tree.body, [*tree.body[1:], None], strict=True):
                if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
                    continue
                name, said = line.target.id, getattr(getattr(after, "value", None), "value", "")
                text = listed.get(name) or " ".join(str(said).split())
                if not ast.unparse(line.annotation).startswith("ClassVar") and name[0] != "_":
                    yield name, _bounded(line), text[:1].upper() + text[1:].replace("``", "`")


def _attributes(doc: str) -> dict[str, str]:
    """The texts under "Attributes:" in a docstring, by name."""
    _, _, listed = inspect.cleandoc(doc).partition("Attributes:\n")
    entries = re.split(r"^    (?=\w+: )", listed.partition("\n\n")[0], flags=re.MULTILINE)
    pairs = (entry.partition(": ") for entry in entries if ": " in entry)
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs}


def _bounded(line: ast.AnnAssign) -> ast.expr:
    """A field's type, with the bounds from its default."""
    call = line.value
    if isinstance(call, ast.Call) and any(keyword.arg in _BOUNDS for keyword in call.keywords):
        return ast.Subscript(ast.Name("Annotated"), ast.Tuple([line.annotation, call]))
    return line.annotation


def _words(node: ast.expr) -> str:
    """A type in words."""
    if isinstance(node, ast.BinOp):
        return f"{_words(node.left)}; {_words(node.right)}"
    if isinstance(node, ast.Constant):
        return "none" if node.value is None else f"`{node.value!s}`"
    if isinstance(node, ast.Name) and node.id == "LockName":
        from ..locks.config import LockName

        return ", ".join(f"`{name}`" for name in get_args(LockName))
    if not isinstance(node, ast.Subscript):
        return _WORDS[ast.unparse(node)]
    kind = ast.unparse(node.value)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if kind == "Literal":
        return ", ".join(map(_words, inside))
    if kind == "Annotated":
        keywords = getattr(inside[1], "keywords", [])
        found = [f"{_BOUNDS[k.arg]} {ast.unparse(k.value)}" for k in keywords if k.arg in _BOUNDS]
        first, *rest = _words(inside[0]).split("; ")
        return "; ".join([", ".join([" ".join([first, *found[:1]]), *found[1:]]), *rest])
    if kind == "tuple":
        ends = ast.unparse(inside[-1]) == "..."
        return (
            f"list of {_words(inside[0])}" if ends else f"{len(inside)} times {_words(inside[0])}"
        )
    return f"mapping to {_words(inside[-1])}"


def _default(cls: type[Any], name: str) -> Any:
    """A field's default; PydanticUndefined if the field is required."""
    field = getattr(cls, "model_fields", {}).get(name)
    if field is not None:
        return field.default
    for one in dataclasses.fields(cls):
        if one.name == name:
            if one.default_factory is not dataclasses.MISSING:
                return one.default_factory()
            return PydanticUndefined if one.default is dataclasses.MISSING else one.default
    return PydanticUndefined


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple))


def _shown(value: Any) -> str:
    """A default in YAML notation."""
    if value is PydanticUndefined:
        return "needed"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}`"
    return f"`{value}`" if isinstance(value, (int, float, str, Path)) else type(value).__name__


def _first_line(of: Any) -> str:
    return (inspect.getdoc(of) or "").partition("\n")[0]
