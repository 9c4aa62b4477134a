"""transformers.Trainer: a model trained by back-propagation goes on with forward passes alone.

A small ViT learns handwritten digits with AdamW; then the paper is grey and the ink faint, and ZO-SGD (MeZO)
fits it to that, in the memory of inference.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from tenfold.optim import ZOSGD

pixels, labels = load_digits(return_X_y=True)
pixels = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)


def rows(images):
    """Data sets of 1,297 digits to train on and 500 to test with."""
    pairs = zip(images, labels, strict=True)
    found = [{"pixel_values": image, "labels": int(label)} for image, label in pairs]
    return found[:1297], found[1297:]


def trainer(images, steps, optimizer):
    train, test = rows(images)
    args = TrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=64, per_device_eval_batch_size=500,
        save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    return Trainer(
        model, args, train_dataset=train, eval_dataset=test, optimizers=(optimizer, schedule),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
    )  # fmt: skip


def say(what, found):
    print(f"{what}: loss {found['eval_loss']:.2f}, accuracy {found['eval_accuracy']:.3f}")


set_seed(0)
model = ViTForImageClassification(
    ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_labels=10, hidden_dropout_prob=0.0, initializer_range=0.15,
    )
)  # fmt: skip
first = trainer(pixels, 250, torch.optim.AdamW(model.parameters(), lr=5e-3))
first.train()
say("white paper", first.evaluate())

optimizer = ZOSGD(model.named_parameters(), lr=3e-4, eps=1e-3, streams=model)
second = trainer(0.5 * pixels + 0.4, 400, optimizer)
say("grey paper", second.evaluate())
with optimizer.attach(model):
    second.train()
say(f"after {optimizer.num_steps} zeroth-order steps", second.evaluate())
