"""accelerate: a small Llama learns to spell from Python's own manual, trained by Sophia.

Sophia divides momentum by a diagonal of curvature, which is estimated anew in every tenth step.
"""

from pydoc_data.topics import topics

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tenfold.optim import Sophia

text = "\n".join(topics.values()).lower()
letters = sorted(set(text))
place = {letter: i for i, letter in enumerate(letters)}
ids = torch.tensor([place[letter] for letter in text])
rows = ids[: len(ids) // 64 * 64].view(-1, 64)  # of 64 characters
test, train = rows[:100], rows[100:]

set_seed(0)
size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), **size))
optimizer = Sophia(model.parameters(), lr=3e-3, rho="auto", target_win_rate=0.1)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=240)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
loader = DataLoader(train, batch_size=8, shuffle=True, drop_last=True)
model, prepared, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)


@torch.no_grad()
def say():
    loss = model(input_ids=test, labels=test).loss.item()
    share = f", {optimizer.win_rate:.2f} of the weights not clipped" if optimizer.num_updates else ""
    print(f"step {optimizer.num_updates}: {loss:.2f} nats a character{share}")


say()
for number, batch in enumerate(loader, 1):
    if optimizer.hessian_due:  # before the first micro-batch of a step; `prepared` wraps this optimizer
        optimizer.estimate_hessian(model, [{"input_ids": batch, "labels": batch}])
    with accelerator.accumulate(model):
        accelerator.backward(model(input_ids=batch, labels=batch).loss)
        prepared.step()
        schedule.step()
        prepared.zero_grad()
    if number % 240 == 0:
        say()
    if number == 480:
        break
