import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import idle_batch, micro_batches, pack, shares_of
from rl.sample import Sample, samples_of, supervised_sample
from rollout.episode import Completion, Episode, Group, StopReason


def _group(rewards: list[float]) -> Group:
    task = Task(
        id="t/0",
        kind=TaskKind.math,
        messages=(Message(role="user", content="1+1"),),
        reference="2",
        token_budget=8,
    )
    episodes = [
        Episode(
            completion=Completion(
                prompt_ids=[5, 6],
                token_ids=[7, 8 + i],
                logprobs=[-0.5, -0.25],
                versions=[3, 4],
                stop_reason=StopReason.stop,
                temperature=0.8,
            ),
            transcript=Transcript(
                messages=task.messages, response="2", response_tokens=2, truncated=False
            ),
            score=Score(total=reward),
        )
        for i, reward in enumerate(rewards)
    ]
    return Group(task=task, episodes=tuple(episodes))


def test_samples_hold_the_tokens_and_what_their_loss_needs() -> None:
    group = _group([1.0, 0.0])
    first, second = samples_of(group, [1.0, 0.0], oldest=4)
    assert first.completion is group.episodes[0].completion
    assert (first.advantage, second.advantage, first.oldest) == (0.5, -0.5, 4)
    assert (first.length, first.loss_tokens) == (4, 1)


def test_a_packed_sample_is_aligned_with_its_ids() -> None:
    batch = pack(samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=3))
    assert batch.ids.tolist() == [5, 6, 7, 8, 5, 6, 7, 9]
    assert batch.loss_mask.tolist() == [False, False, True, True] * 2
    assert batch.behaviour_logprobs.tolist() == [0.0, 0.0, -0.5, -0.25] * 2
    assert batch.versions.tolist() == [-1, -1, 3, 4] * 2
    assert batch.advantages.tolist() == [0.5, -0.5]
    assert batch.temperatures.tolist() == pytest.approx([0.8, 0.8])
    assert (batch.lengths, batch.total_loss_tokens) == ([4, 4], 4)


def test_old_segments_are_context_and_still_count_in_the_mean() -> None:
    masks = [
        pack(samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=oldest)).loss_mask.tolist()
        for oldest in (4, 5)
    ]
    assert masks == [[False, False, False, True] * 2, [False] * 8]
    none, _ = samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=5)
    assert none.advantage == 0.5
    assert pack([none, none]).total_sequences == 2


@st.composite
def _sampled(draw: st.DrawFn) -> Sample:
    length = draw(st.integers(0, 6))
    numbers = st.integers(0, 163_839)
    completion = Completion(
        prompt_ids=draw(st.lists(numbers, min_size=1, max_size=4)),
        token_ids=draw(st.lists(numbers, min_size=length, max_size=length)),
        logprobs=draw(st.lists(st.floats(-9, 0, width=32), min_size=length, max_size=length)),
        versions=draw(st.lists(st.integers(0, 4), min_size=length, max_size=length)),
        stop_reason=StopReason.stop,
        temperature=draw(st.floats(0.5, 2, width=32)),
    )
    advantage = draw(st.floats(-2, 2, width=32))
    return Sample(completion=completion, oldest=draw(st.integers(0, 5)), advantage=advantage)


def _naive(samples: list[Sample]) -> dict[str, list[float]]:
    """Token by token, in lists."""
    columns: dict[str, list[float]] = {
        name: [] for name in ("ids", "loss_mask", "behaviour_logprobs", "versions")
    }
    for sample in samples:
        done = sample.completion
        for token in done.prompt_ids:
            for name, value in zip(columns, (int(token), False, 0.0, -1), strict=True):
                columns[name].append(value)
        for token, logprob, version in zip(
            done.token_ids, done.logprobs, done.versions, strict=True
        ):
            row = (int(token), version >= sample.oldest, float(logprob), version)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    return columns


