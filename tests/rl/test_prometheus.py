"""Metrics over real HTTP, read by Prometheus' own parser."""

import math
import socket
import threading
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from rl.errors import BadInput
from rl.prometheus import MetricsServer, Progress, check_port, legal_names

METRICS = {
    "reward/mean": 0.5,
    "reward/family/chain sum": 0.25,
    "reward/family/chain_sum": 0.75,
    "rollout/tokens": 12.0,
    "trained/steps": 1.0,
    "mismatch/kl": math.nan,
}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _get(port: int, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
        return answer.read().decode()


def _samples(text: str, parse=text_string_to_metric_families) -> dict[str, tuple[str, float]]:  # type: ignore[no-untyped-def]
    return {s.name: (s.labels["run"], s.value) for family in parse(text) for s in family.samples}


def test_the_last_step_and_the_totals_are_served(port: int) -> None:
    server = MetricsServer(port, "my run")
    try:
        assert _samples(_get(port))["temper_trained_steps_total"] == ("my run", 0)
        server.update(Progress(steps=7, tokens=900, restarts=2, metrics=METRICS))
        samples = _samples(_get(port))
        assert math.isnan(samples.pop("temper_mismatch_kl")[1])
        assert {name: value for name, (_, value) in samples.items()} == {
            "temper_trained_steps_total": 7,
            "temper_trained_tokens_total": 900,
            "temper_restarts_total": 2,
            "temper_reward_mean": 0.5,
            "temper_reward_family_chain_sum": 0.25,
            "temper_reward_family_chain_sum_2": 0.75,
            "temper_rollout_tokens": 12,
            "temper_trained_steps_2": 1,
        }
        assert {run for run, _ in samples.values()} == {"my run"}
        openly = _samples(_get(port, "application/openmetrics-text; version=1.0.0"), open_metrics)
        assert openly["temper_trained_steps_total"] == ("my run", 7)
    finally:
        server.close()


def test_nothing_listens_after_the_end(port: int) -> None:
    before = set(threading.enumerate())
    MetricsServer(port, "run").close()
    assert set(threading.enumerate()) == before
    with pytest.raises(OSError):
        _get(port)
    check_port(port)


def test_a_port_in_use_is_bad_input() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        for use in (check_port, lambda port: MetricsServer(port, "run")):
            with pytest.raises(BadInput, match=rf"watch\.metrics_port={number}: Address already"):
                use(number)


def test_names_are_legal() -> None:
    assert legal_names(["time/step", "watched/π-ratio", "a//b"]) == {
        "time/step": "temper_time_step",
        "watched/π-ratio": "temper_watched_ratio",
        "a//b": "temper_a_b",
    }
