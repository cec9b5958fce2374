"""What does the critic cost a step, beside the tokens that it generates?

The recipe `self_critique` at K = 8, a fifth of its prompts open-ended, from one supervised start
and without critic tasks: once with open-ended answers ranked by the critic, once with the same
answers rewarded by rule. The runs take turns. If the time of a step grew as its generated tokens
do, it would grow `expected` times. Keeps `benchmarks/data/critic_overhead.json`.

    python -m benchmarks.critic_overhead --start CHECKPOINT
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.machine import hardware

DATA = Path(__file__).resolve().parent / "data" / "critic_overhead.json"
WARM_UP_STEPS = 3  # not steady state
COMMON = (
    "sft=null",
    "wandb=disabled",
    "rollout.groups_per_step=15",
    "rollout.samples_per_group=8",
    "rewards.critic.partners=7",  # all pairs, in both orders
    "tasks.families.0.weight=4.0",  # of 5: a fifth is open-ended
    "rewards.calibration.share=0.0",
    "rewards.calibration.least_agreement=0.0",
    "rewards.calibration.pairs_per_step=0",
    "evaluation.tasks=16",
    "evaluation.samples=1",
)
BY_RULE = ("~rewards.mixture.open.rubric", "rewards.mixture.open.explanations=1.0")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians over the steady steps of all runs of one kind."""

    step_s: float
    rollout_tokens: float  # generated, of one step
    critic_tokens: float
    critic_prompt_tokens: float
    judgements: float


def run(start: Path, folder: Path, *, steps: int, critic: bool) -> list[dict[str, float]]:
    """The metrics of one run's steady steps."""
    overrides = [f"policy.path={start}", f"run_dir={folder}", f"steps={steps}", *COMMON]
    overrides += [] if critic else BY_RULE
    subprocess.run(
        [sys.executable, "-m", "rl.cli", "train", "self_critique", *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows[WARM_UP_STEPS:]


def cost(rows: list[dict[str, float]]) -> Cost:
    """Medians of some steps."""

    def middle(name: str) -> float:
        return median(row.get(name, 0.0) for row in rows)

    return Cost(
        step_s=middle("time/step"),
        rollout_tokens=middle("rollout/tokens"),
        critic_tokens=middle("critic/tokens"),
        critic_prompt_tokens=middle("critic/prompt_tokens"),
        judgements=middle("critic/judgements"),
    )


def main() -> None:
    """Run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="a supervised start")
    parser.add_argument("--runs", type=Path, default=Path("runs/critic_overhead"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(arguments.rounds):
        for critic in (False, True):
            folder = arguments.runs.absolute() / f"{number}-{'critic' if critic else 'rule'}"
            rows[critic] += run(
                arguments.start.absolute(), folder, steps=arguments.steps, critic=critic
            )
    rule, critic = cost(rows[False]), cost(rows[True])
    grew = critic.step_s / rule.step_s
    expected = 1 + critic.critic_tokens / rule.rollout_tokens
    content = {
        "hardware": hardware("cpu"),
        "by_rule": asdict(rule),
        "by_critic": asdict(critic),
        "grew": round(grew, 3),
        "expected": round(expected, 3),
    }
    DATA.write_text(json.dumps(content, indent=1) + "\n")
    for name, each in (("by rule", rule), ("by critic", critic)):
        print(
            f"{name:<10} {each.step_s:6.2f} s a step  {each.rollout_tokens:6.0f} rollout tokens  "
            f"{each.critic_tokens:6.0f} critic tokens  {each.judgements:4.0f} judgements"
        )
    print(f"the step grew {grew:.2f} times; its generated tokens {expected:.2f} times")


if __name__ == "__main__":
    main()
