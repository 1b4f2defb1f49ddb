"""An analysis, whole: what its files, its page and the terminal tell of."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from contrastneg.analyze.answers import Answer
from contrastneg.analyze.gallery import Gallery


@dataclass(frozen=True)
class Analysis:
    """What was found."""

    context: dict[str, Any]
    """What all numbers share."""
    tables: dict[str, dict[str, pd.DataFrame]]
    """By section, the tables by name."""
    left_out: dict[str, str]
    """Sections that were asked for and could not be measured, with the reason."""
    answers: list[Answer]
    """To the four questions."""
    gallery: Gallery | None
    """Queries with their hardest negatives."""
    notes: list[str]
    """What a reader must know."""
