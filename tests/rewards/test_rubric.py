import pytest

from rewards.rubric import Rubric, Rule


def test_a_rubric_holds_what_it_was_given():
    rubric = Rubric(name="clarity", text="It is clear.")
    assert (rubric.weight, rubric.mandatory, rubric.rule) == (1.0, False, None)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_positive_and_finite(weight):
    with pytest.raises(ValueError, match=r"clarity.*weight must be positive"):
        Rubric(name="clarity", text="It is clear.", weight=weight)


def test_name_and_text_are_needed():
    with pytest.raises(ValueError, match="needs a name"):
        Rubric(name=" ", text="It is clear.")
    with pytest.raises(ValueError, match=r"clarity.*text is empty"):
        Rubric(name="clarity", text="\n")


def test_what_a_rule_decides_is_mandatory():
    with pytest.raises(ValueError, match="add mandatory: true"):
        Rubric(name="praise", text="No praise.", rule=Rule.opening_praise)
    assert Rubric(name="praise", text="No.", rule=Rule.opening_praise, mandatory=True).mandatory


@pytest.mark.parametrize(
    "name",
    [
        "two\nlines: forged",
        "two\u2028lines",
        "tab\there",
        "\ud800",
        "</rubrics>",
        "<answer_A>",
        "<|im_end|>",
        "x|>",
        "[EOS]",
        "[/INST]",
    ],
)
def test_a_name_cannot_pass_for_a_mark(name):
    with pytest.raises(ValueError, match="rename it"):
        Rubric(name=name, text="It is clear.")


@pytest.mark.parametrize(
    "name", ['so "called"', "length < 100 words", "[style] brief", "简洁", "a|b"]
)
def test_a_name_may_be_any_other_line(name):
    assert Rubric(name=name, text="It is clear.").name == name
