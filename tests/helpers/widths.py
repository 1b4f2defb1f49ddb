"""Sees which operators make numbers that some devices do not have."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Float64Made(TorchDispatchMode):
    """Within it, ``names`` collects the operators that made float64 numbers, which an MPS device refuses."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        wide = any(isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in tree_leaves(made))
        if wide and function is not torch.ops.aten.lift_fresh.default:  # an array of the host, still there
            self.names.add(str(function))
        return made
