"""The Metropolis chain: detailed balance, its stationary law, what it remembers."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

NODES, DIM = 12, 4


def clock(step=0, rank=0):
    from contrastneg.negatives import Clock

    return Clock(step, 1000, step / 4, 0, rank)


def units(rows, seed=0):
    return normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def chain(graph=True, **settings):
    from contrastneg.negatives import Edges, Facts, MetropolisChain

    stage = MetropolisChain(**settings, edges=Edges(neighbours=3, temperature=0.5))
    stage.begin(Facts(NODES, DIM))
    stage.memory.fill(units(NODES, seed=2))
    if graph:
        draw = torch.Generator().manual_seed(4)
        neighbours = torch.stack([torch.randperm(NODES, generator=draw)[:3] for _ in range(NODES)])
        weight = torch.rand(NODES, 3, generator=draw)
        weight[5] = 0  # a node without edges
        stage.graph.put(neighbours, weight)
    return stage


def law_of(stage, query, own, exponent, temperature=0.2):
    law = (exponent * (stage.memory.keys @ query).double() / temperature).exp()
    law[own] = 0
    return law / law.sum()


def transitions(stage, law):
    """The matrix of the chain, from its own proposal density and the rule of acceptance written out."""
    origin = torch.arange(NODES)[:, None].expand(NODES, NODES)
    proposal = stage.proposal(origin, origin.T).double()
    assert_close(proposal.sum(dim=1), torch.ones(NODES, dtype=torch.float64), atol=1e-6, rtol=0)
    matrix = torch.zeros(NODES, NODES, dtype=torch.float64)
    for x in range(NODES):
        for y in range(NODES):
            if x != y and law[x] > 0:
                accept = min(1.0, float(law[y] * proposal[y, x] / (law[x] * proposal[x, y])))
                matrix[x, y] = proposal[x, y] * accept
    return matrix + torch.diag(1 - matrix.sum(dim=1))


def one_step_frequencies(stage, query, own, tilt, repeats=4000):
    counts = torch.zeros(NODES, NODES)
    start = torch.arange(NODES).repeat_interleave(repeats)[None]
    draws = torch.Generator().manual_seed(0)
    score = stage.memory.keys[start] @ query
    numbers, anywhere = torch.rand(3, *start.shape, generator=draws), stage.memory.draw(tuple(start.shape), draws)
    proposed, _, accepted = stage._move(start, score, query[None], torch.tensor([own]), tilt, numbers, anywhere)
    after = torch.where(accepted, proposed, start)
    for x in range(NODES):
        counts[x] = after[0][start[0] == x].bincount(minlength=NODES)
    return counts / repeats


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_each_move_follows_the_matrix_of_metropolis_and_hastings(graph, exponent):
    stage, query, own = chain(graph), units(1, seed=8)[0], 3
    law = law_of(stage, query, own, exponent)
    matrix = transitions(stage, law)
    assert_close(law @ matrix, law)  # the law is stationary
    flow = law[:, None] * matrix
    assert_close(flow, flow.T)  # in detailed balance
    seen = one_step_frequencies(stage, query, own, exponent / 0.2)
    others = torch.arange(NODES) != own
    assert (seen - matrix)[others].abs().max() < 0.04
    assert (seen[others, own] == 0).all()


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0])
def test_after_many_moves_candidates_follow_the_power_of_the_law_of_positives(exponent):
    stage, query = chain(chains=4000, moves=60, burn_in=0, exponent=exponent), units(1, seed=8)
    ends = stage.moved(query, torch.tensor([3]), clock(), torch.Generator().manual_seed(1))
    counts = ends[0].bincount(minlength=NODES).double()
    law = law_of(stage, query[0], 3, exponent)
    assert 0.5 * (counts / 4000 - law).abs().sum() < 0.05
    if exponent == 0:
        assert_close(law[law > 0], torch.full((NODES - 1,), 1 / 11, dtype=torch.float64))
    if exponent == 1:
        softmax = (stage.memory.keys @ query[0] / 0.2).double()
        softmax[3] = -torch.inf
        assert_close(law, softmax.softmax(dim=0))


def test_a_visit_goes_on_from_where_the_last_one_ended():
    stage = chain(chains=3, moves=1, burn_in=0)
    key = units(1, seed=8)
    for step in range(12):
        before = stage.state[3].clone()
        stage.update(key, torch.tensor([3]), clock(step))
        moved = (before != stage.state[3]).sum()
        assert step == 0 or moved <= 3
    assert (stage.state[3] >= 0).all()
    assert (stage.state[3] != 3).all()
    assert (stage.state[[0, 1, 2, 4]] == -1).all()
    stuck = chain(chains=3, moves=1, burn_in=0, exponent=1000.0)
    hardest = int((stuck.memory.keys @ key[0]).index_fill(0, torch.tensor([3]), -2).argmax())
    stuck.state[3] = hardest
    stuck.update(key, torch.tensor([3]), clock())
    assert stuck.state[3].tolist() == [hardest] * 3  # nothing is more likely by far


def test_only_the_first_visit_burns_in():
    calls = []
    stage = chain(chains=2, moves=3, burn_in=5)
    stage.state[3] = torch.tensor([1, 2])
    move = stage._move

    def counted(state, *rest):
        calls.append(state[0].tolist())
        return move(state, *rest)

    stage._move = counted
    stage.moved(units(2, seed=8), torch.tensor([3, 4]), clock(), torch.Generator().manual_seed(0))
    assert len(calls) == 8
    assert calls[:6] == [[1, 2]] * 6  # known chains wait until the burn-in of the new ones is over
    calls.clear()
    stage.moved(units(1, seed=8), torch.tensor([3]), clock(), torch.Generator().manual_seed(0))
    assert len(calls) == 3


def test_with_one_remembered_image_there_is_nobody_to_draw():
    from contrastneg.negatives import Facts

    stage = chain(graph=False)
    stage.begin(Facts(NODES, DIM))
    stage.update(units(1), torch.tensor([6]), clock())
    assert (stage.state == -1).all()
