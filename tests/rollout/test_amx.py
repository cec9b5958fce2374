"""Weight updates reach vLLM's AMX back end too; where there is no AMX, it is done in software.

With AMX, vLLM takes other attention and other expert kernels, which pack their weights in other
layouts. On a processor with AMX test_receive_weights runs on them. On any other it is run here once
more, in processes that believe to have AMX (tests/pretended) and in which a signal handler
carries out the instructions that the processor refuses (amx/tiles.c).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.long
@pytest.mark.skipif(
    torch.cpu._is_amx_tile_supported(), reason="test_receive_weights has run on this AMX"
)
@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="vLLM's AMX kernels use AVX512_BF16 as well"
)
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (Debian, Ubuntu: gcc)")
def test_updates_reach_the_amx_back_end(tmp_path: Path) -> None:
    library, count = tmp_path / "amx.so", tmp_path / "count"
    build = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*build, "-o", library, HERE / "amx" / "tiles.c", "-ldl"], check=True)
    count.write_bytes(bytes(8))
    run = [sys.executable, "-m", "pytest", "-q", str(HERE / "test_receive_weights.py")]
    amx = {"LD_PRELOAD": library, "AMX_COUNT": count, "TEMPER_PRETENDS": "amx"}
    amx["PYTHONPATH"] = HERE.parent / "pretended"
    with open(tmp_path / "output", "w+") as output:
        done = subprocess.run(
            [*run, "-k", "bfloat16"],
            env=os.environ | {key: str(value) for key, value in amx.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        output.seek(0)
        assert done.returncode == 0, output.read()
    assert int.from_bytes(count.read_bytes(), "little") > 100_000
