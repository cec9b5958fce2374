"""The keys of a recipe: which there are, and which one somebody meant."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl.config import TrainConfig
from rl.errors import BadInput

LENGTH = ("tasks.token_budgets", "tasks.families[].token_budget")
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "lr": ("optimizer.learning_rate", "sft.learning_rate"),
    **dict.fromkeys(("group_size", "num_generations", "n"), ("rollout.samples_per_group",)),
    **dict.fromkeys(("max_new_tokens", "max_completion_length", "response_length"), LENGTH),
    **dict.fromkeys(("batch_size", "train_batch_size"), ("rollout.groups_per_step",)),
    **dict.fromkeys(("model", "model_name_or_path"), ("policy.path",)),
    "micro_batch_size": ("policy.micro_batch_tokens",),
    "max_steps": ("steps",),
    "temperature": ("rollout.temperature_start", "rollout.temperature_end"),
    "gpu_memory_utilization": ("engine.kv_cache_bytes",),
}
"""What other systems call our keys."""

KL = ("beta", "kl_beta", "kl_coef", "kl_loss_coef")
INSTEAD_OF_KL = ("objective.tau", "objective.clip_low", "objective.clip_high")


def known_keys(schema: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a settings class with its type, dotted: sections and values; `[]` in lists."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, hint = prefix + field.name, hints[field.name]
        yield key, hint
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from known_keys(part, f"{key}{'[]' * (typing.get_origin(hint) is list)}.")


def check_keys(overrides: Sequence[str]) -> None:
    """Raise `BadInput` for what is not `key=value`, or has an unknown key."""
    known = dict(known_keys())
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals and not key.startswith("~"):  # ~key takes it out of the recipe
            raise BadInput(f"{override!r} is not key=value")
        key = key.lstrip("+~")
        if _general(key).removesuffix("[]") not in known and not is_free(key):
            raise BadInput(f"unknown key {key!r}{nearest_key(key)}")


def is_free(key: str) -> bool:
    """Whether a key is one of those that a recipe names itself, such as rewards.mixture.math.x."""
    free = (f"{known}." for known, hint in known_keys() if typing.get_origin(hint) is dict)
    return _general(key).startswith(tuple(free))


def nearest_key(key: str) -> str:
    """What other systems' key is here, the nearest whole key, or those with the nearest end."""
    parent, _, leaf = _general(key).rpartition(".")
    if leaf in KL:
        return f"; there is no KL term: {_either(INSTEAD_OF_KL)} bounds the step"
    if leaf in ELSEWHERE:
        return f"; did you mean {_either(ELSEWHERE[leaf])}?"
    known = [name for name, _ in known_keys()]
    if parent.endswith("[]"):
        siblings = [name.rpartition(".")[2] for name in known if name.startswith(f"{parent}.")]
        return nearest(leaf, siblings)
    known = [name for name in known if "[]" not in name]
    whole = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if whole and "." in key:
        return f"; did you mean {whole[0]!r}?"
    leaves = [name.rpartition(".")[2] for name in known]
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
    same = [name for name, end in zip(known, leaves, strict=True) if end in close]
    return f"; did you mean {_either(same)}?" if same else ""


def nearest(name: str, known: Sequence[str]) -> str:
    """The nearest of some names, as the end of a message."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def keys_of(given: object, prefix: str = "") -> Iterator[str]:
    """Every key that a recipe's text names: "tasks.families[0].path"."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield (name := f"{prefix}.{key}".lstrip("."))
            yield from keys_of(value, name)
    elif isinstance(given, list):
        for place, value in enumerate(given):
            yield from keys_of(value, f"{prefix}[{place}]")


def _general(key: str) -> str:
    """The key with `[]` for the places in lists: "tasks.families.0.path", "...[0].path"."""
    return re.sub(r"\[\d+\]|\.\d+(?=\.|$)", "[]", key)


def _either(keys: Sequence[str]) -> str:
    return " or ".join(repr(key) for key in keys)
