import torch

from model.live_bytes import LiveBytes


def test_counts_storages_until_they_die() -> None:
    before = torch.zeros(10)
    with LiveBytes() as live:
        first = torch.zeros(100)
        assert live.now == 400
        view = first[:50].view(5, 10)  # the same storage
        assert live.now == 400
        second = first + 1
        del first, second
        assert live.now == 400  # the view keeps the first alive
        del view
        assert (live.now, live.peak) == (0, 800)
        live.reset_peak()
        live.watch(before)
        live.watch(before)
        torch.zeros(10, device="meta")
        assert (live.now, live.peak) == (40, 40)


def test_sees_what_autograd_keeps() -> None:
    weight = torch.zeros(64, 64, requires_grad=True)
    with LiveBytes() as live:
        out = (weight * 2).exp().sum()
        assert live.now == 64 * 64 * 4 + 4  # exp keeps its result
        out.backward()
        del out
        assert live.now == 64 * 64 * 4  # the gradient
