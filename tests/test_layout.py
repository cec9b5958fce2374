"""The house keeps its names: nothing installed beside it may answer to them."""

from importlib.metadata import distributions, packages_distributions
from pathlib import Path

OURS = {"rl", "rollout", "model", "rewards", "kernels"}
ROOT = Path(__file__).resolve().parent.parent


def test_no_other_distribution_provides_our_packages() -> None:
    providers = packages_distributions()
    for name in OURS:
        assert set(providers.get(name, ["temper-rl"])) == {"temper-rl"}


def test_the_package_that_transformers_would_take_for_ours_is_not_installed() -> None:
    # transformers asks for a distribution called "kernels" and would then use our package.
    assert "kernels" not in {d.metadata["Name"].lower() for d in distributions()}
    for lock in ROOT.glob("requirements-*.lock"):
        assert not any(line.startswith("kernels==") for line in lock.read_text().splitlines())
    assert (ROOT / "kernels" / "__init__.py").read_text() == ""


def test_the_lock_pins_every_package_by_hash() -> None:
    for lock in ROOT.glob("requirements-*.lock"):
        pins = lock.read_text().replace("\\\n", " ").splitlines()
        unpinned = [p.split()[0] for p in pins if "==" in p and "--hash" not in p]
        # Mirrors repack torch's CPU wheel, so that one goes by its version alone.
        assert unpinned in ([], ["torch==2.13.0+cpu"]), lock.name


def test_packages_hold_no_package_inside_tests() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
