"""Serves the metrics of the last step to Prometheus, over HTTP."""

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rl.errors import BadInput

COUNTERS = {
    "temper_trained_steps": "Steps trained",
    "temper_trained_tokens": "Tokens generated for the steps trained",
    "temper_restarts": "Parts of the run that were started again",
}
ILLEGAL = re.compile(r"[^a-zA-Z0-9_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is. Totals count from its first start."""

    steps: int = 0
    tokens: int = 0
    restarts: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the last step


def legal_names(names: Iterable[str]) -> dict[str, str]:
    """A Prometheus name for each metric: "reward/mean" -> "temper_reward_mean".

    Names that differ in illegal characters alone are numbered: a name twice spoils the whole page.
    """
    legal: dict[str, str] = {}
    taken = {f"{name}{end}" for name in COUNTERS for end in ("", "_total")}
    for name in sorted(names):
        base = "temper_" + ILLEGAL.sub("_", name).strip("_")
        candidate, number = base, 1
        while candidate in taken:
            number += 1
            candidate = f"{base}_{number}"
        taken.add(candidate)
        legal[name] = candidate
    return legal


def check_port(port: int) -> None:
    """Raise `BadInput` if the metrics cannot be served on this port."""
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
    except OSError as error:
        raise _unusable(port, error) from error


def _unusable(port: int, error: OSError) -> BadInput:
    reason = error.strerror or error
    return BadInput(f"watch.metrics_port={port}: {reason}; choose another, or null")


class _Collector(Collector):
    """What a run has to say when it is asked."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.progress = Progress()

    def collect(self) -> Iterable[Metric]:
        progress = self.progress
        totals = (progress.steps, progress.tokens, progress.restarts)
        for (name, text), total in zip(COUNTERS.items(), totals, strict=True):
            counter = CounterMetricFamily(name, text, labels=["run"])
            counter.add_metric([self._run], total)
            yield counter
        for name, legal in legal_names(progress.metrics).items():
            gauge = GaugeMetricFamily(legal, f"{name} of the last step", labels=["run"])
            gauge.add_metric([self._run], progress.metrics[name])
            yield gauge


class MetricsServer:
    """Answers GET /metrics on all interfaces: numbers only, no text of tasks or of the policy."""

    def __init__(self, port: int, run: str) -> None:
        """Listen.

        Args:
            port: of TCP.
            run: the label `run` of every metric.

        Raises:
            BadInput: the port is in use, or may not be used.
        """
        self._collector = _Collector(run)
        registry = CollectorRegistry()
        registry.register(self._collector)
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise _unusable(port, error) from error

    def update(self, progress: Progress) -> None:
        """Answer this from now on."""
        self._collector.progress = progress

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
