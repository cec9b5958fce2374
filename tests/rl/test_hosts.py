"""Runs on two nodes of Ray: of two engines and two learner shards, where a relay and then a node
are killed; and of one engine with a rank on each node.

Both nodes are on this machine, with shared memory in common; to a run they are two hosts all the
same, and what the engine on the second has mapped shows which way its weights came.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rl.metrics import read_metrics
from rl.run_folder import RunFolder

TEMPER = [sys.executable, "-W", "ignore", "-m", "rl.cli"]
RAY = [sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "start", "--block"]
QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
# Ray remembers in ~/.ray whether clusters of this user have a token.
OPEN = {**os.environ, "RAY_AUTH_MODE": "disabled"}
PROCESSORS_AS_GPUS = {
    "PYTHONPATH": str(Path(__file__).parents[1] / "pretended"),
    "TEMPER_PRETENDS": "gpus",
}
STEPS = 30
SMALL = [
    "wandb=disabled",
    "sft=null",
    "tasks.families=[{name: products, options: {min_terms: 2, max_terms: 2, max_digits: 1}}]",
    "rollout.groups_per_step=4",
    "rollout.samples_per_group=4",
    "engine.kv_cache_bytes=33554432",
    "engine.max_model_len=128",
    "engine.max_num_seqs=16",
    "evaluation.tasks=4",
    "evaluation.samples=1",
    "cluster.rollout_workers=2",
    "parallel.shards=2",
    "parallel.zero_stage=2",
    f"steps={STEPS}",
]
SPANNING = [  # as K2's: learner and engine take turns on all devices of the cluster
    "cluster.placement=colocated",
    "cluster.rollout_workers=1",
    "engine.tensor_parallel_size=2",
    "weights.by_layer=true",
    "steps=12",
]
LEARNERS, RELAY, RANKS = "ray::LearnerWorker", "ray::WeightRelay", "ray::RayWorkerProc"


@dataclass
class TwoNodes:
    """A cluster that others have started."""

    address: str
    nodes: list[psutil.Popen]

    def of(self, node: int, pattern: str) -> list[psutil.Process]:
        """The processes of a node whose command line begins like `pattern`."""
        found = []
        for process in self.nodes[node].children(recursive=True):
            try:
                line = " ".join(process.cmdline()) or process.name()  # it can be blank for a while
                if re.match(pattern, line):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def gpus(request: pytest.FixtureRequest) -> int:
    """Of each node, as Ray counts them."""
    return getattr(request, "param", 0)


@pytest.fixture
def environment(gpus: int) -> dict[str, str]:
    return OPEN | (PROCESSORS_AS_GPUS if gpus else {})


@pytest.fixture
def cluster(gpus: int, environment: dict[str, str]) -> Iterator[TwoNodes]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # pytest's are too long for Ray's sockets
    port = _free_port()
    common = ["--num-cpus=4", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    common += ["--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--num-gpus={gpus}"]
    head = ["--head", f"--port={port}", "--include-dashboard=false"]
    head += [f"--ray-client-server-port={_free_port()}"]
    head += [f"--system-config={json.dumps(QUICK_TO_NOTICE)}"]
    nodes: list[psutil.Popen] = []

    def start(*arguments: str) -> None:
        command, file = [*RAY, *common, *arguments], folder / f"node{len(nodes)}.log"
        with file.open("w") as log:
            nodes.append(
                psutil.Popen(
                    command, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            )
        _wait(lambda: "runtime started" in file.read_text(), 180, file.name)

    try:
        start(*head)
        start(f"--address=127.0.0.1:{port}")
        yield TwoNodes(f"127.0.0.1:{port}", nodes)
    finally:
        for node in nodes:
            for process in [*node.children(recursive=True), node]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        psutil.wait_procs(nodes, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def running(
    cluster: TwoNodes, gpus: int, environment: dict[str, str], tmp_path: Path
) -> Iterator[tuple[psutil.Popen, RunFolder]]:
    folder = RunFolder(tmp_path / "run")
    driver = psutil.Popen(
        [*TEMPER, "launch", cluster.address, "quickstart", *SMALL, *(SPANNING if gpus else ()),
         f"run_dir={folder.root}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield driver, folder
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def _senders(engine: psutil.Process) -> set[int]:
    """The processes whose published files an engine's core has mapped."""
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    return {int(pid) for pid in re.findall(r"/temper-(\d+)-[0-9a-f]{16}/", maps)}


