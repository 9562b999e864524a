"""What a prediction of a stack will take, to be shown before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from unet_repro.prediction.tiling import TilePlan


@dataclass(frozen=True)
class StackPlan:
    """What a prediction of a stack will take.

    Parameters
    ----------
    tiles
        The plan of each slice.
    slices
        How many there are.
    views, batch
        Views of each tile, and how many go through the network at once.
    peak_bytes
        Memory beyond what the process holds before: the network's and the buffers'.
    output_bytes
        Of the output, before compression.
    layout
        Of the output's pages.
    seconds
        Estimated from the speed on a small window, on the machine as busy as it was then.
    """

    tiles: TilePlan
    slices: int
    views: int
    batch: int
    peak_bytes: int
    output_bytes: int
    layout: str
    seconds: float

    def __str__(self) -> str:
        plan = self.tiles
        rows, columns = plan.rows, plan.columns
        kept = [max(tile.stop - tile.start for tile in axis) for axis in (rows, columns)]
        lines = {
            "slices": f"{self.slices}",
            "tiles per slice": f"{len(plan)} ({len(rows)} down x {len(columns)} across)",
            "tile": f"{kept[0]} x {kept[1]} px of a window of {_by(plan.window)} px",
            "views": f"{self.views} ({self.batch} at once)",
            "redundant compute": f"{plan.redundancy:.3f} x one pass over the whole image",
            "peak memory": f"{size_text(self.peak_bytes)}",
            "output": f"{size_text(self.output_bytes)} before compression, {self.layout}",
            "time": f"about {_duration(self.seconds)}",
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def size_text(n_bytes: float) -> str:
    """Return a size in words.

    Examples
    --------
    >>> size_text(999), size_text(1023999), size_text(8 * 2**30)
    ('999 B', '1000 KiB', '8 GiB')
    """
    unit = 0
    while n_bytes >= 1023.5 and unit < 4:
        n_bytes, unit = n_bytes / 1024, unit + 1
    digits = f"{n_bytes:.0f}" if n_bytes >= 100 or unit == 0 else f"{n_bytes:.3g}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
