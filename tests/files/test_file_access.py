"""JSON of users: what is nested too deeply is refused where it is read."""

import json
import sys

import pytest

from unet_repro.files.file_access import parse_json


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), ["[]", ('{"a":', "}"), ('[{"a":', "}]")])
def test_nested_too_deeply_is_refused(opening, closing):
    levels = opening.count("[") + opening.count("{")
    text = nested(50 // levels, opening, closing)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    limit = sys.getrecursionlimit()
    for depth in (50 // levels + 1, limit // 2, limit - 100, limit, 100_000):
        with pytest.raises(ValueError, match="nested in more than 50 levels"):
            parse_json(f"[1, {nested(depth, opening, closing)}]")


@pytest.mark.parametrize("text", ["", "[", "{1: 2}", b"\xff\xfe", '"' + '\\"' * 200_000])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)
