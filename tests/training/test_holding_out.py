"""Which slices `--val` holds out, in all its forms, and which of them have trained neighbours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_repro.errors import InputError
from unet_repro.quantities import ranges
from unet_repro.training.holding_out import beside, held_out_numbers

FILES = ["1.png", "2.png", "10.png", "cell_a.tif", "cell_b.tif"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25:30", [25, 26, 27, 28, 29]),
        ("3,7,12:15", [3, 7, 12, 13, 14]),
        (" 12 : 15 , 7,007, 13", [7, 12, 13, 14]),  # sorted, each once
        ("0", [0]),
        ("20%", [24, 25, 26, 27, 28, 29]),
        ("10.1 %", [26, 27, 28, 29]),  # 3.03 slices: rounded up
        ("0.001%", [29]),
    ],
)
def test_forms_of_a_stack(text, expected):
    assert held_out_numbers(text, length=30) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cell_b,cell_a", [3, 4]),
        ("cell_a.tif, 10.png", [2, 3]),
        ("1", [1]),  # a number, though there is a 1.png
        ("1.png", [0]),
        ("1,cell_a", [0, 3]),  # names, as one of them can be nothing else
        ("2:4", [2, 3]),
        ("40%", [3, 4]),
    ],
)
def test_forms_of_a_folder(text, expected):
    assert held_out_numbers(text, length=5, names=FILES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", "there is no such slice; they are 0 ... 29"),
        ("3,28:31", "'28:31': a range a:b with 0 <= a < b <= 30"),
        ("9" * 5000, "there is no such slice"),
        ("5:5", "a range a:b"),
        ("0%", "above 0% and below 100%"),
        ("100%", "above 0% and below 100%"),
        ("20%,3", "25:30 .* or 20%"),
        ("-1", "25:30 .* or 20%"),
        ("3,,4", "25:30 .* or 20%"),
        ("1:2:3", "25:30 .* or 20%"),
        ("\u0663", "25:30 .* or 20%"),  # a digit, but not of ours
    ],
)
def test_what_names_no_slices_is_refused(text, message):
    with pytest.raises(InputError, match=f"^--val .*{message}"):
        held_out_numbers(text, length=30)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"no image is called 'cell_c'; the nearest name is cell_"):
        held_out_numbers("cell_a,cell_c", length=5, names=FILES)
    with pytest.raises(InputError, match="no image is called 'Z'"):
        held_out_numbers("Z", length=5, names=FILES)


@given(st.text(alphabet="0123456789:,% .abx-", max_size=12), st.integers(1, 40), st.booleans())
def test_any_text_is_refused_or_gives_sorted_slices(text, length, is_folder):
    names = [f"a{z}.png" for z in range(length)] if is_folder else []
    try:
        found = held_out_numbers(text, length=length, names=names)
    except InputError as error:
        assert str(error).startswith("--val")
        return
    assert found == sorted(set(found)) and found
    assert 0 <= found[0] and found[-1] < length


@given(st.sets(st.integers(0, 60), min_size=1).map(sorted))
def test_ranges_say_what_is_read_back(numbers):
    assert held_out_numbers(ranges(numbers), length=61) == numbers
    assert all(int(a) < int(b) for a, b in (r.split(":") for r in ranges(numbers).split(", ")))


def test_ranges_of_nothing_are_empty():
    assert ranges([]) == ""


@given(st.sets(st.integers(0, 20)).map(sorted))
def test_neighbours_are_counted(held_out):
    kept = [z for z in range(21) if z not in held_out]
    count = sum(any(abs(z - k) == 1 for k in kept) for z in held_out)
    said = beside(held_out, kept)
    assert said.startswith(f"{count} of {len(held_out)} ") if count else said == ""


def test_a_block_has_at_most_two_trained_neighbours():
    assert beside([25, 26, 27, 28, 29], range(25)).startswith("1 of 5 held-out slices is next")
    assert beside([3, 4, 5], [0, 1, 2, 6]).startswith("2 of 3 held-out slices are next")
    assert beside([4, 5], [0, 1, 2]) == ""
