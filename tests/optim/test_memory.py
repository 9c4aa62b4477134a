"""What a step needs beyond a forward pass, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tenfold.optim import ZOAdam

LIMIT = 16.0  # MiB above the forward pass

# A tied head over 50,272 words of width 768 (147 MiB) and two layers: 174 MiB of weights.
CHILD = """
import ctypes, gc, sys, warnings
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F
from tenfold import ops
from tenfold.optim import ZOSGD
warnings.simplefilter("error")
torch.set_num_threads(1)
loss_name, how = sys.argv[1:]
WORDS, WIDTH = 50272, 768
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight
model = Model()
ids = torch.randint(0, WORDS, (4, 16), generator=torch.Generator().manual_seed(0))
def option_loss():
    hidden = model.layers(model.embed(ids))
    return ops.option_loss(hidden, model.head.weight, None, ids, [2] * 4, num_options=2, labels=[0, 1]).loss
def own_loss():
    logits = model.head(model.layers(model.embed(ids)))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
closure = {"option": option_loss, "own": own_loss}[loss_name]
def peak():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    def high():
        return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
    def run(step):
        before = high()
        step()
        return high() - before
    return run
small = nn.Linear(4, 4)
options = {"lr": 1e-6, "eps": 1e-3} | ({"restore": how} if how != "auto" else {})
with torch.no_grad():
    for restore in ("dual", "arithmetic"):  # load all code first
        ZOSGD(small.parameters(), lr=0.1, restore=restore).step(lambda: small(torch.ones(2, 4)).sum())
    ops.token_logprobs(torch.ones(2, 4), small.weight, None, torch.tensor([0, 1]))
    closure()
    forward = peak()(closure)
optimizer = ZOSGD(model.parameters(), streams=model, **options)
step = peak()(lambda: optimizer.step(closure))
assert optimizer.last_step.losses[0] != optimizer.last_step.losses[1]
print(forward, step, sum(p.nbytes for p in model.parameters()) / 2**20, optimizer.last_step.passes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak-memory reset")
@pytest.mark.parametrize("loss", ["option", "own"])
@pytest.mark.parametrize("restore", ["auto", "arithmetic"])
def test_a_step_needs_little_more_than_a_forward_pass(loss: str, restore: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, loss, restore], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    forward, step, weights, passes = map(float, done.stdout.split())
    assert weights > 100
    assert passes == (1 if restore == "auto" else 3)  # auto is dual here: only the update writes
    print(
        f"{loss} {restore}: forward {forward:.1f} MiB, step {step:.1f} MiB above {weights:.0f} MiB of weights"
    )
    assert step <= forward + LIMIT, (forward, step)


@pytest.mark.parametrize(("state_dtype", "each"), [(None, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adam_keeps_two_moments_per_element_and_nothing_else(dtype, state_dtype, each) -> None:
    model = nn.Sequential(nn.Linear(33, 65), nn.LayerNorm(65)).to(dtype)
    opt = ZOAdam(model.parameters(), lr=1e-3, state_dtype=state_dtype)
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    opt.step(lambda: F.mse_loss(model(x).float(), torch.ones(4, 65)))
    elements = sum(p.numel() for p in model.parameters())
    tensors = [v for state in opt.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert sum(v.untyped_storage().nbytes() for v in tensors) == 2 * each * elements
    assert {v.dtype for v in tensors} == {state_dtype or torch.float32}
