"""What programs may do, and what is left of them."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.code_tests import CodeVerifier
from rewards.errors import RewardError
from rewards.sandbox import Launch, Sandbox, check_sandbox
from rewards.sandbox_cgroup import Group, GroupLimits, GroupRoots, find_roots
from rewards.sandbox_config import CodeConfig
from rewards.sandbox_seccomp import sealed_file, seccomp_program

CONFIG = CodeConfig(timeout_s=1.0, memory_mb=128, disk_mb=8, processes=16)
SANDBOX = Sandbox(CONFIG)
ONE = json.dumps({"tests": ["assert f(2) == 4"]})


def _run(*command: str, **launch: object) -> tuple[int | None, str, str]:
    with SANDBOX.start(Launch(command=command, **launch)) as child:  # type: ignore[arg-type]
        assert child.wait(30.0)
        return child.exit_status(), child.stdout(100_000).decode(), child.complaint(10_000)


def _python(text: str, **launch: object) -> tuple[int | None, str, str]:
    return _run("{python}", "-I", "-S", "-c", text, **launch)


def test_says_what_it_runs_under() -> None:
    said = check_sandbox(CONFIG)
    assert said.startswith("bubblewrap, ")
    assert "seccomp" in said


def test_exit_status_output_and_input() -> None:
    assert _run("/bin/sh", "-c", "cat; echo oh >&2; exit 3", stdin=b"hello") == (3, "hello", "oh")


def test_files_are_private() -> None:
    assert _run("/bin/cat", "{work}/a", files={"a": b"content"}) == (0, "content", "")


def test_environment_is_empty_but_for_what_is_needed() -> None:
    os.environ["TEMPER_TEST_SECRET"] = "secret"
    try:
        _, printed, _ = _run("/usr/bin/env")
    finally:
        del os.environ["TEMPER_TEST_SECRET"]
    names = {line.partition("=")[0] for line in printed.splitlines()}
    assert names <= {"HOME", "LANG", "PATH", "PWD", "TMPDIR"}


def test_sees_only_itself_and_the_system() -> None:
    status, printed, _ = _python(
        "import json, os\n"
        "print(json.dumps([os.listdir('/'), os.listdir('/proc'), os.listdir('/tmp'),"
        " os.listdir('/proc/self/fd'), os.getuid(), os.uname().nodename]))"
    )
    assert status == 0
    root, processes, work, descriptors, user, host = json.loads(printed)
    assert not {"root", "home", "work", "var", "run", "sys", "mnt", "opt", "srv"} & set(root)
    assert sum(name.isdigit() for name in processes) <= 3
    assert (work, user, host) == ([], 1000, "sandbox")
    assert sorted(descriptors) == ["0", "1", "2", "3"]  # the last is the listing itself


def test_no_capabilities_and_no_new_privileges() -> None:
    _, printed, _ = _run("/bin/cat", "/proc/self/status")
    lines = dict(line.split(":\t") for line in printed.splitlines() if ":\t" in line)
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == ("2" if seccomp_program() else "0")


@pytest.mark.parametrize(
    "call",
    ["libc.ptrace(0, 0, 0, 0)", "libc.unshare(0x10000000)", "libc.syscall(321, 0, 0, 0)",
     "libc.syscall(298, 0, 0, 0, 0, 0)", "libc.syscall(323, 0)", "libc.syscall(435, 0, 0)",
     "libc.syscall(56, 0x10000011, 0, 0, 0, 0)", "libc.shmget(0, 4096, 0o1600)",
     "libc.socket(16, 3, 0)", "libc.socket(17, 3, 0)"],
)  # fmt: skip
def test_dangerous_calls_are_refused(call: str) -> None:
    _, printed, _ = _python(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"print({call}, ctypes.get_errno())"
    )
    result, error = printed.split()
    if seccomp_program():
        assert result == "-1"
        assert error in ("1", "38")  # EPERM, ENOSYS


def test_disk_is_bounded_everywhere() -> None:
    _, printed, _ = _python(
        "import os\nwritten = 0\n"
        "for folder in ('/tmp', '/dev/shm', '/', '/dev', '/usr', '/etc'):\n"
        "    for number in range(20):\n"
        "        try:\n"
        "            with open(f'{folder}/{number}', 'wb') as file:\n"
        "                written += file.write(bytes(1 << 20))\n"
        "        except OSError: pass\n"
        "print(written >> 20)"
    )
    assert 0 < int(printed) <= 2 * CONFIG.disk_mb


def test_memory_is_bounded() -> None:
    status, printed, _ = _python("x = bytearray(200 << 20); print(x[-1])")
    assert status != 0
    assert printed == ""


def test_memory_of_all_processes_together_is_bounded() -> None:
    text = (
        "import os\nfor _ in range(4):\n    if os.fork() == 0:\n        x = bytearray(60 << 20)\n"
        "        import time; time.sleep(0.5); os.write(1, b'whole '); os._exit(0)\n"
        "while True:\n    try: os.wait()\n    except ChildProcessError: break\n"
    )
    _, printed, _ = _python(text)
    if find_roots().memory is None:  # each process alone is bounded then
        assert printed.count("whole") == 4
    else:
        assert printed.count("whole") < 4


def test_processes_are_bounded() -> None:
    text = (
        "import os, time\nmade = 0\nfor _ in range(100):\n    try:\n        if os.fork() == 0:\n"
        "            time.sleep(1); os._exit(0)\n        made += 1\n    except OSError: break\n"
        "print(made, flush=True)\n"
    )
    status, printed, _ = _python(text)
    assert status != 0 or int(printed) <= CONFIG.processes


def test_processes_are_bounded_without_control_groups() -> None:
    sandbox = Sandbox(CONFIG)
    sandbox._groups = GroupRoots()
    text = (
        "import os, time\nfor number in range(120):\n    try:\n        if os.fork() == 0:\n"
        "            time.sleep(5); os._exit(0)\n    except OSError: break\n"
        "    time.sleep(0.01)\nprint('all', number)\n"
    )
    with sandbox.start(Launch(command=("{python}", "-I", "-S", "-c", text))) as child:
        assert child.wait(20.0)
        assert child.exit_status() is not None
        assert child.stdout(100) != b"all 119\n"


def test_cpu_time_is_bounded_and_named() -> None:
    status, _, _ = _run("/bin/sh", "-c", "while :; do :; done", cpu_s=1.0)
    assert status in (128 + 24, 128 + 9)


def test_stop_ends_every_process_and_removes_the_group() -> None:
    text = (
        "import os, time\nfor _ in range(3): os.fork()\n"
        "if os.getpid() != 1: os.setsid()\ntime.sleep(60)"
    )
    child = SANDBOX.start(Launch(command=("{python}", "-I", "-S", "-c", text)))
    assert child.namespace is not None
    pid = child.namespace.pid
    assert not child.wait(0.3)
    start = time.monotonic()
    child.stop()
    child.stop()  # once more does no harm
    assert time.monotonic() - start < 5.0
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    folders = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
    assert not [folder for folder in folders if f"/temper-{os.getpid()}-" in folder]


def test_no_descriptors_leak() -> None:
    _run("/bin/true")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        _run("/bin/true")
        _python("import os; os._exit(1)")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_works_in_threads() -> None:
    found: list[int | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(_run("/bin/true")[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 8


def test_a_command_that_does_not_exist_is_no_success() -> None:
    assert _run("/no/such/program")[0] != 0


def test_without_bubblewrap_it_refuses_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RewardError, match="apt-get install bubblewrap"):
        check_sandbox(CONFIG)
    with pytest.raises(RewardError, match="unsafe_run_without_sandbox"):
        CodeVerifier(CONFIG).verify("def f(n): return n * n", ONE)


def test_a_bubblewrap_that_fails_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho no permission to make namespaces >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RewardError, match="no permission to make namespaces"):
        check_sandbox(CONFIG)


def test_the_unsafe_mode_is_loud_and_still_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = CodeConfig(timeout_s=1.0, program_timeout_s=4.0, unsafe_run_without_sandbox=True)
    verifier = CodeVerifier(config)
    assert verifier.verify("def f(n): return n * n", ONE).total == 1.0
    assert verifier.verify("def f(n): return n", ONE).total == 0.0
    assert "WITHOUT a sandbox" in capsys.readouterr().err
    start = time.monotonic()
    assert verifier.verify("def f(n):\n    while True: pass", ONE).total == 0.0
    assert time.monotonic() - start < 10.0


def test_sealed_files_cannot_be_changed() -> None:
    descriptor = sealed_file("test", b"content")
    try:
        with pytest.raises(OSError):
            os.write(descriptor, b"other")
        with pytest.raises(OSError):
            os.ftruncate(descriptor, 0)
        assert os.read(descriptor, 100) == b"content"
    finally:
        os.close(descriptor)


def test_groups_of_version_2_are_written_as_the_kernel_reads_them(tmp_path: Path) -> None:
    roots = GroupRoots(memory=tmp_path, pids=tmp_path, cpu=tmp_path, version=2)
    group = Group(roots, GroupLimits(memory_bytes=1 << 20, processes=7))
    (folder,) = tmp_path.iterdir()
    assert (folder / "memory.max").read_text() == "1048576"
    assert (folder / "pids.max").read_text() == "7"
    assert (folder / "cpu.max").read_text() == "100000 100000"
    group.add(123)
    assert (folder / "cgroup.procs").read_text() == "123"


@pytest.mark.parametrize(
    ("key", "value"),
    [("timeout_s", 0.0), ("program_timeout_s", float("inf")), ("memory_mb", 1), ("processes", 0),
     ("disk_mb", 0), ("output_mb", 0), ("max_concurrent", -1), ("float_tolerance", -1.0)],
)  # fmt: skip
def test_config_refuses_what_cannot_hold(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        CodeConfig(**{key: value})  # type: ignore[arg-type]
