"""Overlap-tile prediction (Sec. 2, Fig. 2) of images of any size, for any callable.

The tiles of Fig. 2 agree with one pass over the whole image to the last bit, because their origins
lie on the pooling grid (`geometry`). No model class is known here: any callable will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm import tqdm

from unet_repro import geometry
from unet_repro.device import Precision, autocast
from unet_repro.errors import InputError
from unet_repro.geometry import Tile
from unet_repro.tiling import TilePlan, plan_tiles

Average = Literal["none", "rotations", "dihedral", "seven"]

# (quarter turns, mirrored) of every view
_ROTATIONS = tuple((turns, False) for turns in range(4))
_DIHEDRAL = (*_ROTATIONS, *((turns, True) for turns in range(4)))
VIEWS: dict[Average, tuple[tuple[int, bool], ...]] = {
    "none": _ROTATIONS[:1],
    "rotations": _ROTATIONS,
    "dihedral": _DIHEDRAL,
    "seven": _DIHEDRAL[1:],
}

# The default of `memory`: this share of what is free when the plan is made
FREE_MEMORY_SHARE = 0.5


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
        Side of the square window that is read for a tile, a valid input size (572 is the paper's:
        of its 388 output px, 384 are kept). By default `tiling.plan_tiles` chooses.
    memory : int, optional
        Bytes that a window may take in the network, for the planner. The default is half of what
        is free when a prediction starts: of the machine's memory, or of the CUDA device's.
    average
        Views of the image whose predictions are averaged. ``rotations``: by 0, 90, 180 and 270
        degrees; ``dihedral``: those and their mirror images; ``seven``: these less the identity.
    device : str or torch.device, optional
        Where the network runs: a module is moved there. By default it runs where it is.
    precision
        ``bfloat16`` runs the network under autocast. What comes out is float32 all the same.
    depth, in_channels, classes, padding, base_channels, wide_last_up : optional
        As in `UNetConfig`. Without a ``config``, `depth` is needed; numbers of channels and classes
        are taken as they come, and the last three are False, 64 and False.

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
        if precision not in get_args(Precision):
            raise InputError(f"precision is {precision!r}: float32 or bfloat16 is needed")
        if tile is not None and memory is not None:
            raise InputError("tile and memory exclude each other: memory is there to choose tiles")
        depth = setting("depth", depth)
        if depth is None:
            raise InputError("the model has no config: depth, its number of poolings, is needed")
        self.model, self.tile, self.memory = model, tile, memory
        self.average, self.precision, self.depth = average, precision, depth
        self.in_channels: int | None = setting("in_channels", in_channels)
        self.classes: int | None = setting("classes", classes)
        self.padding: bool = setting("padding", padding, False)
        self.base_channels: int = setting("base_channels", base_channels, 64)
        self.wide_last_up: bool = setting("wide_last_up", wide_last_up, False)
        self.device, self.dtype = _place(model, device)
        self._stride = None
        if tile is not None:
            self._stride = geometry.stride_of_window(tile, depth, padding=self.padding)

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
        pixels = self._checked(image)
        plans = self._plans(pixels)
        with _bar(plans, progress) as bar:
            return self._mean_of_views(pixels, plans, _softmax, bar)

    def logits(self, image: ArrayLike, *, progress: bool = False) -> NDArray[Any]:
        """Return the network's raw scores, averaged over the views as they are.

        Arguments and errors are those of a call. float32, or float64 if the network's weights are.
        """
        pixels = self._checked(image)
        plans = self._plans(pixels)
        with _bar(plans, progress) as bar:
            return self._mean_of_views(pixels, plans, lambda logits: logits, bar)

    def plan(self, height: int, width: int) -> TilePlan:
        """Return the tiles of an image of this size, from its size and the free memory alone."""
        memory = self.memory
        if memory is None and self.tile is None:
            memory = int(FREE_MEMORY_SHARE * free_memory(self.device))
        return plan_tiles(
            height,
            width,
            depth=self.depth,
            base_channels=self.base_channels,
            in_channels=self.in_channels or 1,
            classes=self.classes or 2,
            padding=self.padding,
            wide_last_up=self.wide_last_up,
            bytes_per_value=2 if self.precision == "bfloat16" else self.dtype.itemsize,
            memory=memory,
            stride=self._stride,
        )

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
        with np.errstate(over="ignore"):  # told below
            pixels = pixels.astype(str(self.dtype).removeprefix("torch."), copy=False)
        if array.dtype.kind == "f" and not np.isfinite(pixels).all():
            channel, y, x = np.argwhere(~np.isfinite(pixels))[0]
            raise InputError(
                f"the image is {array[..., y, x].flat[channel]} at y = {y}, x = {x}: every pixel "
                "must be finite, and within float32"
            )
        return pixels

    def _plans(self, image: NDArray[Any]) -> list[TilePlan]:
        """Return the plan of each view of an image (C, height, width)."""
        shapes = [_turned(image, *view).shape[1:] for view in VIEWS[self.average]]
        plans = {shape: self.plan(*shape) for shape in dict.fromkeys(shapes)}
        return [plans[shape] for shape in shapes]

    def _mean_of_views(
        self,
        image: NDArray[Any],
        plans: list[TilePlan],
        finish: Callable[[Tensor], Tensor],
        bar: tqdm,
    ) -> NDArray[Any]:
        """Predict every view, turn what `finish` makes of its logits back, and average."""
        total: NDArray[Any] | None = None
        with _evaluating(self.model):
            for view, plan in zip(VIEWS[self.average], plans):
                result = self._one_pass(_turned(image, *view), plan, finish, bar)
                back = _turned_back(result, *view)  # (classes, height, width)
                total = np.ascontiguousarray(back) if total is None else np.add(total, back, total)
        assert total is not None
        return np.divide(total, len(plans), total) if len(plans) > 1 else total

    def _one_pass(
        self,
        image: NDArray[Any],
        plan: TilePlan,
        finish: Callable[[Tensor], Tensor],
        bar: tqdm,
    ) -> NDArray[Any]:
        result: NDArray[Any] | None = None
        for row, column in plan:
            logits = self._kept_logits(image, row, column)
            values = finish(logits)[0].cpu().numpy()  # (classes, tile height, tile width)
            if result is None:
                result = np.empty((len(values), plan.height, plan.width), dtype=values.dtype)
            result[:, row.start : row.stop, column.start : column.stop] = values
            bar.update()
        assert result is not None
        return result

    def _kept_logits(self, image: NDArray[Any], row: Tile, column: Tile) -> Tensor:
        """Run the network on a tile's window; return the pixels that the tile keeps, (1, ...)."""
        window = self._window(image, row, column)
        with torch.inference_mode(), autocast(self.precision, self.device):
            logits = self.model(window)
        margin = 0 if self.padding else geometry.margin(self.depth)
        height, width = (size - 2 * margin for size in window.shape[2:])
        classes = logits.shape[1] if self.classes is None else self.classes
        if tuple(logits.shape) != (1, classes, height, width):
            raise InputError(
                f"the model made {tuple(logits.shape)} of {tuple(window.shape)}; with depth "
                f"{self.depth}, (1, {classes}, {height}, {width}) is needed"
            )
        top, left = (tile.start - tile.window_start - margin for tile in (row, column))
        bottom, right = top + row.stop - row.start, left + column.stop - column.start
        kept = logits[..., top:bottom, left:right]
        return kept if kept.dtype == torch.float64 else kept.float()

    def _window(self, image: NDArray[Any], row: Tile, column: Tile) -> Tensor:
        rows = mirror_index(row.window_start, row.window_stop, image.shape[1])
        columns = mirror_index(column.window_start, column.window_stop, image.shape[2])
        # with channels last, convolutions on a CPU take half the time
        pixels = np.ascontiguousarray(np.moveaxis(image, 0, 2)[rows[:, None], columns])
        return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).to(self.device)  # (1, C, h, w)


