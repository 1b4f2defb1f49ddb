"""How related the classes of hard negatives are, where classes stand in a hierarchy."""

from collections.abc import Hashable, Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from contrastneg.analysis.classes import Labels
from contrastneg.analysis.errors import columns_of, ratio
from contrastneg.analysis.hardness import EDGES, bin_columns, bin_ranks, sums_by_bin
from contrastneg.analysis.queries import QUERIES, Embeddings, ask_by_class


def relatedness_by_hardness(
    embeddings: Embeddings,
    labels: Labels,
    paths: Mapping[int, Sequence[Hashable]],
    *,
    edges: Sequence[float] = EDGES,
    queries: int = QUERIES,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How near the classes of true negatives are to the query's in a hierarchy, by bins of hardness (arXiv:2010.06682).

    For two classes with paths from the root, d is the number of nodes that the paths begin with alike: the depth of their
    lowest common ancestor, 0 where even the first nodes differ. Over the candidates of other classes in a bin,

    .. math:: \text{depth} = \overline{d(y_i, y_j)} \qquad
        \text{Wu-Palmer} = \overline{\frac{2\, d(y_i, y_j)}{|path(y_i)| + |path(y_j)|}}

    Args:
        embeddings: Of all images.
        labels: Their classes.
        paths: Nodes from the root to the class, by label; of any kind that can be compared. At least one node each.
        edges: See :func:`hardness_bins`.
        queries: How many are asked at most.
        seed: Of the draw of queries.

    Returns:
        One row per bin: ``lower``, ``upper``, ``candidates`` as in :func:`hardness_bins`; ``depth`` and ``wu_palmer``, each
        with its standard error over queries, ``..._se``; ``base_depth`` and ``base_wu_palmer``, those of all bins together.

    Raises:
        ValueError: Labels are missing, a class has no path, or a bin is empty.
    """
    asked = ask_by_class(embeddings, labels, queries=queries, seed=seed)
    bins = bin_ranks(edges, asked.candidates)
    depth, related = _relatedness([_path(paths, name) for name in asked.class_names.tolist()])
    found = torch.empty(len(asked.rows), 3, len(bins), dtype=torch.float64)
    done = 0
    for rows, _, image in asked.ordered():
        own, other = asked.labels[rows][:, None], asked.labels[image]
        true = own != other
        sums = [sums_by_bin(values, bins) for values in (true, depth[own, other] * true, related[own, other] * true)]
        found[done : done + len(rows)] = torch.stack(sums, dim=1)
        done += len(rows)
    pairs, depths, near = found.unbind(dim=1)
    base = found.sum(dim=(0, 2))
    return asked.table(
        {
            **bin_columns(edges, bins),
            **columns_of("depth", ratio(depths, pairs)),
            **columns_of("wu_palmer", ratio(near, pairs)),
            "base_depth": float(base[1] / base[0]),
            "base_wu_palmer": float(base[2] / base[0]),
        }
    )


def _path(paths: Mapping[int, Sequence[Hashable]], name: int) -> Sequence[Hashable]:
    if not paths.get(name):
        raise ValueError(f"paths has none for class {name}: give the nodes from the root to each class")
    return paths[name]


def _relatedness(
    paths: Sequence[Sequence[Hashable]],
) -> tuple[Float64[Tensor, "classes classes"], Float64[Tensor, "classes classes"]]:
    """Depth of the lowest common ancestor of all pairs of classes, and their similarity of Wu and Palmer."""
    length = torch.tensor([len(path) for path in paths]).double()
    depth = torch.zeros(len(paths), len(paths), dtype=torch.float64)
    for level in range(max(map(len, paths))):
        codes: dict[tuple[Hashable, ...], int] = {}
        begins: Int64[Tensor, " classes"] = torch.tensor(
            [codes.setdefault(tuple(path[: level + 1]), len(codes)) if len(path) > level else -1 for path in paths]
        )
        depth += (begins[:, None] == begins) & (begins >= 0)
    return depth, 2 * depth / (length[:, None] + length)
