from rewards.mixture import mix
from rewards.score import Score


def test_parts_are_weighted_and_sum_to_the_total() -> None:
    scores = {"code": Score(total=0.5, why="2 of 4 tests"), "short": Score(total=1.0)}
    mixed = mix(scores, {"code": 0.8, "short": 0.2})
    assert mixed is not None
    assert dict(mixed.parts) == {"code": 0.4, "short": 0.2}
    assert mixed.total == 0.6000000000000001 or mixed.total == 0.6
    assert mixed.why == "code: 2 of 4 tests"


def test_full_marks_are_1_for_weights_that_sum_to_1() -> None:
    weights = {str(i): 0.1 for i in range(10)}
    mixed = mix({name: Score(total=1.0) for name in weights}, weights)
    assert mixed is not None and mixed.total == 1.0


def test_what_does_not_apply_is_left_out() -> None:
    weights = {"math": 0.5, "style": 0.5}
    mixed = mix({"math": Score(total=1.0, why="right"), "style": None}, weights)
    assert mixed == Score(total=0.5, parts={"math": 0.5}, why="right")
    assert mix({"math": None, "style": None}, weights) is None
