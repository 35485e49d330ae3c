"""Prompt lists and COCO captions: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest

from benchmarks.pipelines.prompts import read_prompts

COCO = {
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "late"},
        {"image_id": 2, "id": 7, "caption": " early\n"},
        {"image_id": 2, "id": 3, "caption": "second of the same image"},
    ]
}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.txt", "\ufeffone\r\n\n  two \n", ["one", "two"]),
        ("a.json", json.dumps(COCO), ["early", "late"]),
        ("a.csv", 'id,Prompt\n1,"one, with a\nbreak"\n2,two\n3,\n', ["one, with a break", "two"]),
        ("a.tsv", "caption\tid\none\t1\ntwo, too\t2\n", ["one", "two, too"]),
    ],
)
def test_prompts_of_every_kind(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == wanted
    assert read_prompts(tmp_path / name, count=1) == wanted[:1]


def test_a_column_may_be_named_and_a_larger_count_begins_alike(tmp_path):
    (tmp_path / "a.csv").write_text("text,prompt\n" + "".join(f"t{i},p{i}\n" for i in range(20)))
    path = tmp_path / "a.csv"
    assert read_prompts(path, column="text", count=2) == ["t0", "t1"]
    ten, five = (read_prompts(path, count=n, shuffle=1) for n in (10, 5))
    assert ten[:5] == five and len(set(ten)) == 10 and ten != read_prompts(path, count=10)
    assert ten == read_prompts(path, count=10, shuffle=1) != read_prompts(path, count=10, shuffle=2)


@pytest.mark.parametrize(
    ("name", "text", "options", "told"),
    [
        ("a.txt", "\n \n", {}, "there is none"),
        ("a.txt", "one", {"count": 2}, "has 1; count is 2"),
        ("a.txt", "one", {"count": 0}, "count is 0"),
        ("a.txt", "one", {"column": "text"}, "has no column 'text'"),
        ("a.json", "[1]", {}, "not a file of COCO captions"),
        ("a.json", '{"annotations": [{"image_id": 1}]}', {}, "caption"),
        ("a.csv", "text,id\nx,1\n", {}, "needs one column prompt or caption, it has: text, id"),
        ("a.csv", "prompt,caption\nx,y\n", {}, "--column"),
        ("b.txt", None, {}, "does not exist"),
        ("a.txt", b"\xff\xfe\x00", {}, "not UTF-8"),
    ],
)
def test_prompts_that_are_none(tmp_path, name, text, options, told):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="prompts: ") as error:
        read_prompts(tmp_path / name, **options)
    assert told in str(error.value) and name in str(error.value)
