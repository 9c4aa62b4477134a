"""Invented records of the twelve tasks, as the published files and as Hugging Face's columns hold them, and
the examples that the protocol makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PUBLISHED: dict[str, tuple[str, str, list[Any]]] = {
    # task: (training file, evaluation file, records)
    "rte": (
        "train.jsonl",
        "val.jsonl",
        [
            {"premise": "Two boats left.", "hypothesis": "Boats left.", "label": "entailment", "idx": 0},
            {"premise": "It rained.", "hypothesis": "It was dry.", "label": "not_entailment", "idx": 1},
        ],
    ),
    "cb": (
        "train.jsonl",
        "val.jsonl",
        [
            {"premise": "She knew it.", "hypothesis": "it was so", "label": "entailment"},
            {"premise": "She denied it.", "hypothesis": "it was so", "label": "contradiction"},
            {"premise": "She asked.", "hypothesis": "it was so", "label": "neutral"},
        ],
    ),
    "boolq": (
        "train.jsonl",
        "val.jsonl",
        [
            {"passage": "Tin melts early.", "question": "does tin melt", "label": True},
            {"passage": "Tin is grey.", "question": "Is tin red?", "label": False},
        ],
    ),
    "multirc": (
        "train.jsonl",
        "val.jsonl",
        [
            {
                "idx": 0,
                "version": 1.1,
                "passage": {
                    "text": "Ada baked. Bo ate.",
                    "questions": [
                        {
                            "question": "Who baked?",
                            "answers": [{"text": "Ada", "label": 1}, {"text": "Bo", "label": 0}],
                        },
                        {"question": "Who ate?", "answers": [{"text": "Bo", "label": 1}]},
                    ],
                },
            }
        ],
    ),
    "wic": (
        "train.jsonl",
        "val.jsonl",
        [
            {"word": "bank", "sentence1": "A river bank.", "sentence2": "A rich bank.", "label": False},
            {"word": "run", "sentence1": "We run.", "sentence2": "They run.", "label": True},
        ],
    ),
    "wsc": (
        "train.jsonl",
        "val.jsonl",
        [
            {
                "text": "Ida thanked Uma because She helped.",
                "target": {
                    "span1_index": 2,
                    "span1_text": "Uma",
                    "span2_index": 4,
                    "span2_text": "She",
                },
                "label": True,
            },
        ],
    ),
    "copa": (
        "train.jsonl",
        "val.jsonl",
        [
            {
                "premise": "The cup fell. ",
                "choice1": "It broke.",
                "choice2": "I laughed.",
                "question": "effect",
                "label": 0,
            },
            {
                "premise": "The cup fell!",
                "choice1": "Snow came.",
                "choice2": "The cat ran.",
                "question": "cause",
                "label": 1,
            },
        ],
    ),
    "winogrande": (
        "train_m.jsonl",
        "dev.jsonl",
        [
            {
                "qID": "x-1",
                "sentence": "Ned paid Ole because _ had sold a hat.",
                "option1": "Ned",
                "option2": "Ole",
                "answer": "2",
            },
            {
                "sentence": "_ sold Ned a hat.",
                "option1": "Ole",
                "option2": "Ned",
                "answer": "1",
            },
        ],
    ),
    "record": (
        "train.jsonl",
        "val.jsonl",
        [
            {
                "source": "invented",
                "passage": {
                    "text": "Rome beat Oslo.\n@highlight\nOslo lost\n@highlight\nRome won",
                    "entities": [
                        {"start": 10, "end": 13},
                        {"start": 0, "end": 3},
                        {"start": 27, "end": 30},
                    ],
                },
                "qas": [
                    {
                        "query": "Fans of @placeholder wept.",
                        "answers": [{"start": 10, "end": 13, "text": "Oslo"}],
                    },
                    {
                        "query": "@placeholder cheered.",
                        "answers": [{"text": "Rome"}, {"text": "Oslo"}, {"text": "Rome"}],
                    },
                ],
            }
        ],
    ),
}

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Mill_Town",
            "paragraphs": [
                {
                    "context": "The mill opened in 1801.",
                    "qas": [
                        {
                            "id": "a",
                            "question": " When did it open? ",
                            "answers": [
                                {"text": "1801", "answer_start": 19},
                                {"text": "in 1801", "answer_start": 16},
                            ],
                        }
                    ],
                }
            ],
        }
    ],
}

_NO_DATE = {"day": "", "month": "", "year": ""}
DROP = {
    "nfl_1": {
        "passage": "The home side kicked 3 goals.",
        "qa_pairs": [
            {
                "question": "How many goals?",
                "answer": {"number": "3", "date": _NO_DATE, "spans": []},
                "query_id": "q",
                "validated_answers": [
                    {"number": "3", "date": _NO_DATE, "spans": []},
                    {"number": "", "date": _NO_DATE, "spans": ["3 goals", "three"]},
                ],
            },
            {
                "question": "When?",
                "answer": {
                    "number": "",
                    "date": {"day": "4", "month": "May", "year": "1999"},
                    "spans": [],
                },
            },
        ],
    }
}

# task: {version: [(prompt, options, label, answers, sfc_prompt) of each row]}
EXPECTED: dict[str, dict[int, list[tuple[str, list[str], int, list[str], str | None]]]] = {
    "sst2": {
        0: [
            ('a dull " plot It was', [" terrible", " great"], 0, [], " It was"),
            ("warm  and bright It was", [" terrible", " great"], 1, [], " It was"),
        ],
        1: [
            ('a dull " plot', [" terrible", " great"], 0, [], " "),
            ("warm  and bright", [" terrible", " great"], 1, [], " "),
        ],
    },
    "rte": {
        0: [
            (
                'Two boats left.\nDoes this mean that "Boats left." is true? Yes or No?\n',
                ["Yes", "No"],
                0,
                [],
                "",
            ),
            (
                'It rained.\nDoes this mean that "It was dry." is true? Yes or No?\n',
                ["Yes", "No"],
                1,
                [],
                "",
            ),
        ],
        1: [
            ('Two boats left.\n"Boats left."\n', ["Yes", "No"], 0, [], ""),
            ('It rained.\n"It was dry."\n', ["Yes", "No"], 1, [], ""),
        ],
    },
    "cb": {
        0: [
            (
                f'Suppose {premise} Can we infer that "it was so"? Yes, No, or Maybe?\n',
                ["Yes", "No", "Maybe"],
                label,
                [],
                "",
            )
            for label, premise in enumerate(("She knew it.", "She denied it.", "She asked."))
        ]
    },
    "boolq": {
        0: [
            ("Tin melts early. Does tin melt?", [" Yes", " No"], 0, [], ""),
            ("Tin is grey. Is tin red?", [" Yes", " No"], 1, [], ""),
        ],
        1: [
            ("Tin melts early. Does tin melt?\\n\\n", ["Yes", "No"], 0, [], ""),
            ("Tin is grey. Is tin red?\\n\\n", ["Yes", "No"], 1, [], ""),
        ],
        2: [
            ("Tin melts early. Does tin melt?\n", ["Yes", "No"], 0, [], ""),
            ("Tin is grey. Is tin red?\n", ["Yes", "No"], 1, [], ""),
        ],
    },
    "multirc": {
        0: [
            (
                f'Ada baked. Bo ate.\nQuestion: {question}\nI found this answer "{answer}". Is that correct? '
                "Yes or No?\n",
                ["No", "Yes"],
                label,
                [],
                "",
            )
            for question, answer, label in (
                ("Who baked?", "Ada", 1),
                ("Who baked?", "Bo", 0),
                ("Who ate?", "Bo", 1),
            )
        ]
    },
    "wic": {
        0: [
            (
                'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
                "A river bank.\nA rich bank.\n",
                ["No", "Yes"],
                0,
                [],
                "",
            ),
            (
                'Does the word "run" have the same meaning in these two sentences? Yes, No?\n'
                "We run.\nThey run.\n",
                ["No", "Yes"],
                1,
                [],
                "",
            ),
        ]
    },
    "wsc": {
        0: [
            (
                'Ida thanked Uma because She helped.\nIn the previous sentence, does the pronoun "she" refer '
                "to Uma? Yes or No?\n",
                ["No", "Yes"],
                1,
                [],
                "",
            )
        ]
    },
    "copa": {
        0: [
            ("The cup fell so", [" it broke.", " I laughed."], 0, [], "so"),
            ("The cup fell! because", [" snow came.", " the cat ran."], 1, [], "because"),
        ],
        1: [
            ("The cup fell", [" it broke.", " I laughed."], 0, [], ""),
            ("The cup fell!", [" snow came.", " the cat ran."], 1, [], ""),
        ],
    },
    "winogrande": {
        0: [
            (
                "Ned paid Ole because",
                [" Ned had sold a hat.", " Ole had sold a hat."],
                1,
                [],
                "",
            ),
            ("", ["Ole sold Ned a hat.", "Ned sold Ned a hat."], 0, [], ""),
        ]
    },
    "record": {
        0: [
            (
                "Rome beat Oslo.\n- Oslo lost\n- Rome won\n-",
                [" Fans of Rome wept.", " Fans of Oslo wept."],
                1,
                [" Fans of Oslo wept."],
                "-",
            ),
            (
                "Rome beat Oslo.\n- Oslo lost\n- Rome won\n-",
                [" Rome cheered.", " Oslo cheered."],
                0,
                [" Rome cheered.", " Oslo cheered."],
                "-",
            ),
        ]
    },
    "squad": {
        0: [
            (
                "Title: Mill_Town\nContext: The mill opened in 1801.\nQuestion: When did it open?\nAnswer:",
                [" 1801\n"],
                0,
                ["1801", "in 1801"],
                None,
            )
        ]
    },
    "drop": {
        0: [
            (
                "Passage: The home side kicked 3 goals.\nQuestion: How many goals?\nAnswer:",
                [" 3\n"],
                0,
                ["3", "3 goals", "three"],
                None,
            ),
            (
                "Passage: The home side kicked 3 goals.\nQuestion: When?\nAnswer:",
                [" 4 May 1999\n"],
                0,
                ["4 May 1999"],
                None,
            ),
        ]
    },
}

SST2 = 'sentence\tlabel\na dull " plot \t0\nwarm  and bright \t1\n'

# task: rows under Hugging Face's column names that make the same examples
COLUMNS: dict[str, list[dict[str, Any]]] = {
    "sst2": [
        {"sentence": 'a dull " plot ', "label": 0, "idx": 0},
        {"sentence": "warm  and bright ", "label": 1, "idx": 1},
    ],
    "rte": [
        {"premise": "Two boats left.", "hypothesis": "Boats left.", "label": 0},
        {"premise": "It rained.", "hypothesis": "It was dry.", "label": 1},
    ],
    "cb": [
        {"premise": premise, "hypothesis": "it was so", "label": label}
        for label, premise in enumerate(("She knew it.", "She denied it.", "She asked."))
    ],
    "boolq": [
        {"passage": "Tin melts early.", "question": "does tin melt", "answer": True},
        {"passage": "Tin is grey.", "question": "Is tin red?", "label": 0},
    ],
    "multirc": [
        {
            "paragraph": "Ada baked. Bo ate.",
            "question": question,
            "answer": answer,
            "idx": {"paragraph": 0, "question": 0, "answer": 0},
            "label": label,
        }
        for question, answer, label in (
            ("Who baked?", "Ada", 1),
            ("Who baked?", "Bo", 0),
            ("Who ate?", "Bo", 1),
        )
    ],
    "wic": [
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "A rich bank.", "label": 0},
        {"word": "run", "sentence1": "We run.", "sentence2": "They run.", "label": 1},
    ],
    "wsc": [
        {
            "text": "Ida thanked Uma because She helped.",
            "span1_text": "Uma",
            "span2_text": "She",
            "label": 1,
        }
    ],
    "copa": PUBLISHED["copa"][2],
    "winogrande": PUBLISHED["winogrande"][2],
    "record": [
        {
            "passage": "Rome beat Oslo.\n@highlight\nOslo lost\n@highlight\nRome won",
            "query": query,
            "entities": ["Rome", "Oslo"],
            "answers": answers,
        }
        for query, answers in (
            ("Fans of @placeholder wept.", ["Oslo"]),
            ("@placeholder cheered.", ["Rome", "Oslo"]),
        )
    ],
    "squad": [
        {
            "id": "a",
            "title": "Mill_Town",
            "context": "The mill opened in 1801.",
            "question": " When did it open? ",
            "answers": {"text": ["1801", "in 1801"], "answer_start": [19, 16]},
        }
    ],
    "drop": [
        {
            "passage": "The home side kicked 3 goals.",
            "question": question,
            "answers_spans": {"spans": spans, "types": ["x"] * len(spans)},
        }
        for question, spans in (
            ("How many goals?", ["3", "3 goals", "three"]),
            ("When?", ["4 May 1999"]),
        )
    ],
}


def write(task: str, folder: Path, *, repeat: int = 1) -> tuple[Path, Path]:
    """The task's training and evaluation files in its published layout; both hold the records above."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "sst2":
        names, text = ("train.tsv", "dev.tsv"), SST2
    elif task == "squad":
        names, text = ("train-v1.1.json", "dev-v1.1.json"), json.dumps(SQUAD)
    elif task == "drop":
        names, text = ("drop_dataset_train.json", "drop_dataset_dev.json"), json.dumps(DROP)
    else:
        train, held_out, records = PUBLISHED[task]
        names = (train, held_out)
        text = "".join(json.dumps(record) + "\n" for record in records * repeat)
    for name in names:
        (folder / name).write_text(text, encoding="utf-8")
    return folder / names[0], folder / names[1]
