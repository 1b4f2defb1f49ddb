"""The search for the hardest keys against a full sort, and its log-sum-exp against the table's."""

import pytest
import torch
from torch.testing import assert_close


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("count", [1, 20, 400, 1003])
def test_the_search_finds_the_hardest_and_the_log_sum_exp_with_its_gradient_in_every_block(count, monkeypatch):
    from contrastneg.negatives import mixes
    from contrastneg.negatives.search import search

    monkeypatch.setattr(mixes, "CPU_CHUNK", 1 << 7)  # two queries at a time
    query, keys = unit(5, 8).requires_grad_(), unit(1003, 8, seed=1)
    mask = torch.rand(5, 1003, generator=torch.Generator().manual_seed(2)) < 0.3
    mask[3] = True
    mask[4] = False
    found = search(query.detach(), keys, mask.nonzero(), count, temperature=0.1, with_gradient=True)
    table = (query @ keys.T).masked_fill(mask, -torch.inf)
    ranked = table.detach().sort(dim=1, descending=True).values[:, :count]
    exists = ranked > -torch.inf
    assert_close(found.size, exists.sum(dim=1))
    assert_close(found.similarity.masked_fill(torch.arange(count) >= found.size[:, None], 0), found.similarity)
    assert_close(found.similarity.masked_fill(~exists, -torch.inf).sort(dim=1, descending=True).values, ranked)
    assert_close(table.detach().gather(1, found.column).masked_fill(~exists, 0), found.similarity)
    assert_close(found.top, ranked[:, 0])
    lse = (table / 0.1).logsumexp(dim=1)
    assert_close(found.logsumexp, lse)
    lse[lse > -torch.inf].sum().backward()
    assert_close(found.gradient, query.grad)


def test_without_gradient_the_second_product_is_spared():
    from contrastneg.negatives.search import search

    none = torch.empty(0, 2, dtype=torch.long)
    found = search(unit(5, 8), unit(30, 8, seed=1), none, 3, temperature=0.1, with_gradient=False)
    assert found.gradient.abs().sum() == 0
