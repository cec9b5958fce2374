"""What a run with a critic refuses before anything is started."""

import asyncio
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from model.tiny import create_tiny
from rl.checkpoint import RunState
from rl.critic_baseline import Baseline
from rl.errors import BadInput
from rl.progress import Display
from rl.recipe import load_recipe, to_yaml
from rl.run_folder import RunFolder
from rl.save_checkpoint import Written, save_checkpoint
from rl.training import Training
from rollout.problem import DataError

OPEN_ONLY = "tasks.families=[{source: explanations, name: explanations}]"
NO_TESTS = "tasks.test_families=[]"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_tiny(folder, ["Tell me about 2 * 3 * 4. It is 24."] * 20, seed=0)
    return folder


def _training(
    start: Path, run: Path, *overrides: str, output: io.StringIO | None = None
) -> Training:
    given = (f"policy.path={start}", "sft=null", "wandb=disabled", f"run_dir={run}", *overrides)
    console = Console(file=output or io.StringIO(), width=400)
    return Training(load_recipe("self_critique", given), Display(console))


def test_the_recipe_is_accepted(start: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    training = _training(start, tmp_path / "run", output=output)
    assert training.critique is not None and training.baseline is None
    assert "max_age" not in output.getvalue()


def test_pairs_that_will_be_too_old_are_told_of(start: Path, tmp_path: Path) -> None:
    output = io.StringIO()
    _training(start, tmp_path / "run", "rollout.max_staleness=5", output=output)
    assert "max_age=4 with rollout.max_staleness=5" in output.getvalue()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.critic.token_budget=500"], "leave no room for answers"),
        ([OPEN_ONLY, NO_TESTS], "rubric rewards would be frozen for ever"),
        (
            ["rewards.critic.endpoint=http://x:port/v1", "rewards.critic.model=m"],
            "is no URL",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(
    start: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        _training(start, tmp_path / "run", *overrides)


def test_judgements_are_not_for_the_policy_to_answer(start: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="supervised_families"):
        _training(start, tmp_path / "run", "tasks.test_families=${tasks.supervised_families}")


@pytest.mark.parametrize("kept", [None, '{"answers": [', '{"answers": [], "pairs": []}'])
def test_a_run_goes_on_with_what_it_kept_of_the_start_or_says_so_at_once(
    start: Path, tmp_path: Path, kept: str | None
) -> None:
    folder = RunFolder(tmp_path / "run")
    config = load_recipe("self_critique", [f"policy.path={start}", f"run_dir={folder.root}"])
    folder.root.mkdir()
    folder.config.write_text(to_yaml(config))

    async def there() -> None:
        pass

    async def write(checkpoint: Path) -> Written:
        shutil.copytree(start, checkpoint / "model")
        return there

    state = RunState(step=0, rollout_tokens=0, train_seconds=0.0, eval_before={})
    asyncio.run(save_checkpoint(folder.checkpoints, state, write, keep=1))
    if kept is not None:
        folder.baseline.write_text(kept)
    if kept is None or kept.endswith("["):
        with pytest.raises(BadInput, match=r"baseline\.json cannot be read, start the run anew"):
            _training(start, folder.root, "resume=true")
    else:
        training = _training(start, folder.root, "resume=true")
        assert training.baseline == Baseline(answers=(), pairs=())
