import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_codegen.data.sampling import held_out
from moe_codegen.data.sampling.held_out import HeldOutIndex, build_index

# Few different shingles, so that files share them often and at any similarity.
SHINGLES = st.integers(0, 24).map(lambda number: number * 0x0A3D_70A3)
SETS = st.lists(st.sets(SHINGLES, min_size=1), min_size=1, max_size=12)


def joined(sets):
    values = np.array([value for some in sets for value in sorted(some)], np.uint32)
    return values, np.array([len(some) for some in sets])


@given(SETS, SETS, st.sampled_from([0.0, 0.5, 0.7, 1.0]), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_the_nearest_is_the_one_that_comparing_all_pairs_finds(
    tmp_path_factory, held, others, similarity, block_shingles
):
    folder = tmp_path_factory.mktemp("index")
    parts = []
    for number, some in enumerate(held):
        parts.append(folder / f"{number}.npz")
        values, sizes = joined([some])
        np.savez(parts[-1], values=values, sizes=sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "_BLOCK_SHINGLES", block_shingles)
        build_index(parts, [len(some) for some in held], folder / "index")
    values, sizes = joined(others)
    found = HeldOutIndex.open(folder / "index").nearest(values, np.cumsum([0, *sizes]), similarity)
    best = [max(len(one & two) / len(one | two) for two in held) for one in others]
    assert found == pytest.approx([value if value >= similarity else 0.0 for value in best])


def test_nothing_is_near_where_nothing_is_held_out(tmp_path):
    build_index([], [], tmp_path)
    assert HeldOutIndex.open(tmp_path).nearest(np.arange(5, dtype=np.uint32), np.array([0, 5]), 0.0).tolist() == [0.0]
