"""Sizes and tiles against a simulation of the layers, and the network itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import geometry
from unet_repro.network.model import UNet

DEPTHS = [1, 2, 3, 4, 5]


def simulated_output(size: int, depth: int) -> int | None:
    """Walk one side through Fig. 1, layer by layer; None where a pooling would drop a pixel."""
    for _ in range(depth):
        size -= 2  # 3x3 convolution
        size -= 2
        if size < 2 or size % 2:
            return None
        size //= 2
    size -= 4
    for _ in range(depth):
        if size < 1:
            return None
        size *= 2
        size -= 4
    return size if size >= 1 else None


@pytest.mark.parametrize("depth", DEPTHS)
def test_valid_sizes_are_those_that_pass_the_layers(depth: int) -> None:
    for size in range(1, 900):
        output = simulated_output(size, depth)
        assert geometry.is_valid_input(size, depth) == (output is not None), size
        if output is not None:
            assert geometry.output_size(size, depth) == output
            assert size - output == 2 * geometry.margin(depth)


def test_paper_sizes() -> None:
    assert geometry.output_size(572, 4) == 388
    assert geometry.margin(4) == 92
    assert geometry.halo(4) == 107
    valid = [n for n in range(1000) if geometry.is_valid_input(n, 4)]
    assert valid == [n for n in range(1000) if n % 16 == 12 and n >= 188]


@pytest.mark.parametrize("depth", DEPTHS)
def test_input_size_is_the_smallest_whose_output_covers(depth: int) -> None:
    outputs = {n: simulated_output(n, depth) for n in range(1, 900)}
    for wanted in range(1, 300):
        smallest = min(n for n, output in outputs.items() if output and output >= wanted)
        assert geometry.input_size(wanted, depth) == smallest


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            *(geometry.output_size, (570, 4)),
            r"side 570 is not a U-Net input size \(n % 16 == 12, n >= 188\); nearest: 556, 572$",
        ),
        (geometry.output_size, (573, 4), "nearest: 572, 588$"),
        (geometry.output_size, (172, 4), "nearest: 188$"),
        (geometry.output_size, (-5, 4), "nearest: 188$"),
        (geometry.output_size, (189, 4), "nearest: 188, 204$"),
        (geometry.stride_of_window, (570, 4), "tile 570 .* nearest: 556, 572"),
        (geometry.stride_of_window, (64, 4), "tile 64 .* nearest: 204$"),  # one that works
        (geometry.stride_of_window, (188, 4), "keeps no 16 aligned px: at least 204 is needed"),
        (
            partial(geometry.stride_of_window, padding=True),
            (100, 4),
            "tile 100 is not a multiple of 2.depth = 16",
        ),
        (
            partial(geometry.stride_of_window, padding=True),
            (224, 4),
            "keeps no 16 aligned px: at least 240 is needed",
        ),
        (geometry.plan_axis, (0, 16, 4), "image side of 0 px cannot be tiled"),
        (geometry.plan_axis, (100, 0, 4), "stride 0 is not a positive multiple of 2.depth = 16"),
        (geometry.plan_axis, (100, 24, 4), "stride 24 is not"),
        (geometry.Axis, (100, 4, False, 5, 5, False), "px 5 to 5 are no region of a side of 100"),
        (geometry.Axis, (100, 4, False, -1, 5, False), "px -1 to 5 are no region"),
        (geometry.Axis, (100, 4, False, 0, 101, False), "px 0 to 101 are no region"),
    ],
)
def test_what_cannot_be_is_refused(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        function(*arguments)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_receptive_field_is_what_gradients_reach(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean-pooling and weights of 1 let every path through; the extents are then the gradient's."""
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    network = UNet(UNetConfig(depth=depth, base_channels=1, dropout=0)).double()
    for weights in network.parameters():
        weights.data.fill_(1)
    grid, margin = 2**depth, 6 * 2**depth - 4
    least = geometry.smallest_input(depth)
    image = torch.ones(1, 1, least, geometry.input_size(2 * grid, depth), dtype=torch.float64)
    image.requires_grad = True
    output = network(image)
    reach, widths = [], set()
    for x in range(grid + 1):  # every phase, the first one twice
        (gradient,) = torch.autograd.grad(output[0, 0, 0, x], image, retain_graph=True)
        seen = gradient[0, 0].sum(dim=0).nonzero().flatten()
        first, last = int(seen[0]), int(seen[-1])
        reach += [x + margin - first, last - x - margin]
        widths.add(last - first + 1)
    assert min(reach) == geometry.margin(depth)
    assert max(reach) == geometry.halo(depth)
    if depth == 4:
        assert widths == {188, 204}


