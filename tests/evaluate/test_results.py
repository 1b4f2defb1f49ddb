"""Numbers as they are printed."""

import pytest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (999.4, "999"),
        (999.6, "1,000"),
        (-999.6, "-1,000"),
        (1234.5, "1,234"),
        (7.0, "7"),
    ],
)
def test_numbers_that_are_no_shares_have_three_digits_and_no_power_of_ten(value, text):
    from contrastneg.evaluate.results import Score

    assert Score("encoder", "geometry", "RankMe", value, 10, unit="").text() == text
