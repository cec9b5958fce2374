"""A judge's evaluation as one HTML page, with its plots and its worst mistakes to read."""

from jinja2 import Environment
from markupsafe import Markup

from rewards.preference.plots import BLUE, RED, Bar, Series, bar_plot, line_plot
from rewards.preference.report import Accuracy, JudgeReport

MOST_BARS = 40
PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ r.judge }} - Temper</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .8rem; font-size: 13px;
  background: #f6f6f6; padding: .5rem }
.loud { background: #fdeae6; border-left: 4px solid #b3412a; padding: .4rem .8rem; margin: .4rem 0 }
.plots { display: flex; flex-wrap: wrap; gap: 1rem }
details { margin: .6rem 0 } h3 { margin: .6rem 0 .2rem; font-size: 15px }
</style></head><body>
<h1>{{ r.judge }}</h1>
<p>{{ r.data }}: {{ r.read }} rows of shape {{ r.shape.value }}, {{ r.judged }} judged.</p>
{% for warning in r.warnings %}<p class="loud">{{ warning }}</p>{% endfor %}
<h2>Accuracy</h2>
<p>Counts {{ r.counts }}; bootstrap intervals over rows.</p>
<table><tr><th>rows</th><th>accuracy</th><th>right</th><th>wrong</th><th>ties</th>
<th>ties as wrong (Wilson)</th></tr>
{% for name, a in accuracies %}
<tr><td>{{ name }} ({{ a.rows }})</td><td>{{ percent(a.accuracy) }}</td><td>{{ a.right }}</td>
<td>{{ a.wrong }}</td><td>{{ a.ties }}</td><td>{{ a.ties_wrong }}</td></tr>
{% endfor %}</table>
{% if r.published %}<p><b>{{ r.published.name }}: {{ "%.2f" % (100 * r.published.value) }} %</b>
({{ r.published.rule }}){% for name, value in r.published.parts.items() %}; {{ name }}
{{ "%.2f" % (100 * value) }} %{% endfor %}</p>{% endif %}
<div class="plots">{% for plot in plots %}{{ plot }}{% endfor %}</div>
{% if r.best_of_n %}
<h2>Best of {{ r.best_of_n.n }}</h2>
<table><tr><td>pass@1</td><td>{{ percent(r.best_of_n.pass_at_1) }}</td></tr>
<tr><td>RM@{{ r.best_of_n.n }}</td><td>{{ percent(r.best_of_n.rm_at_n) }}; first of equal scores
{{ "%.1f" % (100 * r.best_of_n.rm_at_n_first) }} %, {{ r.best_of_n.tied_rows }} rows tied</td></tr>
<tr><td>pass@{{ r.best_of_n.n }}</td><td>{{ percent(r.best_of_n.pass_at_n) }}</td></tr>
{% if r.best_of_n.majority is not none %}
<tr><td>majority</td><td>{{ "%.1f" % (100 * r.best_of_n.majority) }} %</td></tr>
<tr><td>weighted majority</td>
<td>{{ "%.1f" % (100 * r.best_of_n.weighted_majority) }} %</td></tr>{% endif %}</table>
{% endif %}
{% if r.scored %}<h2>Against graded quality</h2><p>{{ r.scored.responses }} responses;
Pearson {{ number(r.scored.pearson) }}, Spearman {{ number(r.scored.spearman) }}, area under the
curve {{ number(r.scored.area_under_curve) }}</p>{% endif %}
<h2>Calibration</h2>
{% for name, c in calibrations %}<p>{{ name }}: ECE {{ number(c.ece) }}, Brier
{{ number(c.brier) }}</p>{% endfor %}
<h2>Length and position</h2>
<table>
<tr><td>the better answer is the longer</td><td>{{ r.length.good_longer }}</td></tr>
<tr><td>the judge prefers the longer</td>
<td>{{ "%.1f" % (100 * r.length.prefers_longer) }} %;
excess {{ percent(r.length.excess) }}</td></tr>
<tr><td>right where the better is longer</td><td>{{ r.length.right_if_good_longer }}</td></tr>
<tr><td>right where the better is shorter</td><td>{{ r.length.right_if_good_shorter }}</td></tr>
{% if r.position %}
<tr><td>the better answer is on side A</td><td>{{ r.position.good_on_a }}</td></tr>
<tr><td>the judge says A</td><td>{{ r.position.says_a }}</td></tr>
<tr><td>right where the better is on side A</td><td>{{ r.position.right_if_good_on_a }}</td></tr>
<tr><td>right where the better is on side B</td><td>{{ r.position.right_if_good_on_b }}</td></tr>
{% endif %}
{% if r.orders %}
<tr><td>same verdict in both orders</td><td>{{ r.orders.consistent }}</td></tr>
<tr><td>picks the answer shown first</td><td>{{ r.orders.picks_first_shown }}</td></tr>
{% endif %}</table>
<h2>Problems</h2>
{% for p in r.problems %}
<details><summary>{{ p.count }} x {{ p.kind.value }}</summary><table>
{% for e in p.examples %}<tr><td>line {{ e.line }}</td><td>{{ e.id }}</td><td>{{ e.why }}</td></tr>
{% endfor %}</table></details>
{% else %}<p>None.</p>{% endfor %}
<h2>Worst disagreements</h2>
{% for w in r.worst %}
<details {% if loop.first %}open{% endif %}><summary>line {{ w.line }}, {{ w.id }} {{ w.subset }}:
margin {{ "%.4g" % w.margin }}</summary>
<h3>Prompt</h3><pre>{{ w.prompt }}</pre>
<h3>The better answer, by the label</h3><pre>{{ w.good }}</pre>
<h3>What the judge prefers</h3><pre>{{ w.bad }}</pre>
{% if w.words %}<h3>The judge's words</h3><pre>{{ w.words }}</pre>{% endif %}</details>
{% else %}<p>None: the judge is never wrong.</p>{% endfor %}
</body></html>
"""
)


def render_page(report: JudgeReport) -> str:
    """The page. Every text of the data and of the judge is escaped."""
    fits = [report.calibration, report.calibration_fitted]
    names = ["as given", "after fitting one slope to these rows"]
    calibrations = [
        (f"{name} (slope {fit.slope:.3g})", fit)
        for name, fit in zip(names, fits, strict=True)
        if fit is not None
    ]
    return PAGE.render(
        r=report,
        accuracies=_accuracies(report),
        plots=_plots(report),
        calibrations=calibrations,
        percent=lambda i: f"{100 * i.value:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]",
        number=lambda value: "-" if value is None else f"{value:.3f}",
    )


def _accuracies(report: JudgeReport) -> list[tuple[str, Accuracy]]:
    return [("all", report.overall), *((name or "-", a) for name, a in report.subsets.items())]


def _plots(report: JudgeReport) -> list[Markup]:
    made = []
    bars = [
        Bar(name, a.accuracy.value, a.accuracy.low, a.accuracy.high)
        for name, a in _accuracies(report)[:MOST_BARS]
        if a.rows
    ]
    if len(bars) > 1:
        made.append(bar_plot(bars))
    lines = []
    for name, colour, fit in (
        ("as given", BLUE, report.calibration),
        ("fitted slope", RED, report.calibration_fitted),
    ):
        if fit is not None:
            points = [(each.confidence, each.right) for each in fit.bins]
            most = max(each.count for each in fit.bins)
            sizes = [2 + 5 * (each.count / most) ** 0.5 for each in fit.bins]
            lines.append(Series(name, points, colour, sizes))
    if lines:
        made.append(
            line_plot(
                lines,
                x_label="confidence",
                y_label="share right",
                x_range=(0.5, 1.0),
                diagonal=True,
            )
        )
    if report.best_of_n is not None:
        curve = report.best_of_n.curve
        made.append(
            line_plot(
                [
                    Series("RM@k", [(p.k, p.rm_at_k) for p in curve], BLUE),
                    Series("pass@k", [(p.k, p.pass_at_k) for p in curve], RED),
                ],
                x_label="k",
                y_label="share right",
                x_range=(1.0, float(curve[-1].k)),
            )
        )
    return made
