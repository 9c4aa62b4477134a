"""UA, IRA, CRA and the other tasks' numbers against sums written out."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from tenfold.diffusion.attack.asr import wilson
from tenfold.diffusion.attack.logs import CaseLog, Entry
from tenfold.diffusion.canvas.files import (
    read_answers_json,
    read_matrix,
    read_published_result,
    read_results,
    reference_results,
    table_rows,
    write_answers_json,
    write_matrix,
    write_published_result,
    write_results,
    write_table,
)
from tenfold.diffusion.canvas.judging import Predictions
from tenfold.diffusion.canvas.keys import answer_keys
from tenfold.diffusion.canvas.scores import Costs, concept_table, score, score_matrix, score_tables, summarise
from tenfold.diffusion.canvas.tasks import finer_scores, robust_scores, sequential_scores
from tenfold.diffusion.canvas.vocabulary import Canvas

STYLES = ("Bricks", "Cartoon", "Seed_Images", "Sketch", "Van_Gogh", "Winter")
CANVAS = Canvas("six", STYLES, ("Cats", "Dogs", "Horses", "Towers"), seeds=(1, 2, 3, 4, 5))


def predictions(seed=0, target="Van_Gogh", right=0.7, canvas=CANVAS):
    """A table of 6 styles x 4 objects x 5 seeds, and a class that only the style judge knows."""
    rng, keys = np.random.default_rng(seed), answer_keys(canvas)
    logs = []
    for names, of in ((canvas.styles, "style"), (canvas.objects, "object")):
        extra = 1 if of == "style" else 0
        logits = rng.normal(size=(len(keys), len(names) + extra))
        for i, key in enumerate(keys):
            if rng.random() < right:
                logits[i, names.index(getattr(key, of))] += 4
        logs.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    return Predictions(canvas, keys, (*canvas.styles, "Rust"), canvas.objects, *logs, "ESD", target)


def by_hand(found, target, domain, photos, exclude):
    """UA, IRA, CRA by loops over pictures."""
    said = {d: [found.classes(d)[i] for i in found.log(d).argmax(1)] for d in ("style", "object")}

    def share(of, name, skip):
        rows = [
            s == name
            for s, key in zip(said[of], found.keys, strict=True)
            if getattr(key, of) == name and not (skip and getattr(key, domain) == target)
        ]
        return sum(rows) / len(rows)

    other = "object" if domain == "style" else "style"
    names = {"style": [s for s in STYLES if photos or s != "Seed_Images"], "object": CANVAS.objects}
    own = [share(domain, n, False) for n in names[domain] if n != target]
    cross = [share(other, n, exclude) for n in names[other]]
    return 1 - share(domain, target, False), sum(own) / len(own), sum(cross) / len(cross)


@pytest.mark.parametrize(("target", "domain"), [("Van_Gogh", "style"), ("Dogs", "object")])
@pytest.mark.parametrize("photos", [True, False])
@pytest.mark.parametrize("exclude", [True, False])
def test_the_three_numbers_in_all_conventions(target, domain, photos, exclude):
    found = predictions()
    one = score(
        found,
        target.lower().replace("_", " "),
        seed_images="include" if photos else "exclude",
        cra="exclude_target" if exclude else "all",
    )
    assert (one.target, one.domain) == (target, domain)
    np.testing.assert_allclose(
        (one.ua.value, one.ira, one.cra), by_hand(found, target, domain, photos, exclude), rtol=0, atol=1e-12
    )
    assert one.ua.n == (20 if domain == "style" else 30)
    assert one.ua.interval == wilson(one.ua.successes, one.ua.n)
    assert one.ira_interval[0] <= one.ira <= one.ira_interval[1]
    assert sum(one.seen_instead.values()) == one.ua.successes


def test_conventions_differ_and_are_checked():
    found = predictions()
    values = {
        score(found, "Dogs", seed_images=s, cra=c).cra
        for s in ("include", "exclude")
        for c in ("all", "exclude_target")
    }
    assert len(values) == 4
    with pytest.raises(ValueError, match="seed_images: expected one of"):
        score(found, seed_images="49")
    with pytest.raises(ValueError, match="closest: Van_Gogh"):
        score(found, "van goph")
    with pytest.raises(ValueError, match="target: expected a style or an object, got none"):
        score(predictions(target=""))


def test_a_concept_without_pictures_is_an_error():
    found = predictions()
    rows = [i for i, key in enumerate(found.keys) if key.style != "Winter"]
    part = Predictions(
        CANVAS, tuple(found.keys[i] for i in rows), found.style_classes, found.object_classes,
        found.style_log[rows], found.object_log[rows], target="Van_Gogh",
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected pictures of every style, got none of Winter"):
        score(part)


def test_change_against_the_base_model():
    base, found = predictions(1, right=1.0), predictions(0)
    one, before = score(found, base=base), score(base, "Van_Gogh")
    assert one.delta["ua"] == pytest.approx(one.ua.value - before.ua.value, abs=1e-12)
    assert one.delta["ira"] == pytest.approx(one.ira - before.ira, abs=1e-12)
    assert one.delta["cra"] == pytest.approx(one.cra - before.cra, abs=1e-12)


def test_published_result_files_give_the_same_numbers(tmp_path):
    found = predictions()
    for domain in ("style", "object"):
        write_published_result(tmp_path / f"{domain}.pth", concept_table(found, domain), target="Van_Gogh")
    tables = [read_published_result(tmp_path / f"{d}.pth", CANVAS, d) for d in ("style", "object")]
    one, same = score_tables(CANVAS, *tables, "Van Gogh"), score(found)
    assert (one.ua, one.ira, one.cra) == (same.ua, same.ira, same.cra)
    assert one.chance == pytest.approx(same.chance, abs=1e-12)
    with pytest.raises(ValueError, match="expected all 6 styles, got none of"):
        read_published_result(tmp_path / "object.pth", CANVAS, "style")
    (tmp_path / "broken.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="expected a result file"):
        read_published_result(tmp_path / "broken.pth", CANVAS, "style")


def test_a_published_file_in_its_own_types(tmp_path):
    """CE and accuracies as float32 tensors, right answers counted among the "misclassified"."""
    import torch

    table = concept_table(predictions(), "object")
    value = {
        "test_theme": "Van_Gogh",
        "input_dir": "x",
        "loss": {
            n: torch.tensor(v, dtype=torch.float32) for n, v in zip(table.names, table.loss, strict=True)
        },
        "acc": {
            n: torch.tensor(v, dtype=torch.float32) for n, v in zip(table.names, table.shares, strict=True)
        },
        "pred_loss": {n: float(v) for n, v in zip(table.names, table.chance, strict=True)},
        "misclassified": {
            n: {c: int(v) for c, v in zip(table.classes, row, strict=True) if v}
            for n, row in zip(table.names, table.confusion, strict=True)
        },
    }
    torch.save(value, tmp_path / "a.pth")
    read = read_published_result(tmp_path / "a.pth", CANVAS, "object")
    np.testing.assert_array_equal(read.confusion, table.confusion)
    value["acc"]["Cats"] += 0.1
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="expected accuracies of its counts"):
        read_published_result(tmp_path / "a.pth", CANVAS, "object")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["misclassified"]["Cats"].update(Dogs=-3),
        lambda v: v["misclassified"]["Cats"].update(Dogs=0.5),  # was cut to 0
        lambda v: v["misclassified"]["Cats"].update(Dogs="x"),
        lambda v: v["misclassified"].update(Cats=[1]),
        lambda v: v["misclassified"].update(Cats={}),
        lambda v: v["pred_loss"].update(Cats=float("nan")),  # these two passed
        lambda v: v["acc"].update(Cats=float("nan")),
        lambda v: v["acc"].update(Cats=None),
    ],
)
def test_numbers_that_no_judge_writes(tmp_path, change):
    import torch

    path = tmp_path / "a.pth"
    write_published_result(path, concept_table(predictions(), "object"))
    value = torch.load(path, weights_only=True)
    change(value)
    torch.save(value, path)
    with pytest.raises(ValueError, match=r"a.pth"):
        read_published_result(path, CANVAS, "object")


def test_summaries_tables_and_files(tmp_path):
    costs = Costs(10.0, 2 * 10**9, 3 * 10**6)
    fid = {"name": "FID[judge-192]", "value": 5.0, "n": 100}
    scores = [
        score(predictions(i), t, costs=costs, fid=fid) for i, t in enumerate(("Bricks", "Winter", "Dogs"))
    ]
    style, thing = summarise(scores)
    assert (style.n, thing.n) == (2, 1)
    assert style.ua == pytest.approx((scores[0].ua.value + scores[1].ua.value) / 2, abs=1e-12)
    write_results(tmp_path / "results.jsonl", scores)
    assert read_results(tmp_path / "results.jsonl") == scores
    write_matrix(tmp_path / "matrix.npz", scores)
    held, (targets, concepts, shares) = read_matrix(tmp_path / "matrix.npz"), score_matrix(scores)
    assert held["targets"].tolist() == targets
    assert held["concepts"].tolist() == concepts == [*CANVAS.styles, *CANVAS.objects]
    np.testing.assert_array_equal(held["shares"], shares)
    assert shares[0, 0] == pytest.approx(1 - scores[0].ua.value)
    row = table_rows([style, thing])["ESD"]
    assert (row["fid"], row["seconds"], row["memory_gb"], row["storage_gb"]) == (5.0, 10.0, 2.0, 0.003)
    for name in ("a.csv", "a.md", "a.tex"):
        write_table(tmp_path / name, [style, thing])
    assert (
        (tmp_path / "a.csv").read_text().splitlines()[0].startswith("method,style_ua,style_ira,style_cra,obj")
    )
    assert "FID[judge-192]" in (tmp_path / "a.md").read_text()
    assert f"{100 * style.ua:.2f} & {100 * style.ira:.2f}" in (tmp_path / "a.tex").read_text()
    with pytest.raises(ValueError, match="each target of 'ESD' once"):
        summarise([*scores, scores[0]])


def test_judged_answers_as_json(tmp_path):
    found = predictions()
    write_answers_json(tmp_path / "answers.json", found)
    read = read_answers_json(tmp_path / "answers.json")
    assert (read.canvas, read.keys, read.style_classes) == (CANVAS, found.keys, found.style_classes)
    np.testing.assert_array_equal(read.style_log, found.style_log)
    assert score(read) == score(found)
    (tmp_path / "answers.json").write_text("{}")
    with pytest.raises(ValueError, match="expected judged answers"):
        read_answers_json(tmp_path / "answers.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("answers"), "got some without 'answers'"),
        (lambda d: d["answers"][3].pop("seed"), "got some without 'seed'"),
        (lambda d: d["answers"][3].update(style="Wintr"), "closest: Winter"),
        (lambda d: d["answers"][3].update(seed=-1), "seed: expected an integer"),
        (lambda d: d["answers"][3].update(style_log=[0.0]), "got others"),
        (lambda d: d["answers"][3].update(object_log="abcd"), "got others"),
        (lambda d: d["answers"].append(d["answers"][0]), "each picture once"),
        (lambda d: d["answers"].clear(), "at least one"),
        (lambda d: d["style_classes"].reverse(), "classes in the canvas' order"),
        (lambda d: d["canvas"].update(seeds=[]), "seeds: expected at least one"),
        (lambda d: d["canvas"].update(more=1), "got others"),
        (lambda d: d.update(judges=[]), "got others"),
        (lambda d: d["answers"][0]["object_log"].__setitem__(0, float("nan")), "log-probabilities"),
    ],
)
def test_other_json_is_no_judged_answers(tmp_path, change, message):
    path = tmp_path / "answers.json"
    write_answers_json(path, predictions())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as error:
        read_answers_json(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"ira": float("nan")}, {"cra": 1.5}, {"ira": "high"}, {"domain": "colour"}, {"target": "Cats"},
        {"method": None}, {"ua": {"successes": 9, "n": 3}}, {"ua": {"successes": 0, "n": 0}}, {"ua": 0.5},
        {"style": {}}, {"fid": {"name": "FID[x]", "value": float("inf")}}, {"extra": 1},
    ],
)  # fmt: skip
def test_lines_that_are_no_scores(tmp_path, change):
    path = tmp_path / "results.jsonl"
    write_results(path, [score(predictions())])
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(ValueError, match=r"results.jsonl, line 2: expected a score"):
        read_results(path)


def test_tables_of_strange_names(tmp_path):
    fid = {"name": r"FID[a|b\c~d^e_f]", "value": 5.0, "n": 100}
    rows = summarise([score(predictions(), fid=fid)])
    for name in ("a.md", "a.tex"):
        write_table(tmp_path / name, rows)
    heads = (tmp_path / "a.md").read_text().splitlines()
    assert len({line.replace("\\|", "").count("|") for line in heads}) == 1
    assert (
        r"FID[a|b\textbackslash{}c\textasciitilde{}d\textasciicircum{}e\_f]"
        in (tmp_path / "a.tex").read_text()
    )


def test_the_published_table():
    rows = reference_results()
    assert len(rows) == 11
    assert (rows["UCE"]["style_ua"], rows["SHS"]["storage_gb"], rows["SLUG"]["fid"]) == (98.4, 4.0, None)


def test_finer_scale_by_loops():
    found = predictions()
    one = finer_scores(found, "winter", "cats")
    said = [(found.style_classes[a], found.object_classes[b])
            for a, b in zip(found.style_log.argmax(1), found.object_log.argmax(1), strict=True)]  # fmt: skip
    parts = {"ua": [], "sc": [], "oc": [], "up": []}
    for key, (style, thing) in zip(found.keys, said, strict=True):
        s, o = style == key.style, thing == key.object
        own = (key.style == "Winter", key.object == "Cats")
        which = {(True, True): "ua", (True, False): "sc", (False, True): "oc", (False, False): "up"}[own]
        parts[which].append({"ua": not (s and o), "sc": s, "oc": o, "up": s and o}[which])
    for which, rows in parts.items():
        assert (getattr(one, which).successes, getattr(one, which).n) == (sum(rows), len(rows))


def test_sequences():
    steps = [predictions(i, right=r) for i, r in enumerate((1.0, 0.7, 0.5, 0.0))]
    targets = ("Bricks", "Winter", "Cats")
    one = sequential_scores(steps, targets)
    assert np.isnan(one.ua[np.tril_indices(3, -1)]).all()
    assert one.ua[1, 2] == pytest.approx(score(steps[3], "Winter").ua.value)
    left = [s for s in STYLES if s not in ("Bricks", "Winter")]
    shares = score(steps[2], "Winter").style
    assert one.ra_style[2] == pytest.approx(np.mean([shares[s] for s in left]))
    assert one.rebound[0] == pytest.approx(np.nanmax(one.ua[0]) - one.ua[0, 2])
    assert one.catastrophic.tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="steps: expected 4 entries"):
        sequential_scores(steps[:3], targets)


def test_robustness_of_logs():
    def log(name, *hits):
        return CaseLog(name, "p", 0, 7.5, [Entry("p", h, share=2.0) for h in hits])

    logs = [
        log("0", True),
        log("1", False, True),
        log("2", False, False),
        log("3", False, False),
        CaseLog("4", "p", 0, 7.5, error="x"),
    ]
    one = robust_scores(logs)
    assert (one.pre.value, one.post.value, one.robust_ua.value) == (0.25, 0.5, 0.5)
    assert (one.held.successes, one.held.n, one.errors) == (2, 3, 1)
    with pytest.raises(ValueError, match="attack: expected at least one"):
        robust_scores([logs[-1]])
