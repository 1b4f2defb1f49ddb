"""Recall@k and MAP@R against a slow reference and closed forms."""

import pytest
import torch
import torch.nn.functional as F

from contrastneg.evaluate.features import Features
from contrastneg.evaluate.retrieval import retrieval_score


def some_features(images: int = 60, classes: int = 5, seed: int = 0) -> Features:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=draws)
    x = F.one_hot(labels, 8).float() + torch.randn(images, 8, generator=draws)
    return Features(x, labels)


def slow(features: Features, ks: tuple[int, ...]) -> tuple[dict[int, float], float]:
    unit = F.normalize(features.x.double(), dim=1)
    recall, precisions, asked = dict.fromkeys(ks, 0.0), [], 0
    for query in range(len(unit)):
        ranked = sorted((i for i in range(len(unit)) if i != query), key=lambda i: -float(unit[query] @ unit[i]))
        right = [bool(features.labels[i] == features.labels[query]) for i in ranked]
        others = sum(right)
        if not others:
            continue
        asked += 1
        for k in ks:
            recall[k] += any(right[:k])
        precisions.append(sum(sum(right[: i + 1]) / (i + 1) for i in range(others) if right[i]) / others)
    return {k: count / asked for k, count in recall.items()}, sum(precisions) / asked


def test_scores_are_those_of_a_loop_over_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    features = some_features()
    recall, precision = slow(features, (1, 5, 10))
    for cells in (2**24, 7 * 60):  # at once, and a few queries at a time
        monkeypatch.setattr("contrastneg.evaluate.retrieval.CELLS", cells)
        score = retrieval_score(features)
        assert score.recall == pytest.approx(recall, abs=1e-12)
        assert score.map_at_r == pytest.approx(precision, abs=1e-12)


def test_classes_apart_score_one() -> None:
    labels = torch.arange(12) % 3
    score = retrieval_score(Features(torch.eye(3)[labels] + 0.01 * torch.rand(12, 3), labels))
    assert (score.recall, score.map_at_r) == ({1: 1.0, 5: 1.0, 10: 1.0}, 1.0)


def test_an_image_never_answers_for_itself() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    score = retrieval_score(Features(x, torch.tensor([0, 0, 1, 1])), ks=(1,))
    assert score.recall == {1: 0.0}  # the twin of each is of the other class


def test_the_only_image_of_a_class_answers_but_is_not_asked() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [1.0, 0.05]])
    score = retrieval_score(Features(x, torch.tensor([0, 0, 1])), ks=(1, 2))
    assert score.queries == 2
    assert score.recall == {1: 0.0, 2: 1.0}


def test_what_has_no_label_or_no_number_is_left_out() -> None:
    features = some_features()
    x, labels = torch.cat([features.x, torch.randn(3, 8)]), torch.cat([features.labels, torch.tensor([-1, 0, 0])])
    x[-1] = torch.nan
    x[-2] = torch.inf
    score = retrieval_score(Features(x, labels))
    assert score.notes == ("2 features are not finite and left out",)
    assert score.map_at_r == retrieval_score(features).map_at_r


def test_a_set_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="there are none"):
        retrieval_score(Features(torch.randn(3, 2), torch.tensor([0, 1, -1])))
    with pytest.raises(ValueError, match="at least 1"):
        retrieval_score(some_features(), ks=(0, 1))


def test_images_of_the_own_group_are_neither_answers_nor_missed() -> None:
    features = some_features(seed=3)
    group = torch.arange(60) // 3
    ranked = (F.normalize(features.x.double(), dim=1) @ F.normalize(features.x.double(), dim=1).T).argsort(
        dim=1, descending=True
    )
    hits, precisions = [], []
    for query in range(60):
        others = [i for i in ranked[query].tolist() if group[i] != group[query]]
        right = [bool(features.labels[i] == features.labels[query]) for i in others]
        hits.append(right[0])
        r = sum(right)
        precisions.append(sum(sum(right[: i + 1]) / (i + 1) for i in range(r) if right[i]) / r)
    score = retrieval_score(features, group=group)
    assert score.recall[1] == pytest.approx(sum(hits) / 60)
    assert score.map_at_r == pytest.approx(sum(precisions) / 60)
    with pytest.raises(ValueError, match="of one class that are of two groups"):
        retrieval_score(features, group=torch.zeros(60, dtype=torch.long))
