"""A run as a person would rather see it: `reward.png` and `report.html`."""

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from jinja2 import Environment

from rl.errors import BadInput, writing
from rl.metrics import read_metrics
from rl.run_folder import RunFolder

SHOWN_SAMPLES = 24
Panel = tuple[str, tuple[str, ...]]
"""A title, and the metrics of its lines."""

PANELS: tuple[Panel, ...] = (
    ("reward (mean of a step)", ("reward/mean",)),
    ("tokens per second", ("rollout/tokens_per_s",)),
    ("staleness (versions)", ("staleness/mean",)),
    ("|log-prob: learner - recorded|", ("mismatch/abs_logprob",)),
    ("entropy (nats)", ("objective/entropy",)),
    ("largest attention logit", ("optim/max_logit",)),
)
CRITIC_PANELS: tuple[Panel, ...] = (
    ("critic: agreement, order consistency", ("critic/agreement", "critic/order_consistency")),
    ("critic tasks: reward", ("reward/critic",)),
    ("wins against the start: judged, true", ("critic/win_rate_start", "watched/win_rate_start")),
    ("length bias, position bias", ("critic/length_bias", "critic/position_bias")),
    ("calibration error of win rates", ("critic/ece",)),
    ("rubric rewards count (1) or are frozen (0)", ("critic/gate_open",)),
)
COLOURS = (("#9bb8d9", "#1f5fa8"), ("#e3b7a0", "#b0481a"))  # a value, its running mean
PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }} - Temper</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { font-variant-numeric: tabular-nums }
img { max-width: 100% } pre { white-space: pre-wrap; margin: 0; font-size: 13px }
.good { color: #176b2c } .bad { color: #a02020 }
details { margin: 1rem 0 }
</style></head><body>
<h1>{{ title }}</h1>
{% if summary %}
<p>{{ summary.steps }} steps in {{ "%.0f"|format(summary.wall_seconds) }} s,
{{ summary.rollout_tokens }} tokens generated ({{ "%.0f"|format(summary.tokens_per_second) }} a second).
Checkpoint: <code>{{ summary.checkpoint }}</code></p>
<h2>Held-out pass@1</h2>
<table><tr><th>tasks</th><th>before RL</th><th>after RL</th></tr>
{% for name, after in summary.eval_after.items() if name in summary.eval_before %}
<tr><td>{{ name }}</td><td class="number">{{ "%.3f"|format(summary.eval_before[name]) }}</td>
<td class="number">{{ "%.3f"|format(after) }}</td></tr>
{% endfor %}</table>
{% if "critic" in summary.eval_after %}<p>Open-ended families have no pass@1: the mean of what is
watched of them. <code>critic</code> is how often the critic agrees with the verifiers, and
<code>critic/start</code> the same over the pairs from before RL.</p>{% endif %}
{% else %}<p>The run has not ended: {{ steps }} steps so far.</p>{% endif %}
<img src="data:image/png;base64,{{ plot }}" alt="Reward and other metrics over steps">
{% if timeline %}<p>Which part did what, and when: open <code>{{ timeline }}</code> in
<a href="https://ui.perfetto.dev">ui.perfetto.dev</a>.</p>{% endif %}
{% if critic_plot %}<h2>The critic</h2>
<img src="data:image/png;base64,{{ critic_plot }}" alt="The critic's agreement, biases and gate">{% endif %}
<h2>Samples</h2>
{% for name, rows in samples %}
<details {% if loop.last %}open{% endif %}><summary>{{ name }}</summary>
<table><tr><th>prompt</th><th>response</th><th>score</th><th>parts</th><th>why</th></tr>
{% for row in rows %}
<tr><td><pre>{{ row.prompt }}</pre></td><td><pre>{{ row.response }}</pre></td>
<td class="{{ 'good' if row.score > 0 else 'bad' }}">{{ row.score }}</td>
<td>{% for part, value in row.parts.items() %}{{ part }}&nbsp;{{ "%.4g"|format(value) }}<br>{% endfor %}</td><td>{{ row.why }}</td></tr>
{% endfor %}</table></details>
{% endfor %}
<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{{ config }}</pre></details>
</body></html>
""")


def write_report(folder: RunFolder) -> None:
    """Draw `reward.png` and write `report.html` from what lies in the run folder.

    Raises:
        BadInput: the folder is no run, or holds no trained step.
        RunFailed: the disk refuses.
    """
    rows = read_metrics(folder.metrics)
    if not rows:
        raise BadInput(
            f"{folder.root} holds no metrics.jsonl with a trained step: nothing to report"
        )
    draw(rows, PANELS, folder.plot)
    has_critic = any("critic/gate_open" in row for row in rows)
    if has_critic:
        draw(rows, CRITIC_PANELS, folder.critic_plot)
    summary = json.loads(folder.summary.read_text()) if folder.summary.exists() else None
    files = _sample_files(folder, rows[-1]["step"])
    chosen = [files[0], files[-1]] if len(files) > 1 else files
    page = PAGE.render(
        title=folder.root.name,
        summary=summary,
        steps=len(rows),
        plot=base64.b64encode(folder.plot.read_bytes()).decode(),
        critic_plot=base64.b64encode(folder.critic_plot.read_bytes()).decode()
        if has_critic
        else "",
        samples=[(f.stem.replace("_", " "), _read_samples(f)) for f in chosen],
        timeline=folder.timeline if folder.timeline.exists() else None,
        config=folder.config.read_text() if folder.config.exists() else "",
    )
    with writing(folder.report, f"give `temper report {folder.root}`"):
        folder.report.write_text(page)


def _sample_files(folder: RunFolder, last: float) -> list[Path]:
    """Those until step `last`: the run has gone back before later ones, which are no longer its."""
    names = {each.stem.removeprefix("step_"): each for each in folder.samples.glob("step_*.jsonl")}
    files = {int(name): each for name, each in names.items() if name.isdecimal()}
    return [each for step, each in sorted(files.items()) if step <= last]


def _read_samples(path: Path) -> list[dict[str, object]]:
    """The first samples, until a line that a full disk or a kill has cut."""
    samples: list[dict[str, object]] = []
    with path.open("rb") as file, suppress(ValueError):
        for line in islice(file, SHOWN_SAMPLES):
            samples.append(json.loads(line))
    return samples


def _smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Mean over the last `window` values."""
    starts = (max(0, end - window) for end in range(1, len(values) + 1))
    return [sum(values[s:e]) / (e - s) for e, s in enumerate(starts, 1)]


def draw(rows: Sequence[Mapping[str, float]], panels: Sequence[Panel], path: Path) -> None:
    """Six panels over the steps, every line with a running mean of five values."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
    for (title, names), axis in zip(panels, axes.flat, strict=True):
        for name, (colour, mean) in zip(names, COLOURS, strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, color=colour, linewidth=1)
                axis.plot(steps, _smooth(values), color=mean, linewidth=2, label=name)
        if len(names) > 1 and axis.has_data():
            axis.legend(fontsize=8)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    with writing(path, f"give `temper report {path.parent}`"):
        figure.savefig(path, dpi=110)
    plt.close(figure)
