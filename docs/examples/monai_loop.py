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

digits = load_digits()
ink = digits.images.astype(np.float32) / 16  # [1797, 8, 8]


def page(rows, draw):
    """Image [1, 16, 16] and label map [1, 16, 16]: 0 is paper, 1 + digit its ink."""
    masks = np.where(ink[rows] > 0.3, 1 + digits.target[rows, None, None], 0)
    image, label = (np.block([[four[:2].swapaxes(0, 0)], [four[2:]]]) for four in (ink[rows], masks))
    return {"image": image, "label": label}


