"""A checkpoint in the key layout of official MoCo v2, through the published linear protocol, to a number.

The published file cannot be fetched by a test: this one is written with random weights under the very names.
"""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

IMAGES, ASKED, SIDE = 8, 32, 32


def encoder(seed):
    """ResNet-50 with MoCo v2's projection head."""
    torch.manual_seed(seed)
    network = torchvision.models.resnet50()
    network.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As main_moco.py saves it."""
    state = {
        f"module.encoder_{name}.{key}": x
        for name, s in (("q", 0), ("k", 1))
        for key, x in encoder(s).state_dict().items()
    }
    state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def linear_probe(network, seed):
    """main_lincls.py written out: SGD of rate 30, a tenth of it after 60 and 80 of 100 epochs, no decay; which answers are right."""
    from contrastneg import Views
    from contrastneg.data.module import PretrainData
    from contrastneg.data.shapes import shapes
    from contrastneg.data.subsets import limit_images
    from contrastneg.evaluate.crops import LabelledCrops
    from contrastneg.evaluate.features import extract
    from contrastneg.randomness import generator

    train, test = (limit_images(shapes(split), count, seed) for split, count in (("train", IMAGES), ("test", ASKED)))
    data = PretrainData(train, Views(size=SIDE), train, test, batch_size=2)
    crops = LabelledCrops(data, torch.arange(IMAGES), (0.08, 1.0), 256, seed)
    network.fc = nn.Identity()
    layer = nn.Linear(2048, 16)
    layer.weight.data = 0.01 * torch.randn(16, 2048, generator=generator(seed, "classifier"))
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), 30.0, momentum=0.9, weight_decay=0.0)
    course = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60, 80], 0.1)
    for epoch in range(100):
        for images, labels in crops.epoch(epoch, torch.device("cpu")):
            with torch.no_grad():
                x = network(images)
            optimizer.zero_grad()
            F.cross_entropy(layer(x), labels).backward()
            optimizer.step()
        course.step()
    asked = extract(network, data, "test", torch.device("cpu"))
    return layer(asked.x).argmax(dim=1) == asked.labels


def test_official_weights_reach_the_published_linear_protocol_and_its_number(checkpoint, tmp_path):
    from contrastneg.evaluate.judge import evaluate
    from contrastneg.evaluate.settings import Evaluate
    from contrastneg.subjects import open_subject

    settings = {"preset": "moco", "protocols": ("augmented",), "training_precision": "float32", "baselines": False}
    limits = {"limit_images": IMAGES, "limit_test_images": ASKED, "size": SIDE, "out": tmp_path / "out"}
    [(_, found)] = evaluate(Evaluate(encoder=str(checkpoint), data="shapes", **settings, **limits))
    images = torch.randn(2, 3, SIDE, SIDE)
    used, query = open_subject(str(checkpoint), size=SIDE).network, encoder(0)
    right = linear_probe(query, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(used(images), query(images), rtol=1e-5, atol=1e-5)
    [score] = found.scores
    record = score.settings
    assert (record["preset"], record["lr"], record["weight_decay"], record["epochs"]) == ("moco", 30, 0, 100)
    assert (record["schedule"], record["momentum"], record["nesterov"]) == ("x 0.1 after epochs 60, 80", 0.9, False)
    assert f"batch_size is 256 but {IMAGES} images are labelled" in " ".join(map(str, found.notes))
    own = torch.from_numpy(found.values["encoder/augmented top-1"])
    assert (own == right).float().mean() >= 0.9
    assert score.value == pytest.approx(100 * own.double().mean().item(), abs=1e-3)


def test_a_head_of_the_key_encoder_is_not_what_is_judged(checkpoint):
    from contrastneg.subjects import open_subject

    network, key = open_subject(str(checkpoint), size=SIDE).network, encoder(1)
    key.fc = nn.Identity()
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert not torch.allclose(network(images), key(images), rtol=1e-2)
