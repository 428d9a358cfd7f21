"""Phone sets: their published sizes, and a place in the smaller set for every phone of the larger."""

import pytest

from hf_wav2vec_family.phones import (
    CMU_39,
    TIMIT_39,
    TIMIT_48,
    TIMIT_61,
    WSJ_GRAPHEMES,
    fold_timit_phone,
    strip_stress,
)


def test_every_set_has_the_size_in_its_name_and_no_phone_twice():
    for phones, size in ((TIMIT_61, 61), (TIMIT_48, 48), (TIMIT_39, 39), (CMU_39, 39), (WSJ_GRAPHEMES, 31)):
        assert len(phones) == len(set(phones)) == size


@pytest.mark.parametrize(("num_phones", "smaller"), [(61, TIMIT_61), (48, TIMIT_48), (39, TIMIT_39)])
def test_every_phone_folds_into_the_smaller_set_and_fills_it(num_phones, smaller):
    folded = {fold_timit_phone(phone, num_phones) for phone in TIMIT_61}
    assert folded - {None} == set(smaller)
    assert (fold_timit_phone("q", num_phones) is None) == (num_phones < 61)


def test_folding_by_way_of_48_is_folding_at_once():
    for phone in TIMIT_61:
        of_48 = fold_timit_phone(phone, 48)
        assert of_48 is None or fold_timit_phone(of_48, 39) == fold_timit_phone(phone, 39)


def test_phones_fold_as_lee_and_hon_fold_them():
    words = "h# sh iy hv ae dcl y er axr ao ix ax-h zh el em nx en eng ux tcl epi pau"
    of_48 = "sil sh iy hh ae vcl y er er ao ix ax zh el m n en ng uw cl epi sil"
    of_39 = "sil sh iy hh ae sil y er er aa ih ah sh l m n n ng uw sil sil sil"
    assert [fold_timit_phone(phone, 48) for phone in words.split()] == of_48.split()
    assert [fold_timit_phone(phone, 39) for phone in words.split()] == of_39.split()


def test_what_is_no_phone_of_timit_is_refused():
    with pytest.raises(ValueError, match="'xx'"):
        fold_timit_phone("xx")
    with pytest.raises(ValueError, match="'sil'"):
        fold_timit_phone("sil", 61)
    with pytest.raises(ValueError, match="expected 61, 48 or 39, got 40"):
        fold_timit_phone("aa", 40)


def test_stress_goes_and_other_phones_stay():
    assert strip_stress(["HH", "AH0", "L", "OW1", "UW2"]) == ["HH", "AH", "L", "OW", "UW"]
    with pytest.raises(ValueError, match="QQ"):
        strip_stress(["QQ", "AH0"])


def test_graphemes_are_letters_boundary_apostrophe_period_and_two_repetitions():
    assert set(WSJ_GRAPHEMES) - set("abcdefghijklmnopqrstuvwxyz") == {"|", "'", ".", "1", "2"}
