"""Arguments for the ops on volumes, masks, pictures and channels."""

from __future__ import annotations

from typing import Any

import torch
from drawing import Draw
from torch import Tensor

LABELS = (torch.int64, torch.uint8, torch.int16, torch.int32)


def _volume(d: Draw, k: int = 4, low: int = 0) -> Tensor:
    shape = d.sizes(d.integer(2, 3), low, 5)
    return d.ints(*shape, low=0, high=k, dtype=d.one(*LABELS))


def _volumes(d: Draw, k: int = 4) -> tuple[Tensor, Tensor]:
    a = _volume(d, k)
    return a, d.ints(*a.shape, low=0, high=k, dtype=d.one(*LABELS))


def _spacing(d: Draw, axes: int) -> Any:
    return d.one(1.0, [0.5, 1.0, 3.0][:axes], [1e-3] * axes, [1e3] * axes)


def body_box(d: Draw) -> dict[str, Any]:
    shape = d.sizes(d.integer(2, 3), 0, 5)
    ct = d.one(d.floats(*shape, scale=1000.0), d.ints(*shape, low=-1000, high=1000, dtype=torch.int16))
    return {"ct": ct, "threshold": -500.0, "connectivity": d.one(26, 6)}


def connected_components(d: Draw) -> dict[str, Any]:
    return {"volume": _volume(d), "connectivity": d.one(26, 6), "multilabel": d.flag()}


def fill_holes(d: Draw) -> dict[str, Any]:
    return {"volume": _volume(d, 3), "classes": d.one(None, [1], [])}


def keep_largest(d: Draw) -> dict[str, Any]:
    rest = {"connectivity": d.one(26, 6), "multilabel": d.flag(), "min_size": d.size(0, 3)}
    return {"volume": _volume(d, 3), "classes": d.one(None, [1, 2]), **rest, "largest_only": d.flag()}


def resample_argmax(d: Draw) -> dict[str, Any]:
    axes = d.integer(2, 3)
    logits = d.floats(d.size(1, 5), *d.sizes(axes, 1, 5), dtype=d.dtype())
    size, dtype = list(d.sizes(axes, 1, 7)), d.one(None, torch.uint8, torch.int16)
    return {"logits": logits, "size": size, "align_corners": d.flag(), "dtype": dtype}


def label_lut(d: Draw) -> dict[str, Any]:
    lut = d.one([0, 1, 2, 2**63], torch.tensor([0, 3, 5, -1]))
    return {"volume": _volume(d), "lut": lut, "num_threads": d.one(None, 1, 2)}


def labels_of_owners(d: Draw) -> dict[str, Any]:
    return {"words": d.ints(*d.sizes(2), low=0, high=4), "lut": [0, 1, 2, 3]}


def multihot_counts(d: Draw) -> dict[str, Any]:
    shape = (d.size(0, 5), *d.sizes(d.integer(1, 3)))
    return {"a": d.bools(*shape), "b": d.bools(*shape), "num_threads": d.one(None, 2)}


def owner_counts(d: Draw) -> dict[str, Any]:
    shape, n = d.sizes(d.integer(1, 3)), d.one(1, 3, 64)
    a, b = (d.ints(*shape, low=-(2**63), high=2**63 - 1) for _ in range(2))
    return {"a": a, "b": b, "num_owners": n, "num_threads": d.one(None, 2)}


def owner_words(d: Draw) -> dict[str, Any]:
    return {"masks": d.bools(d.one(1, 3, 64, 0), *d.sizes(d.integer(1, 3)))}


def pack_bits(d: Draw) -> dict[str, Any]:
    shape = (d.size(0, 5), *d.sizes(d.integer(1, 3)))
    return {"masks": d.one(d.bools(*shape), d.ints(*shape, low=0, high=2, dtype=torch.uint8))}


