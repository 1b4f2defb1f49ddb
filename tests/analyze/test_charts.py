"""What captions say about a plot is what is drawn."""

import pandas as pd


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
