"""The published prompt files, and what is refused in them."""

import json

import pytest
import torch

pytest.importorskip("PIL.Image")
from PIL import Image

from tenfold.diffusion.prompts import read_prompts, read_retain, read_targets

CHURCH = "case_number,prompt,evaluation_seed,evaluation_guidance\n"


def write(folder, text, name="prompts.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_files_of_a_class(tmp_path):
    rows = read_prompts(write(tmp_path, CHURCH + '0,"church, old",4290749014,7.5\n1,a church,7,255\n'))
    assert [(r.case_number, r.prompt, r.seed, r.guidance) for r in rows] == [
        ("0", "church, old", 4290749014, 7.5),
        ("1", "a church", 7, 255.0),
    ]
    assert rows[0].width is None
    assert rows[0].more == {}


def test_i2p_and_style_columns(tmp_path):
    head = (
        ",prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,case_number\n"
    )
    (row,) = read_prompts(write(tmp_path, head + '3,"a, b","hate, shocking",12,7,512,768,12\n'))
    assert (row.width, row.height, row.case_number, row.more["categories"]) == (
        512,
        768,
        "12",
        "hate, shocking",
    )
    style = "," + CHURCH.strip() + ",artist\n0,0,a painting,5,7.5,Vincent van Gogh\n"
    assert read_prompts(write(tmp_path, style))[0].label == "Vincent van Gogh"


def test_coco_ids_keep_their_zeros(tmp_path):
    path = write(tmp_path, "case_number,source,prompt,evaluation_seed\n000000000139,coco,a room,3\n")
    (row,) = read_prompts(path)
    assert (row.case_number, row.guidance, row.label) == ("000000000139", 7.5, "coco")


def test_small_imagenet(tmp_path):
    head = ",case_number,prompt,evaluation_seed,class\n"
    assert read_prompts(write(tmp_path, head + "0,0,a photo of tench,1,tench\n"))[0].label == "tench"


def test_retain_sets(tmp_path):
    path = write(tmp_path, "case_num,source,prompt\n0,coco,a photo of a cat\n1,coco,a photo of a dog\n")
    assert read_retain(path) == ["a photo of a cat", "a photo of a dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows of prompts, got an empty file"),
        (CHURCH, "rows of prompts, got none"),
        ("case_number,evaluation_seed\n0,1\n", "a column 'prompt'"),
        (CHURCH + "0,a,1,7\n0,b,2,7\n", "line 3: expected a case_number of its own"),
        (CHURCH + "0,a,-1,7\n", "line 2: evaluation_seed"),
        (CHURCH + "0,a,4294967296,7\n", "line 2: evaluation_seed"),
        (CHURCH + "0,a,1.5,7\n", "line 2: evaluation_seed"),
        (CHURCH + "0,a,x,7\n", "evaluation_seed: expected a finite number, got 'x'"),
        (CHURCH + "0,a,inf,7\n", "line 2: evaluation_seed: expected a finite number"),
        (CHURCH + "0,a,nan,7\n", "line 2: evaluation_seed: expected a finite number"),
        (CHURCH + "0,a,,7\n", "line 2: evaluation_seed: expected an integer .* got none"),
        (CHURCH + "../0,a,1,7\n", "line 2: case_number: expected text that may stand in a file's name"),
        (CHURCH + '"0\n1",a,1,7\n', "case_number: expected text that may stand in a file's name"),
        ("case_number,prompt,prompt,evaluation_seed\n0,a,b,1\n", "every column once, got two of 'prompt'"),
        (CHURCH + '0,"a,1,7\n', "expected CSV in UTF-8, got"),
        (CHURCH + "0,a,1,-2\n", "guidance"),
        (CHURCH + "0,a,1,nan\n", "guidance"),
        (CHURCH + "0, ,1,7\n", "a case_number and a prompt"),
        (CHURCH + "0,a,b,1,7\n", "more .quote commas."),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path, text))


def test_text_of_another_encoding_names_the_file(tmp_path):
    for text in (CHURCH, CHURCH + "0,a,1,7\n"):
        path = tmp_path / "wide.csv"
        path.write_bytes(text.encode("utf-16"))
        with pytest.raises(ValueError, match=r"wide\.csv: expected CSV in UTF-8, got"):
            read_prompts(path)


def test_marks_line_ends_and_quotes_of_other_programs(tmp_path):
    path = tmp_path / "excel.csv"
    text = CHURCH + '0,"a ""red"" church, old",1,\n1,"Zürich 日本",2,3\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    rows = read_prompts(path, guidance=4.0)
    assert [(r.prompt, r.guidance) for r in rows] == [('a "red" church, old', 4.0), ("Zürich 日本", 3.0)]


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a prompt file"):
        read_prompts(tmp_path / "none.csv")


def test_a_case_number_is_no_pattern_of_files(tmp_path):
    write(tmp_path, CHURCH + "[ab],a,1,7\n")
    (tmp_path / "imgs").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "imgs" / "a_0.png")
    with pytest.raises(FileNotFoundError, match="expected the picture"):
        read_targets(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "imgs" / "[ab]_0.png")
    assert [p.name for p in read_targets(tmp_path).pictures[0]] == ["[ab]_0.png"]


def test_targets_keep_every_row_in_its_place(tmp_path):
    write(tmp_path, CHURCH + "7,a,1,7\n8,b,2,7\n9,c,3,7\n")
    (tmp_path / "imgs").mkdir()
    for name, value in (("7_0", 0), ("7_2", 51), ("7_10", 102), ("9_0", 255)):
        Image.new("RGB", (4, 6), (value, value, value)).save(tmp_path / "imgs" / f"{name}.png")
    with pytest.raises(FileNotFoundError, match=r"8_0\.png"):
        read_targets(tmp_path)
    (tmp_path / "ignore.json").write_text("[1]")
    found = read_targets(tmp_path)
    assert found.ignored == {"8"}
    assert [len(files) for files in found.pictures] == [3, 0, 1]
    assert [float(found.load(0, n)[0, 0, 0, 0]) for n in range(3)] == pytest.approx([0, 0.2, 0.4])
    assert torch.equal(found.load(2), torch.ones(1, 3, 6, 4))
    for wrong in ([3], "no", [True]):
        (tmp_path / "ignore.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="a list of row positions"):
            read_targets(tmp_path)
