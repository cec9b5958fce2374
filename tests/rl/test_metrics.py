import json
from pathlib import Path

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import pack
from rl.metrics import group_metrics, staleness, write_samples
from rl.report import write_report
from rl.run_folder import RunFolder
from rl.sample import samples_of
from rollout.episode import Completion, Episode, Group, StopReason


def _episode(score: Score, stop: StopReason) -> Episode:
    return Episode(
        completion=Completion(
            prompt_ids=[1],
            token_ids=[2, 3],
            logprobs=[-1.0, -1.0],
            versions=[4, 4],
            stop_reason=stop,
            temperature=1.0,
        ),
        transcript=Transcript(
            messages=(), response="x", response_tokens=2, truncated=stop is StopReason.length
        ),
        score=score,
    )


def _groups() -> list[Group]:
    question = (Message(role="user", content="?"),)
    code = Task(
        id="programs/train/0",
        kind=TaskKind.code,
        messages=question,
        reference="{}",
        token_budget=8,
        tags=("programs",),
    )
    return [
        Group(
            task=code,
            episodes=(
                _episode(
                    Score(total=0.75, parts={"code": 0.5, "brief": 0.25}, why="1 of 2 tests"),
                    StopReason.stop,
                ),
                _episode(Score(total=-0.5, parts={"code": 1.0, "budget": -1.5}), StopReason.length),
                _episode(
                    Score(total=-0.5, parts={"code": 0.0, "repetition": -0.5}),
                    StopReason.repetition,
                ),
                _episode(Score(total=0.25, parts={"code": 0.25}), StopReason.stop),
            ),
        )
    ]


def test_every_part_has_its_mean_over_the_episodes_that_have_it() -> None:
    metrics = group_metrics(_groups())
    expected = {
        "reward/mean": 0.0,
        "reward/code": 0.4375,
        "reward/brief": 0.25,
        "reward/budget": -1.5,
        "reward/repetition": -0.5,
        "reward/family/programs": 0.0,
        "reward/mixed_groups": 1.0,
        "budget/over": 0.25,
        "budget/repeated": 0.25,
        "rollout/response_tokens": 2.0,
    }
    assert metrics == expected


def test_a_step_tells_of_masked_tokens_also_when_they_are_all() -> None:
    (group,) = _groups()
    some, none = (
        pack(samples_of(group, [0.0] * 4, oldest=oldest))
        for oldest in (4, 5)  # drawn with 4
    )
    assert staleness([some], 6) == {
        "staleness/mean": 2.0,
        "staleness/max": 2.0,
        "rollout/masked_tokens": 0.0,
    }
    assert staleness([none], 6) == {"rollout/masked_tokens": 8.0}
    assert staleness([], 6) == {}


def test_parts_and_reasons_reach_the_samples_and_the_report(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_samples(folder.samples, 1, _groups())
    rows = [json.loads(line) for line in (folder.samples / "step_00001.jsonl").open()]
    assert rows[0]["parts"] == {"code": 0.5, "brief": 0.25}
    assert rows[0]["why"] == "1 of 2 tests"
    assert [row["stopped"] for row in rows] == ["stop", "length", "repetition", "stop"]
    folder.metrics.write_text('{"step": 1, "reward/mean": 0.0}\n')
    write_report(folder)
    page = folder.report.read_text()
    assert "code&nbsp;0.5<br>brief&nbsp;0.25<br>" in page and "1 of 2 tests" in page
    assert "repetition&nbsp;-0.5<br>" in page
