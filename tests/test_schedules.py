"""Learning rates and temperatures: the papers' values at the corners, and names that nothing knows."""

import math

import pytest

from training.schedules import LEARNING_RATES, learning_rate_schedule, temperature_schedule


def rate(kind, *, num_steps, peak=1.0, **options):
    return learning_rate_schedule(kind, num_steps=num_steps, peak=peak, options=options)


def temperature(kind, *, num_steps=400_000, **options):
    return temperature_schedule(kind, num_steps=num_steps, options=options)


@pytest.mark.parametrize("kind", sorted(LEARNING_RATES))
def test_no_schedule_exceeds_its_peak_or_goes_below_zero(kind):
    schedule = rate(kind, num_steps=100, peak=0.3)
    values = [schedule(step) for step in range(120)]
    assert max(values) == pytest.approx(0.3)
    assert min(values) >= 0


def test_polynomial_rises_to_the_peak_over_the_warm_up_and_falls_to_zero_on_a_straight_line():
    schedule = rate("polynomial", num_steps=400_000, peak=5e-4, warmup_steps=32_000)
    assert schedule(0) == pytest.approx(5e-4 / 32_000)
    assert schedule(31_999) == pytest.approx(5e-4)
    assert schedule(32_000) == pytest.approx(5e-4)
    assert schedule(216_000) == pytest.approx(2.5e-4)
    assert schedule(400_000) == 0


def test_polynomial_of_a_higher_power_is_that_power_of_the_straight_line():
    schedule = rate("polynomial", num_steps=110, peak=3.0, warmup_steps=10, end=1.0, power=2.0)
    assert schedule(60) == pytest.approx(1.0 + 2.0 * 0.5**2)
    assert schedule(110) == pytest.approx(1.0)


def test_cosine_is_that_of_wav2vec():
    schedule = rate("cosine", num_steps=400_000, peak=5e-3, warmup_steps=500, start=1e-7, end=1e-6)
    assert schedule(0) == pytest.approx(1e-7)
    assert schedule(250) == pytest.approx((1e-7 + 5e-3) / 2)
    assert schedule(500) == pytest.approx(5e-3)
    assert schedule(500 + 399_500 // 2) == pytest.approx((5e-3 + 1e-6) / 2)
    assert schedule(400_000) == pytest.approx(1e-6)


def test_tri_stage_is_that_of_the_fine_tuning():
    schedule = rate("tri_stage", num_steps=20_000, peak=5e-5)
    assert schedule(0) == pytest.approx(0.01 * 5e-5)
    assert schedule(1_000) == pytest.approx((0.01 + 1) / 2 * 5e-5)
    assert schedule(2_000) == schedule(9_999) == 5e-5
    assert schedule(15_000) == pytest.approx(5e-5 * math.sqrt(0.05))
    assert schedule(20_000) == pytest.approx(0.05 * 5e-5)
    assert schedule(30_000) == pytest.approx(0.05 * 5e-5)


def test_constant_stays_at_its_peak_after_the_warm_up():
    schedule = rate("constant", num_steps=100, peak=0.2, warmup_steps=10)
    assert schedule(4) == pytest.approx(0.1)
    assert {schedule(step) for step in range(9, 100)} == {0.2}


@pytest.mark.parametrize(("end", "last_step_above"), [(0.5, 277_258), (0.1, 599_144)])
def test_exponential_temperature_reaches_its_end_where_the_original_code_does(end, last_step_above):
    schedule = temperature("exponential", end=end)
    assert schedule(0) == 2.0
    assert schedule(100_000) == pytest.approx(2.0 * 0.999995**100_000)
    assert schedule(last_step_above) > end
    assert schedule(last_step_above + 1) == end


def test_linear_temperature_reaches_its_end_after_seven_tenths_of_the_steps():
    schedule = temperature("linear")
    assert schedule(0) == 2.0
    assert schedule(140_000) == pytest.approx(1.25)
    assert schedule(279_999) > 0.5
    assert schedule(280_000) == schedule(400_000) == pytest.approx(0.5)


def test_a_kind_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ValueError, match=r"schedule\.kind must be one of polynomial, .*tri_stage.*got 'triangle'"):
        rate("triangle", num_steps=10)
    with pytest.raises(ValueError, match=r"gumbel_temperature\.kind must be one of exponential, linear, got None"):
        temperature(None)


def test_an_option_that_a_kind_does_not_have_is_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"of kind cosine takes warmup_steps, start, end, got power"):
        rate("cosine", num_steps=10, power=2)
    with pytest.raises(ValueError, match=r"of kind exponential takes start, end, decay, got share"):
        temperature("exponential", share=0.5)


def test_an_option_that_the_recipe_sets_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"got num_steps"):
        learning_rate_schedule("polynomial", num_steps=10, peak=1.0, options={"num_steps": 5})
