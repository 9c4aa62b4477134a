"""accelerate: a character model of English text, trained by Sophia, and what knowing the curvature gives.

The text is what scikit-learn says of its data sets. `mode="sign"` is Sophia without curvature.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tenfold.optim import Sophia

sources = load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
text = "".join(load().DESCR for load in sources)
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text])
pieces = ids[: len(ids) // 64 * 64].view(-1, 64)