def unpack_bits(d: Draw) -> dict[str, Any]:
    shape = d.sizes(d.integer(1, 3))
    n = torch.Size(shape).numel()
    words = d.ints(d.size(0, 5), -(-n // 64), low=-(2**63), high=2**63 - 1)
    return {"words": words, "shape": list(shape), "num_threads": d.one(None, 2)}


def overlap_counts(d: Draw) -> dict[str, Any]:
    a, b = _volumes(d)
    return {"target": a, "pred": b, "num_labels": d.one(4, 64), "boxes": d.flag()}


def edt(d: Draw) -> dict[str, Any]:
    shape = d.sizes(3, 0, 5)
    features = d.one(d.bools(*shape), d.ints(*shape, low=0, high=2, dtype=torch.uint8))
    rest = {"squared": d.flag(), "dtype": d.one(None, torch.float64), "num_threads": d.one(None, 2)}
    return {"features": features, "spacing": _spacing(d, d.integer(1, 3)), **rest}


def signed_distance(d: Draw) -> dict[str, Any]:
    return {"masks": d.bools(*d.sizes(3, 0, 5)), "spacing": _spacing(d, d.integer(1, 3))}


def surfels(d: Draw) -> dict[str, Any]:
    mask = _volume(d, 2)
    return {"mask": mask, "spacing": _spacing(d, mask.ndim), "definition": d.one("area", "edge")}


def surface_dice(d: Draw) -> dict[str, Any]:
    a, b = _volumes(d, 2)
    rest = {"tolerances": d.one((1.0,), [0.0, 1.0]), "definition": d.one("area", "edge")}
    return {"target": a, "pred": b, "spacing": _spacing(d, a.ndim), **rest}


def surface_metrics(d: Draw) -> dict[str, Any]:
    a, b = _volumes(d)
    organs = d.one(None, [(1,)], [(1, 2), (2, 3)], [])
    rest = {"tolerances": d.one((1.0,), [0.0, 2.0]), "percentiles": d.one((95, 100), [0.0, 50.0], [])}
    given = {"target": a, "pred": b, "organs": organs, "spacing": _spacing(d, a.ndim)}
    return {**given, **rest, "definition": d.one("area", "edge"), "num_threads": d.one(None, 2)}


def gaussian_weights(d: Draw) -> dict[str, Any]:
    return {"patch": list(d.sizes(3, 1, 5)), "sigma_scale": d.one(0.125, 1e-3)}


def window_starts(d: Draw) -> dict[str, Any]:
    return {"size": list(d.sizes(3, 1)), "patch": list(d.sizes(3, 1)), "step": d.one(0.5, 1.0)}


def sliding_window(d: Draw) -> dict[str, Any]:
    image = d.floats(d.size(1, 3), *d.sizes(3, 1, 5), tame=True)
    rest = {"profile": d.one("nnunet", "pymic"), "step": d.one(None, 1.0, 0.7)}
    patch = list(d.sizes(3, 1, 4))
    return {"image": image, "predict": lambda x: torch.cat([x, -x], 1), "patch": patch, **rest}


sliding_window_slabs = sliding_window


def mirrored(d: Draw) -> dict[str, Any]:
    return {"predict": lambda x: x, "axes": d.one((0, 1, 2), (), [1]), "left_right_axis": None, "swap": ()}


def soft_overlap(d: Draw) -> dict[str, Any]:
    b, c, space = d.size(0, 3), d.size(1, 5), d.sizes(d.integer(1, 3), 0, 5)
    if c > 1 and d.flag():
        target = d.ints(b, *space, low=0, high=c, dtype=d.one(torch.int64, torch.uint8))
    else:
        target = d.one(d.floats(b, c, *space, positive=True), d.bools(b, c, *space))
    rest = {"activation": d.one("softmax", "sigmoid", "none"), "mask": d.often(None, d.bools(b, *space))}
    return {"logits": d.floats(b, c, *space, dtype=d.dtype()), "target": target, **rest}


def _region(d: Draw) -> dict[str, Any]:
    rest = {"include_background": d.flag(), "reduction": d.one("mean", "sum", "none"), "batch": d.flag()}
    return {**soft_overlap(d), **rest}


def dice_loss(d: Draw) -> dict[str, Any]:
    return {**_region(d), "squared_pred": d.flag(), "jaccard": d.flag()}


def dice_ce_loss(d: Draw) -> dict[str, Any]:
    found = {**_region(d), "profile": d.often("monai", "nnunet", "pymic")}
    return {**found, "reduction": "mean", "activation": d.one("softmax", "sigmoid"), "lambda_ce": 0.5}


def generalized_dice_loss(d: Draw) -> dict[str, Any]:
    return {**_region(d), "w_type": d.one("square", "simple", "uniform")}


def tversky_loss(d: Draw) -> dict[str, Any]:
    return {**_region(d), "alpha": d.one(0.5, 0.0), "beta": 0.7}


def _features(d: Draw, low: int = 1) -> Tensor:
    return d.floats(*d.sizes(2, 1, 4), *d.sizes(2, low, 5), dtype=d.dtype(), scale=1.0)


def channel_stats(d: Draw) -> dict[str, Any]:
    return {"features": _features(d, 2), "eps": d.one(1e-5, 0.0)}


def adain_style_loss(d: Draw) -> dict[str, Any]:
    a = _features(d, 2)
    return {"features": a, "target": d.floats(*a.shape[:2], 3, 4, dtype=a.dtype), "eps": 1e-5}


def gram(d: Draw) -> dict[str, Any]:
    return {"features": _features(d)}


def answer_counts(d: Draw) -> dict[str, Any]:
    n, s, o = d.size(), d.size(1, 4), d.size(1, 4)
    style, thing = d.floats(n, s, dtype=d.dtype()), d.floats(n, o, dtype=d.dtype())
    names = d.one(None, [f"p{i}" for i in range(n)])
    return {
        "style_logits": style,
        "object_logits": thing,
        "cells": d.ints(n, 2, low=0, high=min(s, o)),
        "names": names,
    }


def resize_antialias(d: Draw) -> dict[str, Any]:
    x = d.ints(
        *d.sizes(d.integer(0, 1), 1, 3), *d.sizes(2, 1), d.one(1, 3), low=0, high=256, dtype=torch.uint8
    )
    rest = {
        "filter": d.one("bilinear", "bicubic"),
        "mode": d.often("pil", "cv2", "tf1"),
        "quantize": d.flag(),
    }
    return {"x": x, "size": d.sizes(2, 1), **rest}


def _pictures(d: Draw, low: int, high: int) -> dict[str, Any]:
    shape = (*d.sizes(2, 1, 3), d.integer(low, high), d.integer(low, high))
    kind = d.one(*(torch.float32, torch.float64, torch.bfloat16, torch.uint8))
    if kind == torch.uint8:
        a, b = (d.ints(*shape, low=0, high=256, dtype=kind) for _ in range(2))
    else:
        a, b = (d.floats(*shape, dtype=kind, scale=1.0, positive=True) for _ in range(2))
    return {
        "preds": a,
        "target": b,
        "data_range": d.one(1.0, 255.0),
        "reduction": d.one("mean", "sum", "none"),
    }


def psnr(d: Draw) -> dict[str, Any]:
    return _pictures(d, 0, 9)


def ssim(d: Draw) -> dict[str, Any]:
    return {**_pictures(d, 5, 40), "variant": d.one("gaussian", "uniform", "torchmetrics", "piq")}


def ms_ssim(d: Draw) -> dict[str, Any]:
    return _pictures(d, 160, 165)


def _complex(d: Draw, *shape: int) -> Tensor:
    kind = d.one(torch.float32, torch.float64)
    values = d.floats(*shape, 2, dtype=kind, scale=1.0).contiguous().clone()
    return d.one(torch.complex(values[..., 0], values[..., 1]), values)


def _twin(d: Draw, like: Tensor, *shape: int) -> Tensor:
    kind = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
    values = d.floats(*shape, 2, dtype=kind, scale=1.0).contiguous().clone()
    return torch.complex(values[..., 0], values[..., 1]) if like.is_complex() else values


def noma_channel(d: Draw) -> dict[str, Any]:
    lead, users, k = d.sizes(d.integer(0, 2), 0, 4), d.size(1, 4), d.size(1, 9)
    allocate = d.often(None, "joint", "separable")
    given: dict[str, Any] = {"transmit": _complex(d, *lead, users, k), "variance": d.one(1.0, 1e-9)}
    given |= {"noise_power": d.one(0.1, 0.0, 1e-14), "seed": d.seed(), "offset": d.one(0, 2**24 - 1)}
    fading = d.one("rayleigh", "awgn", "rician")
    given |= {"fading": fading, "k_factor_db": 3.0 if fading == "rician" else None, "allocate": allocate}
    given |= {"first": d.one(0, 5), "return_gains": d.flag()}
    return {**given, "power": torch.ones(users) if allocate else None}


def ssdt_joint(d: Draw) -> dict[str, Any]:
    lead, users, k = d.sizes(d.integer(0, 2), 0, 4), d.size(1, 4), d.size(1, 9)
    gains = _complex(d, *lead, users, k)
    power = d.one(torch.ones(users), torch.full((users,), 1e-6))
    rest = {"noise_power": d.one(0.1, 1e-14), "statistics": "exact", "check": d.one(None, True)}
    return {"gains": gains, "symbols": _twin(d, gains, *lead, k), "power": power, **rest}


def ssdt_separable(d: Draw) -> dict[str, Any]:
    lead, users, k = d.sizes(d.integer(0, 2), 0, 4), d.size(1, 4), d.size(1, 9)
    c = d.one(None, torch.ones(users))
    rest = {"power": torch.ones(users), "noise_power": d.one(0.1, 1e-14), "c": c, "check": d.one(None, True)}
    return {"gains": _complex(d, *lead, users, k), **rest}


def _rows(d: Draw, **how: Any) -> Tensor:
    kind = d.one(torch.float32, torch.float64)
    return d.floats(*d.sizes(d.integer(0, 2), 0, 4), d.size(), dtype=kind, **how)


def power_normalize(d: Draw) -> dict[str, Any]:
    return {"x": _rows(d), "power": d.one(1.0, 0.0), "mode": d.one("mean", "sum")}


def project_simplex(d: Draw) -> dict[str, Any]:
    return {"x": _rows(d), "mass": d.one(1.0, 0.0, 3.0)}


def water_filling(d: Draw) -> dict[str, Any]:
    gains = _rows(d)
    return {"gains": gains, "power": d.one(1.0, 0.0, 100.0), "mask": d.often(None, d.bools(*gains.shape))}


def mse_water_filling(d: Draw) -> dict[str, Any]:
    gains = _rows(d, positive=True)
    weights = d.floats(*gains.shape, dtype=gains.dtype, positive=True)
    return {"gains": gains, "weights": weights, "power": d.one(1.0, 0.0, 100.0)}
