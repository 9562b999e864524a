"""Settings of a streamed prediction: the flags of `predict`, the keywords of `predict_stack`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from unet_repro import quantities
from unet_repro.choices import Average, Backend, Compression, Kind, Ngff, Precision
from unet_repro.config import SHARD_PX
from unet_repro.errors import InputError

LARGEST_GROWTH_PX = 64.0


@dataclass(frozen=True)
class PredictionSettings:
    """What to make of a stack.

    Parameters
    ----------
    kind
        probability: float32 P(class 1), of more than two classes a channel for each; uint8: the
        same, 0 to 255, rounded; labels: the most probable class, or with a threshold 1 where
        P(class 1) is above it; mask: 255 where that is above 0, else 0; logits: scores of all
        classes, which become channels; instances: the 4-connected components of the mask,
        numbered 1, 2, ... in each slice.
    dtype
        auto; uint8 or uint16 for labels; float32 or float16 for logits. Instances are uint8, uint16
        or uint32, whatever holds the largest number.
    threshold
        Of P(class 1), in [0, 1); for kinds labels, mask and instances. Of more than two classes,
        of `of_class`.
    of_class
        One class in place of class 1, or of all: a single plane of it.
    min_size
        Instances of fewer px are dropped, counted before they grow.
    grow
        "auto", or px, 0 for none: instances that training parted get the ridge between them back.
        auto is the separation_px of a network that was trained with separate_touching.
    average
        Views of each slice whose predictions are averaged.
    tile
        "auto", or the side of the tiles' input in px (572 is the paper's).
    memory
        What the prediction may take beyond what the process holds before, such as 8GiB; empty for
        half of what is free, on a CPU at most 2 GiB (1 GiB in bfloat16).
    axes
        Of the stack, in place of those that the file declares, such as ZYX.
    z
        Slices a:b only (a ... b-1).
    roi
        Rows and columns y0:y1,x0:x1 only; the result is that part of the whole prediction.
    precision
        auto: bfloat16 where the hardware multiplies in it; on a processor that does not, bfloat16
        is slow and takes up to five times the memory planned.
    backend
        torch; compile (torch.compile); openvino (an extra, in up to twice the memory); auto:
        openvino where it is installed and was measured to be faster (float32 on a processor with
        AVX2 and without AVX-512, by 4 to 17 %), else torch; --plan and the record say which, and
        --resume keeps to it.
    compression
        Of the output, lossless; ImageJ reads zlib, lzw and none. auto: none for floats, of which a
        sixth would be saved in half the time of a small network, else zlib. OME-Zarr is zstd, or
        none.
    level
        Of an OME-Zarr image that is read; 0 is the finest.
    ngff
        Version of the OME-Zarr image that is written: 0.5, sharded; or 0.4, which has no shards,
        for older readers.
    shard
        Side in px of what is computed, kept and, after a kill, computed again as one, where the
        output is OME-Zarr: a multiple of 16.
    """

    kind: Kind = "probability"
    dtype: Literal["auto", "uint8", "uint16", "float16", "float32"] = "auto"
    threshold: float | None = None
    of_class: Annotated[int | None, tyro.conf.arg(name="class")] = None
    min_size: int = 0
    grow: float | Literal["auto"] = "auto"
    average: Average = "none"
    tile: int | Literal["auto"] = "auto"
    memory: int | str = ""
    axes: str = ""
    z: str = ""
    roi: str = ""
    precision: Literal["auto"] | Precision = "float32"
    backend: Literal["auto"] | Backend = "torch"
    compression: Literal["auto"] | Compression = "auto"
    level: int = 0
    ngff: Ngff = "0.5"
    shard: int = SHARD_PX

    def __post_init__(self) -> None:
        if self.shard < 16 or self.shard % 16:
            raise InputError(f"shard is {self.shard}: a multiple of 16 px is needed, as {SHARD_PX}")
        if self.tile != "auto" and self.memory != "":
            raise InputError("tile and memory exclude each other: memory is there to choose tiles")
        self._check_instances()
        if isinstance(self.memory, int) and self.memory < 1:
            raise InputError(f"memory is {self.memory}: a number of bytes above 0 is needed")
        if isinstance(self.memory, str) and self.memory:
            object.__setattr__(self, "memory", quantities.memory_bytes(self.memory))

    def _check_instances(self) -> None:
        if self.kind != "instances" and (self.min_size != 0 or self.grow != "auto"):
            name = "min_size" if self.min_size != 0 else "grow"
            raise InputError(f"{name} goes with kind instances; the kind is {self.kind}")
        if self.min_size < 0:
            raise InputError(f"min_size is {self.min_size}: it must be 0 px or more")
        if self.grow != "auto" and not 0 <= self.grow <= LARGEST_GROWTH_PX:
            raise InputError(
                f"grow is {self.grow}: auto, or 0 to {LARGEST_GROWTH_PX:g} px is needed"
            )

    def growth_px(self, separation_px: float) -> float:
        """Return the px of `grow`; "auto" is what training has parted touching cells by."""
        if self.grow != "auto":
            return float(self.grow)
        if separation_px > LARGEST_GROWTH_PX:
            raise InputError(
                f"the network was trained with cells {separation_px:g} px apart: instances grow by "
                f"at most {LARGEST_GROWTH_PX:g} px; --grow says by how much, 0 for not at all"
            )
        return separation_px

    @property
    def memory_bytes(self) -> int | None:
        """The bytes of `memory`, None where nothing is said."""
        return self.memory if isinstance(self.memory, int) else None

    @property
    def tile_px(self) -> int | None:
        """The side of `tile`, None where it is to be planned."""
        return None if self.tile == "auto" else int(self.tile)

    def region(self, height: int, width: int) -> tuple[range, range]:
        """Return the rows and columns of `roi` in a page of this size.

        Raises
        ------
        InputError
            It is none, or not within the page.
        """
        if not self.roi:
            return range(height), range(width)
        rows, comma, columns = self.roi.partition(",")
        if not comma:
            raise InputError(f"--roi {self.roi!r:.40}: rows and columns y0:y1,x0:x1 are needed")
        return (
            quantities.index_range(rows, length=height, name="--roi, rows,"),
            quantities.index_range(columns, length=width, name="--roi, columns,"),
        )

    def slices(self, number: int) -> range:
        """Return the slices of `z` in a stack of this many; errors as `region`."""
        if not self.z:
            return range(number)
        return quantities.index_range(self.z, length=number, name="--z")
