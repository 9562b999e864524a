"""Units of length and time, as ImageJ and OME-TIFF spell them."""

import re
from fractions import Fraction

_SAME_LETTERS = str.maketrans("\N{GREEK SMALL LETTER MU}\N{ANGSTROM SIGN}", "µÅ")
_PREFIXES = {"f": -15, "p": -12, "n": -9, "µ": -6, "m": -3, "c": -2, "d": -1, "": 0, "k": 3}
_INCH = Fraction(254, 10_000)
_METRES = {
    **{f"{prefix}m": Fraction(10) ** power for prefix, power in _PREFIXES.items()},
    "Å": Fraction(1, 10**10),
    **{"in": _INCH, "thou": _INCH / 1000, "ft": 12 * _INCH, "yd": 36 * _INCH},
    "mi": 63_360 * _INCH,
}
_SECONDS = {
    **{f"{prefix}s": Fraction(10) ** _PREFIXES[prefix] for prefix in ("p", "n", "µ", "m", "")},
    **{"min": Fraction(60), "h": Fraction(3600), "d": Fraction(86_400)},
}
_OTHER_NAMES = {  # symbol: what else it is called; those of three letters or more also with an s
    **{"fm": "femtometer femtometre", "pm": "picometer picometre", "nm": "nanometer nanometre"},
    "µm": "um micron micrometer micrometre",
    **{"mm": "millimeter millimetre", "cm": "centimeter centimetre", "dm": "decimeter decimetre"},
    **{"m": "meter metre", "km": "kilometer kilometre", "Å": "angstrom Angstrom ångström"},
    **{"in": "inch inches", "thou": "mil", "ft": "foot feet", "yd": "yard", "mi": "mile"},
    "pixel": "px pixel",
    **{"ps": "picosecond", "ns": "nsec nanosecond", "µs": "us usec microsecond"},
    **{"ms": "msec millisecond", "s": "sec second", "min": "minute", "h": "hr hour", "d": "day"},
}
_SYMBOLS = {
    name + plural: symbol
    for symbol, names in _OTHER_NAMES.items()
    for name in names.split()
    for plural in ("", "s")
    if not plural or len(name) > 2
} | {"mins": "min", "hrs": "h"}
_FULL_NAMES = {  # of lengths, in OME-Zarr
    symbol: _OTHER_NAMES[symbol].split()[place]
    for symbol, place in {
        **{"fm": 0, "pm": 0, "nm": 0, "µm": 2, "mm": 0, "cm": 0, "dm": 0, "m": 0, "km": 0},
        **{"Å": 0, "in": 0, "ft": 0, "yd": 0, "mi": 0},
    }.items()
}


def plain_unit(text: str) -> str:
    r"""Return a unit's name without ImageJ's escapes, the letters that look alike made the same.

    Examples
    --------
    >>> plain_unit(r"\u00B5m") == plain_unit("\u03bcm") == "µm"
    True
    """
    return re.sub(
        r"\\u([0-9A-Fa-f]{4})", lambda escape: chr(int(escape[1], 16)), text.strip()
    ).translate(_SAME_LETTERS)


def escaped_unit(text: str) -> str:
    r"""Return a unit's name in ASCII, with ImageJ's escapes.

    Examples
    --------
    >>> print(escaped_unit("µm"), escaped_unit("um"))
    \u00B5m um
    """
    units = text.encode("utf-16-be", "replace")
    codes = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04X}" for code in codes)


def symbol(unit: str) -> str:
    """Return the symbol by which OME knows a unit of length or "pixel"; others as they are.

    Examples
    --------
    >>> symbol("microns"), symbol("inch"), symbol("furlong")
    ('µm', 'in', 'furlong')
    """
    plain = plain_unit(unit)
    return _SYMBOLS.get(plain, plain)


def full_name(unit: str) -> str | None:
    """Return the name by which OME-Zarr knows a unit of length, None if it does not.

    Examples
    --------
    >>> full_name("um"), full_name("nm"), full_name("pixel")
    ('micrometer', 'nanometer', None)
    """
    return _FULL_NAMES.get(symbol(unit))


def is_ome_length(unit: str) -> bool:
    """Tell whether OME knows a unit by its `symbol`."""
    return symbol(unit) in _METRES or symbol(unit) == "pixel"


def length_ratio(unit: str, other: str) -> Fraction | None:
    """Return how many of the `other` units one `unit` is; None if that cannot be told.

    Examples
    --------
    >>> length_ratio("micron", "nm"), length_ratio("nm", "pixel"), length_ratio("x", "x")
    (Fraction(1000, 1), None, Fraction(1, 1))
    """
    one, two = symbol(unit), symbol(other)
    if one == two:
        return Fraction(1)
    return _METRES[one] / _METRES[two] if one in _METRES and two in _METRES else None


def seconds(unit: str) -> Fraction | None:
    """Return how many seconds a unit of time is, None if it is not known.

    Examples
    --------
    >>> seconds("min"), seconds("msec"), seconds("frames")
    (Fraction(60, 1), Fraction(1, 1000), None)
    """
    return _SECONDS.get(symbol(unit))
