"""The rubrics that a recipe names."""

from rewards.critic_config import CriticConfig
from rewards.rubric import RUBRICS, Rubric
from rewards.rubric_files import open_rubrics
from rl.errors import bad_input


def rubrics_of(config: CriticConfig) -> tuple[Rubric, ...]:
    """The rubrics of all the files that the critic is given, in their order.

    Raises:
        BadInput: an unknown name, a file that cannot be used, or one rubric name in two files.
    """
    with bad_input():
        return open_rubrics(config.rubrics, RUBRICS)
