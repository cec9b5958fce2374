import math

import torch

from rl.mismatch import LAGS, Mismatch, mismatch_metrics

CPU = torch.device("cpu")


def test_the_report_by_age_on_literal_numbers() -> None:
    seen = Mismatch(CPU)
    rollout = torch.tensor([-1.0, -2.0, -0.5])
    seen.add(torch.tensor([-1.5, -2.0, 0.5]), rollout, torch.tensor([0, 0, 2]))
    metrics = mismatch_metrics(seen.sums, seen.largest)
    expected = {
        "mismatch/abs_logprob": 0.5,
        "mismatch/max_abs_logprob": 1.0,
        "mismatch/kl": (0.5 - 1.0) / 3,
        "mismatch/kl_k3": (math.exp(-0.5) - 0.5 + math.e - 2) / 3,
        "mismatch/lag_0/abs_logprob": 0.25,
        "mismatch/lag_0/max_abs_logprob": 0.5,
        "mismatch/lag_0/kl": 0.25,
        "mismatch/lag_0/kl_k3": (math.exp(-0.5) - 0.5) / 2,
        "mismatch/lag_0/share": 2 / 3,
        "mismatch/lag_2/abs_logprob": 1.0,
        "mismatch/lag_2/max_abs_logprob": 1.0,
        "mismatch/lag_2/kl": -1.0,
        "mismatch/lag_2/kl_k3": math.e - 2,
        "mismatch/lag_2/share": 1 / 3,
    }
    assert metrics.keys() == expected.keys()
    assert all(abs(metrics[name] - expected[name]) < 1e-12 for name in expected)


def test_micro_batches_and_shards_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    learner, rollout = torch.randn(2, 50, generator=generator)
    lags = torch.randint(0, 4, (50,), generator=generator)
    whole, shards = Mismatch(CPU), [Mismatch(CPU), Mismatch(CPU)]
    whole.add(learner, rollout, lags)
    for first, shard in ((0, 0), (10, 1), (30, 0)):
        part = slice(first, {0: 10, 10: 30, 30: 50}[first])
        shards[shard].add(learner[part], rollout[part], lags[part])
    sums = shards[0].sums + shards[1].sums
    largest = torch.maximum(shards[0].largest, shards[1].largest)
    together = mismatch_metrics(sums, largest)
    alone = mismatch_metrics(whole.sums, whole.largest)
    assert together.keys() == alone.keys()
    assert all(abs(together[name] - alone[name]) < 1e-12 for name in alone)


def test_the_k3_estimate_of_samples_is_their_kl() -> None:
    """Both estimates of KL(rollout || learner), weighted as the rollout would sample."""
    rollout = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    learner = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    drawn = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 3, 2]))
    seen = Mismatch(CPU)
    seen.add(learner.log()[drawn], rollout.log()[drawn], torch.zeros(10, dtype=torch.long))
    metrics = mismatch_metrics(seen.sums, seen.largest)
    kl = (rollout * (rollout / learner).log()).sum().item()
    assert abs(metrics["mismatch/kl"] - kl) < 1e-12
    assert abs(metrics["mismatch/kl_k3"] - kl) < 1e-12


def test_older_tokens_share_the_last_row_and_none_is_no_error() -> None:
    seen = Mismatch(CPU)
    assert mismatch_metrics(seen.sums, seen.largest)["mismatch/abs_logprob"] == 0.0
    seen.add(torch.tensor([-1.0]), torch.tensor([-1e9]), torch.tensor([1000]))
    metrics = mismatch_metrics(seen.sums, seen.largest)
    assert metrics[f"mismatch/lag_{LAGS - 1}/share"] == 1.0
    assert all(math.isfinite(value) for value in metrics.values())
