import itertools
from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.k2 import K2
from model.shared_prefixes import shared_prefixes

GROUPS = [[7, 8, 9, 3], [7, 8, 9, 4, 5], [7, 8, 9, 4, 6], [7, 8], [20, 21, 3], [20, 21, 3]]


def test_a_prompt_is_computed_once() -> None:
    ids = torch.tensor([1, 2, 10, 11, 1, 2, 20, 1, 2, 30])
    sharing = shared_prefixes(ids, [4, 3, 3])
    assert sharing is not None
    assert sharing.kept.tolist() == [0, 1, 2, 3, 6, 9]
    assert sharing.of.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 5]


def test_the_same_token_after_a_difference_is_another() -> None:
    sharing = shared_prefixes(torch.tensor([1, 2, 3, 1, 9, 3]), [3, 3])
    assert sharing is not None
    assert sharing.kept.tolist() == [0, 1, 2, 4, 5]


def test_nothing_in_common_costs_nothing() -> None:
    assert shared_prefixes(torch.tensor([1, 2, 2, 1]), [2, 2]) is None
    assert shared_prefixes(torch.tensor([1, 1]), [2]) is None


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_places_are_one_exactly_if_all_tokens_up_to_them_are(sequences: list[list[int]]) -> None:
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    sharing = shared_prefixes(ids, [len(sequence) for sequence in sequences])
    if sharing is None:
        pairs = itertools.pairwise(sequences)
        assert all(a[0] != b[0] for a, b in pairs)
        return
    known: dict[int, list[int]] = {}
    of = iter(sharing.of.tolist())
    for sequence in sequences:
        for end in range(1, len(sequence) + 1):
            assert known.setdefault(next(of), sequence[:end]) == sequence[:end]
    for a, b in itertools.pairwise(sequences):
        assert a[0] != b[0] or len(known) < len(ids)


def test_hidden_states_logits_and_gradients_are_those_of_separate_sequences(
    make_small: Callable[..., K2],
) -> None:
    model = make_small().double()
    model.compute_dtype = torch.float64
    parts = [torch.tensor(sequence) for sequence in GROUPS]
    lengths = [len(part) for part in parts]
    together = model(torch.cat(parts), lengths)
    apart = [model(part, [len(part)]) for part in parts]
    torch.testing.assert_close(together.hidden, torch.cat([each.hidden for each in apart]))
    largest = torch.stack([each.max_logits for each in apart]).amax(0)
    torch.testing.assert_close(together.max_logits, largest)
    slope = torch.randn(together.hidden.shape, generator=torch.Generator().manual_seed(2)).double()
    parameters = list(model.parameters())
    found = torch.autograd.grad((together.hidden * slope).sum(), parameters, allow_unused=True)
    wanted = torch.autograd.grad(
        (torch.cat([each.hidden for each in apart]) * slope).sum(), parameters, allow_unused=True
    )
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_load_counts_a_shared_prompt_for_every_sample(make_small: Callable[..., K2]) -> None:
    small = make_small()
    together, apart = (K2(small.config, count_load=True) for _ in range(2))
    for each in (together, apart):
        each.load_state_dict(small.state_dict())
    parts = [torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6, 7, 9])]
    together(torch.cat(parts), [4, 4])
    for part in parts:
        apart(part, [4])
    assert together.load is not None and apart.load is not None
    assert together.load.sum(1).tolist() == [8 * 3, 8 * 3]
    assert torch.equal(together.load, apart.load)
