import pickle
from dataclasses import replace

import numpy as np
import pytest

from rollout.episode import Completion, StopReason, kept
from rollout.versions import Versions

DRAWN = Completion(
    prompt_ids=[1, 2],
    token_ids=[163_839, 5, 6],
    logprobs=[-0.5, -1.25, -0.0625],
    versions=[3, 3, 4],
    stop_reason=StopReason.stop,
    temperature=0.8,
)


def test_numbers_are_kept_as_arrays_that_nobody_can_change() -> None:
    for array, dtype in (
        (DRAWN.prompt_ids, np.int32),
        (DRAWN.token_ids, np.int32),
        (DRAWN.logprobs, np.float32),
    ):
        assert array.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert DRAWN.versions == Versions.of([3, 3, 4])
    mine = np.array([7, 8], np.int32)
    assert kept(mine, np.int32).base is mine and mine.flags.writeable, "a view: the owner's is his"
    assert replace(DRAWN, parked=1).token_ids is DRAWN.token_ids


def test_numbers_must_be_of_as_many_tokens() -> None:
    with pytest.raises(AssertionError):
        replace(DRAWN, versions=[3, 3])


def test_pickled_tokens_are_blocks_of_bytes_beside_the_record() -> None:
    blocks: list[pickle.PickleBuffer] = []
    record = pickle.dumps(DRAWN, protocol=5, buffer_callback=blocks.append)
    assert sorted(block.raw().nbytes for block in blocks) == [8, 12, 12]
    again = pickle.loads(record, buffers=blocks)
    assert np.shares_memory(again.token_ids, DRAWN.token_ids)
    assert again.versions == DRAWN.versions and again.stop_reason is StopReason.stop
