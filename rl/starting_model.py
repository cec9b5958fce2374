"""The model that a run starts from: found or made, and refused where it cannot be trained."""

from pathlib import Path

import torch

from model.checkpoint_reader import empty_network
from model.feed_forward import Experts
from model.tiny import create_tiny
from rl.config import TrainConfig
from rl.errors import BadInput, bad_input, writing
from rollout.routing import dense_layers
from rollout.tasks import corpus

TINY_CORPUS_TASKS = 2000  # texts that the tiny model's tokenizer is trained on


def starting_model(config: TrainConfig, folder: Path, then: str) -> Path:
    """The recipe's checkpoint, or the tiny K2 made for its tasks in `folder`.

    `then`: what a person is told to do once the disk takes it.
    """
    if config.policy.path is None:
        texts = corpus(config.tasks, TINY_CORPUS_TASKS)
        with writing(folder, then):
            create_tiny(folder, texts, seed=config.seed)
        return folder
    path = Path(config.policy.path).absolute()
    if not (path / "config.json").is_file():
        raise BadInput(
            f"policy.path={config.policy.path} is no checkpoint folder: config.json is missing"
        )
    return path


def check_network(config: TrainConfig, checkpoint: Path) -> None:
    """Refuse what the learner's shards or the engines would refuse, before anything is started.

    Raises:
        CheckpointError: a network that cannot be trained.
        BadInput: sequences longer than its context, experts that cannot be spread, or that the
            learner cannot replay.
    """
    if config.engine.routing_replay:
        with bad_input():
            dense_layers(checkpoint)
    network = empty_network(
        checkpoint,
        compute_dtype=getattr(torch, config.policy.dtype.value),
        int4_experts=config.policy.int4_experts,
    )
    if config.engine.max_model_len > network.context:
        raise BadInput(
            f"engine.max_model_len={config.engine.max_model_len} is longer than the context "
            f"of the network: at most {network.context}"
        )
    ranks = config.parallel.expert_parallel
    experts = [len(m.gate_up_proj) for m in network.modules() if isinstance(m, Experts)]
    if ranks > 1 and not experts:
        raise BadInput(f"parallel.expert_parallel={ranks}: the network has no K2 experts")
    if any(count % ranks for count in experts):
        raise BadInput(
            f"parallel.expert_parallel={ranks} must divide the {experts[0]} routed experts"
        )
