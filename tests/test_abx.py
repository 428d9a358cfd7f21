"""ABX and purities: recorded scores of the original code, brute force, and the command over a corpus."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from golden import GOLDEN

from hf_wav2vec_family.metrics.abx import (
    Item,
    Take,
    abx_errors,
    angular_distances,
    frames_of_item,
    pairwise_distances,
    read_items,
    warped_mean,
)
from hf_wav2vec_family.metrics.purity import code_purity


@pytest.fixture(scope="module")
def golden():
    folder = GOLDEN / "cpc" / "abx"
    if not folder.exists():
        pytest.skip(f"needs the recorded outputs in {folder}, which are not part of the repository")
    return folder


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.mark.parametrize("case", ["plain", "with_zero_frames"])
def test_items_cells_and_scores_are_those_of_the_original_code(golden, expected, case):
    features = {path.stem: torch.from_numpy(np.load(path)) for path in (golden / "features" / case).glob("*.npy")}
    takes, used = [], []
    for item in read_items(golden / f"{case}.item"):
        frames = features[item.file]
        place = frames_of_item(item, len(frames))
        takes.append(Take(frames[place], item.phone, item.context, item.speaker))
        if place.stop > place.start:
            used.append([item.file, place.start, place.stop, item.phone, item.context, item.speaker])
    recorded = expected[case]
    assert used == [list(item.values()) for item in recorded["items_used"]]
    found = abx_errors(takes)
    assert found.within == pytest.approx(recorded["scores"]["within"], abs=1e-6)
    assert found.across == pytest.approx(recorded["scores"]["across"], abs=1e-6)
    for cells, groups in (
        (found.within_cells, recorded["within_groups"]),
        (found.across_cells, recorded["across_groups"]),
    ):
        errors = {(c.speaker, c.phone_a, c.phone_b, c.context, c.speaker_x): c.error for c in cells}
        assert errors == {
            (
                g["speaker_ab"],
                g["phone_a"],
                g["phone_b"],
                g["context"],
                g.get("speaker_x", g["speaker_ab"]),
            ): pytest.approx(g["error"], abs=1e-6)
            for g in groups
        }


def test_warping_costs_are_those_of_the_original_code(expected):
    for case in expected["dtw"]:
        distances = torch.tensor(case["distances"], dtype=torch.float64)
        rows, columns = distances.shape
        # what stands behind the last row and column must not matter
        padded = torch.full((2, rows + 3, columns + 2), -1.0, dtype=torch.float64)
        padded[0, :rows, :columns] = distances
        found = warped_mean(padded, torch.tensor([rows, rows]), torch.tensor([columns, 1]))
        assert found[0].item() == pytest.approx(case["cost_divided_by_path_length"], abs=1e-6)


@pytest.mark.parametrize("name", ["dummy_item_file.item", "dummy_item_within.item"])
def test_the_original_codes_own_test_data_is_read_as_it_reads_it(golden, expected, name):
    folder, recorded = golden / "cpc_audio_test_data", expected["cpc_audio_test_data"]
    found, data = [], []
    ids = [recorded[name][f"{kind}_ids"] for kind in ("context", "phone", "speaker")]
    items = read_items(folder / name)
    for file in recorded[name]["files_in_order"]:
        features = np.load(folder / f"{file}.npy")
        for item in (item for item in items if item.file == file):
            place = frames_of_item(item, len(features), frame_rate=recorded["frame_rate_hz"])
            numbers = [i[key] for i, key in zip(ids, (item.context, item.phone, item.speaker), strict=True)]
            found.append([len(data), place.stop - place.start, *numbers])
            data += features[place].tolist()
    assert found == recorded[name]["loaded_items"]
    assert data == recorded[name]["data"]


def slow_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The mean over the best of all warping paths, one by one."""
    angles = [
        [math.acos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)) / math.pi for b in y] for a in x
    ]
    paths, ends = [[(0, 0)]], []
    while paths:
        path = paths.pop()
        i, j = path[-1]
        if (i, j) == (len(x) - 1, len(y) - 1):
            ends.append(path)
            continue
        steps = [(i + 1, j), (i, j + 1), (i + 1, j + 1)]
        paths += [[*path, step] for step in steps if step[0] < len(x) and step[1] < len(y)]
    best = min(ends, key=lambda path: sum(angles[i][j] for i, j in path))
    return sum(angles[i][j] for i, j in best) / len(best)


def random_takes(seed: int = 0) -> list[Take]:
    generator = torch.Generator().manual_seed(seed)
    takes = []
    for phone, context, speaker in itertools.product("pq", ["a+b", "a+c"], ["s", "t", "u"]):
        for _ in range(2 + (phone == "p")):
            length = int(torch.randint(2, 5, (), generator=generator))
            takes.append(Take(torch.randn(length, 4, generator=generator), phone, context, speaker))
    return takes


def test_distances_are_those_of_the_best_of_all_warping_paths(monkeypatch):
    takes = [take.frames for take in random_takes()][:8]
    monkeypatch.setattr("hf_wav2vec_family.metrics.abx.BLOCK", 40)  # several blocks of pairs
    found = pairwise_distances(takes)
    for i, j in itertools.product(range(len(takes)), repeat=2):
        slow = slow_distance(takes[i].numpy().astype(float), takes[j].numpy().astype(float)) if i != j else 0.0
        assert found[i, j].item() == pytest.approx(slow, abs=1e-6)


