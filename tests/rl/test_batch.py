import pytest
import torch

from rewards.score import Score
from rewards.task import Message, Task, TaskKind, Transcript
from rl.batch import idle_batch, micro_batches, pack, share_of
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


def test_samples_align_every_list_with_the_ids() -> None:
    first, second = samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=3)
    assert first == Sample(
        ids=[5, 6, 7, 8],
        loss_mask=[False, False, True, True],
        behaviour_logprobs=[0.0, 0.0, -0.5, -0.25],
        versions=[-1, -1, 3, 4],
        advantage=0.5,
        temperature=0.8,
    )
    assert second.advantage == -0.5


def test_old_segments_are_context_and_still_count_in_the_mean() -> None:
    masks = [
        [sample.loss_mask for sample in samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=oldest)]
        for oldest in (4, 5)
    ]
    assert masks == [[[False, False, False, True]] * 2, [[False] * 4] * 2]
    none, _ = samples_of(_group([1.0, 0.0]), [1.0, 0.0], oldest=5)
    assert none.advantage == 0.5 and none.ids == [5, 6, 7, 8]
    assert pack([none, none]).total_sequences == 2


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


def test_a_sequence_longer_than_the_limit_goes_alone() -> None:
    batch = pack([supervised_sample([1], [2] * 9), supervised_sample([1], [2])])
    assert [p.lengths for p in micro_batches(batch, 4)] == [[10], [2]]


def test_first_token_in_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="first token"):
        pack([supervised_sample([], [1, 2])])
    with pytest.raises(ValueError, match="no samples"):
        pack([])


def test_shares_are_disjoint_even_and_keep_the_totals() -> None:
    samples = [supervised_sample([i], list(range(n))) for i, n in enumerate([9, 1, 4, 4, 2])]
    batch = pack(samples)
    shares = [share_of(batch, rank, 2) for rank in range(2)]
    # Longest first, to the lighter shard: 10 | 5 + 5 | 3 to the second by a tie-break, then 2.
    assert [share.lengths for share in shares if share] == [[10, 3], [2, 5, 5]]
    ids = [share.ids.tolist() for share in shares if share]
    assert ids[0] == [0, *range(9), 4, 0, 1]
    for share in shares:
        assert share is not None
        assert (share.total_sequences, share.total_loss_tokens) == (5, 20)
    assert share_of(batch, 0, 1) is batch


def test_a_shard_without_sequences_has_no_share() -> None:
    batch = pack([supervised_sample([1], [2])])
    assert share_of(batch, 0, 3) is not None and share_of(batch, 2, 3) is None
    assert not idle_batch().loss_mask.any()
