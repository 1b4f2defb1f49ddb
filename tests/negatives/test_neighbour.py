"""Neighbours as positives: NNCLR written out, what is constant, which images may be taken, and whole runs."""

import copy

import pytest
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*val_dataloader.*",
    "ignore:.*mid-epoch.*",
)
T = 0.2


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.nn.functional.normalize(x, dim=-1)


def clock():
    from contrastneg.negatives import Clock

    return Clock(0, 10, 0.0, 0)


def stage(keys=None, key_id=None, **settings):
    """A stage whose queue holds some keys."""
    from contrastneg.negatives import NeighbourPositive

    made = NeighbourPositive(**{"size": 20} | settings).double()
    if keys is not None:
        made.update(keys, key_id, clock())
    return made


def table(query, positive, keys, query_id, key_id):
    from contrastneg.negatives import Negatives

    return Negatives.of(query, positive, keys, query_id=query_id, key_id=key_id)


def nearest(vector, keys, key_id, without=None):
    """Place of the nearest key, by hand."""
    allowed = [place for place in range(len(keys)) if key_id[place] != without]
    return max(
        allowed, key=lambda place: sum(a * b for a, b in zip(vector.tolist(), keys[place].tolist(), strict=True))
    )


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("replaces", ["positive", "query"])
def test_each_row_gets_its_nearest_past_embedding_and_its_neighbours_image_is_no_candidate(replaces, mask):
    query, positive, keys, past = unit(6, 5), unit(6, 5, seed=1), unit(30, 5, seed=2), unit(15, 5, seed=3)
    query_id, key_id, past_id = torch.arange(6), torch.arange(30) % 10, torch.arange(15) % 10
    before = table(query, positive, keys, query_id, key_id)
    after = stage(past, past_id, replaces=replaces, mask=mask)(before, clock())
    for row in range(6):
        looked_up = (query if replaces == "query" else positive)[row]
        place = nearest(looked_up, past, past_id, without=row if mask else None)
        changed, kept = (after.query, after.positive) if replaces == "query" else (after.positive, after.query)
        assert torch.equal(changed[row], past[place])
        assert torch.equal(kept[row], (positive if replaces == "query" else query)[row])
        assert_close(after.similarity[row], keys @ after.query[row])
        gone = (key_id == row) | ((key_id == past_id[place]) if mask else False)
        assert torch.equal(after.kept[row], ~gone)


def test_an_older_embedding_of_the_image_itself_is_its_neighbour_only_as_published():
    query = unit(4, 5)
    before = table(query, query, unit(10, 5, seed=1), torch.arange(4), torch.arange(10) + 10)
    itself = stage(query, torch.arange(4), mask=False)
    assert torch.equal(itself(before, clock()).positive, query)
    assert itself.report()["own_image"] == 1
    assert itself.report()["similarity"] == pytest.approx(1)
    others = stage(query, torch.arange(4))
    found = others(before, clock()).positive
    assert all(torch.equal(found[row], query[nearest(query[row], query, range(4), without=row)]) for row in range(4))
    assert others.report()["own_image"] == 0


def test_without_an_image_that_may_be_taken_the_embedding_stays():
    query, positive = unit(2, 5), unit(2, 5, seed=1)
    before = table(query, positive, unit(10, 5, seed=2), torch.arange(2), torch.arange(10))
    assert stage()(before, clock()) is before
    after = stage(unit(1, 5, seed=3), torch.tensor([0]))(before, clock())
    assert torch.equal(after.positive[0], positive[0])
    assert torch.equal(after.positive[1], unit(1, 5, seed=3)[0])


def test_the_queue_holds_the_last_embeddings_that_were_handed_on():
    made = stage(size=7)
    for step in range(3):
        made.update(unit(3, 5, seed=step), torch.arange(3) + 3 * step, clock())
    assert sorted(made.queue.filled_keys()[1].tolist()) == [2, 3, 4, 5, 6, 7, 8]


def test_with_the_query_replaced_the_loss_is_that_of_the_paper_in_value_and_gradient():
    """Rows NN(z_i), columns p_k of one view: cross-entropy towards the diagonal."""
    from contrastneg.objectives import InfoNCE

    z, past, ids = unit(6, 5), unit(15, 5, seed=3), torch.arange(6)
    p, q = unit(6, 5, seed=1).requires_grad_(), z.clone().requires_grad_()
    made = stage(past, torch.arange(15), replaces="query", mask=False)
    loss = InfoNCE()(made(table(q, p, p, ids, ids), clock()), T, clock())
    neighbours = past[[nearest(z[row], past, range(15)) for row in range(6)]]
    other = p.detach().clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(neighbours @ other.T / T, ids, reduction="none")
    assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    assert_close(p.grad, other.grad)
    assert q.grad is None or not q.grad.any()  # a neighbour is a constant


