"""What differs between two versions of the same bytes, as few bytes, exactly.

Bytes are taken as 16-bit words, whatever the tensors' types: words are compared and replaced, never
computed with, so that applying changes gives the new version bit for bit. Words come in chunks of
65,536; each chunk is left out if equal, or stored as positions and values (few words changed), as
a bit per word and values, or whole (nearly all changed). `rollout/receive_changes.py` applies them.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 16  # words: a position within a chunk is one word
EQUAL, POSITIONS, BITS, WHOLE = range(4)


def changes(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> Mapping[str, Tensor]:
    """What makes `new` of `old` [bytes], of one length.

    Returns:
        `kinds` uint8 [chunks], `counts` int32 [chunks] of values, `positions` uint16, `bits` uint8
        and `values` uint16, those of all chunks one after another; `tail`, the last byte of an odd
        number of them.
    """
    even = len(new) // 2 * 2
    old_words, new_words = old[:even].view(np.uint16), new[:even].view(np.uint16)
    starts = range(0, len(new_words), CHUNK)
    kinds = np.full(len(starts), EQUAL, np.uint8)
    counts = np.zeros(len(starts), np.int32)
    positions: list[NDArray[np.uint16]] = []
    bits: list[NDArray[np.uint8]] = []
    values: list[NDArray[np.uint16]] = []
    for chunk, start in enumerate(starts):
        words = new_words[start : start + CHUNK]
        changed = old_words[start : start + CHUNK] != words
        count = int(np.count_nonzero(changed))
        if count == 0:
            continue
        kinds[chunk], counts[chunk] = kind_of(count, len(words)), count
        if kinds[chunk] == WHOLE:
            counts[chunk] = len(words)
            values.append(words)
            continue
        where = np.flatnonzero(changed)
        values.append(words[where])
        if kinds[chunk] == POSITIONS:
            positions.append(where.astype(np.uint16))
        else:
            bits.append(np.packbits(changed))
    return {
        "kinds": torch.from_numpy(kinds),
        "counts": torch.from_numpy(counts),
        "positions": joined(positions, np.uint16),
        "bits": joined(bits, np.uint8),
        "values": joined(values, np.uint16),
        "tail": torch.from_numpy(new[even:].copy()),
    }


def kind_of(count: int, words: int) -> int:
    """How to store `count` changed words of a chunk in the fewest bytes."""
    sizes = {POSITIONS: 4 * count, BITS: (words + 7) // 8 + 2 * count, WHOLE: 2 * words}
    return min(sizes, key=sizes.__getitem__)


def joined(parts: list[NDArray[np.uint16]] | list[NDArray[np.uint8]], dtype: type) -> Tensor:
    """One tensor of all parts."""
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype))
