"""Lightning: a network of step functions, whose gradient is zero everywhere, learns from its loss alone.

Zeroth-order steps take a closure, so the module turns automatic optimization off. The rest is Lightning's.
"""

import logging

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tenfold.optim import ZOAdam


class Steps(nn.Module):
    """1 where positive, else -1: no use to back-propagation."""

    def forward(self, x):
        return torch.where(x > 0, 1.0, -1.0)


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(64, 128), Steps(), nn.Linear(128, 10))

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch):
        self.log("loss", self.optimizers().step(lambda: self.loss(batch)))
        self.lr_schedulers().step()

    def validation_step(self, batch):
        x, y = batch
        self.log_dict({"val_loss": self.loss(batch), "accuracy": (self.net(x).argmax(1) == y).float().mean()})

    def configure_optimizers(self):
        optimizer = ZOAdam(self.net.parameters(), lr=1e-2, eps=5e-2, num_queries=4, streams=self.net)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=1000)]


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
L.seed_everything(0, verbose=False)
pixels, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pixels / 8 - 1, dtype=torch.float32), torch.tensor(labels))
train = DataLoader(torch.utils.data.Subset(data, range(1297)), batch_size=128, shuffle=True, drop_last=True)
test = DataLoader(torch.utils.data.Subset(data, range(1297, 1797)), batch_size=500)
model = Digits()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = L.Trainer(max_epochs=100, accelerator="cpu", enable_model_summary=False, **quiet)
for _ in range(2):
    found = trainer.validate(model, test, verbose=False)[0]
    print(f"step {trainer.global_step}: loss {found['val_loss']:.2f}, accuracy {found['accuracy']:.3f}")
    if not trainer.global_step:
        trainer.fit(model, train)
