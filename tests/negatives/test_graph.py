"""Graphs of neighbours and of metadata, and the laws of walks on them."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close


def graph_of(adjacency):
    """A graph from a dense matrix of weights."""
    from contrastneg.negatives import Edges
    from contrastneg.negatives.graph import Graph

    degree = int((adjacency > 0).sum(dim=1).max())
    graph = Graph(Edges(degree))
    weight, neighbours = adjacency.sort(dim=1, descending=True, stable=True)
    graph.put(neighbours[:, :degree].masked_fill(weight[:, :degree] == 0, -1), weight[:, :degree])
    return graph


def random_adjacency(nodes=12, seed=0, symmetric=False):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(nodes, nodes, generator=draw, dtype=torch.float64)
    weight = weight * (torch.rand(nodes, nodes, generator=draw) < 0.4)
    weight[torch.arange(nodes), (torch.arange(nodes) + 1) % nodes] += 0.5  # no dead ends
    weight.fill_diagonal_(0)
    return weight + weight.T if symmetric else weight


def stochastic(weight):
    return weight / weight.sum(dim=1, keepdim=True)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def total_variation(counts, law):
    return 0.5 * (counts / counts.sum(dim=-1, keepdim=True) - law).abs().sum(dim=-1)


# neighbours


@pytest.mark.parametrize("mutual", [False, True])
def test_the_graph_is_that_of_all_cosines(mutual):
    from contrastneg.negatives.graph import knn_graph

    x = normalize(torch.randn(60, 5, generator=draws(), dtype=torch.float64), dim=1)
    x[[7, 30]] = torch.nan
    cosine = (x @ x.T).nan_to_num(-3.0).fill_diagonal_(-2)
    expected = cosine.argsort(dim=1, descending=True)[:, :6]
    neighbours, cosines = knn_graph(x.float(), 6, mutual)
    for image in range(60):
        row = [] if image in (7, 30) else expected[image].tolist()
        if mutual:
            row = [other for other in row if image in expected[other].tolist()]
        assert neighbours[image][neighbours[image] >= 0].tolist() == row
        assert_close(cosines[image][neighbours[image] >= 0], cosine[image, row].float(), atol=1e-6, rtol=0)


def test_equal_images_are_neighbours_and_none_its_own():
    from contrastneg.negatives.graph import knn_graph

    neighbours, _ = knn_graph(normalize(torch.ones(9, 3), dim=1), 4)
    assert (neighbours != torch.arange(9)[:, None]).all()
    assert (neighbours >= 0).all()
    assert neighbours[8].tolist() == [0, 1, 2, 3]


def test_fewer_images_than_neighbours_leave_places_empty():
    from contrastneg.negatives.graph import knn_graph

    x = torch.full((5, 3), torch.nan)
    assert (knn_graph(x, 4)[0] == -1).all()
    x[:3] = torch.eye(3)
    neighbours, _ = knn_graph(x, 4)
    assert [sorted(row) for row in neighbours[:3].tolist()] == [[-1, -1, 1, 2], [-1, -1, 0, 2], [-1, -1, 0, 1]]
    assert (neighbours[3:] == -1).all()


def test_edges_may_be_weighted_by_cosine_over_a_temperature_and_raised_to_a_power():
    from contrastneg.negatives import Clock, Edges, Facts
    from contrastneg.negatives.bank import Bank, KeyBank
    from contrastneg.negatives.graph import Graph

    x = normalize(torch.randn(20, 4, generator=draws()), dim=1)
    graph, memory = Graph(Edges(3, temperature=0.5, power=0.75, start=0)), KeyBank(Bank())
    memory.begin(Facts(20, 4))
    graph.begin(Facts(20, 4))
    graph.refresh(lambda: x, Clock(0, 1, 0.0, 0), memory)
    cosine = (x[:, None] * x[graph.neighbours.long()]).sum(dim=2)
    assert_close(graph.weight(torch.arange(20)), (cosine / 0.5 * 0.75).exp())
    assert torch.equal(memory.keys, x)


# metadata


def test_images_that_agree_in_columns_are_neighbours_as_often_as_they_agree():
    from contrastneg.negatives.graph import metadata_graph
    from contrastneg.negatives.groups import group_codes

    place = group_codes(["a", "a", "b", None, "a", "b", None])
    session = group_codes(torch.tensor([4, 4, 4, -1, 7, 7, -1]))
    neighbours, weight = metadata_graph(torch.stack([place, session], dim=1), 5)
    dense = torch.zeros(7, 7)
    for image in range(7):
        for other, times in zip(neighbours[image].tolist(), weight[image].tolist(), strict=True):
            if other >= 0:
                dense[image, other] = times
    expected = (place[:, None] == place) & (place >= 0)
    expected = (expected.int() + ((session[:, None] == session) & (session >= 0)).int()).fill_diagonal_(0)
    assert_close(dense, expected.float())


def test_of_a_large_group_each_image_gets_as_many_others_as_asked_for_and_each_is_drawn():
    from contrastneg.negatives.graph import metadata_graph

    neighbours, weight = metadata_graph(torch.zeros(50, 1, dtype=torch.long), 8)
    assert (neighbours >= 0).all()
    assert (weight == 1).all()
    assert (neighbours != torch.arange(50)[:, None]).all()
    assert all(len(set(row)) == 8 for row in neighbours.tolist())
    assert neighbours.flatten().bincount(minlength=50).tolist() == [8] * 50


def test_a_column_that_is_not_there_is_refused_by_name():
    from contrastneg.negatives import Edges, Facts, GraphWalk

    stage = GraphWalk(edges=Edges(columns=("place",)))
    with pytest.raises(
        ValueError, match="Edges.columns asks for the column 'place' but the columns of the images are: time"
    ):
        stage.begin(Facts(3, 2, columns={"time": torch.arange(3)}))


# walks


@pytest.mark.parametrize(("follow", "steps"), [(1.0, 1), (1.0, 3), (0.7, 4), (0.0, 2)])
def test_the_law_of_a_walk_is_that_of_matrix_powers(follow, steps):
    from contrastneg.negatives.graph import walk

    weight = random_adjacency()
    graph, move = graph_of(weight), stochastic(weight)
    nodes, _ = walk(graph, torch.arange(12).repeat_interleave(20000), steps, follow, draws())
    powers = [torch.linalg.matrix_power(move, s) for s in range(steps + 1)]
    law = (1 - follow) * sum(follow**s * powers[s] for s in range(steps)) + follow**steps * powers[steps]
    counts = torch.stack([row.bincount(minlength=12) for row in nodes[:, -1].view(12, -1)])
    assert total_variation(counts.double(), law).max() < 0.02


def test_hops_count_edges_since_the_last_visit_of_the_start():
    from contrastneg.negatives.graph import walk

    path = torch.zeros(30, 30)
    path[torch.arange(29), torch.arange(1, 30)] = 1.0
    nodes, hops = walk(graph_of(path), torch.zeros(500, dtype=torch.long), 9, 0.8, draws())
    assert torch.equal(nodes, hops)
    assert (hops == 0).any()
    assert hops.max() == 9


def test_no_walk_leaves_its_clique_and_a_node_without_edges_keeps_its_walker():
    from contrastneg.negatives.graph import walk

    weight = torch.zeros(9, 9)
    weight[:4, :4] = weight[4:8, 4:8] = 1.0
    weight.fill_diagonal_(0)
    start = torch.arange(9).repeat_interleave(200)
    nodes, _ = walk(graph_of(weight), start, 6, 0.9, draws())
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert torch.equal(group[nodes], group[start][:, None].expand(-1, 6))


def test_long_walks_on_an_undirected_graph_visit_in_proportion_to_the_degree():
    from contrastneg.negatives.graph import walk

    weight = random_adjacency(symmetric=True)
    nodes, _ = walk(graph_of(weight), torch.zeros(400, dtype=torch.long), 300, 1.0, draws())
    counts = nodes[:, 50:].flatten().bincount(minlength=12).double()
    degree = weight.sum(dim=1)
    assert total_variation(counts, degree / degree.sum()) < 0.01


def test_visits_of_walks_with_restart_are_personalised_pagerank():
    from contrastneg.negatives.graph import walk

    weight, follow = random_adjacency(30, seed=3), 0.85
    move, start = stochastic(weight), torch.eye(30, dtype=torch.float64)
    pagerank = (1 - follow) * torch.linalg.solve(torch.eye(30) - follow * move.T, start).T  # row i: around i
    assert_close(pagerank.sum(dim=1), torch.ones(30, dtype=torch.float64))
    assert (pagerank.argmax(dim=1) == torch.arange(30)).all()
    nodes, _ = walk(graph_of(weight), torch.arange(30).repeat_interleave(200), 300, follow, draws())
    counts = torch.stack([row.flatten().bincount(minlength=30) for row in nodes.view(30, -1)])
    assert total_variation(counts.double(), pagerank).max() < 0.03


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_paths_summed_by_their_end_are_a_row_of_the_matrix_power(steps):
    from contrastneg.negatives.graph import path_law

    weight = random_adjacency(8)
    weight[3] = 0  # a dead end: paths that enter it end nowhere
    ends, law = path_law(graph_of(weight), torch.arange(8), steps)
    dense = torch.zeros(8, 8)
    for row in range(8):
        dense[row].index_add_(0, ends[row].clamp(min=0), law[row].masked_fill(ends[row] < 0, 0))
    move = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
    assert_close(dense, torch.linalg.matrix_power(move, steps).float())


@pytest.mark.parametrize("steps", [1, 2])
def test_the_law_of_paths_sums_to_one_and_leads_home_only_after_two_steps(steps):
    from contrastneg.negatives.graph import path_law

    weight = random_adjacency(8, symmetric=True)  # no dead ends
    ends, law = path_law(graph_of(weight), torch.arange(8), steps)
    assert (ends >= 0)[law > 0].all()
    assert_close(law.sum(dim=1), torch.ones(8))
    at_home = law.masked_fill(ends != torch.arange(8)[:, None], 0).sum(dim=1)
    assert ((at_home > 0) == (steps == 2)).all()


def test_visits_are_counted_row_by_row():
    from contrastneg.negatives.graph import visits

    ids, times = visits(torch.tensor([[3, 1, 3, -1], [-1, -1, -1, -1], [0, 0, 0, 5]]), 6)
    assert ids.tolist() == [[1, 3], [-1, -1], [0, 5]]
    assert times.tolist() == [[1, 2], [0, 0], [3, 1]]
