"""JSON of users: what is nested too deeply is refused before it is parsed."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_repro.files.safe_json import parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('[]{}"\\a\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\a'), inner),
)


@given(JSON, st.booleans())
def test_what_is_not_deep_is_parsed_as_the_standard_library_does(value, is_ascii):
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert parse_json(text) == parse_json(text.encode()) == value


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a": ', "}"), ('[{"\\"]": ', "}]")])
def test_the_limit_is_of_levels_not_of_brackets(brackets):
    step = 2 if brackets[0].startswith("[{") else 1
    parse_json(nested(50 // step, *brackets))
    parse_json("[" + ",".join([nested(48 // step, *brackets)] * 30) + "]")
    for depth in (50 // step + 1, sys.getrecursionlimit() - 30, 10**5):
        with pytest.raises(ValueError, match="nested in more than 50 levels"):
            parse_json(nested(depth, *brackets))


@pytest.mark.parametrize(
    "text", ["", "[", '"', '"\\', '{"a', "]" * 99, '"' + "[" * 99, "1]", b"\xff", "\ufeff1"]
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError) as refused:
        parse_json(text)
    assert "nested" not in str(refused.value)


def test_brackets_in_texts_are_no_levels():
    text = json.dumps({"[" * 99: ['"' + "{" * 99, "\\", "[" * 99]})
    assert parse_json(text) == json.loads(text)


def test_a_long_unfinished_text_takes_no_longer_than_its_length():
    with pytest.raises(ValueError, match="Unterminated string"):
        parse_json('"' + '\\"' * 200_000)
