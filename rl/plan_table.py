"""A plan for people to read."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rl.plan import Plan
from rl.plan_changes import Change


def print_plan(plan: Plan, changes: Sequence[Change], console: Console) -> None:
    """Tables of memory, traffic and time; then whether it fits, and what would make it fit."""
    title = Text(
        f"{plan.recipe} on {plan.hardware}: {plan.parameters:,} parameters, "
        f"{plan.active_parameters:,} active; {_devices(plan)}"
    )
    console.print(Group(title, _learner(plan), _engine(plan), _traffic(plan), _times(plan)))
    if plan.fits:
        console.print(
            f"fits: {_gb(plan.learner.total)} and {_gb(plan.engine.total)} of "
            f"{_gb(plan.device_bytes)} on learner and engine devices"
        )
        return
    console.print("does not fit:", style="bold")
    for problem in plan.problems:
        console.print(f"  {problem}", highlight=False)
    if not changes:
        console.print("  no single change of these settings is enough")
    for change in changes:
        console.print(
            f"  {change.override} is enough: {_gb(change.plan.learner.total)} a learner device, "
            f"{_gb(change.plan.engine.total)} an engine device, "
            f"{change.plan.times.step:,.0f} s a step",
            highlight=False,
        )


def plan_json(plan: Plan, changes: Sequence[Change]) -> str:
    """The same as one JSON object, in bytes and seconds, with the sums that the tables show."""
    content = asdict(plan)
    content |= {"fits": plan.fits, "problems": [str(problem) for problem in plan.problems]}
    content["learner"]["total"] = plan.learner.total
    content["learner"]["activations"]["total"] = plan.learner.activations.total
    content["engine"]["total"] = plan.engine.total
    content["traffic"]["muon_over_adamw"] = plan.traffic.muon_over_adamw
    content["times"] |= {"training": plan.times.training, "step": plan.times.step}
    content["changes_that_fit"] = [change.override for change in changes]
    return json.dumps(content)


def _devices(plan: Plan) -> str:
    if plan.devices == plan.learners == plan.engines:
        return f"{plan.devices} devices, which learner and engines use in turns"
    return f"{plan.learners} learner and {plan.engines} engine devices"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _rows(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _learner(plan: Plan) -> Table:
    memory = plan.learner
    live = memory.activations
    rows = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations from forward to backward", live.saved),
        ("weights cast for backward", live.copies),
        ("log-probs", live.head),
        ("or backward of one layer", live.layer),
        ("or, in the optimiser's step", memory.step_buffers),
        ("buckets of collectives", memory.buckets),
        ("weights on their way to engines", memory.transfer),
        ("reserved", memory.reserved),
        ("engines that sleep", memory.engines),
        ("relays of weights, on a host's first", memory.relays),
        ("total", memory.total),
        ("host, offloaded state", memory.host),
        ("host, the rest in the engines' turn", memory.away),
        ("host, all its devices: weights for engines", memory.shared),
        ("host, all its devices: copy of a checkpoint", memory.snapshot),
    ]
    return _rows("Learner device, memory", ((name, _gb(size)) for name, size in rows))


def _engine(plan: Plan) -> Table:
    memory = plan.engine
    rows = [
        ("weights", _gb(memory.weights)),
        ("KV cache", _gb(memory.kv_cache)),
        ("weights on their way", _gb(memory.transfer)),
        ("reserved", _gb(memory.reserved)),
        ("the learner that is away", _gb(memory.learner)),
        ("relays of weights, on a host's first", _gb(memory.relays)),
        ("total", _gb(memory.total)),
        ("host, the engine's copy of the weights", _gb(memory.shared)),
        ("host, all its engines: weights that others sent", _gb(memory.received)),
        ("KV cache of a token", f"{memory.kv_bytes_per_token:,} bytes"),
        ("tokens in the cache", f"{memory.cached_tokens:,}"),
    ]
    return _rows("Engine device, memory", rows)


def _traffic(plan: Plan) -> Table:
    moved = plan.traffic
    rows = [
        (f"gradients ({moved.micro_batches} micro-batches)", _gb(moved.gradients)),
        ("weights", _gb(moved.weights)),
        ("matrices to their owners and back", _gb(moved.muon)),
        ("tokens to their experts and back", _gb(moved.experts)),
        ("offloaded state", _gb(moved.offload)),
        ("MuonClip over AdamW (Moonlight: up to 1.25)", f"{moved.muon_over_adamw:.3f}"),
        ("publishing, whole model", _gb(moved.publish)),
    ]
    return _rows("Sent by a learner device in one optimiser step", rows)


def _times(plan: Plan) -> Table:
    took = plan.times
    rows = [
        ("forward and backward", took.compute),
        ("tokens to their experts", took.experts),
        ("gradients and weights", took.collectives),
        ("Newton-Schulz", took.newton_schulz),
        ("matrices to their owners", took.muon),
        ("offload", took.offload),
        ("training, together", took.training),
        ("rollout" + (", beside training" if took.overlapped else ""), took.rollout),
        ("publishing", took.publish),
        ("checking the digests of what came", took.verify),
        ("the learner's state to the host and back", took.turns),
        ("one step", took.step),
    ]
    table = _rows(
        f"Time of one step of {took.tokens:,} tokens (every sequence at its longest)",
        ((name, f"{seconds:,.2f} s") for name, seconds in rows),
    )
    if plan.dollars_per_step is not None:
        table.add_row("cost of a step", f"${plan.dollars_per_step:,.2f}")
    return table
