"""Words that depend on a number."""

import pytest

from contrastneg.wording import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (7.26, "7.3 s"), (119.9, "119.9 s"), (120, "2.0 min"), (7199, "120.0 min"), (9000, "2.5 h")],
)
def test_a_time_span_is_told_in_the_unit_of_which_it_holds_two(seconds, words):
    assert duration(seconds) == words


def test_a_score_is_rounded_alike_from_a_32_bit_number_and_from_a_64_bit_one():
    from contrastneg.wording import percent

    assert percent(100 * 0.1174999997019767) == percent(100 * 0.1175) == percent(11.75) == "11.8"


def test_held_out_images_are_told_from_test_images_by_the_notes_of_a_run():
    from contrastneg.wording import HELD_OUT_NOTE, asked_images

    assert asked_images(["one", f"{HELD_OUT_NOTE}: every 10th labelled image is asked about"]) == "held-out images"
    assert asked_images(["one", f"the scores have {HELD_OUT_NOTE}"]) == asked_images([]) == "test images"
