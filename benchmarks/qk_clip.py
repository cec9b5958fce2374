"""What share of a training step does QK-Clip take?

A small K2 network makes whole steps: forward, backward, MuonClip. QK-Clip is what such a step adds
for the clip: gamma from the maximum logits, the factors of the rows, and the multiplication of the
rows of q_b and kv_b in every layer. Worst case: all heads over the threshold; usual case: none. All
by turns in one process, medians. Collecting the maximum is part of attention, and in its time.
Keeps the result with the hardware in `benchmarks/data/qk_clip.json`.

    OMP_NUM_THREADS=1 python -m benchmarks.qk_clip
    python -m benchmarks.qk_clip --device cuda --layers 8 --hidden 2048
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import hardware, take_turns
from kernels.logprob import token_logprobs
from model.config import K2Config, MuonClipConfig
from model.k2 import K2
from model.muonclip import MuonClip, _scale_rows, parameter_groups
from model.qk_clip import qk_clip_gamma

DATA = Path(__file__).resolve().parent / "data" / "qk_clip.json"
BAR = 0.03
TAU = 100.0
SEQUENCES = 4


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: medians in seconds."""

    layers: int
    heads: int
    hidden: int
    tokens: int
    parameters: int
    seconds: dict[str, float]

    def share(self, name: str) -> float:
        """Of the whole step."""
        return self.seconds[name] / (self.seconds["step"] + self.seconds[name])


def small_k2(layers: int, hidden: int, device: str) -> K2:
    """The proportions of K2, fewer and smaller experts."""
    heads = hidden // 64
    config = K2Config(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=hidden * 5 // 2,
        moe_intermediate_size=hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        n_routed_experts=16,
        num_experts_per_tok=4,
        q_lora_rank=hidden // 4,
        kv_lora_rank=hidden // 8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.device(device):
        model = K2(config, torch.bfloat16)
    model.initialize_(0)
    return model


class Trainer:
    """A network, its optimiser, and one batch."""

    def __init__(self, model: K2, tokens: int) -> None:
        self.model = model
        self.optimizer = MuonClip(
            parameter_groups(model.named_parameters()), MuonClipConfig(learning_rate=1e-4)
        )
        device = model.lm_head.weight.device
        self.ids = torch.randint(3, 8192, (tokens,), device=device)
        self.lengths = [tokens // SEQUENCES] * SEQUENCES

    def step(self) -> None:
        """Forward, backward, update; no clip."""
        hidden = self.model(self.ids, self.lengths).hidden
        logprobs, _ = token_logprobs(hidden, self.model.lm_head.weight, self.ids.roll(-1))
        (-logprobs.mean()).backward()
        self.optimizer.begin()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def clip(self, max_logits: Tensor) -> int:
        """What the clip adds to the step; the number of multiplied parameters."""
        rows = dict(self.model.clip_rows(qk_clip_gamma(max_logits, TAU)))
        for tensor, piece in self.optimizer.pieces():
            if piece.parameter in rows:
                weight = tensor.detach().view(-1)[piece.place]
                _scale_rows(weight, piece, rows[piece.parameter])
        return len(rows)


def measure(layers: int, hidden: int, tokens: int, *, device: str, rounds: int) -> Result:
    """Race a step and its clip."""
    torch.manual_seed(0)
    trainer = Trainer(small_k2(layers, hidden, device), tokens)
    heads = trainer.model.config.num_attention_heads
    calm = torch.full((layers, heads), 0.5 * TAU, device=device)
    # A hair over the threshold: hundreds of rounds must not scale the weights away.
    over = torch.full((layers, heads), 1.0001 * TAU, device=device)
    assert trainer.clip(over) == 2 * layers and trainer.clip(calm) == 0
    contenders = {
        "step": trainer.step,
        "all heads": lambda: trainer.clip(over),
        "no head": lambda: trainer.clip(calm),
    }
    return Result(
        layers=layers,
        heads=heads,
        hidden=hidden,
        tokens=tokens,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        seconds=take_turns(contenders, rounds, device),
    )


def keep(result: Result, device: str) -> None:
    """Put the result in place of the device's earlier one."""
    kept = json.loads(DATA.read_text()) if DATA.exists() else {}
    shares = {name: round(result.share(name), 5) for name in ("all heads", "no head")}
    kept[device] = {"hardware": hardware(device), "share": shares, **asdict(result)}
    DATA.write_text(json.dumps(kept, indent=1) + "\n")


def print_result(result: Result) -> None:
    """Times and shares."""
    print(
        f"K2 of {result.parameters / 1e6:.0f} M parameters, {result.layers} layers of "
        f"{result.heads} heads, hidden {result.hidden}, {result.tokens} tokens a step"
    )
    print(f"forward, backward, MuonClip: {1e3 * result.seconds['step']:.1f} ms")
    for name in ("all heads", "no head"):
        print(
            f"{name:>10}: {1e3 * result.seconds[name]:.2f} ms, {result.share(name):.3%} of a step"
        )
    met = result.share("all heads") < BAR
    print(f"under {BAR:.0%} with all heads over the threshold: {'yes' if met else 'NO'}")


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    result = measure(
        arguments.layers,
        arguments.hidden,
        arguments.tokens,
        device=arguments.device,
        rounds=arguments.rounds,
    )
    keep(result, arguments.device)
    print_result(result)


if __name__ == "__main__":
    main()