def test_with_the_positive_replaced_the_query_alone_is_drawn_to_the_neighbour():
    from contrastneg.objectives import InfoNCE

    query, positive = unit(6, 5).requires_grad_(), unit(6, 5, seed=1).requires_grad_()
    past, keys, ids = unit(15, 5, seed=3), unit(9, 5, seed=2), torch.arange(6)
    made = stage(past, torch.arange(15) + 100)
    InfoNCE()(made(table(query, positive, keys, ids, torch.arange(9) + 50), clock()), T, clock()).sum().backward()
    assert positive.grad is None or not positive.grad.any()
    assert query.grad.abs().sum() > 0


def test_labels_tell_how_often_a_neighbour_is_of_the_querys_class():
    from contrastneg.negatives import Facts

    query = unit(2, 5)
    made = stage()
    made.begin(Facts(10, 5, labels=torch.tensor([0, 0, 0, 1, 1])))
    made.update(query, torch.tensor([2, 3]), clock())
    made(table(query, query, unit(4, 5), torch.tensor([0, 1]), torch.arange(4) + 5), clock())
    assert made.report()["neighbour_same_class"] == 0.5


def test_moco_refuses_constant_queries_and_a_queue_holds_at_least_one():
    from contrastneg import MoCo
    from contrastneg.negatives import NeighbourPositive

    with pytest.raises(
        ValueError, match="NeighbourPositive needs candidates that carry a gradient, as only those of SimCLR do"
    ):
        MoCo(stages=[NeighbourPositive(replaces="query")])
    with pytest.raises(ValueError, match=r"NeighbourPositive\.size is 0"):
        NeighbourPositive(size=0)


def method(name, **settings):
    from contrastneg.config import build_method
    from contrastneg.encoders import Backbone, Head
    from contrastneg.methods import MoCo, SimCLR

    kind = {"MoCo": MoCo, "SimCLR": SimCLR}[name]
    small = {"backbone": Backbone(name="resnet9", width=0.125), "projector": Head(out=16)}
    model = kind(**small | ({"queue_size": 20} if name == "MoCo" else {}))
    stages = [{"class_path": "NeighbourPositive", "init_args": {"size": 50} | settings}]
    torch.manual_seed(0)
    return build_method(kind, dict(model.hparams) | {"stages": stages})


def trained(model, epochs, ckpt_path=None, callbacks=()):
    import pytorch_lightning as pl

    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.views import Views

    source = PretrainData(shapes("train").subset(torch.arange(0, 1600, 40)), Views(size=16), batch_size=8)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"accelerator": "cpu", "use_distributed_sampler": False, "callbacks": list(callbacks)}
    trainer = pl.Trainer(max_epochs=epochs, log_every_n_steps=1, **options, **quiet)
    trainer.fit(model, datamodule=source, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(("name", "replaces"), [("MoCo", "positive"), ("SimCLR", "query")])
def test_a_resumed_run_ends_where_the_unbroken_one_does_and_a_checkpoint_holds_the_queue(tmp_path, name, replaces):
    import pytorch_lightning as pl

    from contrastneg import load

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    unbroken, resumed = method(name, replaces=replaces), method(name, replaces=replaces)
    logged = trained(unbroken, 2, callbacks=[Keep()]).callback_metrics
    half = load(tmp_path / "half.ckpt")
    assert len(half.stages[0].queue) == (40 if name == "MoCo" else 50)
    trained(resumed, 2, ckpt_path=tmp_path / "half.ckpt")
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert logged["negatives/1_NeighbourPositive/own_image"] == 0
    assert 0 <= logged["negatives/1_NeighbourPositive/neighbour_same_class"] <= 1


def test_copies_do_not_share_their_queue():
    made = stage(unit(3, 5), torch.arange(3))
    copied = copy.deepcopy(made)
    copied.update(unit(3, 5), torch.arange(3), clock())
    assert (len(made.queue), len(copied.queue)) == (3, 6)


def test_candidates_stay_those_of_the_method_so_that_their_number_is_still_checked():
    from contrastneg.negatives import AdversarialBank, MoCHi, NeighbourPositive, check_pipeline

    provides = {"id", "support", "queue"}
    with pytest.raises(ValueError, match="pool of MoCHi is 1024 but the queue holds 256 keys"):
        check_pipeline([NeighbourPositive(), MoCHi(pool=1024)], provides, 256)
    check_pipeline([NeighbourPositive(), AdversarialBank(size=8)], provides, 256)


def test_a_process_that_found_no_neighbour_does_not_spoil_the_number_of_the_others():
    from contrastneg.negatives import NeighbourPositive, Record

    class Found(NeighbourPositive):
        def report(self):
            return {"own": torch.tensor(torch.nan), "neighbour": torch.tensor(0.5)}

    record = Record()
    record.report("1_Found", Found(size=4))
    assert record.ratios["negatives/1_Found/own"].tolist() == [0, 0]
    assert record.numbers["negatives/1_Found/neighbour"] == 0.5
