"""Profiling with a real engine: a tiny K2 as it is made, which solves nothing."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from model.tiny import create_tiny
from rewards.config import RewardsConfig
from rewards.task import Message, Task, TaskKind
from rl.difficulty import TaskProfile, Verdict
from rl.errors import BadInput, RunFailed
from rl.profile_files import ProfileFiles
from rl.profile_tasks import (
    GUESS_PROMPT,
    ProfileSettings,
    candidates,
    fits,
    guess_task,
    profile_tasks,
)
from rl.progress import Display
from rl.recipe import load_recipe
from rollout.config import FamilyConfig, Source, TasksConfig
from rollout.render import Renderer
from rollout.tasks import Split, TaskStream, corpus

SETTINGS = {"model": "m", "temperature": 1.0, "asked_samples": 2, "keep": [0.1, 0.9]}


def _profile(task: str) -> TaskProfile:
    return TaskProfile(
        task=task,
        family="sums",
        question="1+1?",
        correct=1,
        samples=2,
        mean_tokens=7.5,
        p80_correct_tokens=7,
        guesses=0,
        verdict=Verdict.kept,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_tiny(folder, corpus(load_recipe("quickstart", []).tasks, 500), seed=0)
    return folder


@pytest.mark.long
def test_a_run_from_tasks_to_tasks_and_again(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.jsonl"
    command = [
        sys.executable, "-W", "ignore", "-m", "rl.cli", "profile-tasks", "quickstart",
        f"policy.path={tiny}", "rollout.samples_per_group=4", f"--out={out}", "--tasks=9",
        "--samples=3", "--keep", "0", "1", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["tasks"], summary["kept"], summary["histogram"][0]) == (9, 9, 9)
    assert summary["families"]["all"]["all_wrong"] == 1.0
    assert set(summary["families"]) == {"all", "chain_sum", "products", "leg_counting", "programs"}
    rows = [
        json.loads(line)
        for line in (tmp_path / "chosen.profile.jsonl").read_text().split("\n")[:-1]
    ]
    assert {row["guesses"] for row in rows if row["family"] != "programs"} == {0}
    assert {row["guesses"] for row in rows if row["family"] == "programs"} == {None}
    assert (tmp_path / "chosen.profile.png").stat().st_size > 5000

    config = load_recipe("quickstart", [])
    stream = TaskStream(config.tasks, Split.train)
    family = FamilyConfig(source=Source.tasks, name="chosen", path=str(out))
    # What was trained on is not tested when the file takes the place of its families.
    again = TaskStream(TasksConfig(families=[family], seed=config.tasks.seed), Split.train)
    loaded = {again.at(position).messages: again.at(position) for position in range(9)}
    for position in range(9):
        task = stream.at(position)
        same = loaded[task.messages]
        assert (same.kind, same.reference, same.token_budget, same.solution, same.tags) == (
            task.kind, task.reference, 64, task.solution, ("chosen", *task.tags),
        )  # fmt: skip

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "9 tasks were measured before" in done.stderr
    assert json.loads(done.stdout) == summary


def test_a_guess_is_told_not_to_reason_and_has_no_room_to(tiny: Path) -> None:
    task = Task(
        id="sums/train/0",
        kind=TaskKind.math,
        messages=(Message(role="user", content="57 + 87?"),),
        reference="144",
        token_budget=64,
    )
    renderer = Renderer(tiny)
    bare = guess_task(task, renderer)
    assert bare.messages[-1].content == f"57 + 87?\n{GUESS_PROMPT}"
    enough = len(renderer.training_ids(task.messages, r"\boxed{144}")[1])
    reasoned = len(renderer.training_ids(task.messages, r"57+87: 7+7=14 \boxed{144}")[1])
    assert enough <= bare.token_budget < reasoned


def test_candidates_are_distinct_and_not_easy_to_hack(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Is {n} prime?", "ground_truth": "Yes"} for n in range(3)]
    rows += [{"prompt": f"{n}+1?", "ground_truth": str(n + 1)} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    family = FamilyConfig(source=Source.deepmath, name="rows", path=str(path))
    stream = TaskStream(TasksConfig(families=[family], held_out_percent=0), Split.train)
    chosen, dropped = candidates(stream, 20, lambda task: True)
    assert sorted(each.question for each in chosen) == [f"{n}+1?" for n in range(5)]
    assert dropped == [Verdict.true_or_false] * 3
    assert len(candidates(stream, 2, lambda task: True)[0]) == 2
    chosen, dropped = candidates(stream, 20, lambda task: "3+1" not in task.messages[-1].content)
    assert "3+1?" not in {each.question for each in chosen}
    assert sorted(dropped) == [Verdict.too_long] + [Verdict.true_or_false] * 3


def test_a_task_fits_only_with_the_question_to_guess_it(tiny: Path) -> None:
    renderer = Renderer(tiny)
    message = Message(role="user", content="57 + 87?")
    task = Task(id="t", kind=TaskKind.math, messages=(message,), reference="144", token_budget=8)
    bare = guess_task(task, renderer)
    asked = len(renderer.prompt_ids(bare.messages)) + bare.token_budget
    assert asked > len(renderer.prompt_ids(task.messages)) + task.token_budget
    assert fits(task, renderer, asked) and not fits(task, renderer, asked - 1)
    assert fits(replace(task, kind=TaskKind.code), renderer, asked - 1)


def test_rows_of_other_settings_are_refused_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    files = ProfileFiles(tmp_path / "chosen.jsonl")
    assert files.read(SETTINGS) == {}
    files.append(_profile("sums/train/0"), SETTINGS)
    with files.profile.open("a") as file:
        file.write('{"task": "sums/tr')
    assert files.read(SETTINGS) == {("sums/train/0", "1+1?"): _profile("sums/train/0")}
    files.append(_profile("sums/train/1"), SETTINGS)
    assert len(files.read(SETTINGS)) == 2
    with pytest.raises(BadInput, match="another model or other settings"):
        files.read({**SETTINGS, "temperature": 0.7})
    for other in (b'{"task": 3}\n', b"\xff\n"):
        files.profile.write_bytes(other)
        with pytest.raises(BadInput, match="is no profile"):
            files.read(SETTINGS)


def test_what_the_disk_refuses_is_told(tmp_path: Path) -> None:
    files = ProfileFiles(tmp_path / "chosen.jsonl")
    for path in (files.partial, files.profile):
        path.mkdir()
    with pytest.raises(BadInput, match=rf"cannot read {files.profile}: Is a directory"):
        files.read(SETTINGS)
    with pytest.raises(RunFailed, match=rf"cannot write {files.profile}: Is a directory.*again"):
        files.append(_profile("sums/train/0"), SETTINGS)
    with pytest.raises(RunFailed, match=rf"cannot write {files.tasks}: Is a directory.*again"):
        files.write([], [])
    files.partial.rmdir()
    files.plot.mkdir()
    with pytest.raises(RunFailed, match=rf"cannot write {files.plot}: Is a directory.*again"):
        files.write([], [_profile("sums/train/0")])


def test_a_plug_in_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = load_recipe("quickstart", [])
    config.rewards = RewardsConfig(mixture={"math": {f"{tmp_path}/none.py:f": 1.0}})
    settings = ProfileSettings(out=tmp_path / "tasks.jsonl")
    with pytest.raises(BadInput, match=r"none\.py:f: no such file"):
        profile_tasks(config, settings, Display(Console(file=io.StringIO())))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.jsonl", "a.partial", "a.profile.jsonl", "a.profile.png"])
def test_a_folder_in_the_way_is_told_before_anything_is_measured(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=rf"--out={tmp_path}/a\.jsonl: .*/{name} is a folder"):
        ProfileSettings(out=tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 0}, "--samples and --tasks must be at least 1"),
        ({"keep": (0.9, 0.1)}, r"--keep takes two pass rates in order, in \[0, 1\]"),
        ({"out": Path("tasks.json")}, r"--out must name a file that ends in \.jsonl"),
        ({"out": Path("nowhere/tasks.jsonl")}, "make its folder first"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ProfileSettings(**{"out": Path("tasks.jsonl"), **values})  # type: ignore[arg-type]
