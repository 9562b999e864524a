"""Overlap-tile prediction (Sec. 2, Fig. 2) of images of any size, for any callable.

The tiles of Fig. 2 agree with one pass over the whole image to the last bit, because their origins
lie on the pooling grid (`network.geometry`). No model class is known here: any callable will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from unet_repro.choices import Average, Backend, Precision
from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, joined, room_for, sizes
from unet_repro.network import geometry
from unet_repro.network.backends import check_way, is_in_strips, make_network
from unet_repro.network.cost import NetworkCost
from unet_repro.network.device import free_memory, reused_memory
from unet_repro.network.geometry import Tile
from unet_repro.prediction.mirror import Region
from unet_repro.prediction.tile_runner import Finish, TileRunner, as_floats, raw_logits, softmax
from unet_repro.prediction.tiling import Buffers, TilePlan, plan_tiles
from unet_repro.prediction.views import VIEWS, largest_batch
from unet_repro.progress import ProgressBar

# The default of `memory`: this share of what is free when the plan is made; on a CPU at most so
# much for each byte of a value. In strips windows of any size are as fast, and twice as much saves
# 3 % of the operations (2048 px, 64 channels); whole maps are slower beyond 1.4 million px
FREE_MEMORY_SHARE = 0.5
CPU_BYTES_PER_BYTE = 2**29


class OverlapTilePredictor:
    """Predict images of any size, tile by tile, with the result of one whole-image pass.

    Parameters
    ----------
    model : callable
        Maps a float tensor (N, C, h, w) to logits (N, classes, h', w') with the sizes of a U-Net of
        depth `depth`: h' = h - 2 margin unpadded, h' = h padded. What its ``config`` says, if it
        has one with the fields of `UNetConfig`, need not be given below. A module is put into eval
        mode for the time of a prediction, and otherwise left as it is.
    tile : int, optional
        Side in px of the square window that is read for a tile, a valid input size (572 is the
        paper's: of its 388 output px, 384 are kept). By default `tiling.plan_tiles` chooses.
    memory : int, optional
        Bytes that a window may take in the network, for the planner. The default is half of what
        is free when a prediction starts: of the CUDA device's memory, or of the machine's, but of
        that no more than 2 GiB (1 GiB in bfloat16): more makes windows hardly faster on a CPU.
    average
        Views of the image whose predictions are averaged. ``rotations``: by 0, 90, 180 and 270
        degrees; ``dihedral``: those and their mirror images; ``seven``: these less the identity.
    device : str or torch.device, optional
        Where the network runs: a module is moved there. By default it runs where it is.
    precision
        What the network computes in. What comes out is float32 all the same.
    backend
        What runs the network, see `network.backends.make_network`.
    depth, in_channels, classes, padding, base_channels, wide_last_up : optional
        As in `UNetConfig`. Without a ``config``, `depth` is needed; channels and classes are taken
        as they come, and the last three are False, 64 and False.

    Raises
    ------
    InputError
        An argument that cannot be used; the message names what can.

    Notes
    -----
    The whole-image pass is one window over the image with a mirrored margin (Fig. 2), and every
    tile's origin differs from its origin by multiples of 2^depth: in exact arithmetic the tiles
    give the same result, in float32 they differ by rounding (about 1e-6). A padded network gets a
    mirrored border as wide as its receptive field instead of the margin, so that no kept pixel
    sees its zeros: tiles then equal one such window, but not the bare ``model(image)``. Bilinear
    upsampling depends on the window's size; with it, tiles agree only roughly.

    A window that does not fit into memory after all is computed in halves, with the same result.

    Not in the paper: which mirror. The image is reflected about the centres of its border pixels,
    again and again where it is smaller than the margin. Reflecting about their outer edges would
    show every border pixel twice, a flat step that the network never sees inside an image.

    Not in the paper: which seven. "The average over 7 rotated versions of the input data" (Sec. 4)
    fits the eight symmetries of the square less one. Nor what is averaged: here probabilities, and
    logits in `logits`, as in the authors' release.

    Examples
    --------
    >>> def crop(x):  # a stand-in with the sizes of an unpadded U-Net of depth 1
    ...     return torch.cat((x, -x), dim=1)[..., 8:-8, 8:-8]
    >>> predictor = OverlapTilePredictor(crop, depth=1)
    >>> predictor.logits(np.arange(6).reshape(2, 3))[0]
    array([[0., 1., 2.],
           [3., 4., 5.]], dtype=float32)
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        tile: int | None = None,
        *,
        memory: int | None = None,
        average: Average = "none",
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        backend: Backend = "torch",
        depth: int | None = None,
        in_channels: int | None = None,
        classes: int | None = None,
        padding: bool | None = None,
        base_channels: int | None = None,
        wide_last_up: bool | None = None,
    ) -> None:
        config = getattr(model, "config", None)

        def setting(name: str, given: Any, default: Any = None) -> Any:
            return getattr(config, name, default) if given is None else given

        if average not in VIEWS:
            raise InputError(f"average is {average!r}: one of {', '.join(VIEWS)} is needed")
        check_way(backend, precision)
        if tile is not None and memory is not None:
            raise InputError("tile and memory exclude each other: memory is there to choose tiles")
        depth = setting("depth", depth)
        if depth is None:
            raise InputError("the model has no config: depth, its number of poolings, is needed")
        self.model, self.tile, self.memory, self.depth = model, tile, memory, depth
        self.backend, self.precision = backend, precision
        self.average, self.views = average, VIEWS[average]
        self.in_channels: int | None = setting("in_channels", in_channels)
        self.classes: int | None = setting("classes", classes)
        self.padding: bool = setting("padding", padding, False)
        self.base_channels: int = setting("base_channels", base_channels, 64)
        self.wide_last_up: bool = setting("wide_last_up", wide_last_up, False)
        self.device, self.dtype = _place(model, device)
        self.bilinear: bool = setting("bilinear", None, False)
        if tile is not None:
            geometry.stride_of_window(tile, depth, padding=self.padding)  # refuses what is none

    def __call__(self, image: ArrayLike, *, progress: bool = False) -> NDArray[np.float32]:
        """Return the probability of every class at every pixel.

        Parameters
        ----------
        image : array_like of int or float, shape (height, width) or (C, height, width)
            Grey values such as the network was trained on: it normalises them itself. They go in
            as float32 (float64 if the network's weights are).
        progress
            Show a bar that counts tiles, on standard error.

        Returns
        -------
        ndarray of float32, shape (classes, height, width)
            In [0, 1], with sum 1 over the classes.

        Raises
        ------
        InputError
            An empty image, a wrong number of channels, pixels that are no numbers, NaN, infinite or
            beyond float32; or a model whose output has not the expected shape.
        """
        return self._image(image, softmax, progress)

    def logits(self, image: ArrayLike, *, progress: bool = False) -> NDArray[Any]:
        """Return the network's raw scores, averaged over the views as they are.

        Arguments and errors are those of a call. float32, or float64 if the network's weights are.
        """
        return self._image(image, raw_logits, progress)

    def plan(
        self,
        height: int,
        width: int,
        *,
        rows: range | None = None,
        columns: range | None = None,
        strides: tuple[int, int] | None = None,
        buffers: Buffers | None = None,
    ) -> TilePlan:
        """Return the tiles of an image, or of a region of it, from sizes and memory alone.

        Parameters and errors are those of `tiling.plan_tiles`; `strides` are for no `tile`.
        """
        memory = self.memory
        if memory is None and self.tile is None:
            memory = self.default_memory()

        def plan(side: int | None) -> TilePlan:
            return plan_tiles(
                height,
                width,
                self.cost,
                memory=memory,
                strides=strides if side is None else (side, side),
                rows=rows,
                columns=columns,
                has_reversed=len(self.views) > 1,
                buffers=buffers,
            )

        if self.tile is None:
            return plan(None)
        stride = geometry.stride_of_window(self.tile, self.depth, padding=self.padding)
        grid = geometry.alignment(self.depth)
        planned = plan(stride)
        if max(planned.window) > self.tile and stride > grid:  # tiles begin off the grid
            return plan(stride - grid)
        return planned

    def default_memory(self, processes: int = 1) -> int:
        """Return the bytes that windows may take in the network if nothing else is said.

        `processes` compute on this machine at a time, each within these.
        """
        memory = int(FREE_MEMORY_SHARE * free_memory(self.device)) // processes
        if self.device.type == "cpu":
            memory = min(memory, CPU_BYTES_PER_BYTE * self.cost.bytes_per_value)
        return memory

    def windows_at_once(self, plan: TilePlan, memory: int) -> int:
        """Return how many views of a tile can go through the network together in so many bytes."""
        batch = largest_batch(self.views)
        while batch > 1 and self.peak_bytes(plan, batch) > memory:
            batch //= 2
        return batch

    def peak_bytes(self, plan: TilePlan, batch: int) -> int:
        """Return the most that so many windows of a plan take in the network together."""
        return int(replace(self.cost, batch=batch).peak_bytes(*plan.window))

    @property
    def cost(self) -> NetworkCost:
        """What windows cost in this network."""
        return NetworkCost(
            depth=self.depth,
            base_channels=self.base_channels,
            in_channels=self.in_channels or 1,
            classes=self.classes or 2,
            padding=self.padding,
            wide_last_up=self.wide_last_up,
            bilinear=self.bilinear,
            bytes_per_value=2 if self.precision == "bfloat16" else self.dtype.itemsize,
            in_strips=is_in_strips(self.model, self.backend, self.device),
            is_turned=any(view.is_transposed for view in self.views),
        )

    @property
    def way(self) -> str:
        """What runs the network, in words."""
        return f"{self.backend}, {self.precision}, on {self.device}"

    @contextmanager
    def running(self) -> Iterator[TileRunner]:
        """Give the network, ready to run on tiles; a module is in eval mode meanwhile."""
        with _evaluating(self.model), reused_memory(self.device):
            network = make_network(
                self.model, backend=self.backend, device=self.device, precision=self.precision
            )
            yield TileRunner(
                network,
                self.views,
                depth=self.depth,
                padding=self.padding,
                classes=self.classes,
                device=self.device,
                dtype=self.dtype,
            )

    def _image(self, image: ArrayLike, finish: Finish, progress: bool) -> NDArray[Any]:
        pixels = self._checked(image)
        plan = self.plan(*pixels.shape[1:])
        with self.running() as runner, _bar(len(plan), progress) as bar:
            return self._all_tiles(runner, pixels, plan, finish, bar)

    def _all_tiles(
        self,
        runner: TileRunner,
        pixels: NDArray[Any],
        plan: TilePlan,
        finish: Finish,
        bar: ProgressBar,
    ) -> NDArray[Any]:
        size = plan.height, plan.width

        def fetch(row: Tile, column: Tile) -> Region:
            return runner.fetch(lambda y, x: pixels[:, y, x], size, row, column)

        memory = self.memory or self.default_memory()
        batch = self.windows_at_once(plan, memory)
        result: NDArray[Any] | None = None
        for tile in plan:
            values = runner.compute(fetch(*tile), finish, fetch, batch=batch)
            if result is None:
                result = np.empty((len(values), *size), dtype=values.dtype)
            rows, columns = (slice(axis.start, axis.stop) for axis in tile)
            result[:, rows, columns] = values
            bar.update()
        assert result is not None
        return result

    def _checked(self, image: ArrayLike) -> NDArray[Any]:
        """Return the image as floats (C, height, width), or say what is wrong with it."""
        array = np.asarray(image)
        if array.dtype.kind not in "biuf":
            raise InputError(f"the image holds {array.dtype}: integers or floats are needed")
        pixels = array[None] if array.ndim == 2 else array
        if pixels.ndim != 3 or not array.size or self.in_channels not in (None, len(pixels)):
            flat = "(height, width) or " if self.in_channels in (None, 1) else ""
            raise InputError(
                f"the image has shape {array.shape}: {flat}({self.in_channels or 'C'}, height, "
                "width) is needed, with sides of 1 px or more"
            )
        return as_floats(pixels, self.dtype)


