"""What captions say about a plot is what is drawn."""

import pandas as pd
import pytest
import torch


def test_captions_say_what_bars_are_and_only_where_there_are_bars():
    from contrastneg.analyze.charts import of_hubs, of_popularity

    about = {"images": 90, "classes": "labels"}
    row = {"size": "classes", "correlation": 0.5, "correlation_se": 0.1, "classes_counted": 3, **about}
    (drawn,) = of_popularity({"popularity": pd.DataFrame([row])})
    assert drawn.caption.endswith("classes: labels. Bars: ± 1.96 standard errors over classes.")
    hubs = pd.DataFrame(
        {"statistic": ["skewness", "gini", "never"], "value": 1.0, "chance": 0.5, "neighbours": 20, **about}
    )
    (drawn,) = of_hubs({"hubness": hubs})
    assert "Bars" not in drawn.caption


def test_every_detector_has_a_name_of_its_own():
    from clouds import cloud

    from contrastneg.analysis import false_negative_detectors
    from contrastneg.analyze.charts import detector_name

    x, label, positive = cloud()
    columns = {"place": label, "group": label}
    table = false_negative_detectors(
        x, label, positives=positive, clusters=(3,), gaps=(0.0, 0.1), neighbours=(2, 3), columns=columns
    )
    names = [detector_name(row) for row in table.to_dict("records")]
    assert len(set(names)) == len(names)
    assert {"cosine > the positive's - 0.1", "mutual, 3 nearest", "same place", "support views"} <= set(names)
    with pytest.raises(ValueError, match="a detector new has no name here"):
        detector_name({"detector": "new"})


def test_class_priors_that_are_near_each_other_have_names_of_their_own():
    from contrastneg.analyze.charts import estimate_names

    nan = float("nan")
    table = pd.DataFrame({"estimate": ["biased", "debiased", "debiased"], "class_prior": [nan, 0.0997, 0.1]})
    assert estimate_names(table) == ["biased", "debiased, 0.0997", "debiased, 0.1"]
    twice = table.assign(class_prior=[nan, 0.1, 0.1])
    assert estimate_names(twice)[1:] == ["debiased, 0.1"] * 2


def test_the_band_is_told_in_words_also_where_there_is_none():
    from contrastneg.analyze.charts import band_text

    band = pd.DataFrame({"lift": [2.0, 1.1], "rank": [1234.0, float("nan")]})
    assert (
        band_text(band) == "It falls below 2 times the base rate at rank 1,234, below 1.1 times the base rate nowhere."
    )


@pytest.mark.parametrize(
    ("classes", "told"), [(12, ""), (13, "; all are in the table."), (101, "; the 20 most frequent for each are")]
)
def test_the_caption_of_confusions_says_what_the_table_holds(classes, told):
    from clouds import cloud

    from contrastneg.analyze.charts import of_confusion
    from contrastneg.analyze.material import Material
    from contrastneg.analyze.measures import measure_confusion

    x, _, positive = cloud(4 * classes)
    label = torch.arange(classes).repeat(4)
    tables = measure_confusion(Material(x, positive, label, [f"c{n}" for n in range(classes)], 4, 2048, 0.2, 0))
    (drawn,) = of_confusion(tables)
    assert told in drawn.caption
    assert ("in the table" in drawn.caption) == (classes > 12)
    assert tables["hard_confusion"].groupby("query_class").size().max() == (20 if classes > 100 else classes)


@pytest.mark.parametrize(("value", "said"), [(1.2, ["near chance"]), (2.5, ["hard for many"]), (float("nan"), [])])
def test_hardness_gets_a_verdict_where_its_spread_is_known(value, said):
    from contrastneg.analyze.answers import answers_of

    table = pd.DataFrame([{"candidates": "all", "statistic": "over-dispersion", "value": value}])
    answer = answers_of({"hardness_consistency": table}, 0.2, ())[0]
    verdicts = [sentence for sentence in answer.sentences if "spread" in sentence]
    assert len(verdicts) == len(said)
    assert all(word in sentence for word, sentence in zip(said, verdicts, strict=True))
    assert len(answer.numbers) == len(said)
