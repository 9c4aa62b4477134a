"""Damage that fuzzing found readers to take badly, made again from the valid files: refused by name."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from file_makers import MAKERS
from judging import judge

Damage = Callable[[bytes], bytes]


def swapped(old: bytes, new: bytes) -> Damage:
    def damage(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return damage


def header(old: str, new: str) -> Damage:
    """Of a safetensors file, whose header tells its length."""

    def damage(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        text = data[8 : 8 + length].decode()
        assert old in text
        text = text.replace(old, new, 1)
        return struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]

    return damage


def packed(damage: Damage) -> Damage:
    return lambda data: gzip.compress(damage(gzip.decompress(data)))


def cut(count: int) -> Damage:
    return lambda data: data[:count]


def beton_label(data: bytes) -> bytes:
    return data[: 24 + 3 * 1041 + 16] + struct.pack("<q", 1 << 40) + data[24 + 3 * 1041 + 24 :]


def beton_size(data: bytes) -> bytes:
    return data[:-8] + struct.pack("<Q", 1 << 62)


def beton_picture(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 5  # height and width of the JPEG
    return data[:at] + struct.pack(">HH", 9000, 9000) + data[at + 4 :]


def no_text(data: bytes) -> bytes:
    return data[:3] + b"\xff\xfe\x80" + data[3:]


def deep(data: bytes) -> bytes:
    return b"[" * 100_000


def a_list(data: bytes) -> bytes:
    return b"[1, 2]"


FOUND: list[tuple[str, Damage]] = [
    ("meta_image", swapped(b"NDims = 3", b"NDims = 999999999")),
    ("meta_image", swapped(b"NDims = 3", b"NDims = 99999999999999999999")),
    ("zipped_masks", swapped(b"PK\x05\x06", b"PK\x05\x07")),
    (
        "zipped_masks",
        lambda data: data[:-10] + b"\xff\xff\xff\x7f" + data[-6:],
    ),
    ("matrix", lambda data: data[:-10] + b"\xff\xff\xff\x7f" + data[-6:]),
    ("cifar", packed(cut(1000))),
    ("idx", cut(20)),
    ("idx", lambda data: b"no gzip"),
    ("idx", packed(swapped(b"\x08\x02", b"\x08\x7f"))),
    ("selection_parquet", lambda data: data[:4] + b"\xff" * 30 + data[34:]),
    ("task_parquet", cut(30)),
    ("class_folder", cut(40)),
    ("drawn_picture", cut(40)),
    ("beton", beton_label),
    ("beton", swapped(b"\xff\xd8\xff", b"\xff\xd8\x00")),
    ("beton", beton_size),
    ("beton", swapped(b"weight", b"label\0")),
    ("beton", beton_picture),
    ("set_labels", no_text),
    ("cohorts", no_text),
    ("ranked_cohorts", no_text),
    ("complexity_csv", no_text),
    ("complexity_archive", cut(60)),
    ("scores_long", swapped(b"0.5", b"0/5")),
    ("scores_wide", swapped(b"0.5", b"half")),
    ("structures_csv", swapped(b"1,heart,", b"one,heart,")),
    ("structures_csv", lambda data: b"x,y\n1,2,3\n"),
    ("structures_json", no_text),
    ("structures_json", deep),
    ("way", swapped(b'"resampled_shape"', b'"shape"')),
    ("ct_archive", packed(swapped(b"class_map =", b"class_map (("))),
    ("mini_tofu", no_text),
    ("mini_tofu", deep),
    ("records", deep),
    ("json_lines", lambda data: b'{"sentence": ' + b"[" * 100_000),
    ("task_squad", deep),
    ("task_lines", lambda data: b'{"sentence": ' + b"[" * 100_000),
    ("evaluation_log", deep),
    ("evaluation_log", swapped(b'{"score": 0.25}', b'{"score": [1]}')),
    ("evaluation_log", swapped(b'{"0": {"score": 0.5}, "1": {"score": 0.25}}', b"[1" + b"0" * 30 + b"]")),
    ("evaluation_log", swapped(b'{"score": 0.25}', b'{"score": 1' + b"0" * 400 + b"}")),
    ("task_drop", swapped(b'"date": {"day": "1", "month": "", "year": ""}', b'"date": [1]')),
    ("attack_config", swapped(b'{"tenfold": ', b'{"tenfold": 3.5, "x": ')),
    ("soul_settings", deep),
    ("soul_settings", swapped(b'"unlearn_method": "GA"', b'"unlearn_method": {}')),
    ("soul_settings", swapped(b'"unlearn_method": "GA"', b'"unlearn_method": "GA", "GA": 3')),
    ("soul_settings", swapped(b'"unlearn_method": "GA"', b'"unlearn_method": "GA", "GA": {"gamma": []}')),
    ("soul_settings", swapped(b'{"rho": 0.1}', b"[0.1]")),
    ("soul_settings", swapped(b'{"rho": 0.1}', b'{"rho": {}}')),
    ("soul_settings", swapped(b'"batch_size": 2', b'"batch_size": -1')),
    ("soul_settings", swapped(b'"model_name": "m"', b'"model_name": ["m"]')),
    ("dropped_rows", lambda data: b"(lp0\n(lp1\nI1\naaI2\na."),
    ("report", swapped(b'"label"', b'"lable"')),
    ("report", a_list),
    ("run_metrics", a_list),
    ("run_mark", a_list),
    ("run_settings", lambda data: data + b"0: 5\n"),
    ("unet", header("classes", "klasses")),
    ("unet", header("head.bias", "head.base")),
    ("unet", header('\\"classes\\": 2', '\\"classes\\": 92233854775808')),
    ("unet", header('\\"classes\\": 2', '\\"classes\\": 9223385477580800000')),
    ("training_state", header("rest", "test")),
    ("edit_about", swapped(b"closed_form", b"closed_forn")),
    ("edit_weights", lambda data: data[:-4] + struct.pack("<f", float("nan"))),
    ("edit_encoder", swapped(b'"quick_gelu"', b'"quick_gulp"')),
    ("codec", cut(100)),
    ("codec", header("adjscc-lite", "adjscs-lite")),
    ("transfer_checkpoint", cut(100)),
    ("transfer_checkpoint", header("network/weight", "network/height")),
    ("reweight_checkpoint", cut(100)),
    ("reweight_checkpoint", header("generator", "generated")),
    ("kept_top", cut(100)),
    ("safetensors_files", cut(100)),
    ("adapter", header("lora_A", "lora_C")),
    ("adapter", header("rank", "rang")),
    ("trained_blocks", cut(60)),
    ("trained_blocks", header("norm", "form")),
    ("model_config", swapped(b'"llama"', b'"lama"')),
    ("model_config", swapped(b'"hidden_size": 8', b'"hidden_size": 6')),
    ("model_tokenizer", swapped(b'"version": "1.0"', b'"version": "9.0"')),
    ("model_index", a_list),
    ("model_shard", cut(60)),
    ("gguf", swapped(struct.pack("<QQIQ", 32, 2, 0, 0), struct.pack("<QQIQ", 1 << 62, 2, 0, 0))),
    ("gguf_model", swapped(b"llama.vocab_size", b"llama.vocab_sire")),
    ("gguf_model", swapped(b"tokenizer.ggml.unknown_token_id", b"tokenizer.ggml.unknown_token_it")),
    ("gguf_model", swapped(b"attn_output", b"attn_outqut")),
    ("pipeline_unet", swapped(b'"CrossAttnDownBlock2D"', b'"CrossAttnDownBlock9D"')),
    ("pipeline_unet", lambda data: b'"another/model"'),
    ("pipeline_unet", swapped(b'"layers_per_block": 1', b'"layers_per_block": 9223372036854775808')),
    ("pipeline_unet", swapped(b'"cross_attention_dim": 32', b'"cross_attention_dim": 3200000000')),
    ("pipeline_tokenizer", no_text),
    ("pipeline_scheduler", swapped(b'"epsilon"', b'"epsilom"')),
]


@pytest.mark.parametrize(("name", "damage"), FOUND, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FOUND)])
def test_damage_is_refused(name: str, damage: Damage, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    path, read = MAKERS[name](home)
    path.write_bytes(damage(path.read_bytes()))
    assert judge(read, path) is None
    with pytest.raises((ValueError, OSError)):
        read(path)
