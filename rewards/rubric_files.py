"""Reads rubric files: YAML or TOML, a list of rubrics under the key `rubrics`.

rubrics:
  - name: clarity
    text: The answer is about what was asked.
    weight: 2.0      # 1.0 unless given
  - name: no_praise
    text: The answer does not open with a compliment.
    mandatory: true  # an answer that violates it is rewarded 0
    rule: opening_praise
"""

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rewards.rubric import Rubric, Rule

MOST_BYTES = 1 << 18  # of one file
_SUFFIXES = (".yaml", ".yml", ".toml")
_KEYS = ("name", "text", "weight", "mandatory", "rule")


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can blow up, and without keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"alias *{self.peek_event().anchor}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise ValueError(f"the key {key.value!r} is given twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def read_rubrics(path: Path) -> tuple[Rubric, ...]:
    """The rubrics of one file, in its order.

    Raises:
        ValueError: no such file, neither YAML nor TOML, an unknown or missing key, a value of the
            wrong type, an unknown rule, a name given twice, or no rubric at all.
    """
    raw = _parsed(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: must hold the key rubrics with a list under it")
    for key in raw:
        if key != "rubrics":
            raise ValueError(f"{path}: unknown key {key!r}{_nearest(key, ('rubrics',))}")
    return parse_rubrics(str(path), raw.get("rubrics"))


def parse_rubrics(where: str, entries: object) -> tuple[Rubric, ...]:
    """The rubrics of a list of objects with the keys of a rubric file.

    Args:
        where: the file or the key that holds them, for messages.
        entries: the list.

    Raises:
        ValueError: as `read_rubrics`.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: rubrics must be a list of at least one rubric")
    rubrics = tuple(_rubric(where, place, entry) for place, entry in enumerate(entries, start=1))
    _unique((where, rubric) for rubric in rubrics)
    return rubrics


def open_rubrics(names: Sequence[str], folder: Path) -> tuple[Rubric, ...]:
    """The rubrics of several files, in order.

    Args:
        names: each the name of a file NAME.yaml in `folder`, or a path.
        folder: where names are looked up.

    Raises:
        ValueError: an unknown name, a bad file, or a rubric's name in two of the files.
    """
    read = [
        (str(path), rubric)
        for path in [_find(name, folder) for name in names]
        for rubric in read_rubrics(path)
    ]
    _unique(read)
    return tuple(rubric for _, rubric in read)


def _find(name: str, folder: Path) -> Path:
    path = Path(name)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        return path
    known = sorted(each.stem for each in folder.glob("*.yaml"))
    if name not in known:
        shipped = ", ".join(known) or "none"
        raise ValueError(
            f"no rubric file {name!r} in {folder}{_nearest(name, known)}; known: {shipped}"
        )
    return folder / f"{name}.yaml"


def _parsed(path: Path) -> object:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: a rubric file ends in {', '.join(_SUFFIXES)}")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read rubric file {path}: {said}") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: larger than {MOST_BYTES} bytes, so no rubric file")
    kind = "TOML" if path.suffix == ".toml" else "YAML"
    try:
        text = data.decode("utf-8")
        parsed: object = tomllib.loads(text) if kind == "TOML" else yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason})") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not readable as {kind}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not readable as {kind}: nested too deep") from error
    return parsed


def _rubric(source: str, place: int, entry: object) -> Rubric:
    where = f"{source}: rubric {place}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must hold the keys name and text, got {_short(entry)}")
    if isinstance(entry.get("name"), str):
        where += f" ({entry['name']})"
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(key, _KEYS)}")
    name, text = (_words(where, entry, key) for key in ("name", "text"))
    try:
        return Rubric(
            name=name,
            text=text,
            weight=_weight(where, entry.get("weight", 1.0)),
            mandatory=_flag(where, entry.get("mandatory", False)),
            rule=None if entry.get("rule") is None else _rule(where, entry["rule"]),
        )
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from error


def _words(where: str, entry: dict[Any, Any], key: str) -> str:
    if key not in entry:
        raise ValueError(f"{where}: the key {key} is missing")
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be text, got {_short(value)}; put it in quotes")
    return value


def _weight(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: weight must be a number such as 2.0, got {_short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where}: weight is too large") from None


def _flag(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: mandatory must be true or false, got {_short(value)}")
    return value


def _rule(where: str, value: object) -> Rule:
    known = tuple(rule.value for rule in Rule)
    if value not in known:
        raise ValueError(
            f"{where}: unknown rule {_short(value)}{_nearest(value, known)}; "
            f"known: {', '.join(known)}"
        )
    return Rule(str(value))


def _unique(found: Iterable[tuple[str, Rubric]]) -> None:
    places: dict[str, str] = {}
    for where, rubric in found:
        if rubric.name in places:
            raise ValueError(
                f"{where}: rubric {rubric.name!r} is given twice, first in {places[rubric.name]}: "
                "rename one"
            )
        places[rubric.name] = where


def _nearest(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name)[:80].lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 1e18:
        return "a huge number"  # Python refuses to print some
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}..."
