"""What captions say about a plot is what is drawn."""

import pandas as pd
import pytest


def test_captions_say_what_bars_are_and_only_where_there_are_bars():
    from contrastneg.analyze.charts import of_hubs, of_popularity

    about = {"images": 90, "classes": "labels"}
    row = {"correlation": 0.5, "correlation_se": 0.1, "classes_counted": 3, **about}
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
