"""What a device can do: one YAML file a machine, in `configs/hardware` or anywhere."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from rl.errors import BadInput
from rl.recipe_keys import nearest

OPTIONAL = {"reserved_bytes", "context_bytes", "host_bytes", "dollars_per_device_hour"}  # or 0
ROWS = Path(__file__).resolve().parent.parent / "configs" / "hardware"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of device. Bandwidths are one way, of one device."""

    name: str
    devices_per_node: int
    memory_bytes: int
    """Of one device."""
    reserved_bytes: int
    """Of one device, for what no tensor of ours accounts for: context, NCCL, fragmentation."""
    context_bytes: int
    """Of one device, for each further process on it: its context and kernels."""
    host_bytes: int
    """Memory of one node beside its devices."""
    unified: bool
    """The device is the host: learner and engines share its memory and its time."""
    flops: float
    """Peak of dense bfloat16 products, per second."""
    flops_float32: float
    """The same in float32."""
    memory_bandwidth: float
    """Bytes per second, as the next six."""
    intra_node_bandwidth: float
    inter_node_bandwidth: float
    host_bandwidth: float
    """Between a device and its host's memory."""
    disk_bandwidth: float
    hash_bandwidth: float
    """Of an engine's owner that checks digests (xxh3) of files that stay mapped."""
    collective_latency: float
    """Seconds of a collective that moves nothing."""
    train_efficiency: float
    """Share of `flops` that forward and backward reach."""
    newton_schulz_efficiency: float
    """Share of `flops` that Newton-Schulz reaches."""
    decode_efficiency: float
    """Share of `memory_bandwidth` that decoding reaches."""
    network_efficiency: float
    """Share of the bandwidths that collectives reach."""
    dollars_per_device_hour: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no device has."""
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            optional = item.name in OPTIONAL
            if value < 0 or (value == 0 and not optional):
                raise ValueError(f"{item.name} must be positive, got {value}")
            if item.name.endswith("_efficiency") and value > 1:
                raise ValueError(f"{item.name} is a share, at most 1, got {value}")


def load_hardware(hardware: str) -> Hardware:
    """Read a row by its name in `configs/hardware`, or by the path of a YAML file.

    Raises:
        BadInput: no such row, no text, an unknown or missing key, a value of the wrong kind.
    """
    path = _find(hardware)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"hardware {path}: {error}") from error
    if not isinstance(raw, dict):
        raise BadInput(f"hardware {path}: must hold keys and values")
    try:
        return Hardware(**{"name": path.stem, **_checked(raw)})
    except ValueError as error:
        raise BadInput(f"hardware {path}: {error}") from error


def _find(hardware: str) -> Path:
    path = Path(hardware)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise BadInput(f"no hardware file {path}")
        return path
    names = sorted(p.stem for p in ROWS.glob("*.yaml"))
    if hardware not in names:
        raise BadInput(
            f"unknown hardware {hardware!r}{nearest(hardware, names)}; known: {', '.join(names)}"
        )
    return ROWS / f"{hardware}.yaml"


def _checked(raw: dict[typing.Any, typing.Any]) -> dict[str, typing.Any]:
    """The values by name, of the right kinds: YAML reads 1e9 as text."""
    kinds = typing.get_type_hints(Hardware)
    values: dict[str, typing.Any] = {}
    for key, value in raw.items():
        if key not in kinds:
            raise ValueError(f"unknown key {key!r}{nearest(str(key), list(kinds))}")
        values[key] = _as_kind(key, value, kinds[key])
    missing = [
        item.name
        for item in dataclasses.fields(Hardware)
        if item.name not in values and item.name != "name" and item.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"missing keys: {', '.join(missing)}")
    return values


def _as_kind(key: str, value: object, kind: type) -> object:
    if kind in (bool, str):
        if not isinstance(value, kind):
            raise ValueError(f"{key} must be a {kind.__name__}, got {value!r}")
        return value
    if value is None and kind not in (int, float):
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{key} must be a number, got {value!r}")
    return int(number) if kind is int else number