def mirror_index(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Return the pixels that positions start ... stop - 1 show in an endlessly mirrored line.

    The mirrors stand on the centres of the first and the last of its `size` pixels.

    Examples
    --------
    >>> mirror_index(-2, 7, 3)
    array([2, 1, 0, 1, 2, 1, 0, 1, 2])
    """
    period = max(2 * (size - 1), 1)
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position)


def predict_volume(
    predictor: OverlapTilePredictor, stack: ArrayLike, *, progress: bool = False
) -> NDArray[np.float32]:
    """Return P(class 1) in every slice of a stack in memory.

    Parameters
    ----------
    predictor
        Applied to each slice.
    stack : array_like of int or float, shape (z, y, x) or (z, C, y, x)
        Slices as a call of the predictor takes them.
    progress
        Show a bar that counts the tiles of all slices, on standard error.

    Returns
    -------
    ndarray of float32, shape (z, y, x)
        In [0, 1].

    Raises
    ------
    InputError
        No slices, or one that the predictor refuses.
    """
    slices = np.asarray(stack)
    if slices.ndim not in (3, 4) or not slices.size:
        raise InputError(f"the stack has shape {slices.shape}: (z, y, x), none 0, is needed")
    plans = predictor._plans(predictor._checked(slices[0]))
    result = np.empty((len(slices), *slices.shape[-2:]), dtype=np.float32)
    with _bar(plans * len(slices), progress) as bar:
        for z, image in enumerate(slices):
            pixels = predictor._checked(image)
            result[z] = predictor._mean_of_views(pixels, plans, _softmax, bar)[1]
    return result


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a CUDA device, or of the machine (8 GiB where it does not say)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8 * 2**30
    free = dict(line.split(":") for line in lines)["MemAvailable"]  # "  123456 kB"
    return int(free.split()[0]) * 1024


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


def _bar(plans: list[TilePlan], is_shown: bool) -> tqdm:
    return tqdm(total=sum(map(len, plans)), unit="tile", disable=not is_shown)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1).float()


def _turned(image: NDArray[Any], quarter_turns: int, is_mirrored: bool) -> NDArray[Any]:
    view = np.rot90(image, quarter_turns, axes=(1, 2))
    return view[..., ::-1] if is_mirrored else view


def _turned_back(view: NDArray[Any], quarter_turns: int, is_mirrored: bool) -> NDArray[Any]:
    return np.rot90(view[..., ::-1] if is_mirrored else view, -quarter_turns, axes=(1, 2))
