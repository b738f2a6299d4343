"""Lines are those that ``wc`` counts, whatever wrote the file."""

from __future__ import annotations

import gzip
import io

import pytest

from bild.data.lines import lines_of, read_lines
from bild.errors import InputError

TEXTS = ["Ein Hund läuft.", "", "zwei\u2028drei\x85vier\x0cfünf", "🙂 sechs"]


def read(data: bytes) -> list[str]:
    lines = list(lines_of(io.BytesIO(data), "a.txt"))
    assert [line.number for line in lines] == [*range(1, len(lines) + 1)]
    assert [line.error for line in lines] == [None] * len(lines)
    return [line.text for line in lines]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_encoding_and_every_line_end(encoding, end, last, pack):
    text = end.join(TEXTS) + (end if last else "")
    assert read(pack(text.encode(encoding))) == TEXTS


def test_big_endian_with_its_mark():
    assert read(b"\xfe\xff" + "läuft\n".encode("utf-16-be")) == ["läuft"]
    assert read(b"\x00\x00\xfe\xff" + "läuft\n".encode("utf-32-be")) == ["läuft"]


def test_a_carriage_return_inside_a_line_ends_none():
    assert read(b"eins\rzwei\ndrei\r\n") == ["eins\rzwei", "drei"]


@pytest.mark.parametrize(("data", "count"), [(b"", 0), (b"\xef\xbb\xbf", 0), (b"\n", 1), (b"\n\n", 2), (b" ", 1)])
def test_files_of_nothing(data, count):
    assert len(read(data)) == count


def test_bytes_of_another_encoding_spoil_their_own_line_only():
    lines = list(lines_of(io.BytesIO("eins\nläuft\ndrei\n".encode("latin-1")), "a.txt"))
    assert [line.text for line in lines if line.error is None] == ["eins", "drei"]
    assert lines[1].error == "not UTF-8 (byte 0xe4 at 1); convert the file"
    cut = b"\xff\xfe" + "a\n\ud83d\nb\n".encode("utf-16-le", "surrogatepass")
    lines = list(lines_of(io.BytesIO(cut), "a.txt"))
    assert [line.text for line in lines if line.error is None] == ["a", "b"]
    assert lines[1].error.startswith("not UTF-16-LE (byte 0x3d")


def test_utf_16_without_its_mark_is_refused_and_a_stray_zero_is_one_bad_line():
    with pytest.raises(InputError, match=r"cannot read a\.txt: it holds zero bytes, as UTF-16 without"):
        list(lines_of(io.BytesIO("läuft\n".encode("utf-16-le")), "a.txt"))
    short = list(lines_of(io.BytesIO(b"eins\nzw\0ei\ndrei\n"), "a.txt"))
    assert [line.number for line in short if line.error is not None] == [2]
    late = list(lines_of(io.BytesIO(b"x\n" * 40_000 + b"a\0b\n"), "a.txt"))
    assert late[-1].error == "a zero character at 1, as in UTF-16 without its mark; convert the file to UTF-8"


def test_gzip_files_one_behind_the_other():
    assert read(gzip.compress(b"eins\nzw") + gzip.compress(b"ei\n") + bytes(8)) == ["eins", "zwei"]


@pytest.mark.parametrize("cut", [2, 12, -9, -1])
def test_a_gzip_file_that_breaks_off_is_refused(tmp_path, cut):
    """What can be read of it comes first; its last line, which may be half of one, does not."""
    data = gzip.compress(b"".join(b"%d\n" % number for number in range(50_000)))
    seen = []
    with pytest.raises(InputError, match="not a whole gzip file"):
        seen.extend(line.text for line in lines_of(io.BytesIO(data[:cut]), "a.gz"))
    assert seen == [str(number) for number in range(len(seen))]


def test_a_gzip_file_that_is_damaged_is_refused():
    data = bytearray(gzip.compress(bytes(range(256)) * 100))
    data[20:40] = bytes(20)
    with pytest.raises(InputError, match="not a whole gzip file"):
        list(lines_of(io.BytesIO(bytes(data)), "a.gz"))


class Endless(io.RawIOBase):
    """A pipe that never ends, and counts what is taken from it."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.taken += 1
        buffer[:3] = b"ab\n"
        return 3


def test_lines_are_handed_out_as_they_come():
    pipe = Endless()
    lines = lines_of(io.BufferedReader(pipe), "-")
    assert pipe.taken == 0
    for number in range(1, 4):
        assert next(lines).number == number
        assert pipe.taken <= number + 1


@pytest.mark.parametrize(("name", "why"), [("no.txt", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_refused_at_once(tmp_path, name, why):
    with pytest.raises(InputError, match=f"cannot read .*: {why}"):
        read_lines(tmp_path / name)
