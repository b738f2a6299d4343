"""Readers of data, and what they make of bad rows."""

from __future__ import annotations

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from bild.data.examples import Data, distinct_names
from bild.errors import InputError
from bild.evaluation import Example, read_examples

ROWS = [{"source": "eins", "target": "one"}, {"source": "zwei\u2028drei", "target": ["two", "2"]}]
EXAMPLES = [Example("1", "eins", ("one",)), Example("2", "zwei\u2028drei", ("two", "2"))]


def write(path, data: str | bytes):
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL", "a.jsonl.GZ", "a.ndjson"])
def test_json_lines(tmp_path, name):
    data = read_examples(write(tmp_path / name, lines(ROWS)))
    assert (data.name, data.examples, data.skipped) == (name, EXAMPLES, [])


@pytest.mark.parametrize("name", ["a.de", "a.de.gz", "a.txt"])
def test_parallel_text(tmp_path, name):
    source = write(tmp_path / name, "\ufeffeins\r\nzwei\u2028drei\n")
    target = write(tmp_path / "a.en.gz", "one\ntwo\n")
    expected = [EXAMPLES[0], Example("2", "zwei\u2028drei", ("two",))]
    assert read_examples(source, target_data=target).examples == expected
    assert read_examples(source, target_data=target, source_column="x", target_column="y").examples == expected
    assert [example.references for example in read_examples(source).examples] == [(), ()]


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.csv.gz", ";"), ("b.csv", "\t"), ("B.CSV", ",")])
def test_csv(tmp_path, name, comma):
    text = f'id{comma}de{comma}en\r\n7{comma}"ei\r\nns, ""1"""{comma}one\r\n\r\n8{comma}zwei\r\n'
    data = read_examples(write(tmp_path / name, text), source_column="de", target_column="en")
    assert data.examples == [Example("3", 'ei\nns, "1"', ("one",)), Example("5", "zwei")]


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="two columns are named 'source'; rename one"):
        read_examples(write(tmp_path / "a.csv", "source,target,source\neins,one,zwei\n"))
    data = read_examples(write(tmp_path / "b.csv", "source,,\neins,,\n"))
    assert data.examples == [Example("2", "eins")]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_a_quotation_mark_in_a_tsv_is_a_character_of_the_text(tmp_path, name):
    """As Tatoeba and WMT export it; read as CSV, the first row would swallow the second."""
    rows = ['"Hallo, sagte er.\tHello, he said.', 'Er rief: "Komm!"\tHe called.', '"Danke."\t"Thanks."', "zwei"]
    data = read_examples(write(tmp_path / name, "\r\n".join(["source\ttarget", *rows]) + "\r\n"))
    assert data.examples == [
        Example("2", '"Hallo, sagte er.', ("Hello, he said.",)),
        Example("3", 'Er rief: "Komm!"', ("He called.",)),
        Example("4", '"Danke."', ('"Thanks."',)),
        Example("5", "zwei"),
    ]


def test_a_tsv_cell_that_a_program_quoted_is_taken_out_of_its_quotes(tmp_path):
    data = read_examples(write(tmp_path / "a.tsv", 'source\ttarget\n"Er rief ""Komm""."\t"""Come"""\n'))
    assert data.examples == [Example("2", 'Er rief "Komm".', ('"Come"',))]


def test_a_quotation_mark_that_is_never_closed_costs_one_row_of_a_csv(tmp_path):
    text = 'source,target\n"eins,one\nzwei,two\ndrei "3",three\n"vier"x,four\n"fünf, 5",five\n'
    data = read_examples(write(tmp_path / "a.csv", text))
    assert [example.source for example in data.examples] == ["zwei", 'drei "3"', "fünf, 5"]
    assert [line.partition(" (")[0] for line in data.skipped] == [
        "line 2: not a row of a table",
        "line 5: not a row of a table",
    ]


def test_a_row_with_more_cells_than_columns_is_not_cut(tmp_path):
    data = read_examples(write(tmp_path / "a.csv", "source,target\nja, gut,yes\nnein,no,\n"))
    assert data.examples == [Example("3", "nein", ("no",))]
    assert data.skipped == ["line 2: 3 cells, and the first line names 2 columns"]


def test_a_cell_may_be_as_long_as_a_book(tmp_path):
    book = "Hund " * 40_000
    data = read_examples(write(tmp_path / "a.csv", f'source,target\n"{book}",A dog.\nEine Katze.,A cat.\n'))
    assert [example.source for example in data.examples] == [book, "Eine Katze."]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"source": "läuft"}\n'),
        ("a.csv", "source\r\nläuft\r\n"),
        ("a.tsv", "source\nläuft\n"),
        ("a.txt", "läuft\n"),
    ],
)
def test_files_with_a_byte_order_mark(tmp_path, encoding, name, text):
    assert [e.source for e in read_examples(write(tmp_path / name, text.encode(encoding))).examples] == ["läuft"]


def test_nested_columns(tmp_path):
    rows = [{"translation": {"de": "eins", "en": "one"}, "a.b": "dotted"}]
    file = write(tmp_path / "a.jsonl", lines(rows))
    read = read_examples(file, source_column="translation.de", target_column="translation.en").examples
    assert read == [EXAMPLES[0]]
    assert read_examples(file, source_column="a.b", target_column="no").examples == [Example("1", "dotted")]


