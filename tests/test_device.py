"""What a setting of devices and arithmetic comes to on a machine."""

import pytest


@pytest.mark.parametrize(
    ("setting", "accelerator", "devices", "words"),
    [
        ("shuffle", "cpu", 1, "batch_norm shuffle protects nothing on one device: use split"),
        ("shuffle", "gpu", 2, None),
        ("sync", "cpu", 2, "batch_norm sync needs several GPUs: on cpu each process keeps its own statistics"),
        ("sync", "gpu", 1, "batch_norm sync needs several GPUs"),
        ("sync", "gpu", 2, None),
        ("split", "cpu", 1, None),
        ("plain", "cpu", 1, None),
    ],
)
def test_batch_norm_that_cannot_do_here_what_it_is_for_is_told_in_one_line(setting, accelerator, devices, words):
    from contrastneg import Backbone, MoCo
    from contrastneg.device import Device, batch_norm_notes

    method = MoCo(Backbone(name="resnet9", width=0.125), queue_size=8, batch_norm=setting)
    notes = batch_norm_notes(method, Device(accelerator, devices, 1, "float32", []))
    assert len(notes) == (words is not None)
    assert words is None or notes[0].startswith(words)
