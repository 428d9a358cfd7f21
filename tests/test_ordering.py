"""Orders: functions of the seed and the epoch, complete, the same from any place on, and no look at what is before."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from training.ordering import Cursor, Order, parts_of, windows
from training.rows import Row, Shard
from training.sources import RowSource, Source

SIZES = [5, 1, 7, 0, 4, 6, 3]


def source(sizes=SIZES, name="s", weight=None, opened=None):
    """Shards of so many rows, named by shard and place; what is opened where is noted in `opened`."""

    def rows(number, begin):
        if opened is not None:
            opened.append((number, begin))
        return (Row(f"{name}{number}.{place}", b"") for place in range(begin, sizes[number]))

    def shards():
        return [Shard(lambda begin, number=number: rows(number, begin)) for number in range(len(sizes))]

    return RowSource(Source(name, weight=weight), "tar", shards)


def first_windows(sources, num, *, stream=0, begin=None, num_before=0, seed=0, window_size=4, shuffled=True, **order):
    parts = parts_of(sources)
    begin = begin or tuple(Cursor() for _ in parts)
    made = windows(parts, Order(seed, window_size, shuffled, **order), stream, begin, num_before)
    return list(islice(made, num))


def ids(made, epoch=None):
    return [row.row.id for window in made for row in window.rows if epoch in (None, row.epoch)]


ALL = sorted(f"s{number}.{place}" for number, size in enumerate(SIZES) for place in range(size))


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_every_epoch_has_every_row_once_in_all_streams_together(num_streams):
    made = [
        window
        for stream in range(num_streams)
        for window in first_windows([source()], 40, stream=stream, num_streams=num_streams)
    ]
    for epoch in range(3):
        assert sorted(ids(made, epoch)) == ALL


def test_epochs_and_seeds_differ_in_the_order_of_the_shards_and_nothing_else_matters():
    made = first_windows([source()], 40)
    assert ids(made, 0) != ids(made, 1) != ids(made, 2)
    assert ids(first_windows([source()], 40, seed=1), 0) != ids(made, 0)
    assert ids(first_windows([source()], 40)) == ids(made)
    assert ids(first_windows([source()], 10, shuffled=False), 0) == [
        f"s{number}.{place}" for number, size in enumerate(SIZES) for place in range(size)
    ]


def test_no_window_has_rows_of_two_epochs_and_the_last_of_an_epoch_says_so():
    made = first_windows([source()], 40)
    for window, following in pairwise(made):
        assert len({row.epoch for row in window.rows}) <= 1
        assert window.ends_epoch == (following.begin[0].epoch > window.begin[0].epoch)


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
@pytest.mark.parametrize("num_streams", [1, 2])
def test_from_any_window_on_the_rest_is_the_same_and_no_shard_before_it_is_opened(weights, num_streams):
    def sources(opened):
        if weights is None:
            return [source(opened=opened)]
        return [source(name=n, weight=w, opened=opened) for n, w in zip("ab", weights, strict=True)]

    order = {"stream": num_streams - 1, "num_streams": num_streams}
    whole = first_windows(sources([]), 12, **order)
    for number, window in enumerate(whole):
        opened = []
        rest = first_windows(sources(opened), 12 - number, begin=window.begin, num_before=number, **order)
        assert rest == whole[number:]
        # the first shard of each part is opened in its middle
        assert {begin for _, begin in opened[: len(window.begin)]} <= {cursor.row for cursor in window.begin} | {0}


def test_the_numbers_of_rows_are_theirs_in_every_epoch_and_stream():
    numbers = {}
    for num_streams in (1, 2):
        for window in first_windows([source(), source(name="t")], 60, num_streams=num_streams):
            for row in window.rows:
                assert numbers.setdefault(row.row.id, row.number) == row.number
    assert len(set(numbers.values())) == len(numbers) == 2 * len(ALL)


def test_sources_with_weights_come_in_their_shares_and_the_smaller_one_again_and_again():
    sources = [source([40, 30], "a", weight=1), source([3, 4], "b", weight=2)]
    made = first_windows(sources, 30, window_size=10)
    counts = Counter(name[0] for name in ids(made))
    assert counts == {"a": 100, "b": 200}
    assert max(abs(sum(row.row.id[0] == "b" for row in window.rows) - 20 / 3) for window in made) <= 1
    of_b = [name for name in ids(made) if name[0] == "b"]
    for begin in range(0, 196, 7):  # its epochs, one after another
        assert len(set(of_b[begin : begin + 7])) == 7


def test_weights_for_some_sources_only_are_refused():
    with pytest.raises(ValueError, match="either all sources have one or none, but t has none"):
        parts_of([source(weight=1.0), source(name="t")])


def test_a_weighted_source_without_rows_is_an_error_and_no_endless_loop():
    with pytest.raises(ValueError, match="no rows"):
        first_windows([source([], weight=1.0), source(name="t", weight=1.0)], 2)


def test_where_a_row_stands_in_one_epoch_tells_nothing_about_the_next():
    made = first_windows([source([32] * 300)], 700, window_size=32)
    place = [{name: i for i, name in enumerate(ids(made, epoch))} for epoch in (0, 1)]
    names = sorted(place[0])
    correlation = np.corrcoef([place[0][name] for name in names], [place[1][name] for name in names])[0, 1]
    assert abs(correlation) < 0.15
