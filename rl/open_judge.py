"""Judges by what a command line says: `file.py:function` or the URL of an endpoint."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rewards.preference.endpoint import Endpoint, EndpointJudge
from rewards.preference.judges import FunctionJudge, Judge
from rl.errors import BadInput, bad_input

ANSWER_TOKENS = 2048  # of an endpoint: reasoning and verdict
ASKS, ORDERS = ("comparison", "score"), ("both", "first")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """How a judge is asked."""

    orders: str = "both"  # of every pair, for a comparing judge
    max_tokens: int = 0  # of a reward model's input, or of an endpoint's answer; 0: its own
    model: str = ""  # of an endpoint, and so are the rest
    asks: str = "comparison"  # or a score for one answer at a time
    timeout_s: float = 120.0
    concurrency: int = 16
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if any


def read_options(settings: Sequence[str]) -> JudgeOptions:
    """Options from KEY=VALUE. Raises `BadInput`, naming the nearest key."""
    options = JudgeOptions()
    known = {name: type(value) for name, value in asdict(options).items()}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise BadInput(f"unknown key {key!r}{hint}")
        try:
            made: Any = known[key](value)
        except ValueError as error:
            raise BadInput(f"{key} must be {known[key].__name__}, got {value!r}") from error
        options = replace(options, **{key: made})
    for key, given, allowed in (
        ("asks", options.asks, ASKS),
        ("orders", options.orders, ORDERS),
    ):
        if given not in allowed:
            raise BadInput(f"{key} must be {' or '.join(allowed)}, got {given!r}")
    return options


def open_judge(spec: str, options: JudgeOptions) -> Judge:
    """A function's or an endpoint's judge. Raises `BadInput` for what is neither."""
    with bad_input():
        if spec.startswith(("http://", "https://")):
            return EndpointJudge(
                Endpoint(
                    url=spec,
                    model=options.model,
                    compares=options.asks == "comparison",
                    max_tokens=options.max_tokens or ANSWER_TOKENS,
                    timeout_s=options.timeout_s,
                    concurrency=options.concurrency,
                    api_key=os.environ.get(options.api_key_env, ""),
                )
            )
        path, _, name = spec.rpartition(":")
        if path.endswith(".py"):
            return FunctionJudge(Path(path), name)
    raise BadInput(
        f"--judge {spec}: neither a folder with a reward model, nor file.py:function, nor the URL "
        "of an endpoint, nor verifier:math, verifier:code or verifier:instructions"
    )