def predict_volume(
    predictor: OverlapTilePredictor, stack: ArrayLike | Slices, *, progress: bool = False
) -> Any:
    """Return P(class 1) in every slice of a stack in memory.

    Parameters
    ----------
    stack : array_like of int or float, shape (z, y, x) or (z, C, y, x), or sequence of slices
        Slices as a call of the predictor takes them; in a sequence, sizes may differ.
    progress
        Show a bar that counts the tiles of all slices, on standard error.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        In [0, 1]; of slices of several sizes, a list of arrays (y, x).

    Raises
    ------
    InputError
        No slices, or one that the predictor refuses.
    """
    return _all_slices(predictor, stack, np.float32, lambda probs: probs[1], progress)


def predict_classes(
    predictor: OverlapTilePredictor, stack: ArrayLike | Slices, *, progress: bool = False
) -> Any:
    """Return the most probable class in every slice of a stack in memory, of equals the lowest.

    As `predict_volume`, but for the values: uint8, of at most 256 classes.
    """
    return _all_slices(predictor, stack, np.uint8, lambda probs: probs.argmax(axis=0), progress)


def _all_slices(
    predictor: OverlapTilePredictor,
    stack: ArrayLike | Slices,
    dtype: npt.DTypeLike,
    kept: Callable[[NDArray[Any]], NDArray[Any]],
    progress: bool,
) -> Any:
    """Return what is `kept` of the probabilities (classes, y, x) of every slice."""
    slices = joined(stack)
    if isinstance(slices, np.ndarray) and (slices.ndim not in (3, 4) or not slices.size):
        raise InputError(f"the stack has shape {slices.shape}: (z, y, x), none 0, is needed")
    for z, image in enumerate(slices):
        if image.ndim not in (2, 3) or not image.size:
            raise InputError(f"slice {z} has shape {image.shape}: (y, x), none 0, is needed")
    plans = {size: predictor.plan(*size) for size in dict.fromkeys(sizes(slices))}
    tiles = sum(len(plans[size]) for size in sizes(slices))
    result = room_for(slices, dtype)
    with predictor.running() as runner, _bar(tiles, progress) as bar:
        for z, (size, image) in enumerate(zip(sizes(slices), slices)):
            pixels = predictor._checked(image)
            probs = predictor._all_tiles(runner, pixels, plans[size], softmax, bar)
            result[z] = kept(probs).astype(dtype, copy=False)
    return result


def _place(
    model: Callable[[Tensor], Tensor], device: str | torch.device | None
) -> tuple[torch.device, torch.dtype]:
    """Move a module to `device`, if given; return where the model is, and what goes into it."""
    target = torch.device("cpu" if device is None else device)
    if not isinstance(model, nn.Module):
        return target, torch.float32
    if device is not None:
        model.to(target)
    weights = [*model.parameters(), *model.buffers()]
    is_double = any(tensor.dtype == torch.float64 for tensor in weights)
    return (weights[0].device if weights else target), torch.float64 if is_double else torch.float32


@contextmanager
def _evaluating(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put a module into eval mode; afterwards, every part of it is in the mode it had."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    in_training = [part for part in parts if part.training]
    for part in in_training:
        part.training = False
    try:
        yield
    finally:
        for part in in_training:
            part.training = True


def _bar(tiles: int, is_shown: bool) -> ProgressBar:
    return ProgressBar(tiles, unit="tile", is_shown=is_shown)