@settings(deadline=None, max_examples=50)
@given(st.lists(_sampled(), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 12))
def test_pack_is_a_naive_one_however_it_is_shared_and_cut(
    samples: list[Sample], shards: int, most: int
) -> None:
    batch = pack(samples)
    assert {name: getattr(batch, name).tolist() for name in _naive(samples)} == _naive(samples)
    assert batch.advantages.tolist() == [s.advantage for s in samples]
    assert batch.temperatures.tolist() == [s.completion.temperature for s in samples]
    assert batch.total_loss_tokens == sum(_naive(samples)["loss_mask"])
    shares = [share for share in shares_of(batch, shards) if share]
    parts = [part for share in shares for part in micro_batches(share, most)]
    for part in parts:
        assert {n: getattr(part, n).tolist() for n in _naive([])} == _naive(list(part.samples))
        assert sum(part.lengths) <= most or len(part.lengths) == 1
        assert part.total_loss_tokens == batch.total_loss_tokens
    seen = [id(sample) for part in parts for sample in part.samples]
    assert sorted(seen) == sorted(map(id, samples))


def test_a_batch_travels_without_tensors() -> None:
    batch = pack(samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=3))
    before = len(pickle.dumps(batch))
    packed = batch.ids.tolist(), batch.versions.tolist()
    assert len(pickle.dumps(batch)) == before
    again = pickle.loads(pickle.dumps(batch))
    assert (again.ids.tolist(), again.versions.tolist()) == packed
    assert again.total_loss_tokens == 4


def test_pack_and_cut_keep_totals() -> None:
    samples = [
        supervised_sample([1, 2], [3]),
        supervised_sample([4], [5, 6, 7]),
        supervised_sample([8], [9]),
    ]
    batch = pack(samples)
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert (batch.total_sequences, batch.total_loss_tokens) == (3, 5)
    assert batch.sequence_of_loss_tokens().tolist() == [0, 1, 1, 1, 2]
    parts = list(micro_batches(batch, 5))
    assert [p.lengths for p in parts] == [[3], [4], [2]] or [p.lengths for p in parts] == [
        [3],
        [4, 2],
    ]
    assert torch.cat([p.ids for p in parts]).tolist() == batch.ids.tolist()
    assert all((p.total_sequences, p.total_loss_tokens) == (3, 5) for p in parts)


def test_a_micro_batch_may_be_exactly_full() -> None:
    batch = pack([supervised_sample([1], [2, 3]), supervised_sample([1], [2, 3])])
    assert [p.lengths for p in micro_batches(batch, 6)] == [[3, 3]]


def test_a_sequence_longer_than_the_limit_goes_alone() -> None:
    batch = pack([supervised_sample([1], [2] * 9), supervised_sample([1], [2])])
    assert [p.lengths for p in micro_batches(batch, 4)] == [[10], [2]]


def test_first_token_in_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="first token"):
        pack([supervised_sample([], [1, 2])])
    later = Completion(
        prompt_ids=[],
        token_ids=[1, 2],
        logprobs=[-1.0, -1.0],
        versions=[2, 3],
        stop_reason=StopReason.stop,
        temperature=1.0,
    )
    assert pack([Sample(completion=later, oldest=3, advantage=0.0)]).total_loss_tokens == 1
    with pytest.raises(ValueError, match="no samples"):
        pack([])


def test_shares_are_disjoint_even_and_keep_the_totals() -> None:
    samples = [supervised_sample([i], list(range(n))) for i, n in enumerate([9, 1, 4, 4, 2])]
    batch = pack(samples)
    shares = shares_of(batch, 2)
    # Longest first, to the lighter shard: 10 | 5 + 5 | 3 to the second by a tie-break, then 2.
    assert [share.lengths for share in shares if share] == [[10, 3], [2, 5, 5]]
    ids = [share.ids.tolist() for share in shares if share]
    assert ids[0] == [0, *range(9), 4, 0, 1]
    for share in shares:
        assert share is not None
        assert (share.total_sequences, share.total_loss_tokens) == (5, 20)
    assert shares_of(batch, 1)[0] is batch


def test_a_shard_without_sequences_has_no_share() -> None:
    batch = pack([supervised_sample([1], [2])])
    first, *others = shares_of(batch, 3)
    assert first is not None and others == [None, None]
    assert not idle_batch().loss_mask.any()
