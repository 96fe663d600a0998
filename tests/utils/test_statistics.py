"""Intervals, against figures published or worked out elsewhere."""

import pytest

from compress.utils.statistics import mcnemar_p_value, paired_difference, wilson_interval


def test_wilson_interval_of_a_known_example() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 16.11), abs=0.005)


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (5, 10), (999, 1000)])
def test_wilson_interval_holds_the_share_and_mirrors(successes: int, count: int) -> None:
    low, high = wilson_interval(successes, count)
    assert 0 <= low <= 100 * successes / count <= high <= 100
    assert wilson_interval(count - successes, count) == pytest.approx((100 - high, 100 - low), abs=1e-9)


def test_paired_difference_is_exact_and_its_interval_has_a_width() -> None:
    delta, (low, high) = paired_difference(5, 17, 1017)
    assert delta == pytest.approx(-100 * 12 / 1017)
    assert low < delta < high < 0
    assert paired_difference(0, 0, 1000)[1] == pytest.approx((-0.196, 0.196), abs=0.001)


def test_paired_difference_changes_sign_with_its_sides() -> None:
    delta, (low, high) = paired_difference(3, 9, 200)
    assert paired_difference(9, 3, 200) == (-delta, (pytest.approx(-high), pytest.approx(-low)))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="received 0"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="received 0"):
        paired_difference(0, 0, 0)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar_p_value(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar_p_value(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
    assert mcnemar_p_value(4, 1) == mcnemar_p_value(1, 4)
    assert mcnemar_p_value(10, 10) == mcnemar_p_value(0, 0) == 1