def test_a_frame_of_zeros_is_far_from_all_but_another_one():
    x, y = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    assert angular_distances(x, y).tolist() == [[[0.0, 1.0, 1.0], [1.0, 0.5, 1.0]]]


def test_errors_are_those_of_all_triples_counted():
    takes = random_takes()
    distances = pairwise_distances([take.frames for take in takes])
    within, across = {}, {}
    for x, a, b in itertools.product(range(len(takes)), repeat=3):
        one, same, other = takes[x], takes[a], takes[b]
        alike = one.context == same.context == other.context and same.speaker == other.speaker
        if x == a or not alike or one.phone != same.phone or other.phone == same.phone:
            continue
        wrong = float(distances[x, a] > distances[x, b])
        cells = within if one.speaker == same.speaker else across
        cells.setdefault((same.phone, same.speaker, same.context, one.speaker), []).append(wrong)

    def average(cells):
        return np.mean(
            [
                np.mean(
                    [
                        np.mean([np.mean(w) for key, w in cells.items() if key[:2] == (phone, speaker)])
                        for speaker in "stu"
                    ]
                )
                for phone in "pq"
            ]
        )

    found = abx_errors(takes)
    assert found.within == pytest.approx(average(within))
    assert found.across == pytest.approx(average(across))


def test_takes_that_are_alike_but_for_the_phone_have_no_error_and_alike_ones_half():
    def takes(vectors):
        return [Take(torch.tensor([vectors[p]] * 3), p, "a+b", s) for p in "pq" for s in "st" for _ in range(2)]

    apart = abx_errors(takes({"p": [1.0, 0.0], "q": [0.0, 1.0]}))
    assert (apart.within, apart.across) == (0.0, 0.0)
    alike = abx_errors(takes({"p": [1.0, 0.0], "q": [2.0, 0.0]}))
    assert (alike.within, alike.across) == (0.5, 0.5)


def test_too_many_takes_are_drawn_from_by_the_seed():
    takes = random_takes()
    few = abx_errors(takes, max_group_size=2, max_other_speakers=1)
    assert few == abx_errors(takes, max_group_size=2, max_other_speakers=1)
    assert few.across != abx_errors(takes, max_group_size=2, max_other_speakers=1, seed=1).across
    per_cell = {cell[:4] for cell in few.across_cells}
    assert len(per_cell) == len(few.across_cells)


def test_where_there_is_nothing_to_compare_there_is_no_error():
    one = abx_errors([Take(torch.ones(2, 3), "p", "a+b", "s"), Take(torch.ones(0, 3), "q", "a+b", "s")])
    assert (one.within, one.across) == (None, None)


def test_a_line_that_is_no_item_is_named_by_its_number(tmp_path):
    path = tmp_path / "bad.item"
    path.write_text("#header\nfile 0.1 0.2 p a b s\n\nfile 0.1 x p a b s\n")
    with pytest.raises(ValueError, match=r"bad\.item, line 4: expected file, onset"):
        read_items(path)


def test_an_item_has_the_frames_centred_in_it_but_the_last():
    item = Item("f", 0.1, 0.2, "p", "a+b", "s")
    # centres at 0.1025, 0.1225 ... 0.1825, and 0.2025 is behind the offset
    assert frames_of_item(item, 99, frame_rate=50, first_seconds=0.0025) == slice(5, 9)
    assert frames_of_item(item, 7, frame_rate=50, first_seconds=0.0025) == slice(5, 7)
    empty = frames_of_item(item, 3, frame_rate=50, first_seconds=0.0025)
    assert empty.stop - empty.start == 0


def test_purities_and_mutual_information_of_a_table_worked_by_hand():
    # phone A: codes 0 0 0 1 2; phone B: codes 1 1
    found = code_purity([0, 0, 0, 1, 2, 1, 1], list("AAAAABB"))
    assert found.phone_purity == pytest.approx((3 + 2 + 1) / 7)
    assert found.cluster_purity == pytest.approx((3 + 2) / 7)
    entropy = -(5 / 7 * math.log(5 / 7) + 2 / 7 * math.log(2 / 7))
    # p(i, j) / (p(i) p(j)) is 7/5 for A and 0, 7/15 for A and 1, 7/5 for A and 2, 7/3 for B and 1
    information = 4 / 7 * math.log(7 / 5) + 1 / 7 * math.log(7 / 15) + 2 / 7 * math.log(7 / 3)
    assert found.pnmi == pytest.approx(information / entropy)


def test_codes_that_tell_the_phone_have_all_its_information_and_one_code_has_none():
    phones = list("ABCABC")
    assert code_purity([5, 3, 1, 5, 3, 1], phones).pnmi == pytest.approx(1.0)
    assert code_purity([0] * 6, phones).pnmi == pytest.approx(0.0)
    # the groups together are one code
    pairs = np.array([[0, 0], [0, 1], [1, 0]] * 2)
    assert code_purity(pairs, phones).pnmi == pytest.approx(1.0)
    assert code_purity(pairs[:, 0], phones).pnmi < 0.7


@pytest.mark.parametrize(
    ("codes", "phones", "message"),
    [([], [], "got 0 and 0"), ([1], ["A", "B"], "got 1 and 2"), ([1, 2], ["A", "A"], "two different ones, got .'A'")],
)
def test_codes_of_which_nothing_can_be_said_are_refused(codes, phones, message):
    with pytest.raises(ValueError, match=message):
        code_purity(codes, phones)
