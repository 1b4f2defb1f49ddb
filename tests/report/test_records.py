"""What the scores of a run's records say."""

import pytest


def rows_of(*scores):
    names = ("pretrained encoder", "untrained encoder", "raw pixels")
    return [
        {"features": name, "knn_top1": knn, "linear_top1": linear}
        for name, (knn, linear) in zip(names, scores, strict=True)
    ]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([(50, 60), (40, 45), (30, 20)], ""),
        ([(50, 60), (40, 60), (30, 20)], "the untrained encoder (linear 60.0 against 60.0 %)"),
        ([(50, 60), (55, 45), (30, 20)], "the untrained encoder (kNN 50.0 against 55.0 %)"),
        ([(50, 60), (40, 45), (50.5, 61)], "raw pixels (kNN 50.0 against 50.5 %, linear 60.0 against 61.0 %)"),
        (
            [(50, 60), (60, 45), (30, 70)],
            "the untrained encoder (kNN 50.0 against 60.0 %), nor than raw pixels (linear 60.0 against 70.0 %)",
        ),
        ([(50, None), (40, 45), (30, 99)], ""),  # what is missing is not compared
    ],
)
def test_an_encoder_must_be_better_than_each_baseline_by_knn_and_by_linear_score(scores, words):
    from contrastneg.report.records import shortfall

    told = shortfall(rows_of(*scores))
    assert told == (words and f"the pretrained encoder is not better than {words}: train longer, or look for a fault")


def test_scores_that_are_all_0_ask_for_no_longer_training():
    from contrastneg.report.records import shortfall

    told = shortfall(rows_of((0, 0), (0, 0), (0, 0)))
    assert told.startswith("every score is 0, those of the baselines, too")
    assert "train longer" in shortfall(rows_of((0, 0), (0, 5), (0, 0)))


def test_without_scores_there_is_nothing_to_say():
    from contrastneg.report.records import shortfall

    assert shortfall([]) == ""
