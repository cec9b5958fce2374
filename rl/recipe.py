"""From a recipe's name and overrides to one typed, validated `TrainConfig`. Hydra stays in here."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.config import TrainConfig
from rl.errors import BadInput

RECIPES = Path(__file__).resolve().parent.parent / "configs" / "recipe"


def load_recipe(recipe: str, overrides: Sequence[str]) -> TrainConfig:
    """Compose the recipe and check it.

    Args:
        recipe: a name in `configs/recipe`, or the path of a YAML file.
        overrides: `key=value`, as Hydra reads them.

    Raises:
        BadInput: unknown recipe or key (with the nearest name), or a value that does not fit.
    """
    path = _find(recipe)
    _check_keys(overrides)
    ConfigStore.instance().store(name="schema", node=TrainConfig)
    try:
        with initialize_config_dir(config_dir=str(path.parent), version_base="1.3"):
            composed = compose(config_name=path.stem, overrides=list(overrides))
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"recipe {path}: {_first_cause(error)}") from error
    if not isinstance(config, TrainConfig):
        raise BadInput(f'recipe {path}: begin it with "defaults: [schema, _self_]"')
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
    _check_keys(overrides)
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.load(path), changes)
        config = OmegaConf.to_object(merged)
    except (OSError, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {error}") from error
    assert isinstance(config, TrainConfig)
    return config


def _find(recipe: str) -> Path:
    as_path = Path(recipe)
    if as_path.suffix in {".yaml", ".yml"}:
        if not as_path.is_file():
            raise BadInput(f"no recipe file {as_path}")
        return as_path.resolve()
    names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    if recipe not in names:
        raise BadInput(
            f"unknown recipe {recipe!r}{_nearest(recipe, names)}; known: {', '.join(names)}"
        )
    return RECIPES / f"{recipe}.yaml"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every key of a settings class, dotted: sections and values."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                is_list = typing.get_origin(hints[field.name]) is list
                yield from () if is_list else _known_keys(part, f"{prefix}{field.name}.")


def _check_keys(overrides: Sequence[str]) -> None:
    known = list(_known_keys(TrainConfig))
    lists = [key for key in known if key.endswith("families") or key == "rewards.mixture"]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals and not key.startswith("~"):  # ~key takes it out of the recipe
            raise BadInput(f"{override!r} is not key=value")
        key = key.lstrip("+~")
        if key not in known and not any(key.startswith(f"{name}.") for name in lists):
            raise BadInput(f"unknown key {key!r}{_nearest_key(key, known)}")


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """The nearest whole key, or the keys whose last part is nearest."""
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if whole and "." in key:
        return f"; did you mean {whole[0]!r}?"
    leaves = [name.rpartition(".")[2] for name in known]
    nearest = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.6)
    same = [repr(name) for name, leaf in zip(known, leaves, strict=True) if leaf in nearest]
    return f"; did you mean {' or '.join(same)}?" if same else ""


def _first_cause(error: BaseException) -> str:
    """The innermost message: Hydra wraps what OmegaConf or a settings class said."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause) or type(cause).__name__
    unknown = re.search(r"not in '\w+'\s+full_key: (\S+)", text)
    if unknown:
        return (
            f"unknown key {unknown[1]!r}{_nearest_key(unknown[1], list(_known_keys(TrainConfig)))}"
        )
    return " ".join(line.strip() for line in text.splitlines() if "object_type=" not in line)
