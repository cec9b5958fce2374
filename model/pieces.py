"""Where parameters lie: which run of which parameter is where in the flat tensors of the shards.

A sharding engine cuts parameters into flat tensors without regard to their shape. Muon needs whole
matrices. `matrices` says which shard orthogonalises which matrix, and from whom it gets the rest:
every matrix once in the whole job, and nothing moves that lies in one place already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of one parameter in the flat tensor of one shard."""

    parameter: str
    shape: tuple[int, ...]  # of the whole parameter: all experts, whoever holds them
    begin: int  # the run is [begin, end) of the flattened parameter
    end: int
    offset: int  # where it starts in the flat tensor

    @property
    def place(self) -> slice:
        """The run in the flat tensor."""
        return slice(self.offset, self.offset + self.end - self.begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of one matrix that one shard holds."""

    rank: int  # in the group of shards that the flat tensors belong to
    begin: int  # [begin, end) of the flattened matrix
    end: int
    offset: int  # in the flat tensor of `rank`

    @property
    def place(self) -> slice:
        """The part in the flat tensor."""
        return slice(self.offset, self.offset + self.end - self.begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix of the released checkpoint, and who updates it."""

    rows: int
    columns: int
    owner: int  # the rank that orthogonalises it
    shares: tuple[Share, ...]  # in order, without gaps

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrices:
    """Matrices of one shape that lie one after another in a flat tensor."""

    offset: int
    count: int
    rows: int
    columns: int


def is_matrix(parameter: str, shape: Sequence[int]) -> bool:
    """Whether Muon updates the parameter: all but gains, biases, embedding and head (spec 2.1)."""
    return len(shape) > 1 and not parameter.endswith(("embed_tokens.weight", "lm_head.weight"))


def matrix_shape(parameter: str, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the matrices in a parameter: every expert alone, gate and up apart."""
    stacked = 2 if parameter.endswith("experts.gate_up_proj") else 1
    return shape[-2] // stacked, shape[-1]


def matrices(pieces: Sequence[Sequence[Piece]]) -> list[Matrix]:
    """All matrices of a flat tensor, given the pieces of every rank of its group.

    The owner is the rank that holds the largest part; among equals, the one with the least work so
    far. Every rank computes the same list.

    Raises ValueError if a part of a matrix is nowhere.
    """
    holders: dict[str, list[tuple[int, Piece]]] = {}
    for rank, mine in enumerate(pieces):
        for piece in mine:
            holders.setdefault(piece.parameter, []).append((rank, piece))
    work = [0.0] * len(pieces)
    found = []
    for parameter, held in holders.items():
        rows, columns = matrix_shape(parameter, held[0][1].shape)
        for index, shares in _by_matrix(held, rows * columns):
            if sum(share.end - share.begin for share in shares) != rows * columns:
                raise ValueError(f"no shard holds all of matrix {index} of {parameter}")
            most = max(share.end - share.begin for share in shares)
            able = [share.rank for share in shares if share.end - share.begin == most]
            owner = min(able, key=lambda rank: (work[rank], rank))
            work[owner] += float(rows * columns * min(rows, columns))
            found.append(Matrix(rows=rows, columns=columns, owner=owner, shares=tuple(shares)))
    return found


def _by_matrix(held: Sequence[tuple[int, Piece]], size: int) -> Iterator[tuple[int, list[Share]]]:
    """The shares of every matrix of one parameter, in order."""
    shares: dict[int, list[Share]] = {}
    for rank, piece in held:
        for index in range(piece.begin // size, -(-piece.end // size)):
            begin, end = max(piece.begin, index * size), min(piece.end, (index + 1) * size)
            shares.setdefault(index, []).append(
                Share(
                    rank=rank,
                    begin=begin - index * size,
                    end=end - index * size,
                    offset=piece.offset + begin - piece.begin,
                )
            )
    for index in sorted(shares):
        yield index, sorted(shares[index], key=lambda share: share.begin)


def whole_runs(found: Sequence[Matrix], rank: int) -> list[Matrices]:
    """The matrices that lie on `rank` alone, neighbours of one shape together."""
    runs: list[Matrices] = []
    whole = (m.shares[0].offset for m in found if len(m.shares) == 1 and m.owner == rank)
    shapes = ((m.rows, m.columns) for m in found if len(m.shares) == 1 and m.owner == rank)
    for offset, (rows, columns) in sorted(zip(whole, shapes, strict=True)):
        last = runs[-1] if runs else None
        if (
            last is not None
            and (last.rows, last.columns) == (rows, columns)
            and offset == last.offset + last.count * rows * columns
        ):
            runs[-1] = Matrices(
                offset=last.offset, count=last.count + 1, rows=rows, columns=columns
            )
        else:
            runs.append(Matrices(offset=offset, count=1, rows=rows, columns=columns))
    return runs


def rounds(found: Sequence[Matrix], elements: int) -> Iterator[list[Matrix]]:
    """The matrices that lie on several ranks, in lists of about `elements`."""
    members: list[Matrix] = []
    total = 0
    for matrix in found:
        if len(matrix.shares) == 1:
            continue
        if members and total + matrix.size > elements:
            yield members
            members, total = [], 0
        members.append(matrix)
        total += matrix.size
    if members:
        yield members