def test_bad_rows_are_told_and_skipped(tmp_path):
    bad = b'{"source": "eins", "target": "one"}\n\nnot json\n[1]\n{"target": "x"}\n{"source": " "}\n{"source": 5}\n'
    bad += b'{"source": "x", "target": {"en": "y"}}\n{"source": "\xff"}\n{"source": "ok", "target": ["", "fine"]}\n'
    bad += b'{"source": NaN}\n{"source": "cut \\ud83d"}\n{"source": "x", "target": ["y", "\\ud83d"]}\n'
    bad += b'{"source": null}\n' + b"[" * 100_000 + b"\n"
    data = read_examples(write(tmp_path / "a.jsonl", bad))
    assert data.examples == [EXAMPLES[0], Example("10", "ok", ("fine",))]
    assert data.skipped == [
        "line 3: not JSON",
        "line 4: not a JSON object",
        "line 5: no column 'source'; there are target",
        "line 6: the source is empty",
        "line 7: the source is a int, not a text",
        "line 8: the target is a dict, not a text or a list of texts",
        "line 9: not UTF-8 (byte 0xff at 12); convert the file",
        "line 11: the source is a float, not a text",
        "line 12: the source holds half of a surrogate pair (0xd83d at 4), which is no character; leave it out",
        "line 13: the target holds half of a surrogate pair (0xd83d at 0), which is no character; leave it out",
        "line 14: no source text",
        "line 15: nested too deep",
    ]


def test_bad_bytes_in_a_text_file(tmp_path):
    data = read_examples(write(tmp_path / "a.de", b"eins\n\xff\n\ndrei\n"))
    assert [example.id for example in data.examples] == ["1", "4"]
    assert data.skipped == ["line 2: not UTF-8 (byte 0xff at 0); convert the file", "line 3: the source is empty"]


def test_the_limit_counts_usable_examples(tmp_path):
    file = write(tmp_path / "a.jsonl", "x\n" + lines(ROWS * 2))
    assert [example.id for example in read_examples(file, limit=2).examples] == ["2", "3"]
    with pytest.raises(InputError, match="limit is 0"):
        read_examples(file, limit=0)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", "", "holds no usable example, it is empty"),
        ("a.jsonl", lines([{"de": "x"}]), "no usable example; line 1: no column 'source'; there are de; allowed"),
        ("a.json", "[]", "give JSON lines"),
        ("a.jsonl.gz", None, "not a whole gzip file"),
        ("a.csv", b"source\n\xff\n", "line 2: not UTF-8 .* convert the file"),
    ],
)
def test_files_without_an_example(tmp_path, name, data, says):
    path = tmp_path / name
    if data is None:
        path.write_bytes(gzip.compress(lines(ROWS).encode())[:-9])
    else:
        write(path, data)
    with pytest.raises(InputError, match=says):
        read_examples(str(path))


def test_places_that_are_no_data(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*no\.jsonl: No such file"):
        read_examples(str(tmp_path / "no.jsonl"))
    with pytest.raises(InputError, match="cannot read"):
        read_examples(str(tmp_path))
    source, target = write(tmp_path / "a.de", "eins\nzwei\n"), write(tmp_path / "a.en", "one\n")
    with pytest.raises(InputError, match=r"a\.de has 2 lines and .*a\.en has 1"):
        read_examples(source, target_data=target)
    with pytest.raises(InputError, match="names its own target column"):
        read_examples(write(tmp_path / "a.jsonl", lines(ROWS)), target_data=target)


def test_hugging_face_datasets(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] == "no/such":
            raise FileNotFoundError("no/such is not there\nlong story")
        return [{"article": "text", "highlights": "short"}, {"article": None}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    columns = {"source_column": "article", "target_column": "highlights"}
    data = read_examples("cnn_dailymail:3.0.0", split="validation", **columns)
    assert (data.examples, data.skipped) == ([Example("1", "text", ("short",))], ["row 2: no source text"])
    read_examples("someone/texts", **columns)
    assert asked == [
        (("cnn_dailymail", "3.0.0"), {"split": "validation"}),
        (("someone/texts", None), {"split": "test"}),
    ]
    with pytest.raises(
        InputError,
        match=r"no Hugging Face dataset of that name can be loaded \(FileNotFoundError: no/such is not there\)",
    ):
        read_examples("no/such")
    with pytest.raises(InputError, match="--target-data goes with a text file"):
        read_examples("someone/texts", target_data="x")


def test_datasets_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"'someone/texts' is no file here; .* pip install datasets"):
        read_examples("someone/texts")


def test_the_digest_is_of_the_content():
    same, other = Data("a", EXAMPLES), Data("b", [EXAMPLES[0], Example("2", "zwei", ("two",))])
    assert same.digest == Data("c", list(EXAMPLES)).digest != other.digest


def test_names_of_sets():
    assert distinct_names(["x/dev.jsonl.gz", "y/test.tsv"]) == ["dev", "test"]
    assert distinct_names(["x/test.jsonl", "y/test.jsonl"]) == ["x/test", "y/test"]
    assert distinct_names(["a/x/test.jsonl", "b/x/test.jsonl"]) == ["a/x/test.jsonl", "b/x/test.jsonl"]
    with pytest.raises(InputError, match="given twice"):
        distinct_names(["a", "a"])


def test_a_file_by_two_names_is_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "b.txt").symlink_to("a.txt")
    for other in ("./a.txt", str(tmp_path / "a.txt"), "b.txt"):
        with pytest.raises(InputError, match=r"a\.txt is given twice; give each set once"):
            distinct_names(["a.txt", other])


def test_a_limit_may_be_as_large_as_one_likes(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    assert len(read_examples(str(tmp_path / "a.txt"), limit=10**30).examples) == 1
