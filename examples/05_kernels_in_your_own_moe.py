"""The expert kernels in a layer of your own: route, then one call for all experts. CPU or GPU, forward and backward.

python examples/05_kernels_in_your_own_moe.py [--tiny]
"""

import argparse

import torch
from torch import Tensor, nn

from moe_codegen_kernels import expert_ffn, route


class MixtureOfExperts(nn.Module):
    """SwiGLU experts behind a top-k router, in the few lines that are left to write."""

    def __init__(self, model: int, hidden: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(model, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, 2 * hidden, model) * model**-0.5)
        self.down = nn.Parameter(torch.randn(experts, model, hidden) * hidden**-0.5)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """(T, D) in, (T, D) out."""
        weights_TK, ids_TK = route(self.router(hidden_TD), self.top_k)
        return expert_ffn(hidden_TD, ids_TK, weights_TK, self.up, None, self.down, None, activation="silu", gated=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few seconds, on any machine")
    options = parser.parse_args()
    model, hidden, tokens, steps = (32, 64, 256, 30) if options.tiny else (1024, 2048, 8192, 100)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layer = MixtureOfExperts(model, hidden, experts=8, top_k=2).to(device)
    teacher = nn.Sequential(nn.Linear(model, hidden), nn.GELU(), nn.Linear(hidden, model)).to(device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3)
    for step in range(steps):
        hidden_TD = torch.randn(tokens, model, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            out_TD = layer(hidden_TD)
            target_TD = teacher(hidden_TD).detach()
        loss = (out_TD.float() - target_TD.float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
