"""Judges by what a command line says: `file.py:function` or the URL of an endpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rewards.chat_endpoint import read_key
from rewards.critic_config import DecidedBy
from rewards.preference.endpoint import Endpoint, EndpointJudge
from rewards.preference.judges import FunctionJudge, Judge
from rl.errors import BadInput, bad_input
from rl.recipe_keys import nearest

ANSWER_TOKENS = 2048  # of an endpoint: reasoning and verdict
ASKS, ORDERS = ("comparison", "score", "critic"), ("both", "first")
DECIDED_BY = tuple(each.value for each in DecidedBy)
KINDS = ("critic", "verifier")  # --judge KIND:NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """How a judge is asked."""

    orders: str = "both"  # of every pair, for a comparing judge
    max_tokens: int = 0  # of a reward model's input, or of what another one says; 0: its own
    rubrics: str = "k2"  # of a critic: names in configs/rubrics or paths, with commas between
    instruction: str = ""  # system prompt of a critic; empty: its own
    decided_by: str = "overall"  # verdict of a critic, or the vote of its rubrics
    temperature: float = 0.0  # of a critic
    max_model_len: int = 0  # of a checkpoint: prompt and judgement, tokens; 0: its own, or 8192
    concurrency: int = 16  # questions under way, to a checkpoint or an endpoint
    model: str = ""  # of an endpoint, and so are the rest
    asks: str = "comparison"  # or a score for one answer at a time, or a critic's with rubrics
    timeout_s: float = 120.0
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if any


def read_options(settings: Sequence[str]) -> JudgeOptions:
    """Options from KEY=VALUE. Raises `BadInput`, naming the nearest key."""
    options = JudgeOptions()
    known = {name: type(value) for name, value in asdict(options).items()}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known:
            hint = nearest(key, tuple(known)) or f"; known: {', '.join(known)}"
            raise BadInput(f"unknown key {key!r}{hint}")
        try:
            made: Any = known[key](value)
        except ValueError as error:
            raise BadInput(f"{key} must be {known[key].__name__}, got {value!r}") from error
        options = replace(options, **{key: made})
    for key, given, allowed in (
        ("asks", options.asks, ASKS),
        ("orders", options.orders, ORDERS),
        ("decided_by", options.decided_by, DECIDED_BY),
    ):
        if given not in allowed:
            words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise BadInput(f"{key} must be {words}, got {given!r}{nearest(given, allowed)}")
    for key in ("max_tokens", "max_model_len"):
        if getattr(options, key) < 0:
            raise BadInput(f"{key} must not be negative, got {getattr(options, key)}")
    if options.concurrency < 1:
        raise BadInput(f"concurrency must be at least 1, got {options.concurrency}")
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
                    api_key=read_key(options.api_key_env),
                )
            )
        path, _, name = spec.rpartition(":")
        if path.endswith(".py"):
            return FunctionJudge(Path(path), name)
    raise BadInput(
        f"--judge {spec}: neither a folder with a reward model, nor file.py:function, nor the URL "
        "of an endpoint, nor critic:CHECKPOINT, nor verifier:math, verifier:code or "
        f"verifier:instructions{nearest(spec.partition(':')[0], KINDS)}"
    )
