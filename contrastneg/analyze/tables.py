"""Parts of tables."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

Tables = Mapping[str, pd.DataFrame]
"""Tables by name; the name is that of the file, too."""


def rows_where(table: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows of a table for which a mask, one truth value a row, holds."""
    return table.loc[mask, :]
