"""What the start card says of a run before it runs."""

from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("size", "epochs", "symmetric", "words"),
    [
        (64, 4, False, None),
        (96, 4, False, None),
        (97, 4, False, "full after 1.0 epochs"),
        (385, 4, False, "never fills: the run makes 384"),
        (385, 4, True, "full after 2.0 epochs"),
    ],
)
def test_a_queue_that_does_not_suit_the_images_is_told(size, epochs, symmetric, words):
    from contrastneg import Backbone, MoCo, Pretrain
    from contrastneg.card import queue_notes

    method = MoCo(Backbone(name="resnet9", width=0.125), queue_size=size, symmetric=symmetric)
    notes = queue_notes(method, Pretrain(method=method, epochs=epochs, batch_size=32), images=100, world_size=1)
    assert notes == [] if words is None else words in notes[0]


def test_a_method_without_a_queue_has_nothing_to_say_about_it():
    from contrastneg import Backbone, Pretrain, SimCLR
    from contrastneg.card import queue_notes

    method = SimCLR(Backbone(name="resnet9", width=0.125))
    assert queue_notes(method, Pretrain(method=method), images=100, world_size=1) == []


def test_the_schedule_line_counts_the_images_that_fill_no_batch():
    from contrastneg import Backbone, Pretrain, SimCLR
    from contrastneg.card import schedule_line

    config = Pretrain(method=SimCLR(Backbone(name="resnet9", width=0.125)), epochs=1)
    trainer = SimpleNamespace(estimated_stepping_batches=3, max_epochs=1)
    line = schedule_line.__wrapped__ if hasattr(schedule_line, "__wrapped__") else schedule_line
    assert line(trainer, 32, config, 97).endswith("1 epoch, 3 optimizer steps of 32 images; 1 image of each epoch, "
                                                  "drawn anew, fill no batch and are left out")  # fmt: skip
    assert line(trainer, 32, config, 96).endswith("3 optimizer steps of 32 images")
