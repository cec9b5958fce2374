"""Which experts an engine chose for every token, for the learner to use the same.

On GPU vLLM returns them itself (its Model Runner V2). On CPU it does not: there `Recorder` gives
them to its model runner. vLLM's own scheduler asks for those of every token once, and hands them to
the output of the request.

They are those that a token was first computed with, as its log-prob is. New weights and preemption
make an engine compute tokens again, perhaps with other experts: nobody asks for these.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.unsignedinteger]  # [tokens, layers, experts per token]

RECORDER = "rollout.routing.RecordsRouting"  # as vLLM's `worker_extension_cls` is told
ASKER = "rollout.receive_cpu.RoutingScheduler"  # as its `scheduler_cls` is
REPLAYED = ("deepseek_v3", "kimi_k2", "kimi_k25")  # model types whose learner can follow


def dense_layers(checkpoint: str | Path) -> int:
    """Layers without experts, which are the first ones.

    Raises ValueError if the checkpoint is no mixture of experts that the learner can replay.
    """
    path = Path(checkpoint) / "config.json"
    settings = json.loads(path.read_text())
    if (kind := settings.get("model_type")) not in REPLAYED:
        raise ValueError(
            f"engine.routing_replay is for {', '.join(REPLAYED)}, and {path} is of "
            f"model_type={kind}: set it to false"
        )
    return settings.get("text_config", settings)["first_k_dense_replace"]


def returned(rows: Rows | None, dense: int | None) -> Rows | None:
    """What vLLM returned, without the layers that have no experts; `dense` None: not asked for."""
    return None if rows is None or dense is None else np.ascontiguousarray(rows[:, dense:])


def joined_routing(begun: Rows | None, piece: Rows | None) -> Rows | None:
    """Experts of what was drawn before, and of the piece that goes on after it.

    A piece brings the last token before it, which was not computed while that was the last one.
    """
    recorded = [rows for rows in (begun, piece) if rows is not None]
    return np.concatenate(recorded) if recorded else None


class RequestRows(NamedTuple):
    """Experts of consecutive tokens of a request, under the names that vLLM's scheduler reads."""

    token_start: int
    rows: Rows


class RecordsRouting:
    """Mixed into vLLM's CPU worker."""

    model_runner: Any

    def record_routing(self) -> None:
        """Begin; before the first request."""
        Recorder(self.model_runner)


class Recorder:
    """Every token's experts lie in a slot of the same number as its keys and values.

    So requests need no books: a prefix that many share or that an earlier request left, preemption
    and aborts are the cache's business. The memory is that of the cache's tokens, for K2 1 KB each
    where keys and values take 70.
    """

    def __init__(self, runner: Any) -> None:
        """Listen to the routers of vLLM's CPU model runner, and add to what it returns."""
        model = runner.vllm_config.model_config
        experts = model.get_num_experts()
        shape = (model.get_total_num_hidden_layers(), model.get_num_experts_per_tok())
        self._runner = runner
        (self._table,) = runner.input_batch.block_table.block_tables  # one kind of attention
        dtype = np.uint8 if experts <= 256 else np.uint16
        slots = runner.kv_cache_config.num_blocks * self._table.block_size
        self._kept = np.zeros((slots, *shape), dtype)
        self._step = np.zeros((runner.max_num_tokens, *shape), dtype)
        self._ends = np.zeros(0, np.int32)  # tokens of each request after this step
        self._asked: dict[str, int] = {}  # request -> first token that is not returned yet
        self._heard = 0  # layers in this step
        self._layers = self._listen()
        self._execute, self._sample = runner.execute_model, runner.sample_tokens
        runner.execute_model, runner.sample_tokens = self.execute_model, self.sample_tokens

    def execute_model(self, scheduled: Any, *rest: Any) -> Any:
        """The runner's, then the step's experts into their slots.

        Raises RuntimeError if a layer's router was not heard.
        """
        self._heard = 0
        result = self._execute(scheduled, *rest)
        if scheduled.total_num_scheduled_tokens:
            if self._heard != self._layers:
                raise RuntimeError(f"{self._heard} of {self._layers} routers told their experts")
            self._keep(scheduled)
        return result

    def sample_tokens(self, *args: Any) -> Any:
        """The runner's, with the experts that the scheduler has asked for."""
        output = self._sample(*args)
        output.aux_output_connector_output = {
            request: self._rows_of(place, self._asked[request])
            for place, request in enumerate(output.req_ids)
            if output.sampled_token_ids[place]
        }
        return output

    def _keep(self, scheduled: Any) -> None:
        batch = self._runner.input_batch
        counts = np.array([scheduled.num_scheduled_tokens[name] for name in batch.req_ids])
        starts = batch.num_computed_tokens_cpu[: len(counts)]
        self._ends = starts + counts
        self._asked = scheduled.aux_output_connector_metadata.requests
        total = int(counts.sum())
        positions = np.arange(total) + np.repeat(self._ends - counts.cumsum(), counts)
        requests = np.repeat(np.arange(len(counts)), counts)
        self._kept[self._slots(requests, positions)] = self._step[:total]

    def _rows_of(self, request: int, first: int) -> RequestRows:
        slots = self._slots(request, np.arange(first, self._ends[request]))
        return RequestRows(first, self._kept[slots])

    def _slots(self, requests: int | NDArray[np.int64], positions: NDArray[np.int64]) -> Any:
        size = self._table.block_size
        return self._table.block_table.np[requests, positions // size] * size + positions % size

    def _listen(self) -> int:
        """Have every router tell its choices; returns how many do."""
        heard = 0
        for module in self._runner.model.modules():
            router: Any = getattr(module, "router", None)
            if hasattr(router, "set_capture_fn"):
                router.set_capture_fn(self._writer(module.layer_id))
                heard += 1
        return heard

    def _writer(self, layer: int) -> Callable[[Any], None]:
        def write(chosen: Any) -> None:
            self._step[: len(chosen), layer] = chosen.numpy()
            self._heard += 1

        return write
