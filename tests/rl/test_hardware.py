from pathlib import Path

import pytest

from rl.errors import BadInput
from rl.hardware import ROWS, load_hardware


@pytest.mark.parametrize("path", sorted(ROWS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_row_loads(path: Path) -> None:
    assert load_hardware(path.stem).name == path.stem
    assert load_hardware(str(path)) == load_hardware(path.stem)


def test_the_known_figures() -> None:
    h800 = load_hardware("H800")
    assert (h800.devices_per_node, h800.inter_node_bandwidth) == (8, 50e9)
    assert load_hardware("H200").memory_bytes > 1.7 * h800.memory_bytes
    assert load_hardware("H20").flops < h800.flops / 6
    assert load_hardware("cpu").unified and not h800.unified


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flops:", "flopz:", r"unknown key 'flopz'; did you mean 'flops'\?"),
        ("reserved_bytes:", "# ", "missing keys: reserved_bytes"),
        ("flops: 989.4e12", "flops: many", "flops must be a number, got 'many'"),
        ("flops: 989.4e12", "flops: 0", "flops must be positive, got 0"),
        ("unified: false", "unified: 0", "unified must be a bool, got 0"),
        ("train_efficiency: 0.35", "train_efficiency: 35", "is a share, at most 1, got 35"),
        ("unified: false", "unified: [", "hardware"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROWS / "H800.yaml").read_text()
    assert old in text
    (tmp_path / "mine.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(BadInput, match=message) as caught:
        load_hardware(str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(BadInput, match=r"mine\.yaml: 'utf-8' codec can't decode byte 0xff"):
        load_hardware(str(tmp_path / "mine.yaml"))


def test_unknown_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unknown hardware 'H80'; did you mean 'H800'\?"):
        load_hardware("H80")
    with pytest.raises(BadInput, match="no hardware file"):
        load_hardware(str(tmp_path / "none.yaml"))


def test_a_price_and_exponents_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((ROWS / "H800.yaml").read_text() + "dollars_per_device_hour: 2.3\n")
    row = load_hardware(str(path))
    assert (row.dollars_per_device_hour, row.flops) == (2.3, 989.4e12)
