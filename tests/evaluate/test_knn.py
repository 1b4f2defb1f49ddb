"""kNN against a vote written out, its corners, and its memory."""

import subprocess
import sys

import pytest
import torch


def features(n, width=16, classes=10, seed=0):
    from contrastneg.evaluate.features import Features

    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(n, width, generator=generator), torch.randint(0, classes, (n,), generator=generator))


def written_out(bank, queries, k, temperature, num_classes):
    answers = []
    bank_x = torch.nn.functional.normalize(bank.x.double(), dim=1)
    for query in torch.nn.functional.normalize(queries.x.double(), dim=1):
        cosines = [(float(query @ row), -index) for index, row in enumerate(bank_x)]
        votes = [0.0] * num_classes
        for cosine, index in sorted(cosines, reverse=True)[:k]:
            votes[int(bank.labels[-index])] += torch.tensor(cosine / temperature).exp().item()
        answers.append(sorted(range(num_classes), key=lambda label: (-votes[label], label))[:5])
    return torch.tensor(answers)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (200, 0.07)])
def test_predictions_equal_the_vote_written_out(k, temperature):
    from contrastneg.evaluate.knn import knn_predict

    bank, queries = features(300), features(30, seed=1)
    found = knn_predict(bank.x, bank.labels, queries.x, k=k, temperature=temperature, num_classes=10)
    answer = written_out(bank, queries, k, temperature, 10)
    assert torch.equal(found[:, 0], answer[:, 0])
    if k >= 20:
        assert torch.equal(found, answer)


def test_each_image_of_the_bank_is_its_own_nearest_neighbour():
    from contrastneg.evaluate.knn import knn_score

    bank = features(500)
    assert knn_score(bank, bank, k=1, temperature=0.07, num_classes=10).top1 == 1.0


def test_a_high_temperature_is_a_plain_majority_and_a_low_one_the_nearest():
    from contrastneg.evaluate.knn import knn_predict

    angle = torch.tensor([0.0, 0.2, 0.25, 0.3])
    bank = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels, query = torch.tensor([2, 1, 1, 0]), torch.tensor([[1.0, 0.0]])
    arguments = {"k": 4, "num_classes": 3}
    assert knn_predict(bank, labels, query, temperature=100.0, **arguments)[0, 0] == 1
    assert knn_predict(bank, labels, query, temperature=1e-4, **arguments)[0, 0] == 2


def test_ties_go_to_the_lower_bank_index_and_then_to_the_lower_class():
    from contrastneg.evaluate.knn import knn_predict

    bank = torch.ones(9000, 4)
    labels = torch.arange(9000) % 7
    found = knn_predict(bank, labels, torch.ones(3, 4), k=1, temperature=0.07, num_classes=7)
    assert found[:, 0].tolist() == [0, 0, 0]
    found = knn_predict(bank, labels, torch.ones(3, 4), k=4, temperature=0.07, num_classes=7)
    assert found[:, :4].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("chunk", [1, 64, 1000, 20_000])
def test_chunks_change_no_prediction(chunk):
    from contrastneg.evaluate.knn import knn_predict

    bank, queries = features(20_000, width=32), features(1003, width=32, seed=1)
    arguments = {"k": 50, "temperature": 0.07, "num_classes": 10}
    queries = queries.x[:103] if chunk == 1 else queries.x
    whole = knn_predict(bank.x, bank.labels, queries, chunk=len(queries), **arguments)
    assert torch.equal(knn_predict(bank.x, bank.labels, queries, chunk=chunk, **arguments), whole)


def test_unlabelled_images_neither_vote_nor_are_asked():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    bank = features(100)
    silent = Features(torch.cat([bank.x, bank.x]), torch.cat([torch.full((100,), -1), bank.labels]))
    score = knn_score(silent, silent, k=1, temperature=0.07, num_classes=10)
    assert score.top1 == 1.0
    with pytest.raises(ValueError, match="there are none"):
        knn_score(Features(bank.x, torch.full((100,), -1)), bank, k=1, temperature=0.07, num_classes=10)


def test_top5_is_left_out_where_five_guesses_cannot_miss():
    from contrastneg.evaluate.knn import knn_score

    few, many = features(50, classes=3), features(50, classes=10)
    assert knn_score(few, few, k=5, temperature=0.07, num_classes=3).top5 is None
    assert 0 < knn_score(many, features(50, seed=1), k=20, temperature=0.07, num_classes=10).top5 < 1


