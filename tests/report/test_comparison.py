"""The page of a comparison says what the table says, drawn to scale, with names escaped."""

import re

import pytest

HOSTILE = "<b>run</b>"


def row(values):
    from contrastneg.evaluate.comparison import Row
    from contrastneg.evaluate.results import Score

    scores = [Score("encoder", "knn", "top-1", v, 100, low=v - 2, high=v + 2) for v in values]
    return Row("knn", "top-1", "%", scores, [None] * len(values))


def test_whiskers_are_drawn_to_scale():
    from contrastneg.report.comparison import whiskers

    drawn = whiskers(row([60.0, 70.0]), ["first", "second"])
    first, second = drawn.whiskers
    assert first.at - first.low == pytest.approx(first.high - first.at, abs=0.11)
    assert second.at - first.at == pytest.approx(5 * (first.at - first.low), abs=0.6)
    assert drawn.left <= first.low < second.high <= drawn.right
    assert drawn.description == "knn, top-1 (%): first: 60.0 [58.0, 62.0] %; second: 70.0 [68.0, 72.0] %"


def test_a_single_run_or_numbers_without_intervals_are_not_drawn():
    from contrastneg.evaluate.comparison import Row
    from contrastneg.evaluate.results import Score
    from contrastneg.report.comparison import whiskers

    assert whiskers(row([60.0]), ["alone"]) is None
    plain = [Score("encoder", "geometry", "RankMe", 3.0, 10, unit="")] * 2
    assert whiskers(Row("geometry", "RankMe", "", plain, [None, None]), ["a", "b"]) is None


def test_names_are_escaped_and_the_page_needs_nothing_else(tmp_path):
    from contrastneg.evaluate.comparison import Comparison
    from contrastneg.report.comparison import write_comparison

    page = write_comparison([Comparison(HOSTILE, [HOSTILE, "b"], [row([60.0, 70.0])], [])], tmp_path / "c.html")
    text = page.read_text()
    assert HOSTILE not in text
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
