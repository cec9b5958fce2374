"""Numbers drawn by hash: the same on every machine, whatever else is drawn."""

import hashlib
import random


def uniform(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    return wide_hash(str(seed), *words) / 2.0**64


def shuffled(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which epoch `epoch` visits `count` rows."""
    order = list(range(count))
    random.Random(wide_hash(str(seed), "order", str(epoch))).shuffle(order)
    return order


def wide_hash(*words: str) -> int:
    """64 bits of the words."""
    text = "\0".join(words).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
