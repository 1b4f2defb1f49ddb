"""Neighbours are exact whatever proposes them: faiss or torch, any chunk, any number of equal rows."""

import pytest
import torch


def rows(n, width=24, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def in_one_go(query, bank, k):
    cosine = query.double() @ bank.double().T
    order = cosine.argsort(dim=1, descending=True, stable=True)[:, :k]
    return cosine.gather(1, order), order


@pytest.fixture(params=["faiss", "torch"])
def search(request, monkeypatch):
    from contrastneg.evaluate import neighbours

    if request.param == "torch":
        monkeypatch.setattr(neighbours, "_faiss", lambda: None)
    elif neighbours._faiss() is None:
        pytest.skip("faiss cannot be imported here")
    return neighbours


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize("chunk", [7, 64, 20_000])
def test_neighbours_are_those_of_the_whole_matrix_in_float64(search, k, chunk):
    query, bank = search.unit_rows(rows(150, seed=1)), search.unit_rows(rows(5000))
    cosine, index = search.nearest(query, bank, k, chunk)
    expected = in_one_go(query, bank, k)
    assert torch.equal(cosine, expected[0])
    assert torch.equal(index, expected[1])


def test_equal_rows_however_many_are_taken_in_the_order_of_the_bank(search):
    bank = search.unit_rows(rows(40)[torch.arange(4000) % 40])
    _, index = search.nearest(bank[:40], bank, 50, 16)
    assert torch.equal(index, torch.arange(40)[:, None] + 40 * torch.arange(50))
    same = search.unit_rows(torch.ones(3000, 5))
    assert torch.equal(search.nearest(same[:3], same, 20)[1], torch.arange(20).expand(3, -1))


def test_rows_that_float32_products_cannot_tell_apart_are_ranked_right(search):
    centre = rows(1, width=64)
    bank = search.unit_rows(centre + 1e-4 * rows(3000, width=64, seed=1))  # cosines differ by about 1e-8
    query = search.unit_rows(centre + 1e-4 * rows(20, width=64, seed=2))
    found, expected = search.nearest(query, bank, 10), in_one_go(query, bank, 10)
    assert torch.equal(found[1], expected[1])


def test_a_coarse_search_costs_time_and_not_exactness(search, monkeypatch):
    monkeypatch.setattr(search, "_faiss", lambda: None)
    exact_search = search._search_torch
    monkeypatch.setattr(search, "_search_torch", lambda q, b, n: exact_search(q.bfloat16(), b.bfloat16(), n))
    query, bank = search.unit_rows(rows(50, seed=1)), search.unit_rows(rows(5000))
    assert torch.equal(search.nearest(query, bank, 20)[1], in_one_go(query, bank, 20)[1])


def test_unit_rows_have_length_one_at_any_scale_and_zeros_stay(search):
    x = rows(5)
    x[3] = 0
    for scale in (1e-20, 1.0, 1e30):
        units = search.unit_rows(x * scale)
        lengths = units.double().norm(dim=1)
        assert (lengths[[0, 1, 2, 4]] - 1).abs().max() < 1e-6
        assert lengths[3] == 0
        assert torch.equal(units.double() * 2**26, (units.double() * 2**26).round())


@pytest.mark.parametrize("block", [7, 64, 2048])
@pytest.mark.parametrize("least", [0.2, 0.6, 1.1])
def test_close_pairs_are_those_of_the_whole_matrix_in_float64(monkeypatch, block, least):
    from contrastneg.evaluate import neighbours

    monkeypatch.setattr(neighbours, "BLOCK", block)
    x = neighbours.unit_rows(rows(150))
    whole = (x.double() @ x.double().T).triu(1)
    pair, cosine, complete = neighbours.close_pairs(x, least, 10_000)
    assert complete
    order = (pair[:, 0] * 150 + pair[:, 1]).argsort()
    assert torch.equal(pair[order], (whole >= least).nonzero())
    assert torch.equal(cosine[order], whole[whole >= least])
    assert len(pair) > 0 or least > 1


def test_a_pair_whose_cosine_float32_rounds_below_the_threshold_is_found():
    from contrastneg.evaluate.neighbours import close_pairs, unit_rows

    x = unit_rows(rows(400, width=300))
    exact = (x.double() @ x.double().T).triu(1)
    i, j = divmod(int(((x @ x.T).double() - exact).triu(1).argmin()), 400)  # rounded down by most
    pair, cosine, _ = close_pairs(x, float(exact[i, j]), 100_000)
    assert [i, j] in pair.tolist()
    assert float(cosine.min()) == float(exact[i, j])


def test_a_search_for_pairs_ends_where_it_is_told_to():
    from contrastneg.evaluate.neighbours import BLOCK, close_pairs, unit_rows

    same = unit_rows(torch.ones(BLOCK + 10, 3))
    pair, _, complete = close_pairs(same, 0.5, 1000)
    assert (len(pair), complete) == (BLOCK * (BLOCK - 1) // 2, False)
    assert close_pairs(same[:0], 0.5, 1000)[2]
