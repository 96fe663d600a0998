"""Numbers are as short as a reader needs them, and none loses its meaning."""

import pytest

from compress.utils.units import count_text, setting_text, size_text, three_digits


def test_numbers_never_take_an_exponent() -> None:
    assert [three_digits(value) for value in (0.2941, 17.0, 99.96, 1020.4, 0.0)] == [
        "0.294",
        "17.0",
        "100",
        "1020",
        "0.00",
    ]
    assert size_text(1020 * 1024) == "1020 KiB"
    assert size_text(2**20) == "1.00 MiB"
    assert count_text(999_999) == "1000 k"
    assert count_text(12) == "12"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.6436378296983221", "0.6436"),
        ("-0.00012345678", "-0.0001235"),
        ("1.2345678e-05", "1.235e-05"),
        ("12345.678", "12346"),
        ("[0.123456,0.5]", "[0.1235,0.5]"),
        ("0.5", "0.5"),
        ("1.0", "1.0"),
        ("123456789", "123456789"),  # a seed
        ("[]", "[]"),
        ("data/v1.234567", "data/v1.234567"),
        ("1.2.3", "1.2.3"),
        ("null", "null"),
    ],
)
def test_a_setting_has_four_digits_and_only_a_number_is_shortened(text: str, shown: str) -> None:
    assert setting_text(text) == shown