def test_one_class_and_a_bank_smaller_than_k_are_said():
    from contrastneg.evaluate.knn import knn_score

    one = features(10, classes=1)
    score = knn_score(one, one, k=20, temperature=0.07, num_classes=1)
    assert score.k == 10
    assert "all of them vote" in score.notes[0]
    assert "meaningless" in score.notes[1]


def test_as_many_classes_as_images_run():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    bank = Features(x, torch.arange(20_000))
    queries = Features(x[:200], torch.arange(200))
    assert knn_score(bank, queries, k=20, temperature=0.01, num_classes=20_000).top1 == 1.0


MEMORY = """
import resource, torch
from contrastneg.evaluate.knn import knn_predict
g = torch.Generator().manual_seed(0)
bank, queries = torch.randn(200_000, 128, generator=g), torch.randn(2_000, 128, generator=g)
labels = torch.randint(0, 1000, (200_000,), generator=g)
knn_predict(bank[:9000], labels[:9000], queries[:100], k=200, num_classes=1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
knn_predict(bank, labels, queries, k=200, num_classes=1000, chunk=2_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_bank_of_200_000_takes_less_than_a_gigabyte_beyond_its_inputs():
    # 2,000 of the 20,000 queries of the full case: memory does not depend on their number beyond 40 bytes each
    printed = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 1024


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"chunk": 0}])
def test_values_out_of_range_are_refused(wrong):
    from contrastneg.evaluate.knn import knn_predict

    bank = features(10)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        knn_predict(bank.x, bank.labels, bank.x, **{"k": 1, "temperature": 0.1, "num_classes": 10, **wrong})


def test_labels_with_a_gap_are_refused_before_they_index_anything():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    gap = Features(torch.randn(4, 3), torch.tensor([0, 1, 2, 5]))
    with pytest.raises(ValueError, match="label 5 of the training images is not among 4 classes"):
        knn_score(gap, gap, k=1, temperature=0.1, num_classes=4)


def test_features_that_are_not_finite_neither_vote_nor_are_right_and_are_counted():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    bank = features(100)
    broken = bank.x.clone()
    broken[:10] = torch.nan
    broken[10, 3] = torch.inf
    score = knn_score(
        Features(broken, bank.labels), Features(broken, bank.labels), k=1, temperature=0.1, num_classes=10
    )
    assert score.top1 == 0.89
    assert "11 of 100 features of the training images" in score.notes[0]
    assert "11 of 100 features of the test images" in score.notes[1]
    dead = Features(torch.full_like(bank.x, torch.nan), bank.labels)
    assert knn_score(dead, dead, k=1, temperature=0.1, num_classes=10).top1 == 0


def test_a_label_beyond_the_classes_is_refused_by_every_way_in():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_predict, knn_score
    from contrastneg.evaluate.linear import fit

    x, gap = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 5] * 2)
    words = r"label 5 of the (training|test) images is not among 4 classes \(0 to 3\)"
    fine = Features(x, gap.clamp(max=3))
    for ask in (
        lambda: knn_predict(x, gap, x, num_classes=4),
        lambda: knn_score(Features(x, gap), fine, k=3, temperature=0.1, num_classes=4),
        lambda: knn_score(fine, Features(x, gap), k=3, temperature=0.1, num_classes=4),
        lambda: fit(x, gap, 4, 1e-3),
    ):
        with pytest.raises(ValueError, match=words):
            ask()


def test_a_bank_of_one_of_several_classes_is_said_to_score_nothing():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    alike = Features(features(10).x, torch.full((10,), 2))
    notes = knn_score(alike, alike, k=3, temperature=0.1, num_classes=4).notes
    assert notes == ("the training images are of one of the 4 classes only: the score is meaningless",)


def test_right_has_each_labelled_query_in_its_place():
    from contrastneg.evaluate.features import Features
    from contrastneg.evaluate.knn import knn_score

    bank = features(61, classes=6)
    labels = bank.labels.clone()
    labels[3] = (labels[3] + 1) % 6
    labels[5:8] = -1
    queries = Features(bank.x.clone(), labels)
    queries.x[10] = torch.nan
    score = knn_score(bank, queries, k=1, temperature=0.1, num_classes=6)
    assert (~score.right).nonzero().flatten().tolist() == [3, 7]  # three queries before the tenth have no label
    assert score.top1 == 56 / 58