@st.composite
def axes(draw: st.DrawFn, largest: int = 3000) -> tuple[int, dict[str, Any]]:
    """Draw the size of an axis, and the other arguments of `plan_axis` but the stride."""
    size = draw(st.integers(1, largest))
    start = draw(st.integers(0, size - 1))
    region = draw(
        st.sampled_from([{}, {"start": start, "stop": draw(st.integers(start + 1, size))}])
    )
    flags = {"padding": draw(st.booleans()), "is_reversed": draw(st.booleans())}
    return size, {"depth": draw(st.integers(1, 5)), **region, **flags}


def check_tile(tile: geometry.Tile, depth: int, padding: bool) -> None:
    """Hold a tile against the layers: a valid window on the grid, that computes all it keeps."""
    grid = 2**depth
    window = tile.window_stop - tile.window_start
    if padding:  # no kept pixel sees the zeros
        assert window % grid == tile.window_start % grid == 0
        assert tile.start - tile.window_start >= geometry.halo(depth)
        assert tile.window_stop - tile.stop >= geometry.halo(depth)
    else:
        output, first = simulated_output(window, depth), tile.window_start + 6 * grid - 4
        assert output is not None
        assert first % grid == 0
        assert first <= tile.start < first + grid
        assert tile.stop <= first + output


@settings(deadline=None)
@given(axis=axes(), strides=st.integers(1, 40))
@example(axis=(1, {"depth": 4, "padding": False}), strides=1)
@example(axis=(768, {"depth": 4, "padding": False}), strides=24)
@example(axis=(380, {"depth": 4, "padding": False, "is_reversed": True}), strides=24)
def test_tiles_cover_the_region_once_and_lie_on_the_grid(
    axis: tuple[int, dict[str, Any]], strides: int
) -> None:
    size, arguments = axis
    depth, padding = arguments["depth"], arguments["padding"]
    start, stop = arguments.get("start", 0), arguments.get("stop", size)
    stride = strides * 2**depth
    tiles = geometry.plan_axis(size, stride, **arguments)
    assert [n for tile in tiles for n in range(tile.start, tile.stop)] == list(range(start, stop))
    assert len({tile.window_stop - tile.window_start for tile in tiles}) == 1
    assert all(tile.start == start + n * stride for n, tile in enumerate(tiles))
    for tile in tiles:
        check_tile(tile, depth, padding)
        if arguments.get("is_reversed"):
            turned = geometry.reversed_tile(tile, size, depth, padding=padding)
            assert turned.window_stop - turned.window_start == tile.window_stop - tile.window_start
            assert (turned.start, turned.stop) == (size - tile.stop, size - tile.start)
            check_tile(turned, depth, padding)


