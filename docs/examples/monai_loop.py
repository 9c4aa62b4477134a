"""MONAI: its network and loaders, with a loss and a metric of Tenfold in the places of MONAI's.

Four handwritten digits lie on a noisy page; the network says of each pixel which digit's ink it is.
"""

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.networks.nets import UNet
from monai.utils import set_determinism
from sklearn.datasets import load_digits

from tenfold.metrics import DiceScore
from tenfold.nn import DiceCELoss

set_determinism(0)
digits = load_digits()
ink = (digits.images / 16).astype(np.float32)  # [1797, 8, 8]


def page(rows, draw):
    """Image [1, 16, 16] and label map [1, 16, 16]: 0 is paper, 1 + digit its ink."""
    image, label = np.zeros((1, 16, 16), np.float32), np.zeros((1, 16, 16), np.int64)
    for (i, j), row in zip(((0, 0), (0, 8), (8, 0), (8, 8)), rows, strict=True):
        image[0, i : i + 8, j : j + 8] = ink[row]
        label[0, i : i + 8, j : j + 8] = np.where(ink[row] > 0.3, 1 + digits.target[row], 0)
    return {"image": image + 0.1 * draw.standard_normal(image.shape, np.float32), "label": label}


draw = np.random.default_rng(0)
pages = [page(draw.integers(0, 1297, 4), draw) for _ in range(1000)]
test_pages = [page(draw.integers(1297, 1797, 4), draw) for _ in range(100)]  # of other digits

net = UNet(2, in_channels=1, out_channels=11, channels=(32, 64, 128), strides=(2, 2), norm="batch")
loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
metric = DiceScore(11, input_format="index", include_background=False, compat="monai")
optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)


@torch.no_grad()
def dice():
    metric.reset()
    for batch in DataLoader(Dataset(test_pages), batch_size=50):
        metric.update(net.eval()(batch["image"]).argmax(1), batch["label"][:, 0])
    return metric.compute().item()


print(f"epoch 0: Dice {dice():.3f}")
for epoch in range(1, 4):
    net.train()
    for batch in DataLoader(Dataset(pages), batch_size=16, shuffle=True):
        optimizer.zero_grad()
        loss_function(net(batch["image"]), batch["label"]).backward()
        optimizer.step()
    print(f"epoch {epoch}: Dice {dice():.3f}")
