from collections.abc import Sequence

import pytest

from rewards.config import RewardsConfig
from rewards.critic_config import CalibrationConfig, CriticConfig, DecidedBy
from rewards.rubric import Rubric, Rule
from rewards.task import Message, TaskKind
from rl.critic_checks import check_critic, check_gate, check_kinds, check_room
from rl.errors import BadInput

TRUE = Rubric(name="true", text="more is true")
NO_PRAISE = Rubric(
    name="no_praise", text="It does not flatter.", mandatory=True, rule=Rule.opening_praise
)


def _rewards(least_agreement: float = 0.6, critic: CriticConfig | None = None) -> RewardsConfig:
    calibration = CalibrationConfig(least_agreement=least_agreement)
    return RewardsConfig(critic=critic or CriticConfig(), calibration=calibration)


def test_open_ended_tasks_need_a_critic_or_a_reward_of_their_own() -> None:
    kinds = {TaskKind.math, TaskKind.open}
    with pytest.raises(BadInput, match=r"kind open have no reward: set rewards\.critic"):
        check_kinds(RewardsConfig(), kinds)
    check_kinds(RewardsConfig(critic=CriticConfig()), kinds)
    check_kinds(RewardsConfig(mixture={"open": {"mine.py:f": 1.0}}), kinds)
    with pytest.raises(BadInput, match=r"agent have no reward: name one in rewards\.mixture\.ag"):
        check_kinds(RewardsConfig(critic=CriticConfig()), {TaskKind.agent})


@pytest.mark.parametrize(
    ("critic", "rubrics", "own", "message"),
    [
        (CriticConfig(), [TRUE], {"true"}, "both have a rubric 'true'"),
        (CriticConfig(), [TRUE, TRUE], set(), "2 rubrics are named 'true'"),
        (CriticConfig(decided_by=DecidedBy.rubrics), [NO_PRAISE], set(), "without a rule"),
        (CriticConfig(endpoint="http://x:port/v1", model="m"), [TRUE], set(), "is no URL"),
    ],
)
def test_a_critic_that_cannot_work_is_refused(
    critic: CriticConfig, rubrics: Sequence[Rubric], own: set[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        check_critic(critic, rubrics, own)
    check_critic(CriticConfig(), [TRUE, NO_PRAISE], {"kind"})


def test_a_gate_that_could_never_open_is_refused() -> None:
    with pytest.raises(BadInput, match="frozen for ever"):
        check_gate(_rewards(), {TaskKind.open})
    check_gate(_rewards(), {TaskKind.open, TaskKind.math})
    check_gate(_rewards(), {TaskKind.math})
    check_gate(_rewards(least_agreement=0.0), {TaskKind.open})
    alone = RewardsConfig(critic=CriticConfig(), mixture={"open": {"explanations": 1.0}})
    check_gate(alone, {TaskKind.open})


def test_the_engine_must_have_room_for_answers() -> None:
    def count(messages: Sequence[Message]) -> int:
        assert "more is true" in messages[-1].content
        return 100

    with pytest.raises(BadInput, match=r"=400 and 100 tokens .* engine\.max_model_len=500"):
        check_room(CriticConfig(token_budget=400), [TRUE], count, 500)
    check_room(CriticConfig(token_budget=400), [TRUE], count, 501)
