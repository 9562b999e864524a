"""JSON from files that a user may have edited, or been sent, is parsed within bounds."""

import json
import re
from typing import Any

_DEEPEST = 50  # what this package writes has fewer than 10 levels
# A string with its escapes, ended or not, or a bracket. Whatever may follow is optional: no
# backtracking.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that is not nested too deeply for what is done with it later.

    The standard library's limit is the interpreter's stack, where a value may just fit in when it
    is parsed and overflow when it is compared or shown.

    Parameters
    ----------
    text : str or bytes of UTF-8

    Raises
    ------
    ValueError
        If it is not valid JSON, or is nested in more than 50 levels.

    Examples
    --------
    >>> parse_json('{"a": [1, "[[["]}')
    {'a': [1, '[[[']}
    >>> parse_json("[" * 51 + "]" * 51)
    Traceback (most recent call last):
    ValueError: it is nested in more than 50 levels
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested in more than {_DEEPEST} levels")
    return json.loads(text)
