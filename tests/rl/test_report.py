"""The report of run folders that a full disk, a kill or a way back has left in another state."""

import json
import re
from pathlib import Path

import pytest

from rl.report import write_report
from rl.run_folder import RunFolder


def _run(root: Path, *, rows: int, samples: int) -> RunFolder:
    """So many steps in `metrics.jsonl`, and the samples of so many."""
    folder = RunFolder(root)
    folder.samples.mkdir(parents=True)
    lines = [json.dumps({"step": step, "reward/mean": 0.5}) for step in range(1, rows + 1)]
    folder.metrics.write_text("\n".join(lines) + "\n")
    for step in range(1, samples + 1):
        (folder.samples / f"step_{step:05d}.jsonl").write_text(_sample(step, 1) + _sample(step, 2))
    return folder


def _sample(step: int, number: int) -> str:
    words = {"prompt": "?", "response": f"answer {step}.{number}", "why": ""}
    return json.dumps({**words, "score": 1.0, "parts": {"math": 1.0}}) + "\n"


def _shown(folder: RunFolder) -> tuple[list[str], list[str]]:
    """The files and the responses of samples in the report."""
    write_report(folder)
    page = folder.report.read_text()
    return re.findall(r"<summary>(step \d+)", page), re.findall(r"answer [\d.]+", page)


@pytest.mark.parametrize("cut", ['{"prompt": "?", "resp', "\0\0\0\0", "\xff\xfe"])
def test_samples_are_shown_until_the_line_that_is_cut(tmp_path: Path, cut: str) -> None:
    folder = _run(tmp_path, rows=2, samples=2)
    (folder.samples / "step_00002.jsonl").write_bytes((_sample(2, 1) + cut).encode("latin-1"))
    assert _shown(folder)[1] == ["answer 1.1", "answer 1.2", "answer 2.1"]


def test_samples_of_steps_that_were_given_up_are_not_shown(tmp_path: Path) -> None:
    folder = _run(tmp_path, rows=20, samples=40)
    assert _shown(folder) == (
        ["step 00001", "step 00020"],
        ["answer 1.1", "answer 1.2", "answer 20.1", "answer 20.2"],
    )


def test_the_last_samples_are_those_of_the_last_step(tmp_path: Path) -> None:
    folder = _run(tmp_path, rows=2, samples=1)
    folder.metrics.write_text('{"step": 100000}\n')
    for step in (99999, 100000):
        (folder.samples / f"step_{step:05d}.jsonl").write_text(_sample(step, 1))
    (folder.samples / "step_mine.jsonl").write_text("not of the run")
    assert _shown(folder)[0] == ["step 00001", "step 100000"]
