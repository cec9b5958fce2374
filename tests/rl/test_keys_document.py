"""docs/keys.md holds every key of a recipe, made from the settings classes: it cannot lag behind.

`TEMPER_WRITE_DOCS=1 pytest tests/rl/test_keys_document.py` writes it.
"""

import ast
import dataclasses
import inspect
import itertools
import os
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from rl.config import TrainConfig
from rl.recipe_keys import known_keys

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "keys.md"
WRITE = "TEMPER_WRITE_DOCS"
LONGEST = 70  # characters of a default that are shown

HEADER = f"""# Keys of a recipe

Every key, as a recipe in `configs/recipe` or `temper train RECIPE KEY=VALUE` sets it, with the
value it has where nothing sets it. `null` is none. This page is made from the settings classes:
after a change there, this writes it anew:
`{WRITE}=1 .venv/bin/python -m pytest tests/rl/test_keys_document.py`
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A settings class, and where it stands in a recipe."""

    prefix: str  # "tasks.families[]"; empty for the whole
    schema: type
    words: str  # under the field that holds it


def sections(whole: Section, seen: set[type]) -> Iterator[Section]:
    """The section and all below it but those seen: what stands in several places comes once."""
    if whole.schema in seen:
        return
    seen.add(whole.schema)
    yield whole
    words = words_of(whole.schema)
    for name, hint in typing.get_type_hints(whole.schema).items():
        if inner := inner_schema(hint):
            place = f"{whole.prefix}.{name}".lstrip(".")
            said = words.get(name, "") if inner is hint else ""  # else the key's own row says it
            several = "[]" if typing.get_origin(hint) is list else ""
            yield from sections(Section(place + several, inner, said), seen)


def inner_schema(hint: Any) -> type | None:
    """The settings class of a key that is a section, perhaps none, or a list of them."""
    parts = (hint, *typing.get_args(hint))
    return next((p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)), None)


def words_of(owner: type) -> dict[str, str]:
    """The string under each field of a class, or member of an enumeration: Python forgets them."""
    (tree,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(tree.body):
        if isinstance(field, ast.AnnAssign | ast.Assign) and isinstance(below, ast.Expr):
            (target,) = [field.target] if isinstance(field, ast.AnnAssign) else field.targets
            assert isinstance(target, ast.Name)
            found[target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def page() -> str:
    """The whole document."""
    made = list(sections(Section("", TrainConfig, ""), set()))
    homes = {section.schema: section.prefix for section in made}
    return HEADER + "".join(part for section in made for part in _section(section, homes))


def _section(section: Section, homes: dict[type, str]) -> Iterator[str]:
    hints, words = typing.get_type_hints(section.schema), words_of(section.schema)
    about = f"{inspect.getdoc(section.schema)} {section.words}".strip()
    yield f"\n## {section.prefix or 'The recipe'}\n\n{about}\n\n"
    rows = []
    for field in dataclasses.fields(section.schema):
        hint, inner = hints[field.name], inner_schema(hints[field.name])
        if inner is hint:
            continue  # no value of its own
        key = f"{section.prefix}.{field.name}".lstrip(".")
        said = [words.get(field.name, "")]
        said += [f"Its keys: {homes[inner]}."] if inner else []
        for choice in (hint,) if isinstance(hint, type) and issubclass(hint, Enum) else ():
            said = said if said[0] else [" ".join((inspect.getdoc(choice) or "").split())]
            said += [f"`{name}`: {means}" for name, means in words_of(choice).items()]
        cells = (f"`{key}`", _kind(hint), f"`{_default(field)}`", " ".join(filter(None, said)))
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n")
    if rows:
        yield "| key | type | default | what |\n|---|---|---|---|\n" + "".join(rows)


def _kind(hint: Any) -> str:
    """The type as a person writes values of it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return "mapping"
    if parts:
        return " or ".join(_kind(part) for part in parts)
    if inner_schema(hint):
        return "section"
    if issubclass(hint, Enum):
        return ", ".join(member.name for member in hint)
    return {type(None): "null", str: "text", bool: "true, false"}.get(hint, hint.__name__)


def _default(field: dataclasses.Field[Any]) -> str:
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = f'"{value}"' if value == "" else str(value)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST].rstrip()} ..."


def test_the_document_is_that_of_the_settings_classes() -> None:
    made = page()
    if os.environ.get(WRITE):
        DOCUMENT.write_text(made)
    assert made == DOCUMENT.read_text(), f"{WRITE}=1 and this test again writes docs/keys.md"


def test_every_key_that_a_recipe_may_set_is_there() -> None:
    made = page()
    elsewhere = ("tasks.supervised_families[].", "tasks.test_families[].")  # as tasks.families[]
    values = [
        key
        for key, hint in known_keys()
        if inner_schema(hint) is not hint and not key.startswith(elsewhere)
    ]
    assert len(values) > 150
    assert [key for key in values if f"| `{key}` |" not in made] == []


def test_words_are_those_under_a_field() -> None:
    words = words_of(TrainConfig)
    assert words["run_dir"] == "Folder of this run. None: runs/NAME."
    assert "policy" not in words
