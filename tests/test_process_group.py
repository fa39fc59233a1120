from __future__ import annotations

import pytest

from dualtail.errors import InputError
from dualtail.process_group import ProcessGroup


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 1), (0, 0)])
def test_a_rank_that_does_not_exist(rank: int, size: int):
    with pytest.raises(InputError, match=f"rank {rank} of {size} does not exist"):
        ProcessGroup(rank, size)
