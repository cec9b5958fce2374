"""The child process of `rewards.math_answer`: compares answers by algebra, one request per line.

In: `{"gold": str, "answer": str}`. Out: `{"ready": true}` once, then for each request
`{"gold": bool}` (could it be read?) and, if so, `{"equal": bool}`. The parent kills a late process.
"""

import json
import logging
import resource
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

MEMORY_BYTES = 4 << 30  # of address space: an exploding power ends here, not with the machine


@lru_cache(maxsize=256)
def read(text: str) -> list[Any]:
    """What `text` may mean, as expressions; empty if it cannot be read.

    Timeouts of math-verify are off: they rest on signals, which work in a main thread only.
    """
    parsed = parse(rf"\boxed{{{text}}}", parsing_timeout=None)
    return parsed if any(not isinstance(item, str) for item in parsed) else []


def same(gold: str, answer: str) -> bool:
    """Whether the two are equal; False for an answer that cannot be read or compared."""
    try:
        candidates = read(answer)
        return bool(candidates) and bool(verify(read(gold), candidates, timeout_seconds=None))
    except Exception:  # the answer is untrusted, and sympy raises anything
        return False


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    out = sys.stdout
    sys.stdout = sys.stderr  # the pipe is ours alone, whatever a library prints
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    same(r"\frac{x}{2}", "0.5x")  # the first parse loads the grammar
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            known = bool(read(request["gold"]))
        except Exception:
            known = False
        print(json.dumps({"gold": known}), file=out, flush=True)
        if known:
            equal = same(request["gold"], request["answer"])
            print(json.dumps({"equal": equal}), file=out, flush=True)


if __name__ == "__main__":
    main()