@settings(deadline=None)
@given(axis=axes(), strides=st.integers(1, 10))
def test_windows_are_no_larger_and_tiles_no_more_than_needed(
    axis: tuple[int, dict[str, Any]], strides: int
) -> None:
    size, arguments = axis
    depth, padding = arguments["depth"], arguments["padding"]
    start, stop = arguments.get("start", 0), arguments.get("stop", size)
    grid = 2**depth
    tiles = geometry.plan_axis(size, strides * grid, **arguments)
    window = tiles[0].window_stop - tiles[0].window_start
    plain = geometry.window_of(strides * grid, depth, padding=padding)
    is_off_grid = start % grid > 0 or arguments["is_reversed"]
    assert window in ((plain, plain + grid) if is_off_grid else (plain,))
    assert len(tiles) in (1, -(-(stop - start) // (strides * grid)))
    if len(tiles) > 1:  # they cannot be one
        ends = [(start, stop), (size - stop, size - start)][: 1 + arguments["is_reversed"]]
        needed = [b - a + a % grid for a, b in ends]
        assert max(geometry.window_of(n, depth, padding=padding) for n in needed) > plain


def test_tiles_of_the_papers_window() -> None:
    """572 -> 388 px: an EM slice, and one tile of 388, though two strides of 384 differ by 384."""
    assert geometry.stride_of_window(572, 4) == 384
    assert geometry.plan_axis(512, 384, 4) == (
        geometry.Tile(0, 384, -92, 480),
        geometry.Tile(384, 512, 292, 864),
    )
    assert geometry.plan_axis(388, 384, 4) == (geometry.Tile(0, 388, -92, 480),)
    assert [(t.start, t.stop) for t in geometry.plan_axis(389, 384, 4)] == [(0, 384), (384, 389)]
    assert len(geometry.plan_axis(388, 384, 4, padding=True)) == 2


def test_region_is_cut_from_its_own_start_in_windows_on_the_grid() -> None:
    """Both tiles begin 5 px above the grid: 384 + 5 px need a window of 588."""
    assert geometry.plan_axis(1000, 384, 4, start=37, stop=500) == (
        geometry.Tile(37, 421, 32 - 92, 32 - 92 + 588),
        geometry.Tile(421, 500, 416 - 92, 416 - 92 + 588),
    )


def test_reversed_tile_begins_at_the_grid_point_below() -> None:
    """Of 1000 px, 32 to 416 are 584 to 968 from the other end; 584 = 36 * 16 + 8."""
    (tile, _) = geometry.plan_axis(1000, 384, 4, start=32, stop=500, is_reversed=True)
    assert (tile.window_start, tile.window_stop) == (-60, -60 + 588)  # 384 + 8 px from the grid on
    turned = geometry.reversed_tile(tile, 1000, 4)
    assert turned == geometry.Tile(584, 968, 576 - 92, 576 - 92 + 588)
    plain = geometry.plan_axis(1000, 384, 4, start=16, stop=500)[0]
    with pytest.raises(InputError, match="572 px does not cover the px 600 to 984"):
        geometry.reversed_tile(plain, 1000, 4)


@pytest.mark.parametrize("depth", DEPTHS)
def test_skip_margins_are_those_of_the_layers(depth: int) -> None:
    """From the sizes on the way down and up: Fig. 1 crops 88, 40, 16 and 4 px."""
    side, down = geometry.input_size(2**depth, depth), []
    for _ in range(depth):
        down.append(side - 4)
        side = (side - 4) // 2
    for level in reversed(range(depth)):
        side = 2 * (side - 4)
        assert 2 * geometry.skip_margin(level, depth) == down[level] - side


@settings(deadline=None)
@given(window=st.integers(1, 3000), depth=st.integers(1, 5), padding=st.booleans())
def test_stride_of_window_is_the_largest_it_allows(window: int, depth: int, padding: bool) -> None:
    try:
        stride = geometry.stride_of_window(window, depth, padding=padding)
    except InputError:
        return
    tile = geometry.plan_axis(10_000, stride, depth, padding=padding)[0]
    assert tile.window_stop - tile.window_start <= window
    larger = geometry.plan_axis(10_000, stride + 2**depth, depth, padding=padding)[0]
    assert larger.window_stop - larger.window_start > window


@settings(deadline=None)
@given(axis=axes(largest=200), tiles=st.integers(1, 12))
@example(axis=(388, {"depth": 4, "padding": False, "is_reversed": False}), tiles=1)
def test_least_stride_is_the_first_of_all_that_makes_so_few_tiles(
    axis: tuple[int, dict[str, Any]], tiles: int
) -> None:
    size, arguments = axis
    grid = 2 ** arguments["depth"]
    stride = grid
    while len(geometry.plan_axis(size, stride, **arguments)) > tiles:
        stride += grid
    region = arguments.get("start", 0), arguments.get("stop", size)
    depth, padding, is_reversed = (arguments[n] for n in ("depth", "padding", "is_reversed"))
    line = geometry.Axis(size, depth, padding, *region, is_reversed)
    assert line.least_stride(tiles) == stride
    cut = geometry.plan_axis(size, stride, **arguments)
    assert line.count_and_window(stride) == (len(cut), cut[0].window_stop - cut[0].window_start)
    assert line.longest(stride) == max(tile.stop - tile.start for tile in cut)
    if region == (0, size) and not (padding or is_reversed):
        assert geometry.aligned_stride(size, tiles, depth) == stride