def _pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


def test_two_hosts_a_killed_relay_and_then_one_host(
    cluster: TwoNodes, running: tuple[psutil.Popen, RunFolder]
) -> None:
    driver, folder = running
    _wait(
        lambda: len(read_metrics(folder.metrics)) >= 2 or driver.poll() is not None,
        240,
        "two steps",
    )
    assert driver.poll() is None, driver.stdout.read()
    home = 0 if cluster.of(0, LEARNERS) else 1
    away = 1 - home
    assert len(cluster.of(home, LEARNERS)) == 2 and not cluster.of(away, LEARNERS)
    (near,), (far,) = (cluster.of(node, "VLLM") for node in (home, away))
    (relay,) = cluster.of(away, RELAY)
    assert _senders(near) == _pids(cluster.of(home, LEARNERS))
    assert _senders(far) == {relay.pid}
    relay.kill()
    _wait(lambda: bool(cluster.of(away, RELAY)), 120, "another relay")
    reached = len(read_metrics(folder.metrics))
    _wait(lambda: len(read_metrics(folder.metrics)) >= reached + 2, 120, "two more steps")
    (other,) = cluster.of(away, RELAY)
    assert other.pid != relay.pid and other.pid in _senders(far)
    assert far.is_running()
    (raylet,) = cluster.of(away, r"\S*raylet ")
    raylet.kill()
    reached = len(read_metrics(folder.metrics))
    assert driver.wait(timeout=240) == 0, driver.stdout.read()
    said = driver.stdout.read()
    assert re.search(r"rollout worker [01] was lost", said), said

    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and reached < STEPS
    first = [row["probe/max_abs_logprob"] for row in rows[:reached]]
    assert max(first) < 1e-3
    trained = []
    for step in range(1, STEPS + 1):
        lines = (folder.samples / f"step_{step:05d}.jsonl").read_text().splitlines()
        tasks = [json.loads(line)["task"] for line in lines]
        assert len(tasks) == 4 * 4 and len(set(tasks)) == 4
        trained += sorted(set(tasks))
    assert len(set(trained)) == len(trained), "no group is trained twice"
    summary = json.loads(folder.summary.read_text())
    assert summary["restarts"] >= 1 and summary["steps"] == STEPS
    assert _generated(folder) == {"rollout worker 0", "rollout worker 1"}


@pytest.mark.long
@pytest.mark.parametrize("gpus", [1], indirect=True)
def test_an_engine_with_a_rank_on_each_host(
    cluster: TwoNodes, running: tuple[psutil.Popen, RunFolder]
) -> None:
    """Each rank loads, layer by layer, what lies on its host: of the shard there, or received."""
    driver, folder = running

    def steps() -> int:
        return len(read_metrics(folder.metrics))

    def wait_for(step: int) -> None:
        _wait(lambda: steps() >= step or driver.poll() is not None, 240, f"step {step}")
        assert driver.poll() is None, driver.stdout.read()

    def check_maps() -> set[int]:
        ranks = set()
        for node in (0, 1):
            ((rank,), (shard,)) = (cluster.of(node, each) for each in (RANKS, LEARNERS))
            senders, relays = _senders(rank), _pids(cluster.of(node, RELAY))
            assert shard.pid in senders and senders - {shard.pid}
            assert senders - {shard.pid} <= relays
            ranks.add(rank.pid)
        return ranks

    wait_for(2)
    first = check_maps()
    for relay in cluster.of(1, RELAY):
        relay.kill()
    wait_for(steps() + 2)
    assert check_maps() == first
    (rank,) = cluster.of(1, RANKS)
    rank.kill()
    wait_for(steps() + 2)
    assert not check_maps() & first
    assert driver.wait(timeout=240) == 0, driver.stdout.read()
    assert "rollout worker 0 was lost" in driver.stdout.read()
    rows = read_metrics(folder.metrics)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert max(row.get("probe/max_abs_logprob", 0.0) for row in rows) < 1e-3
    assert sum("probe/max_abs_logprob" in row for row in rows) >= 10


def _generated(folder: RunFolder) -> set[str]:
    """The parts that have drawn samples, by the run's timeline."""
    events = json.loads(folder.timeline.read_text())
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    return {names[event["pid"]] for event in events if event["name"] == "generate"}
