"""Sizes, tiles and costs against a simulation of the layers, and the network itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unet_repro import geometry, tiling
from unet_repro.config import MODELS, UNetConfig
from unet_repro.errors import InputError
from unet_repro.model import UNet

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
    assert geometry.alignment(4) == 16
    assert geometry.smallest_input(4) == 188
    valid = [n for n in range(1000) if geometry.is_valid_input(n, 4)]
    assert valid == [n for n in range(1000) if n % 16 == 12 and n >= 188]
    assert {geometry.output_size(n, 4) % 16 for n in valid} == {4}


@pytest.mark.parametrize("depth", DEPTHS)
def test_input_size_is_the_smallest_whose_output_covers(depth: int) -> None:
    outputs = {n: simulated_output(n, depth) for n in range(1, 900)}
    for wanted in range(1, 300):
        smallest = min(n for n, output in outputs.items() if output and output >= wanted)
        assert geometry.input_size(wanted, depth) == smallest


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (570, r"side 570 is not a U-Net input size \(n % 16 == 12, n >= 188\); nearest: 556, 572$"),
        (573, "nearest: 572, 588$"),
        (571, "nearest: 556, 572$"),
        (172, "nearest: 188$"),
        (1, "nearest: 188$"),
        (0, "nearest: 188$"),
        (-5, "nearest: 188$"),
        (189, "nearest: 188, 204$"),
    ],
)
def test_wrong_size_names_the_nearest(size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.output_size(size, 4)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
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


@settings(deadline=None)
@given(
    size=st.integers(1, 5000),
    strides=st.integers(1, 40),
    depth=st.integers(1, 5),
    padding=st.booleans(),
)
@example(size=1, strides=1, depth=4, padding=False)
@example(size=768, strides=24, depth=4, padding=False)
def test_tiles_cover_every_pixel_once_and_lie_on_the_grid(
    size: int, strides: int, depth: int, padding: bool
) -> None:
    grid = 2**depth
    tiles = geometry.plan_axis(size, strides * grid, depth, padding=padding)
    written = [pixel for tile in tiles for pixel in range(tile.start, tile.stop)]
    assert written == list(range(size))
    origins = {tile.window_start % grid for tile in tiles}
    windows = {tile.window_stop - tile.window_start for tile in tiles}
    assert len(origins) == len(windows) == 1
    for tile in tiles:
        before, after = tile.start - tile.window_start, tile.window_stop - tile.stop
        if padding:  # no kept pixel sees the zeros
            assert min(before, after) >= geometry.halo(depth)
            assert (tile.window_stop - tile.window_start) % grid == 0
        else:
            assert before == geometry.margin(depth)
            output = simulated_output(tile.window_stop - tile.window_start, depth)
            assert output is not None
            assert tile.start + output >= tile.stop


def test_paper_tiles_of_an_em_slice() -> None:
    assert geometry.stride_of_window(572, 4) == 384
    assert geometry.plan_axis(512, 384, 4) == (
        geometry.Tile(0, 384, -92, 480),
        geometry.Tile(384, 512, 292, 864),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 16, 4), "image side of 0 px cannot be tiled"),
        ((100, 0, 4), "stride 0 is not a positive multiple of 2.depth = 16"),
        ((100, 24, 4), "stride 24 is not"),
        ((100, -16, 4), "stride -16 is not"),
    ],
)
def test_bad_axis_is_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.plan_axis(*arguments)


@pytest.mark.parametrize(
    ("window", "depth", "padding", "message"),
    [
        (570, 4, False, "tile 570 .* nearest: 556, 572"),
        (188, 4, False, "tile 188 keeps no 16 aligned px: at least 204 is needed"),
        (100, 4, True, "tile 100 is not a multiple of 2.depth = 16"),
        (224, 4, True, "tile 224 keeps no 16 aligned px: at least 240 is needed"),
    ],
)
def test_window_without_an_aligned_tile_is_refused(
    window: int, depth: int, padding: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        geometry.stride_of_window(window, depth, padding=padding)


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
@given(size=st.integers(1, 5000), tiles=st.integers(1, 50), depth=st.integers(1, 5))
def test_aligned_stride_is_the_smallest_that_covers(size: int, tiles: int, depth: int) -> None:
    grid = 2**depth
    stride = geometry.aligned_stride(size, tiles, depth)
    assert stride % grid == 0
    assert stride * tiles >= size > (stride - grid) * tiles


@pytest.mark.parametrize(
    "shape",
    [
        UNetConfig(base_channels=4),
        UNetConfig(base_channels=3, depth=2, in_channels=3, classes=5),
        UNetConfig(base_channels=4, wide_last_up=True),
        UNetConfig(base_channels=4, padding=True),
    ],
    ids=["paper", "channels", "release", "padded"],
)
def test_flops_are_those_that_pytorch_counts(shape: UNetConfig) -> None:
    plan = tiling.plan_tiles(
        40,
        100,
        depth=shape.depth,
        base_channels=shape.base_channels,
        in_channels=shape.in_channels,
        classes=shape.classes,
        padding=shape.padding,
        wide_last_up=shape.wide_last_up,
        stride=48,
    )
    network = UNet(shape).to("meta")  # sizes only, nothing is computed
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, shape.in_channels, *plan.window, device="meta"))
    assert len(plan) == 3
    assert plan.flops == 3 * counter.get_total_flops()


def test_operations_per_output_pixel_of_the_paper() -> None:
    """2.00 MFLOP at 572 -> 388."""
    plan = tiling.plan_tiles(384, 384, depth=4, base_channels=64, stride=384)
    assert plan.window == (572, 572)
    assert plan.flops / 388**2 == pytest.approx(2.00e6, rel=0.005)


@pytest.mark.parametrize(("tiles", "redundancy"), [(1, 1.0), (2, 1.06), (3, 1.15), (4, 1.20)])
def test_redundancy_of_a_2048_px_image(tiles: int, redundancy: float) -> None:
    stride = geometry.aligned_stride(2048, tiles, 4)
    plan = tiling.plan_tiles(2048, 2048, depth=4, base_channels=64, stride=stride)
    assert len(plan) == tiles**2
    assert round(plan.redundancy, 2) == redundancy


def test_planner_beats_the_papers_tiles_in_their_own_memory() -> None:
    paper = tiling.plan_tiles(2048, 2048, depth=4, base_channels=64, stride=384)
    assert round(paper.redundancy, 2) == 1.65
    planned = tiling.plan_tiles(2048, 2048, depth=4, base_channels=64, memory=paper.peak_bytes)
    assert planned.peak_bytes <= paper.peak_bytes
    assert planned.redundancy <= 1.45
    large = tiling.plan_tiles(2048, 2048, depth=4, base_channels=64, memory=8 * 2**30)
    assert large.redundancy <= 1.07


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 100),
    width=st.integers(1, 100),
    depth=st.integers(2, 3),
    share=st.floats(0.3, 1.1),
    padding=st.booleans(),
)
def test_planner_finds_the_least_computation_that_fits(
    height: int, width: int, depth: int, share: float, padding: bool
) -> None:
    """Against every pair of strides, tried one by one."""
    grid = 2**depth
    network = tiling._Network(depth, 4, 1, 2, padding, False, 4)
    sides = [range(grid, n + grid, grid) for n in (height, width)]
    costs = {
        (down, across): network.flops(down, across) * -(-height // down) * -(-width // across)
        for down in sides[0]
        for across in sides[1]
    }
    memory = int(share * network.peak_bytes(sides[0][-1], sides[1][-1]))
    fitting = [costs[pair] for pair in costs if network.peak_bytes(*pair) <= memory]

    def plan() -> tiling.TilePlan:
        return tiling.plan_tiles(
            height, width, depth=depth, base_channels=4, padding=padding, memory=memory
        )

    if not fitting:
        with pytest.raises(InputError, match="memory are too few"):
            plan()
        return
    assert plan().peak_bytes <= memory
    assert plan().flops <= 1.03 * min(fitting)


def test_full_width_strips_are_preferred() -> None:
    """Three strips cost 0.5 % more than two by two tiles of as much memory, and read less."""
    plan = tiling.plan_tiles(2048, 2048, depth=4, base_channels=64, memory=3 * 2**30)
    assert (len(plan.rows), len(plan.columns)) == (3, 1)


def test_huge_image_is_planned_at_once_and_tensors_stay_below_31_bits() -> None:
    plan = tiling.plan_tiles(100_000, 100_000, depth=4, base_channels=64, memory=2**50)
    height, width = plan.window
    assert 64 * height * width < 2**31
    assert plan.redundancy < 1.1


@pytest.mark.parametrize("preset", ["paper", "release"])
def test_memory_grows_with_the_tile_and_with_the_precision(preset: str) -> None:
    wide = MODELS[preset].wide_last_up  # type: ignore[index]
    peaks = [
        tiling.plan_tiles(
            stride, stride, depth=4, base_channels=64, wide_last_up=wide, stride=stride
        ).peak_bytes
        for stride in (384, 768, 1536)
    ]
    assert peaks[0] < peaks[1] < peaks[2] < 5 * peaks[1]


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-1, 5)])
def test_empty_image_is_refused(height: int, width: int) -> None:
    for stride in (None, 16):
        with pytest.raises(InputError, match="cannot be tiled: at least 1 is needed"):
            tiling.plan_tiles(height, width, depth=4, base_channels=1, stride=stride)


def test_plan_walks_row_by_row() -> None:
    plan = tiling.plan_tiles(40, 20, depth=2, base_channels=1, stride=16)
    starts = [(row.start, column.start) for row, column in plan]
    assert starts == [(0, 0), (0, 16), (16, 0), (16, 16), (32, 0), (32, 16)]
    assert len(plan) == 6
    assert plan.output_bytes == 2 * 40 * 20 * 4
