"""Small clouds of embeddings around class centres, and their cosines by plain numpy."""

import numpy as np
import torch


def cloud(images=40, classes=4, width=6, seed=0):
    """Embeddings of any length, their classes (of different sizes), and a second view of each."""
    draws = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (images,), generator=draws)
    centre = torch.randn(classes, width, generator=draws)
    x = (centre[label] + torch.randn(images, width, generator=draws)) * torch.linspace(0.5, 3, images)[:, None]
    return x, label, x + 0.6 * torch.randn(images, width, generator=draws)


def unit(x):
    """Rows of unit length in float64, as an array."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ranked(x):
    """For each image the others, most similar first, as pairs (cosine, image)."""
    cosine = unit(x) @ unit(x).T
    return [sorted(((cosine[i, j], j) for j in range(len(x)) if j != i), reverse=True) for i in range(len(x))]


def mean_error(values):
    """Mean and standard error of a list."""
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


def ratio_error(part, whole):
    """Ratio of two sums over queries and its standard error, linearised."""
    a, b = np.array(part, dtype=float), np.array(whole, dtype=float)
    value = a.sum() / b.sum()
    return value, np.sqrt(len(a) / (len(a) - 1) * np.square(a - value * b).sum()) / b.sum()


def with_another(label):
    """Images that have another image of their class."""
    label = np.asarray(label)
    return [i for i in range(len(label)) if (label == label[i]).sum() > 1]


def at_cosine(x, cosine, seed=0):
    """One vector for each row that has a given cosine with it."""
    x = unit(x)
    other = np.random.default_rng(seed).normal(size=x.shape)
    across = unit(other - (other * x).sum(axis=1, keepdims=True) * x)
    cosine = np.asarray(cosine, dtype=np.float64)[:, None]
    return torch.from_numpy(cosine * x + np.sqrt(1 - cosine**2) * across)
