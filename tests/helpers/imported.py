"""All that a run needs, imported and drawn once in the process that others are forked from (see ``processes``)."""

# ruff: noqa: F401
import gc

import faiss
import timm
import torch.distributed.run
import torch.utils.tensorboard

import contrastneg.commandline
import contrastneg.evaluate.telling
import contrastneg.pretrain
from contrastneg.data.shapes import shapes

for split in ("train", "test"):
    shapes(split)
gc.freeze()  # else each fork's first collection would copy all of it
