"""Run folders with a small encoder, as pretraining leaves them."""

import json

import torch


def write_encoder(folder, seed=0, settings="data: shapes\n", size=16):
    """A run folder with an encoder of random weights."""
    from safetensors.torch import save_file

    from contrastneg import Views
    from contrastneg.config import plain
    from contrastneg.encoders import Backbone, build_backbone

    torch.manual_seed(seed)
    backbone = Backbone(name="resnet9", width=0.125)
    facts = {"backbone": plain(backbone), "views": plain(Views(size=size))}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings)
    weights = {name: tensor.contiguous() for name, tensor in build_backbone(backbone, size).state_dict().items()}
    save_file(weights, folder / "encoder.safetensors", metadata={"contrastneg": json.dumps(facts)})
    return folder
