"""Weight updates to hosts that do not share this one's memory: the published files, as they are.

One group is one sending host and every receiving one (`rollout/receive_broadcast.py`); several
sending hosts have a group each, so that no weights travel between senders. What arrives are the
same files that engines of this host map, and the same digests verify them.
"""

import json
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.send_weights import WeightUpdate


class Link(Protocol):
    """The group, seen from its rank 0 (`rl.weight_link.Link`)."""

    def gather(self, mine: int) -> list[int]:
        """The number that each member brings, by rank."""
        ...

    def broadcast(self, data: Tensor) -> None:
        """These bytes [n] to all others."""
        ...


class Broadcaster:
    """Sends updates; the files stay mapped, since senders write the same ones again."""

    def __init__(self) -> None:
        """Map nothing yet."""
        self._maps: dict[str, tuple[int, Tensor]] = {}
        self._versions: dict[str, int] = {}  # in which each of them was last sent

    def send(self, update: WeightUpdate, link: Link) -> bool:
        """Bring an update to all receivers; only its changes, if all of them hold their base.

        Returns:
            Whether it was sent whole.

        Raises OSError if a file is not there, and what the link raises.
        """
        _, *held = link.gather(0)
        changes = update.changes
        whole = changes is None or changes.base is None or set(held) != {changes.base}
        files = update.files if whole or changes is None else changes.files
        data = [self._bytes_of(file) for file in files]
        header = {
            "version": update.version,
            "digests": update.digests,
            "num_bytes": update.num_bytes,
            "sizes": [len(each) for each in data],
            "base": None if whole or changes is None else changes.base,
        }
        encoded = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        length = torch.tensor([len(encoded)])
        for each in (length.view(torch.uint8), encoded, *data):
            link.broadcast(each)
        self._versions |= dict.fromkeys(files, update.version)
        for file in [f for f, last in self._versions.items() if last < update.version - 1]:
            del self._versions[file], self._maps[file]
        return whole

    def _bytes_of(self, file: str) -> Tensor:
        status = Path(file).stat()
        known = self._maps.get(file)
        if known is None or known[0] != status.st_ino or len(known[1]) != status.st_size:
            mapped = torch.from_file(file, shared=False, size=status.st_size, dtype=torch.uint8)
            known = self._maps[file] = (status.st_ino, mapped)
        return known[1]
