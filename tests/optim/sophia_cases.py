"""The published optimizer written down for comparison, and small problems for the tests of Sophia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Published(torch.optim.Optimizer):
    """The update of arXiv 2305.14342's code, tensor by tensor, with the layout of its state."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        groups = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay}
        super().__init__(params, {**groups, "maximize": maximize, "capturable": capturable})

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p)
            state["hessian"] = torch.zeros_like(p)
        return state

    @torch.no_grad()
    def update_hessian(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    rest = 1 - group["betas"][1]
                    self._state(p)["hessian"].mul_(group["betas"][1]).addcmul_(p.grad, p.grad, value=rest)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, bs: float = 5120) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, lr = group["betas"][0], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state(p)
                g = -p.grad if group["maximize"] else p.grad
                state["step"] += 1
                p.mul_(1 - lr * group["weight_decay"])
                m = state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
                share = (m.abs() / (group["rho"] * bs * state["hessian"] + 1e-15)).clamp(None, 1)
                p.addcmul_(m.sign(), share, value=-lr)
        return loss


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 5)).to(dtype)
    for p in model.parameters():
        p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def batch(step: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 5, (rows,), generator=generator)


def loss_on(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def put_gradients(model: nn.Module, step: int, size: float = 1.0) -> None:
    """Gradients that are no model's: the same for every optimizer compared."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = (size * torch.randn(p.shape, generator=generator)).to(p.dtype)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def causal_model(seed: int = 0, **options: Any) -> Any:
    """A random LLaMA of two layers, vocabulary 31."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def causal_batch(number: int, rows: int = 2, length: int = 7, masked: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 31, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :masked] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
