"""Checkpoints with sharp distributions, the learner's log-probs of them, and engines on them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model.load import load_k2, save_k2
from model.policy import Policy
from model.tiny import create_tiny

Reference = Callable[[Path, Sequence[Sequence[int]], torch.dtype, float], list[list[float]]]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one shape, with sharp distributions and a router bias that matters."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"checkpoint-{seed}") / "model"
        create_tiny(folder, ["one two three 1 + 2 = 3"], seed)
        model = load_k2(folder)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.data.normal_(0, 0.05, generator=generator)
        save_k2(model, folder, torch.float32, tokenizer_from=folder)
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Sequences of very different lengths, so that batches are ragged."""
    generator = torch.Generator().manual_seed(2)
    lengths = (2, 3, 7, 16, 17, 33, 40, 64, 65, 120, 5, 200)
    return [torch.randint(0, 504, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The learner's log-probs of every token after the first; computed in fp32.

    The weights are rounded to the engine's dtype first, as they are when they are sent.
    """

    def score(
        folder: Path, sequences: Sequence[Sequence[int]], dtype: torch.dtype, temperature: float
    ) -> list[list[float]]:
        model = load_k2(folder)
        for parameter in model.parameters():
            parameter.data.copy_(parameter.data.to(dtype))
        lengths = [len(sequence) for sequence in sequences]
        ids = torch.tensor([token for sequence in sequences for token in sequence])
        in_loss = torch.ones(len(ids), dtype=torch.bool)
        in_loss[torch.tensor([0, *lengths]).cumsum(0)[:-1]] = False
        with torch.no_grad():
            output = Policy(model)(ids, in_loss, lengths, torch.full((len(lengths),), temperature))
        return [part.tolist() for part in output.logprobs.split([n - 1 for n in lengths])]

    return score


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests of a module: an engine belongs to the loop that started it."""
    with asyncio.Runner() as runner:
        yield runner
