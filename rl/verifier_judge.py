"""A verifier as a judge: rows of preference data need a "reference"."""

from rewards import instructions
from rewards.code_tests import CodeVerifier
from rewards.math_answer import MathVerifier
from rewards.preference.judges import Judge, Question, VerifierJudge
from rewards.preference.records import prompt_text
from rewards.sandbox_config import CodeConfig
from rewards.task import TaskKind
from rl.errors import BadInput


def open_verifier(kind: str) -> Judge:
    """The verifier of a task kind, with its default limits. Raises `BadInput` for others."""
    if kind == TaskKind.math:
        math = MathVerifier()
        return VerifierJudge(kind, lambda q, gold: math.verify(_text(q), gold).total, math.close)
    if kind == TaskKind.code:
        code = CodeVerifier(CodeConfig())
        return VerifierJudge(kind, lambda q, gold: code.verify(_text(q), gold).total, code.close)
    if kind == TaskKind.instructions:
        return VerifierJudge(
            kind,
            lambda q, gold: instructions.verify(_text(q), prompt_text(q.prompt), gold).total,
            lambda: None,
        )
    raise BadInput(f"--judge verifier:{kind}: known are math, code and instructions")


def _text(question: Question) -> str:
    return question.responses[0]
