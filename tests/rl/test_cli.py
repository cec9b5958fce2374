"""Bad input gets one message and exit code 2, before anything is started."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from model.tiny import create_tiny
from rl.cli import app, main
from rl.config import TrainConfig
from rl.recipe import load_recipe, to_yaml
from rl.run_folder import open_run

THREE = ("parallel.shards=3",)  # of 16 experts

HOLDER = """
import sys, time
from rl.config import TrainConfig
from rl.run_folder import open_run

with open_run(TrainConfig(run_dir=sys.argv[1])) as folder:
    folder.config.touch()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def temper(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> object:
    """Run the command in a folder of its own; its exit code, output and error output."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["temper", *arguments])
        try:
            main()
        except SystemExit as done:
            captured = capsys.readouterr()
            return int(done.code or 0), captured.out, captured.err
        raise AssertionError("the command did not end by exit")

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "quikstart"), "unknown recipe 'quikstart'; did you mean 'quickstart'?"),
        (("train", "quickstart", "stepz=3"), "unknown key 'stepz'; did you mean 'steps'?"),
        (("train", "quickstart", "resume=true"), "nothing to resume"),
        (("train", "quickstart", "policy.path=nowhere"), "policy.path=nowhere"),
        (("train", "quickstart", "tasks.families=[{name: chain_sun}]"), "'chain_sum'"),
        (
            ("train", "quickstart", "parallel.shards=3", "parallel.expert_parallel=3"),
            "parallel.expert_parallel=3 must divide the 16 routed experts",
        ),
        (
            ("train", "quickstart", "parallel.shards=3", "parallel.expert_parallel=2"),
            "parallel.expert_parallel=2 must divide parallel.shards=3",
        ),
        (
            ("train", "quickstart", "engine.max_model_len=100000"),
            "engine.max_model_len=100000 is longer than the context of the network",
        ),
        (("train", "quickstart", "parallel.weights=bfloat16"), "needs parallel.zero_stage=2 or 3"),
        (("train", "quickstart", "paralel.shards=2"), "did you mean 'parallel.shards'"),
        (("sft", "quickstart", "sft=null"), "no section sft"),
        (("report", "nowhere"), "nothing to report"),
        (("sft", "k2_full"), "recipe k2_full has no section sft"),
        (("export", "nowhere", "out"), "nowhere is no run folder"),
        (("evaluate", "nowhere"), "'nowhere' is neither a recipe nor a run folder"),
        (("evaluate", "."), "is no run folder: it has no config.yaml"),
        (("profile-tasks", "nowhere", "--out", "t.jsonl"), "neither a recipe nor a run folder"),
        (("train", "quickstart", "--dry-run", "tasks.families=[{name: chain_sun}]"), "'chain_sum'"),
        (("train", "quickstart", "--dry-run", "tasks.families=[]"), "tasks.families is empty"),
    ],
)
def test_bad_input_is_one_message(temper, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    code, _, error = temper(*arguments)
    assert code == 2
    assert message in error and "Traceback" not in error


def test_a_row_without_an_answer_names_file_line_and_key(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [{"question": "1+1?", "answer": "#### 2"}, {"question": "2+2?"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    family = f"tasks.families=[{{source: gsm8k, name: mine, path: {path}}}]"
    code, _, error = temper("train", "quickstart", family)
    assert code == 2
    assert str(path) in error and "line 2" in error and "'answer'" in error


def test_a_port_in_use_is_named(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    create_tiny(tmp_path / "tiny", ["text"], seed=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = temper(
            "train", "quickstart", "policy.path=tiny", f"cluster.dashboard_port={port}"
        )
    assert code == 2
    assert f"cluster.dashboard_port={port} is in use" in error


def test_a_foreign_folder_is_left_alone(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    code, _, error = temper("train", "quickstart", "run_dir=mine")
    assert code == 2 and "holds other files" in error
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_a_folder_that_another_process_has_a_run_in_is_left_alone(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for resume in ("false", "true"):
            code, _, error = temper("train", "quickstart", f"run_dir={run}", f"resume={resume}")
            assert code == 2
            assert f"process {holder.pid} has a run in" in error
        assert [path.name for path in run.iterdir()] == ["config.yaml"]
        holder.kill()
    for resume, folders in ((True, ["run"]), (False, ["run", "run.1"])):  # and once more, here
        with open_run(TrainConfig(run_dir=str(run), resume=resume)) as folder:
            folder.config.touch()
            folder.metrics.touch()
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders


def test_a_run_that_had_not_trained_is_not_kept_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for left in ([], [], ["notes.txt"], []):
        with open_run(TrainConfig(run_dir=str(run))) as folder:
            folder.config.touch()
            folder.start.mkdir()
        for name in left:
            (run / name).touch()
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["run", "run.1"]
    assert (tmp_path / "run.1" / "notes.txt").exists()


@pytest.mark.parametrize(
    "mistake",
    ["tasks.families=[{name: chain_sun}]", "policy.path=nowhere", "parallel.expert_parallel=3"],
)
def test_a_mistake_leaves_an_earlier_run_where_it_lies(
    temper, tmp_path: Path, mistake: str
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("steps: 3\n")
    for run, left in (("mine", ["mine"]), ("new", ["mine"])):
        code, _, error = temper("train", "quickstart", f"run_dir=runs/{run}", mistake, *THREE)
        assert code == 2, error
        folders = [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()]
        assert folders == left
    assert (tmp_path / "runs" / "mine" / "config.yaml").read_text() == "steps: 3\n"


def test_dry_run_prints_the_resolved_recipe(temper) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = temper("train", "quickstart", "steps=7", "--dry-run")
    assert code == 0 and "steps: 7" in out and "qk_clip_tau: 100.0" in out


def test_dry_run_as_json_is_one_document(temper) -> None:  # type: ignore[no-untyped-def]
    code, out, error = temper("train", "quickstart", "steps=7", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["fits"] and "steps: 7" in error


COMMANDS = {"train", "sft", "evaluate", "verify", "eval-reward", "report", "plan", "launch"}
COMMANDS |= {"export", "doctor", "profile-tasks"}


def test_every_command_of_the_house_is_there_and_teaches(temper) -> None:  # type: ignore[no-untyped-def]
    assert {command.name or command.callback.__name__ for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    } == COMMANDS
    for command in COMMANDS:
        code, out, _ = temper(command, "--help")
        assert code == 0 and f"temper {command} [OPTIONS]" in out


def test_launch_is_train_on_a_cluster(temper) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = temper("launch", "10.0.0.1:6379", "quickstart", "steps=7", "--dry-run")
    assert code == 0 and "ray_address: 10.0.0.1:6379" in out and "steps: 7" in out
    code, _, error = temper("launch", "auto", "quickstart", "cluster.ray_address=a:1", "--dry-run")
    assert code == 2 and "cluster.ray_address is given twice: CLUSTER is auto" in error
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        code, _, error = temper("launch", address, "quickstart", "sft=null", "wandb=disabled")
    assert code == 2 and f"cluster.ray_address={address} does not answer" in error


def test_a_run_is_not_evaluated_with_another_model(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(to_yaml(load_recipe("quickstart", [])))
    code, _, error = temper("evaluate", "mine", "policy.path=other")
    assert code == 2 and "of the run mine the last checkpoint is evaluated" in error


def test_dry_run_tells_of_files_that_a_run_would_miss(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "rows.jsonl"
    families = f"tasks.test_families=[{{source: gsm8k, name: words, path: {file}}}]"
    code, out, error = temper("train", "quickstart", "--dry-run", families)
    assert code == 0 and "steps:" in out
    assert f"would not start here: families[words].path={file}: cannot read" in error
    file.write_text('{"question": "1+1?", "answer": "2"}\n')
    code, _, error = temper("train", "quickstart", "--dry-run", families)
    assert code == 0 and f"{file}, line 1: key 'answer' has no gold" in error
    file.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    assert temper("train", "quickstart", "--dry-run", families)[2] == ""


def test_dry_run_loads_rewards_of_ones_own(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "style.py").write_text("def short(task, transcript)\n")
    mixture = f"rewards.mixture.math={{math: 1.0, {tmp_path}/style.py\\:short: 0.1}}"
    code, _, error = temper("train", "quickstart", "--dry-run", mixture)
    assert code == 2 and "style.py" in error


@pytest.mark.parametrize("command", [("plan",), ("train", "--dry-run")])
def test_what_does_not_fit_is_exit_code_1(temper, command: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    code, _, error = temper(*command, "k2_full", "parallel.offload=none")
    assert (code, error) == (1, "")


def test_another_architecture_is_refused_by_name(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "mamba"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba9", "hidden_size": 8}))
    code, _, error = temper("train", "quickstart", f"policy.path={folder}")
    assert code == 2
    assert "model_type mamba9 is not a causal language model" in error


def test_a_key_that_would_be_ignored_is_refused_by_name(temper, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    create_tiny(tmp_path / "tiny", ["1 + 1 = 2"] * 50, seed=0)
    file = tmp_path / "tiny" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_sinks": 4}))
    code, _, error = temper("train", "quickstart", f"policy.path={tmp_path / 'tiny'}")
    assert code == 2
    assert "config.json" in error and "attention_sinks" in error and "4" in error
