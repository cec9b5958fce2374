"""KEY=VALUE of the command line, as Hydra reads it, laid over a recipe or over a run's own."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from rewards.config import CriticConfig
from rl.config import SftConfig
from rl.recipe_keys import is_free

OPTIONAL = {"sft": SftConfig, "rewards.critic": CriticConfig}
"""Sections that a recipe may leave out: naming a key of one brings it, with its defaults."""


def apply(config: DictConfig, overrides: Sequence[str]) -> None:
    """Change the configuration, in the order given; `~key` takes a key out.

    Raises HydraException, OmegaConfBaseException or ValueError for what cannot be read or does not
    fit.
    """
    for override in _parsed(overrides):
        key = override.key_or_group
        if override.is_sweep_override():
            raise ValueError(f"{key} has several values: put a text with commas into quotes")
        value = override.value()
        if override.is_delete():
            parent, _, leaf = key.rpartition(".")
            node = OmegaConf.select(config, parent) if parent else config
            with open_dict(node):
                node.pop(leaf, None)
            continue
        for section, kind in OPTIONAL.items():
            below = key == section or key.startswith(f"{section}.")
            if below and value is not None and OmegaConf.select(config, section) is None:
                OmegaConf.update(config, section, OmegaConf.structured(kind), merge=False)
        added = override.is_add() or override.is_force_add() or is_free(key)
        OmegaConf.update(config, key, value, merge=True, force_add=added)


def _parsed(overrides: Sequence[str]) -> list[Override]:
    split = (override.partition("=") for override in overrides)
    # `families[0].name` is `families.0.name` to Hydra.
    return OverridesParser.create().parse_overrides(
        [re.sub(r"\[(\d+)\]", r".\1", key) + equals + value for key, equals, value in split]
    )
