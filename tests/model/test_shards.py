"""Files of a checkpoint: shares of it are read and written, and what does not fit is named."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels import fp8, int4
from model.formats import CheckpointError, Quantised, quantisation_config, store
from model.shards import merge_index, read_into, write_shards

Change = Callable[[dict[str, Tensor]], object]
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.{}.up_proj.weight"


def _weight(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _network(experts: int = 4) -> dict[str, Tensor]:
    """A few tensors under released names."""
    named = {EXPERT.format(e): _weight(e, 130, 64) for e in range(experts)}
    return {"model.norm.weight": _weight(9, 64), "lm_head.weight": _weight(8, 6, 64)} | named


def _slots(network: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 7.0) for name, tensor in network.items()}


def _write(
    folder: Path, tensors: dict[str, Tensor], quantised: Quantised | None = None, size: int = 10**9
) -> Path:
    folder.mkdir(exist_ok=True)
    settings = quantisation_config(quantised) if quantised else None
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    parts = (p for n, t in tensors.items() for p in store(n, t, torch.float32, quantised))
    write_shards(parts, folder, size)
    merge_index(folder)
    return folder


def _expected(quantised: Quantised | None, weight: Tensor) -> Tensor:
    if quantised is None or weight.dim() == 1 or len(weight) != 130:
        return weight
    if quantised is Quantised.fp8:
        return fp8.dequantise(fp8.quantise(weight), torch.float32)
    return int4.dequantise(int4.quantise(weight), torch.float32)


@pytest.mark.parametrize("quantised", [None, *Quantised])
@pytest.mark.parametrize("size", [10**9, 3000, 1])
def test_round_trip(tmp_path: Path, quantised: Quantised | None, size: int) -> None:
    network = _network()
    slots = _slots(network)
    # In files of one tensor, a weight and its scales lie apart.
    read_into(slots, _write(tmp_path, network, quantised, size))
    for name, weight in network.items():
        assert torch.equal(slots[name], _expected(quantised, weight)), name


@pytest.mark.parametrize("quantised", [None, *Quantised])
def test_a_share_is_read_alone(tmp_path: Path, quantised: Quantised | None) -> None:
    network = _network()
    folder = _write(tmp_path, network, quantised, 3000)
    mine = {name: t for name, t in _slots(network).items() if name.endswith("s.2.up_proj.weight")}
    read_into(mine, folder, known=network)
    assert len(mine) == 1
    for name, tensor in mine.items():
        assert torch.equal(tensor, _expected(quantised, network[name]))
    with pytest.raises(CheckpointError, match=r"does not have: lm_head.weight, .*experts.0.up_pro"):
        read_into(mine, folder)


def test_a_prefix_and_other_parts_of_the_checkpoint(tmp_path: Path) -> None:
    network = _network(experts=1)
    stored = {f"language_model.{name}": tensor for name, tensor in network.items()}
    stored["language_model.model.layers.61.eh_proj.weight"] = torch.ones(3)
    stored["vision_tower.weight"] = torch.ones(2)
    folder = _write(tmp_path, stored)
    slots = _slots(network)
    read_into(slots, folder, prefix="language_model.", passed_over=("model.layers.61.",))
    for name, weight in network.items():
        assert torch.equal(slots[name], weight)
    with pytest.raises(CheckpointError, match=r"does not have: model.layers.61.eh_proj.weight"):
        read_into(slots, folder, prefix="language_model.")
    with pytest.raises(CheckpointError, match="no tensor whose name begins with text_model"):
        read_into(slots, folder, prefix="text_model.")


def _drop(end: str) -> Change:
    return lambda tensors: tensors.pop(EXPERT.format(1) + end)


def _put(end: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors.update({EXPERT.format(1) + end: tensor})


def _norm(end: str) -> Change:
    return lambda tensors: tensors.update({f"model.norm.weight{end}": torch.ones(1)})


FP8_DAMAGE = [
    (_drop("_scale_inv"), r"missing tensors: .*experts.1.up_proj.weight_scale_inv$"),
    (_drop(""), r"missing tensors: .*experts.1.up_proj.weight$"),
    (_norm("_scale_inv"), r"does not have: model.norm.weight_scale_inv$"),
    (_put("_scale_inv", torch.ones(1, 1)), r"weight_scale_inv has shape \[1, 1\], .* \[2, 1\]"),
    (_put("_scale_inv", torch.ones(2, 1).half()), "weight_scale_inv is stored as F16, not as F32"),
    (_put("", torch.ones(130, 64)), "weight is stored as F32, not as F8_E4M3"),
    (_put("", torch.ones(130, 32).to(torch.float8_e4m3fn)), r"\[130, 32\], the config asks for"),
    (_put("_scale", torch.ones(1)), r"does not have: .*experts.1.up_proj.weight_scale$"),
]
INT4_DAMAGE = [
    (_drop("_packed"), r"missing tensors: .*experts.1.up_proj.weight_packed$"),
    (_drop("_scale"), r"missing tensors: .*experts.1.up_proj.weight_scale$"),
    (_drop("_shape"), r"missing tensors: .*experts.1.up_proj.weight_shape$"),
    (_put("_packed", torch.ones(130, 4).int()), r"weight_packed has shape \[130, 4\], .*130, 8\]"),
    (_norm("_scale"), r"does not have: model.norm.weight_scale$"),
    (_put("_packed", torch.ones(130, 8)), "weight_packed is stored as F32, not as I32"),
    (_put("_scale", torch.ones(130, 1).bfloat16()), r"weight_scale has shape .* \[130, 2\]"),
    (_put("_zero_point", torch.ones(1)), r"does not have: .*experts.1.up_proj.weight_zero_point$"),
]


@pytest.mark.parametrize(
    ("quantised", "change", "says"),
    [
        *((Quantised.fp8, *each) for each in FP8_DAMAGE),
        *((Quantised.int4, *each) for each in INT4_DAMAGE),
    ],
)
def test_damage_is_named(tmp_path: Path, quantised: Quantised, change: Change, says: str) -> None:
    folder = _write(tmp_path, _network(), quantised)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    slots = _slots(_network())
    with pytest.raises(CheckpointError, match=says):
        read_into(slots, folder)
    assert all((slot == 7).all() for slot in slots.values())  # nothing was copied


def test_a_shape_that_contradicts_the_config_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, _network(), Quantised.int4)
    tensors = load_file(folder / "model.safetensors")
    tensors[EXPERT.format(1) + "_shape"] = torch.tensor([130, 62])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weight_shape says \[130, 62\], .* \[130, 64\]"):
        read_into(_slots(_network()), folder)


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    folder = _write(tmp_path, _network(experts=20))
    slots = {name: torch.ones(2, 2) for name in _network(experts=20)} | {"a": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"missing tensors: a; .* and 15 more$"):
        read_into(slots, folder)


@pytest.mark.parametrize("quantised", list(Quantised))
def test_the_format_must_be_that_of_the_config(tmp_path: Path, quantised: Quantised) -> None:
    folder = _write(tmp_path, _network(), quantised)
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"F8_E4M3, not as BF16|missing tensors: .*experts.0"):
        read_into(_slots(_network()), folder)


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, _network(), size=1)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(CheckpointError, match=rf"norm.weight is in two files .* {second.name}"):
        read_into(_slots(_network()), folder)


def test_several_parts_make_one_checkpoint(tmp_path: Path) -> None:
    network = _network()
    (tmp_path / "config.json").write_text("{}")
    names = sorted(network)
    for part, mine in enumerate((names[:1], [], names[1:4], names[4:])):
        write_shards(((name, network[name]) for name in mine), tmp_path, 40_000, part=part)
    with pytest.raises(CheckpointError, match="has no file of part 4 of 5"):
        merge_index(tmp_path, parts=5)
    merge_index(tmp_path, parts=4)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in network.values())
    assert index["weight_map"].keys() == network.keys()
    # Part 1 wrote nothing; the others hold 1, 2 + 1 and 1 + 1 tensors to a file.
    files = [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == files
    slots = _slots(network)
    read_into(slots, tmp_path)
    assert all(torch.equal(slots[name], tensor) for name, tensor in network.items())


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    write_shards(iter(_network().items()), tmp_path, 10**9)
    write_shards(iter(()), tmp_path, 10**9, part=1)
    merge_index(tmp_path, parts=2)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_tensor_of_two_parts_is_named(tmp_path: Path) -> None:
    for part in range(2):
        write_shards(iter({"model.norm.weight": torch.ones(3)}.items()), tmp_path, 1, part=part)
    with pytest.raises(CheckpointError, match=r"model.norm.weight was written by two parts"):
        merge_index(tmp_path, parts=2)


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    for part in range(2):
        write_shards(iter({f"{part}": torch.ones(100)}.items()), tmp_path, 1, part=part)
    file = tmp_path / "part-00001-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"part-00001-00000.safetensors is truncated"):
        merge_index(tmp_path, parts=2)


def test_writing_holds_one_file_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for number in range(40):
            tensor = torch.ones(25)  # 100 bytes
            alive.append(weakref.ref(tensor))
            yield f"{number}", tensor
            most = max(most, sum(ref() is not None for ref in alive))

    write_shards(tensors(), tmp_path, 500)
    assert most <= 5 + 2  # a file, the tensor that did not fit, the one being made
    assert len(list(tmp_path.iterdir())) == 8
