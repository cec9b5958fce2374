"""A verifier as a judge: rows of preference data need a "reference"."""

from rewards.preference.judges import Judge, Question, VerifierJudge
from rewards.preference.records import prompt_text
from rewards.rows import Row
from rewards.scoring_worker import make_scorer
from rewards.task import TaskKind
from rl.errors import BadInput
from rl.verify import TIMEOUT_S, scorer_spec


def open_verifier(kind: str) -> Judge:
    """The verifier of a task kind, with the limits of `temper verify`.

    Raises:
        BadInput: a kind that has none.
        RewardError: code, where no sandbox can run.
    """
    if kind not in TIMEOUT_S:
        raise BadInput(f"--judge verifier:{kind}: known are math, code and instructions")
    score, close = make_scorer(scorer_spec(TaskKind(kind), None))

    def verify(question: Question, reference: str) -> float:
        (response,) = question.responses
        prompt = prompt_text(question.prompt)
        verdict = score(Row(response=response, reference=reference, prompt=prompt, record={}))
        assert verdict is not None, "a verifier applies to every row"
        return verdict.total

    return VerifierJudge(kind, verify, close)
