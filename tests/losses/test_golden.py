"""Losses against values and gradients of independent public implementations on fixed inputs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

FILE = Path(__file__).resolve().parents[3] / "shared" / "golden" / "losses.json"
CASES = sorted(json.loads(FILE.read_text())) if FILE.exists() else ["absent"]
PRECISION = [(torch.double, 1e-9, 1e-7), (torch.float, 1e-5, 1e-4)]


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    return json.loads((folder / "losses.json").read_text()), np.load(folder / "losses.npz")


def rows(a, b):
    """Both views as queries against all views of other images."""
    query, image = torch.cat([a, b]), torch.arange(len(a)).repeat(2)
    log_weight = torch.zeros(2 * len(a), 2 * len(a), dtype=a.dtype).masked_fill(image[:, None] == image, -torch.inf)
    return (query * query.roll(len(a), 0)).sum(1), query @ query.T, log_weight


def loss_of(kind, parameters, inputs, labels):
    from contrastneg import losses

    temperature = {"temperature": parameters["temperature"]} if "temperature" in parameters else {}
    if kind == "moco":
        query, key, queue = (inputs[name] for name in ("q", "k", "queue"))
        return losses.info_nce((query * key).sum(1), query @ queue, **temperature)
    if kind == "nnclr":
        similarity = inputs["nn"] @ inputs["p"].T
        itself = torch.zeros_like(similarity).fill_diagonal_(-torch.inf).detach()
        return losses.info_nce(similarity.diagonal(), similarity, itself, **temperature)
    a, b = inputs["a"], inputs["b"]
    if kind in ("ntxent", "pml_ntxent"):
        return losses.nt_xent(a, b, **temperature)
    if kind == "align_uniform":
        return losses.alignment(a, b)
    if kind in ("supcon", "supcon_one"):
        values = losses.supervised_contrastive(a, b, labels, **temperature)
        return values[: len(a)] if kind == "supcon_one" else values
    pos, neg, log_weight = rows(a, b)
    if kind == "debiased":
        return losses.debiased_info_nce(pos, neg, log_weight, **temperature, class_prior=parameters["tau_plus"])
    if kind == "hard":
        prior, beta = parameters["tau_plus"], parameters["beta"]
        return losses.hard_info_nce(pos, neg, log_weight, **temperature, class_prior=prior, beta=beta)
    weight = losses.von_mises_fisher_weight(pos, sigma=parameters["sigma"]) if kind == "decoupled_weighted" else None
    assert kind in ("decoupled", "decoupled_weighted")
    return losses.decoupled_info_nce(pos, neg, log_weight, **temperature, positive_weight=weight)


def tangential(gradient, point):
    return gradient - (gradient * point).sum(1, keepdim=True) * point


@pytest.mark.parametrize(("dtype", "loss_rtol", "grad_rtol"), PRECISION, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_public_implementations(golden, case, dtype, loss_rtol, grad_rtol):
    facts, arrays = golden
    stored = {name.partition("/")[2]: torch.tensor(arrays[name]) for name in arrays if name.startswith(f"{case}/")}
    inputs = {
        name: x.to(dtype).requires_grad_()
        for name, x in stored.items()
        if x.is_floating_point() and x.ndim == 2 and not name.startswith("grad_")
    }
    kind = re.split(r"_n\d", case)[0]
    loss = loss_of(kind, facts[case]["params"], inputs, stored.get("labels")).mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts[case]["loss"], rel=loss_rtol)
    projected = kind in (
        "ntxent",
        "pml_ntxent",
        "decoupled",
        "decoupled_weighted",
        "nnclr",
    )  # the reference normalises again
    checked = [name for name in inputs if f"grad_{name}" in stored]
    assert checked
    for name in checked:
        found, expected = inputs[name].grad.double(), stored[f"grad_{name}"]
        if projected:
            found, expected = tangential(found, stored[name]), tangential(expected, stored[name])
        assert (found - expected).norm() <= grad_rtol * expected.norm(), name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("align_uniform")])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.double, 1e-9), (torch.float, 1e-5)])
def test_uniformity_is_that_of_a_public_implementation(golden, case, dtype, rtol):
    from contrastneg.losses import uniformity

    arrays = golden[1]
    found = uniformity(torch.tensor(arrays[f"{case}/a"], dtype=dtype))
    assert found.item() == pytest.approx(arrays[f"{case}/uniformity_a"].item(), rel=rtol)
