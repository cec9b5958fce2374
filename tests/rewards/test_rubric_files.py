from pathlib import Path

import pytest

from rewards.critic_prompt import asked
from rewards.rubric import Rubric, Rule
from rewards.rubric_files import open_rubrics, read_rubrics

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "rubrics"
ONE = "rubrics:\n  - {name: clarity, text: It is clear.}\n"


def written(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_file_is_read():
    for path in sorted(SHIPPED.iterdir()):
        rubrics = read_rubrics(path)
        assert {each.rule for each in rubrics} == {
            None,
            Rule.opening_praise,
            Rule.self_justification,
        }
        assert all(each.mandatory == (each.rule is not None) for each in rubrics)
        assert all(each.name.replace("_", "").islower() for each in rubrics)


def test_k2_asks_the_critic_for_three_core_rubrics_and_honest_uncertainty():
    names = [each.name for each in asked(open_rubrics(["k2"], SHIPPED))]
    assert names == [
        "clarity_and_relevance",
        "conversational_fluency",
        "objective_and_grounded",
        "honest_uncertainty",
    ]


def test_tiny_asks_for_one():
    shown = asked(open_rubrics(["tiny"], SHIPPED))
    assert [(each.name, each.text) for each in shown] == [("true", "more is true")]


def test_yaml_and_toml_say_the_same(tmp_path):
    expected = (
        Rubric(name="clarity", text="It is clear.", weight=2.0),
        Rubric(name="praise", text="No.", mandatory=True, rule=Rule.opening_praise),
    )
    in_yaml = (
        "rubrics:\n- name: clarity\n  text: It is clear.\n  weight: 2\n"
        "- name: praise\n  text: 'No.'\n  mandatory: true\n  rule: opening_praise\n"
    )
    in_toml = (
        '[[rubrics]]\nname = "clarity"\ntext = "It is clear."\nweight = 2\n'
        '[[rubrics]]\nname = "praise"\ntext = "No."\nmandatory = true\nrule = "opening_praise"\n'
    )
    assert read_rubrics(written(tmp_path, in_yaml)) == expected
    assert read_rubrics(written(tmp_path, in_toml, "mine.toml")) == expected


def test_names_and_paths_are_joined_in_order(tmp_path):
    path = written(tmp_path, ONE)
    rubrics = open_rubrics(["k2", str(path)], SHIPPED)
    assert rubrics == (*read_rubrics(SHIPPED / "k2.yaml"), *read_rubrics(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold the key rubrics"),
        ("- a", "must hold the key rubrics"),
        ("rubric: []", "unknown key 'rubric'; did you mean 'rubrics'"),
        ("rubrics: []", "at least one rubric"),
        ("rubrics: {a: b}", "must be a list"),
        ("rubrics: [clarity]", "rubric 1: must hold the keys name and text, got 'clarity'"),
        ("rubrics: [{text: a}]", "rubric 1: the key name is missing"),
        ("rubrics: [{name: a}]", "rubric 1 (a): the key text is missing"),
        ("rubrics: [{name: a, text: b, wieght: 2}]", "rubric 1 (a): unknown key 'wieght'; did you"),
        ("rubrics: [{name: true, text: b}]", "name must be text, got True; put it in quotes"),
        ("rubrics: [{name: a, text: [b]}]", "text must be text, got ['b']"),
        ("rubrics: [{name: a, text: b, weight: true}]", "weight must be a number such as 2.0"),
        ("rubrics: [{name: a, text: b, weight: '2'}]", "weight must be a number"),
        ("rubrics: [{name: a, text: b, weight: -2}]", "rubric 'a': weight must be positive"),
        ("rubrics: [{name: a, text: b, weight: .nan}]", "weight must be positive and finite"),
        ("rubrics: [{name: a, text: b, weight: " + "9" * 400 + "}]", "weight is too large"),
        ("rubrics: [{name: 0x" + "f" * 9000 + ", text: b}]", "name must be text, got a huge"),
        ("rubrics: [{name: a, text: b, mandatory: 1}]", "mandatory must be true or false, got 1"),
        ("rubrics: [{name: a, text: b, rule: opening_prase}]", "did you mean 'opening_praise'"),
        ("rubrics: [{name: a, text: b, rule: []}]", "unknown rule []"),
        ("rubrics: [{name: a, text: b, rule: opening_praise}]", "add mandatory: true"),
        ("rubrics: [{name: ' ', text: b}]", "needs a name"),
        ("rubrics: [{name: a, text: b}, {name: a, text: c}]", "rubric 'a' is given twice"),
        ("rubrics: [{name: a, text: b, text: c}]", "the key 'text' is given twice"),
        ("a: &a [x]\nrubrics: [*a, *a]", "alias *a: write the value out"),
        ("rubrics: [", "not readable as YAML"),
        ("rubrics: " + "[" * 5000, "nested too deep"),
        ("rubrics: [{name: a, text: 2024-13-45}]", "not readable as YAML"),
        ("rubrics: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("rubrics: [{? [a] : b}]", "not readable as YAML"),
        ("#" * (1 << 19), "larger than"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as raised:
        read_rubrics(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.yaml", b"\x00\x01\xff\xfe", "not text in UTF-8"),
        ("a.yaml", b"rubrics: \x00", "not readable as YAML"),
        ("a.toml", b"rubrics = [", "not readable as TOML"),
        ("a.json", b"{}", "a rubric file ends in"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, data, said):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError) as raised:
        read_rubrics(path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_no_such_file(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path / "a.yaml" / "b.yaml", Path("a\0.yaml")):
        with pytest.raises(ValueError, match="cannot read rubric file"):
            read_rubrics(path)
    tmp_path.joinpath("folder.yaml").mkdir()
    with pytest.raises(ValueError, match="cannot read rubric file"):
        read_rubrics(tmp_path / "folder.yaml")


def test_an_unknown_name_says_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no rubric file 'tyny'.*did you mean 'tiny'.*known: k2"):
        open_rubrics(["tyny"], SHIPPED)
    with pytest.raises(ValueError, match="known: none"):
        open_rubrics(["k2"], tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path):
    written(tmp_path, ONE, "one.yaml")
    written(tmp_path, ONE, "two.yaml")
    with pytest.raises(ValueError, match=r"two.yaml: rubric 'clarity'.*one.yaml: rename one"):
        open_rubrics(["one", "two"], tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        open_rubrics(["one", "one"], tmp_path)
