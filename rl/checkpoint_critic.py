"""A checkpoint on an engine of its own, as a critic."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rewards.comparison import Ask
from rewards.critic_config import CriticConfig
from rl.critic_judge import CriticJudge, Served, critic_config
from rl.errors import BadInput
from rl.open_judge import JudgeOptions
from rollout.ask import EngineAsk
from rollout.config import Dtype, EngineConfig
from rollout.engine import Engine
from rollout.render import Renderer

MOST_MODEL_LEN = 8192  # tokens of prompt and judgement, unless the command says otherwise
KV_CACHE_BYTES = 1 << 30


def open_checkpoint_critic(folder: Path, options: JudgeOptions) -> CriticJudge:
    """The model of a Hugging Face folder as the critic; its engine starts with the first question.

    Raises:
        BadInput: a folder without a checkpoint or a tokenizer that can chat, or bad options.
    """
    config = _read_config(folder)
    critic = critic_config(options)
    try:
        renderer = Renderer(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"--judge critic:{folder}: no tokenizer to ask with: {error}") from error
    settings = _engine(config, critic, options)

    @asynccontextmanager
    async def serving() -> AsyncIterator[Ask]:
        engine = await Engine.start(settings, folder, end_of_turn=renderer.eos_id)
        try:
            yield EngineAsk(renderer, engine, concurrency=critic.concurrency)
        finally:
            await engine.shutdown()

    files = sorted(each for each in folder.iterdir() if each.is_file())
    stamps = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    identity = json.dumps([stamps, settings.dtype.value, settings.max_model_len])
    name = folder.resolve().name
    return CriticJudge(critic, Served(name=name, identity=identity, open=serving))


def _read_config(folder: Path) -> dict[str, Any]:
    where = f"--judge critic:{folder}"
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise BadInput(
            f"{where}: no config.json there; give a Hugging Face checkpoint, such as "
            "`temper export` writes"
        ) from error
    except ValueError as error:
        raise BadInput(f"{where}: config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{where}: config.json must hold a JSON object")
    return config


def _engine(config: dict[str, Any], critic: CriticConfig, options: JudgeOptions) -> EngineConfig:
    """In the precision of the checkpoint: rounding it further would judge otherwise."""
    wide = config.get("dtype", config.get("torch_dtype")) == "float32"
    longest = config.get("max_position_embeddings", MOST_MODEL_LEN)
    length = options.max_model_len or min(longest, MOST_MODEL_LEN)
    if critic.token_budget >= length:
        raise BadInput(
            f"max_tokens={critic.token_budget} leaves no room for a prompt in "
            f"max_model_len={length}: give less"
        )
    return EngineConfig(
        dtype=Dtype.float32 if wide else Dtype.bfloat16,
        max_model_len=length,
        max_num_seqs=critic.concurrency,
        kv_cache_bytes=KV_CACHE_BYTES,
    )
