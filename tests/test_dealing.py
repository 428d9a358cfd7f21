"""Batches go to ranks: each to one, whatever happens to the number of processes and however uneven they were."""

import json
from random import Random

import pytest

from training.dealing import Deal, Position, RankState, dealt_anew
from training.ordering import Cursor


def deal_out(state: RankState, nums: list[int]) -> tuple[list[int], list[RankState]]:
    """Rank r takes `nums[r]` batches; which those were, and where each rank is then."""
    taken, states = [], []
    for rank, num in enumerate(nums):
        own = state
        indices = state.deal.indices(rank, state.following)
        for _ in range(num):
            index = next(indices)
            taken.append(index)
            own = own.after(index, Position((Cursor(0, index),), turn=index // state.num_streams + 1))
        states.append(own)
    return taken, states


@pytest.mark.parametrize("seed", range(20))
def test_no_batch_is_lost_or_comes_twice_when_the_number_of_processes_changes_again_and_again(seed):
    random = Random(seed)
    world_size, num_streams = random.randint(1, 4), random.randint(1, 4)
    state, taken = RankState(Deal(world_size), num_streams), []
    for _ in range(4):
        nums = [random.randint(3, 9) for _ in range(world_size)]
        new, states = deal_out(state, nums)
        taken += new
        world_size = random.randint(1, 4)
        state = dealt_anew([RankState.from_dict(json.loads(json.dumps(s.as_dict()))) for s in states], world_size)
        missing = set(range(max(taken) + 1)) - set(taken)
        left, _ = deal_out(state, [len(missing) + 1] * world_size)
        assert missing <= set(left)
        assert not set(left) & set(taken)
        for stream in range(num_streams):
            mine = [index for index in left if index % num_streams == stream]
            # a stream goes on where its first missing batch is still ahead, and no earlier than it must
            assert not mine or state.position(stream).turn <= min(mine) // num_streams
    assert len(taken) == len(set(taken))


def test_ranks_that_are_even_leave_nothing_behind():
    _, states = deal_out(RankState(Deal(4), 2), [5] * 4)
    state = dealt_anew(states, 2)
    assert state.deal == Deal(2, start=17, done=(17, 18, 19))
    left, _ = deal_out(state, [3, 3])
    assert sorted(left) == [20, 21, 22, 23, 24, 25]
    assert [state.position(stream).turn for stream in (0, 1)] == [10, 10]


def test_a_rank_is_a_few_hundred_bytes():
    _, states = deal_out(RankState(Deal(8), 8, following=50_000_000), [3] * 8)
    assert max(len(json.dumps(state.as_dict())) for state in states) < 300
