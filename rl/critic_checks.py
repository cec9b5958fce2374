"""What a recipe with open-ended tasks or a critic must have: checked before anything is started."""

from collections.abc import Callable, Collection, Sequence

from rewards.calibration import VERIFIABLE
from rewards.chat_endpoint import critic_endpoint
from rewards.comparison import Answer
from rewards.config import RUBRIC, RewardsConfig
from rewards.critic import Critic
from rewards.critic_config import CalibrationConfig, CriticConfig
from rewards.critic_prompt import critic_messages
from rewards.rubric import Rubric
from rewards.task import Message, TaskKind
from rl.errors import BadInput, bad_input


def check_kinds(rewards: RewardsConfig, kinds: Collection[TaskKind]) -> None:
    """Raise `BadInput` if tasks of some kind have no reward."""
    missing = sorted(set(kinds) - {TaskKind(kind) for kind in rewards.mixture})
    if missing:
        critic = "set rewards.critic, which ranks their answers, or "
        raise BadInput(
            f"tasks of kind {missing[0]} have no reward: "
            f"{critic if missing[0] is TaskKind.open else ''}name one in "
            f"rewards.mixture.{missing[0]}"
        )


def check_critic(config: CriticConfig, rubrics: Sequence[Rubric], own: Collection[str]) -> None:
    """Raise `BadInput` for a critic that cannot work; `own` are the names of tasks' rubrics."""
    with bad_input():
        Critic(config, rubrics, critic_endpoint(config) if config.endpoint else _nobody)
    both = {rubric.name for rubric in rubrics} & set(own)
    if both:
        raise BadInput(
            f"rewards.critic.rubrics and tasks of the recipe both have a rubric {min(both)!r}: "
            "rename one"
        )


def check_gate(rewards: RewardsConfig, kinds: Collection[TaskKind]) -> None:
    """Raise `BadInput` if nothing could ever open the gate of tasks that the critic ranks."""
    least = rewards.calibration.least_agreement
    ranks = TaskKind.open in kinds and RUBRIC in rewards.mixture.get(TaskKind.open.value, {})
    if ranks and least > 0 and not set(kinds) & set(VERIFIABLE):
        raise BadInput(
            f"rewards.calibration.least_agreement={least:g} asks that the critic agrees with "
            "verifiers, but no task of the recipe has one: rubric rewards would be frozen for "
            "ever. Add a family with mathematics, code or instructions, or set it to 0"
        )


def check_room(
    config: CriticConfig,
    rubrics: Sequence[Rubric],
    count: Callable[[Sequence[Message]], int],
    max_model_len: int,
) -> None:
    """Raise `BadInput` if the engine has no room for answers beside rubrics and judgement.

    Args:
        config: of a critic that is the policy.
        rubrics: the recipe's.
        count: tokens of a prompt.
        max_model_len: of the engine, tokens.
    """
    blank = (Message(role="user", content=""),)
    prompt = count(critic_messages(config.instruction, blank, ("", ""), rubrics))
    if prompt + config.token_budget >= max_model_len:
        raise BadInput(
            f"rewards.critic.token_budget={config.token_budget} and {prompt} tokens of instruction "
            f"and rubrics leave no room for answers in engine.max_model_len={max_model_len}: lower "
            "the one or raise the other"
        )


def pairs_too_old(config: CalibrationConfig, max_staleness: int) -> str | None:
    """What a person is told of a run whose pairs may be too old for critic tasks."""
    if config.share == 0 or config.max_age >= max_staleness:
        return None
    return (
        f"rewards.calibration.max_age={config.max_age} with rollout.max_staleness={max_staleness}: "
        "where the engines are slow, few pairs are young enough for critic tasks; try "
        f"{max_staleness + 1}"
    )


async def _nobody(messages: Sequence[Message], *, max_tokens: int, temperature: float) -> Answer:
    raise AssertionError("a check asks no model")
