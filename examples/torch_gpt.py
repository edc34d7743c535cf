# SPDX-License-Identifier: Apache-2.0
"""Pre-train a small GPT on real text, sharded with FSDP2 over hccomm.

    torchrun --nproc-per-node 2 examples/torch_gpt.py [TEXT ...]

The text is this repository's documentation unless files are named; the model predicts its bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

STEPS, BATCH, LENGTH, WIDTH, LAYERS = 80, 8, 64, 96, 2


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to what came before, then think about it."""
        parts = self.mix(self.before(x)).view(*x.shape[:2], 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.think(self.between(x))


class Gpt(nn.Module):
    """Bytes in, the scores of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last = nn.Linear(WIDTH, 256)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return the scores at every place."""
        x = self.tokens(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def main() -> None:
    """Run one rank."""
    dist.init_process_group("hccomm")
    rank, size = dist.get_rank(), dist.get_world_size()
    files = [Path(name) for name in sys.argv[1:]]
    files = files or sorted((Path(__file__).parent.parent / "docs").rglob("*.md"))
    text = torch.frombuffer(bytearray(b"\n".join(f.read_bytes() for f in files)), dtype=torch.uint8)

    torch.manual_seed(0)
    net = Gpt()
    for block in net.blocks:
        fully_shard(block)
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=generator)
        pieces = torch.stack([text[s : s + LENGTH + 1] for s in starts]).long()
        scores = net(pieces[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), pieces[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 in (0, 19):
            mean = loss.detach().clone()
            dist.all_reduce(mean, op=dist.ReduceOp.AVG)
            if rank == 0:
                print(f"step {step + 1:3d}  loss {mean.item():.3f}  ({size} ranks)", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
