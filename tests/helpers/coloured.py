"""Pictures whose class is their colour, more or less: what crops and flips leave to be learned in a few steps."""

import torch


def coloured(count, seed, split="train"):
    """Pictures of eight classes, 16 x 16 pixels; a linear classifier gets some of them wrong."""
    from contrastneg.data.sources import in_memory_set

    colours = 60 + 140 * torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 8, (count,), generator=draw)
    tint = 20 * torch.randn(count, 3, 1, 1, generator=draw)
    pixels = colours[labels] + tint + 30 * torch.randn(count, 3, 16, 16, generator=draw)
    return in_memory_set(
        pixels.clamp(0, 255).to(torch.uint8), labels, [str(i) for i in range(8)], name="coloured", split=split
    )
