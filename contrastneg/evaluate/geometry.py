"""What the shape of a cloud of features says about an encoder: ranks, spectra and tolerance.

All but :func:`tolerance` need no labels. Alignment and uniformity stand in :mod:`contrastneg.losses.geometry`, as they are
a loss, too. Everything is computed in float64 through matrices of products, F x F or, of fewer images than features, N x N, so
that the number of images costs time, not memory.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

ROWS = 65_536  # rows that are held in float64 at a time


def rankme(features: Float[Tensor, "N F"], *, epsilon: float = 1e-7) -> float:
    r"""Effective rank of features (RankMe, arXiv:2210.02885): e to the entropy of their normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \sigma_k / \|\sigma\|_1 + \epsilon

    The singular values themselves, not their squares, of the features as they are, not centred. At most min(N, F): take
    many more images than features, or the number of images is what is measured.

    Args:
        features: Features of N images.
        epsilon: Added to each share; the paper's value as we recall it.

    Raises:
        ValueError: A feature is not finite, or all are 0.
    """
    x = _checked(features)
    eigenvalues = torch.linalg.eigvalsh(_products(x if len(x) >= x.shape[1] else x.T))
    singular = eigenvalues.clamp(min=0).sqrt().flip(0)[: min(features.shape)]
    return _effective_rank(singular, epsilon)


def lidar(views: Float[Tensor, "N Q F"], *, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    r"""Effective rank of what tells images apart beyond what their augmentations do (LiDAR, arXiv:2312.04000).

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p = \lambda / \|\lambda\|_1 + \epsilon, \qquad
        \lambda = \mathrm{eig}\bigl(\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}\bigr)

    with each image a class of its own: scatter :math:`\Sigma_b` of the images' means (divided by N - 1) and
    :math:`\Sigma_w` of the views around them (divided by N (Q - 1)) plus :math:`\delta I`. At most min(N - 1, F).

    Args:
        views: Features of Q augmented views of each of N images.
        delta: Added to the diagonal of the scatter within images.
        epsilon: Added to each share.

    Raises:
        ValueError: There are fewer than 2 images or 2 views, a feature is not finite, or all means are the same.
    """
    images, per_image, width = views.shape
    if images < 2 or per_image < 2:
        raise ValueError(f"LiDAR needs at least 2 images with 2 views each, got {images} with {per_image}")
    wide = _checked(views.flatten(0, 1)).double().view(images, per_image, width)
    mean = wide.mean(dim=1)
    between = torch.cov(mean.T).view(width, width)
    apart = (wide - mean[:, None]).flatten(0, 1)
    within = apart.T @ apart / (images * (per_image - 1)) + delta * torch.eye(width, dtype=torch.float64)
    root = torch.linalg.cholesky(within)  # eigenvalues are those of the symmetric form: the matrices are similar
    half = torch.linalg.solve_triangular(root, between, upper=False)
    ratio = torch.linalg.solve_triangular(root, half.T, upper=False)
    eigenvalues = torch.linalg.eigvalsh((ratio + ratio.T) / 2).clamp(min=0).flip(0)
    return _effective_rank(eigenvalues[: min(images - 1, width)], epsilon)


def spectrum(features: Float[Tensor, "N F"]) -> Float64[Tensor, " F"]:
    """Eigenvalues of the covariance of features, largest first: those near 0 are dimensions that collapsed (arXiv:2110.09348).

    Args:
        features: Features of N images, at least 2.

    Raises:
        ValueError: There are fewer than 2 images, or a feature is not finite.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {len(features)}")
    x = _checked(features)
    mean, width = x.mean(dim=0, dtype=torch.float64), x.shape[1]
    if len(x) < width:  # products of rows have the same eigenvalues, less those that are 0
        apart = x.double() - mean
        products = apart @ apart.T
    else:
        products = _products(x) - len(x) * torch.outer(mean, mean)
    eigenvalues = torch.linalg.eigvalsh(products / (len(x) - 1)).clamp(min=0).flip(0)
    return torch.cat([eigenvalues, eigenvalues.new_zeros(width - len(eigenvalues))])


def decay_exponent(eigenvalues: Float[Tensor, " F"], *, first: int = 3, last: int = 100) -> float:
    r"""How fast a spectrum falls (alpha-ReQ, NeurIPS 2022): :math:`\alpha` in :math:`\lambda_i \propto i^{-\alpha}`.

    A straight line fitted by least squares to log eigenvalue over log index. Features that generalise have values near 1
    in the paper; larger ones mean that few directions carry everything.

    Args:
        eigenvalues: Of the covariance, largest first; see :func:`spectrum`.
        first: First index of the fit, counted from 1.
        last: Last index; fewer where there are fewer eigenvalues above 0.

    Raises:
        ValueError: Fewer than 2 eigenvalues above 0 are left in the range.
    """
    positive = int((eigenvalues > 0).sum())
    last = min(last, positive)
    if first < 1 or last <= first:
        raise ValueError(
            f"a line through eigenvalues {first} to {last} cannot be fitted: {positive} of them are above 0; "
            "give an earlier first one, or features of more dimensions"
        )
    index = torch.arange(first, last + 1, dtype=torch.float64).log()
    level = eigenvalues[first - 1 : last].double().log()
    centred = index - index.mean()
    return -float((centred * level).sum() / centred.square().sum())


def tolerance(features: Float[Tensor, "N F"], labels: Int64[Tensor, " N"]) -> float:
    r"""Mean cosine of two different images of one class (arXiv:2012.09740), over all such pairs.

    .. math:: \frac{\sum_c \bigl(\|\sum_{i \in c} x_i\|^2 - n_c\bigr)}{\sum_c n_c (n_c - 1)}

    High where a class is kept together; read it beside uniformity, which a low temperature buys with it.

    Args:
        features: Features of N images, any length above 0.
        labels: Their classes; -1 is unknown and left out.

    Raises:
        ValueError: No class has two images, or a feature is not finite or has length 0.
    """
    known = labels >= 0
    x, y = _checked(features[known]).double(), labels[known]
    length = x.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise ValueError("a feature of length 0 has no cosine")
    classes, code = y.unique(return_inverse=True)
    sums = x.new_zeros(len(classes), x.shape[1]).index_add_(0, code, x / length)
    count = torch.bincount(code, minlength=len(classes)).double()
    pairs = (count * (count - 1)).sum()
    if pairs == 0:
        raise ValueError("tolerance needs two images of one class: there are none")
    return float((sums.square().sum() - count.sum()) / pairs)


def _checked(features: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
    if not bool(features.isfinite().all()):
        raise ValueError("a feature is not finite: look for a fault of the encoder before measuring it")
    return features


def _products(x: Float[Tensor, "N F"]) -> Float64[Tensor, "F F"]:
    """X^T X in float64, a part of the rows at a time."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for rows in x.split(ROWS):
        wide = rows.double()
        total += wide.T @ wide
    return total


def _effective_rank(values: Float64[Tensor, " R"], epsilon: float) -> float:
    total = values.sum()
    if total == 0:
        raise ValueError("all features are the same: their rank cannot be measured")
    share = values / total + epsilon
    return float(torch.special.entr(share).sum().exp())
