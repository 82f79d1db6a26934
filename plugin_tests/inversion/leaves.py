"""Pictures that are drawn: independent, and with edges as photos have them."""

import torch


def dead_leaves(count, size, seed=0):
    """Pictures of discs over discs, each of its own: as smooth as photos, and independent."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, 3, 1, 1, generator=generator).expand(count, 3, size, size).clone()
    places = torch.arange(size)
    for picture in pictures:
        for _ in range(60):
            down, across, width = torch.rand(3, generator=generator).tolist()
            radius = size * 0.04 * min(max(width, 1e-6) ** -0.6, 12)
            apart = (places[:, None] - size * down) ** 2 + (places - size * across) ** 2
            picture[:, apart < radius**2] = torch.rand(3, 1, generator=generator)
    return pictures
