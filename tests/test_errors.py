"""What every error that a user meets is made of."""

from __future__ import annotations

import numpy as np
import pytest

from bild.errors import InputError, check_count, one_line


@pytest.mark.parametrize(
    ("value", "least", "says"),
    [
        (0, 1, "rows is 0; allowed is 1 or more, a whole number"),
        (-1, 0, "rows is -1; allowed is 0 or more"),
        (1.5, 1, "rows is 1.5"),
        (True, 1, "rows is True"),
        ("3", 1, "rows is '3'"),
        (None, 1, "rows is None"),
    ],
)
def test_counts_that_are_none(value, least, says):
    with pytest.raises(InputError, match=says):
        check_count("rows", value, least=least)


def test_counts():
    for value, least in ((1, 1), (0, 0), (np.int64(3), 2)):
        check_count("rows", value, least=least)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("one\ntwo", "ValueError: one"),
        ("it does not hold:\n\n  the width is 33\nmore", "ValueError: it does not hold: the width is 33"),
        ("it does not hold:", "ValueError: it does not hold:"),
        (" \n", "ValueError"),
    ],
)
def test_what_others_say_is_told_as_far_as_it_says_something(message, says):
    assert one_line(ValueError(message)) == says
