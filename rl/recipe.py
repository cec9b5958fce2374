"""From a recipe's name and overrides to one typed, validated `TrainConfig`. Hydra stays in here."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from rl.config import TrainConfig
from rl.errors import BadInput
from rl.overrides import apply
from rl.recipe_keys import check_keys, keys_of, nearest, nearest_key

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipe"
SUFFIXES = {".yaml", ".yml"}
UNREADABLE = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
KEY = "full_key: "  # how OmegaConf's messages name it, on a line of its own
QUOTING = (
    "Put it into a recipe file; or, in single quotes for the shell, keys without quotes and with "
    r"\: for a colon: '+rewards.mixture.math={math: 1.0, style.py\:short: 0.1}'"
)


def load_recipe(recipe: str, overrides: Sequence[str]) -> TrainConfig:
    """Compose the recipe and check it.

    Args:
        recipe: a name in `configs/recipe`, or the path of a YAML file.
        overrides: `key=value`, as Hydra reads them.

    Raises:
        BadInput: unknown recipe or key (with the nearest name), or a value that does not fit.
    """
    path = _find(recipe)
    check_keys(overrides)
    ConfigStore.instance().store(name="schema", node=TrainConfig)
    try:
        with initialize_config_dir(config_dir=str(path.parent), version_base="1.3"):
            # A recipe of one's own may build on one of ours.
            composed = compose(path.stem, overrides=[f"hydra.searchpath=[file://{RECIPES}]"])
        if OmegaConf.get_type(composed) is not TrainConfig:
            raise ValueError('begin it with "defaults: [schema, _self_]"')
        apply(composed, overrides)
        config = _typed(composed)
        if not config.tasks.families:
            raise ValueError("tasks.families is empty: name at least one family")
    except UNREADABLE as error:
        raise BadInput(f"recipe {path}: {_first_cause(error, path, overrides)}") from error
    return config


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration, as `config.yaml` holds it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_run(run_dir: Path, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of a run, from its folder, with `overrides`.

    Raises:
        BadInput: the folder holds no readable `config.yaml`.
    """
    path = run_dir / "config.yaml"
    check_keys(overrides)
    check_run(run_dir)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path))
        assert isinstance(merged, DictConfig)
        apply(merged, overrides)
        return _typed(merged)
    except (OSError, *UNREADABLE) as error:
        raise BadInput(f"{path}: {_first_cause(error, path, overrides)}") from error


def check_run(folder: Path) -> None:
    """Raise `BadInput` for what is no run folder."""
    if not (folder / "config.yaml").is_file():
        raise BadInput(f"{folder} is no run folder: it has no config.yaml")


def check_target(target: str) -> None:
    """Raise `BadInput` for what is neither a run folder nor a recipe."""
    names = _names()
    if Path(target).is_dir() or Path(target).suffix in SUFFIXES or target in names:
        return
    raise BadInput(
        f"{target!r} is neither a recipe nor a run folder{nearest(target, names)}; "
        f"known recipes: {', '.join(names)}"
    )


def changes(before: TrainConfig, now: TrainConfig) -> list[str]:
    """What differs, as "seed: 0 -> 7"; lists are compared whole."""
    one, other = (dict(_flat(yaml.safe_load(to_yaml(config)))) for config in (before, now))
    keys = [key for key in one | other if one.get(key) != other.get(key)]
    return [f"{key}: {_short(one.get(key))} -> {_short(other.get(key))}" for key in keys]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: object) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")


def _find(recipe: str) -> Path:
    as_path = Path(recipe)
    if as_path.suffix in SUFFIXES:
        if not as_path.is_file():
            raise BadInput(f"no recipe file {as_path}")
        return as_path.resolve()
    names = _names()
    if recipe not in names:
        raise BadInput(
            f"unknown recipe {recipe!r}{nearest(recipe, names)}; known: {', '.join(names)}"
        )
    return RECIPES / f"{recipe}.yaml"


def _names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _first_cause(error: BaseException, path: Path, overrides: Sequence[str]) -> str:
    """The innermost message: Hydra wraps what OmegaConf or a settings class said."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause) or type(cause).__name__
    if unknown := re.search(r"not in '\w+'\s+full_key: (\S+)", text):
        key = _whole(unknown[1], path, overrides)
        return f"unknown key {key!r}{nearest_key(key)}"
    lines = [line.strip() for line in text.splitlines() if "_type=" not in line]
    key = next((line.removeprefix(KEY) for line in lines if line.startswith(KEY)), "")
    text = " ".join(line for line in lines if not line.startswith(KEY))
    if one_of := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", text):
        text += nearest(one_of[1], one_of[2].split(", "))
    text = f"{_whole(key, path, overrides)}: {text}" if key else text
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: {text.partition(' See http')[0]}. {QUOTING}"
    if name := re.search(r"Interpolation key '([A-Z_]+)' not found", text):
        return f"{text}: an environment variable is ${{oc.env:{name[1]}}}"
    return text


def _whole(key: str, path: Path, overrides: Sequence[str]) -> str:
    """The place of a key inside a list, of which OmegaConf says the last part alone."""
    try:
        split = [each.lstrip("+").partition("=") for each in overrides]
        given = [{name: yaml.safe_load(value)} for name, _, value in split]
        given.append(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError):
        return key
    if any(key == name for name, _, _ in split):
        return key
    places = (place for each in given for place in keys_of(each))
    return next((place for place in places if place.endswith(f"].{key}")), key)


def _plain_variables(given: Any) -> Any:
    """`${NAME}` as `$NAME`, which a family fills in when it is read; to OmegaConf it is a key."""
    if isinstance(given, dict):
        return {key: _plain_variables(value) for key, value in given.items()}
    if isinstance(given, list):
        return [_plain_variables(value) for value in given]
    return re.sub(r"\$\{([A-Z][A-Z0-9_]*)\}(?!\w)", r"$\1", given) if type(given) is str else given


def _typed(composed: Any) -> TrainConfig:
    """The settings, each checked by its class."""
    given = OmegaConf.to_container(
        composed, structured_config_mode=SCMode.DICT, throw_on_missing=True
    )
    assert isinstance(given, dict)
    if "tasks" in given:
        given["tasks"] = _plain_variables(given["tasks"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), given))
    assert isinstance(config, TrainConfig)
    return config
