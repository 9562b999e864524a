"""What the fixtures of this folder give."""

from dataclasses import dataclass
from pathlib import Path

NAMES = ("train-volume.tif", "train-labels.tif", "test-volume.tif")


@dataclass(frozen=True)
class Inputs:
    """A folder with images.tif, labels.tif, probability.tif, m.safetensors, slices/, set.zip."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name
