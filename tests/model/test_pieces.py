"""Who orthogonalises what: literal layouts."""

import pytest

from model.pieces import (
    Matrices,
    Matrix,
    Piece,
    Share,
    is_matrix,
    matrices,
    matrix_shape,
    rounds,
    whole_runs,
)


def _piece(name: str, shape: tuple[int, ...], begin: int, end: int, offset: int) -> Piece:
    return Piece(parameter=name, shape=shape, begin=begin, end=end, offset=offset)


def test_muon_takes_matrices_but_not_embedding_and_head() -> None:
    assert is_matrix("model.layers.0.mlp.gate.weight", (8, 32))
    assert is_matrix("model.layers.1.mlp.experts.down_proj", (8, 32, 12))
    assert not is_matrix("model.norm.weight", (32,))
    assert not is_matrix("model.embed_tokens.weight", (48, 32))
    assert not is_matrix("lm_head.weight", (48, 32))


def test_experts_are_matrices_of_their_own() -> None:
    assert matrix_shape("a.experts.gate_up_proj", (8, 24, 32)) == (12, 32)
    assert matrix_shape("a.experts.down_proj", (8, 32, 12)) == (32, 12)
    assert matrix_shape("a.q_b_proj.weight", (80, 20)) == (80, 20)


def test_largest_part_decides_and_then_the_work() -> None:
    first = [_piece("a", (2, 3), 0, 6, 0), _piece("b", (4, 2), 0, 6, 6)]
    second = [_piece("b", (4, 2), 6, 8, 0), _piece("c", (2, 3), 0, 3, 2)]
    third = [_piece("c", (2, 3), 3, 6, 0)]
    found = matrices([first, second, third])
    assert [m.owner for m in found] == [0, 0, 1]  # c: halves, and rank 2 has as little work as 1
    assert found[1] == Matrix(
        rows=4,
        columns=2,
        owner=0,
        shares=(Share(rank=0, begin=0, end=6, offset=6), Share(rank=1, begin=6, end=8, offset=0)),
    )
    assert whole_runs(found, 0) == [Matrices(offset=0, count=1, rows=2, columns=3)]
    assert [len(members) for members in rounds(found, elements=10)] == [1, 1]
    assert [len(members) for members in rounds(found, elements=100)] == [2]


def test_among_equal_parts_whoever_has_less_work_owns() -> None:
    first = [_piece("a", (2, 4), 0, 4, 0), _piece("b", (2, 4), 0, 4, 4)]
    second = [_piece("a", (2, 4), 4, 8, 0), _piece("b", (2, 4), 4, 8, 4)]
    assert [m.owner for m in matrices([first, second])] == [0, 1]


def test_a_gap_ends_a_run() -> None:
    found = matrices([[_piece("a", (2, 4), 0, 8, 0), _piece("b", (2, 4), 0, 8, 20)]])
    assert whole_runs(found, 0) == [
        Matrices(offset=0, count=1, rows=2, columns=4),
        Matrices(offset=20, count=1, rows=2, columns=4),
    ]


def test_neighbours_of_one_shape_are_one_run() -> None:
    held = [_piece("m.experts.gate_up_proj", (3, 4, 5), 0, 60, 7), _piece("x", (2, 5), 0, 10, 67)]
    assert whole_runs(matrices([held]), 0) == [Matrices(offset=7, count=7, rows=2, columns=5)]


def test_cut_experts_split_only_where_the_border_is() -> None:
    """Three experts of two 2 x 5 matrices over two ranks: the border falls between matrices."""
    shape = (3, 4, 5)
    found = matrices(
        [
            [_piece("e.experts.gate_up_proj", shape, 0, 30, 0)],
            [_piece("e.experts.gate_up_proj", shape, 30, 60, 0)],
        ]
    )
    assert all(len(m.shares) == 1 for m in found)
    assert [m.owner for m in found] == [0, 0, 0, 1, 1, 1]
    assert list(rounds(found, 10)) == []


def test_a_hole_is_reported() -> None:
    with pytest.raises(ValueError, match="no shard holds all of matrix 0 of a"):
        matrices([[_piece("a", (2, 3), 0, 4, 0)]])
