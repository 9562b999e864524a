"""A folder with images of several sizes: each is planned and predicted as a stack of its own.

They are put together in a private folder, which gets the output's name when all are complete.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.files.atomic import check_folder
from unet_repro.files.block_store import BlockStore
from unet_repro.images.finished import is_finished
from unet_repro.images.stack_reader import StackReader
from unet_repro.prediction.outputs import Destination
from unet_repro.prediction.plan import FolderOutlook, estimated_seconds
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.stack_prediction import StackPrediction, check_verifiable
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.progress import ProgressBar

_DONE = np.ones(1, np.uint8)  # an image that is complete


@dataclass(frozen=True)
class FolderPrediction:
    """Images, a network and what to make of them, checked and planned before anything runs."""

    path: Path  # of the folder to write
    images: tuple[StackPrediction, ...]  # each into a file of it

    @property
    def predictor(self) -> OverlapTilePredictor:
        """The network of all images."""
        return self.images[0].predictor

    def outlook(self) -> FolderOutlook:
        """Return what the run will take, with the time, from a measurement of the speed."""
        plans = [image.plan for image in self.images]
        largest = max(plans, key=lambda plan: plan.peak_bytes)
        flops = sum(plan.tiles.flops for plan in plans)
        seconds = estimated_seconds(self.predictor, largest.tiles, 1)
        kinds = Counter(image.layout for image in self.images)
        return FolderOutlook(
            plans=plans,
            largest=largest,
            views=len(self.predictor.views),
            output_bytes=sum(image.destination.n_bytes for image in self.images),
            layout=", ".join(f"{number} files: {kind}" for kind, number in kinds.items()),
            seconds=seconds * flops / largest.tiles.flops,
            network=self.predictor.way,
        )

    def run(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        verify: bool = False,
        progress: bool = False,
    ) -> bool:
        """Predict and write; arguments and errors are those of `predict_stack`."""
        check_folder(self.path, [image.destination.path.name for image in self.images])
        if verify:
            check_verifiable(self.predictor)
        with BlockStore(self.path, resume=resume, overwrite=overwrite, is_folder=True) as store:
            planes = self.images[0].destination.planes
            if is_finished(store, self._infos(store.target), channels=planes):
                return True
            images = self.images if store.record is None else self._continued(store.record)
            # a block for each image, which tells that its file is complete
            store.begin(_record(images), shape=(len(images),), dtype=np.uint8, chunks=(1,))
            if store.is_complete:
                return True
            self._predict(images, store, verify=verify, progress=progress)
            for image in images:
                image.source.check_unchanged()
            store.finish(lambda whole: None)  # it is there
            return True

    def _predict(
        self,
        images: tuple[StackPrediction, ...],
        store: BlockStore,
        *,
        verify: bool,
        progress: bool,
    ) -> None:
        """Predict the images that are not there yet, into the store's private folder."""
        files = [store.whole / image.destination.path.name for image in images]
        unmarked = set(store.blocks.missing(heals=True).tolist())
        missing = [k for k, file in enumerate(files) if k in unmarked or not file.is_file()]
        for k in missing:
            store.blocks.discard(k)
        tiles = [len(image.job) for image in images]
        done = sum(tiles) - sum(tiles[k] for k in missing)
        try:
            store.whole.mkdir(exist_ok=True)
        except OSError as error:
            raise store.unwritable(error) from error
        with (
            self.predictor.running() as runner,
            ProgressBar(sum(tiles), initial=done, unit="tile", is_shown=progress) as bar,
        ):
            for k in missing:
                _predict_image(images[k], store.whole, runner, bar, verify=verify)
                store.blocks.write(k, _DONE)

    def _infos(self, target: Path) -> dict[Path, str]:
        """Return what each file of the output records."""
        return {
            target / image.destination.path.name: image.job.info(image.source.path.name)
            for image in self.images
        }

    def _continued(self, record: dict[str, Any]) -> tuple[StackPrediction, ...]:
        """Return the images with the tiles of an unfinished run, if they are as many."""
        plans = record.get("plan")
        if not isinstance(plans, list) or len(plans) != len(self.images):
            return self.images  # of other images: the store says so
        return tuple(
            replace(image, job=image.continued({"plan": plan}))
            for image, plan in zip(self.images, plans)
        )


def _record(images: tuple[StackPrediction, ...]) -> dict[str, Any]:
    """Return all that decides the values, as JSON takes it."""
    records = [image.job.record() for image in images]
    given = images[0].job.settings
    return {
        **records[0],
        "settings": {**records[0]["settings"], "z": given.z, "roi": given.roi},
        "source": [record["source"] for record in records],
        "plan": [record["plan"] for record in records],
    }


def _predict_image(
    image: StackPrediction, folder: Path, runner: TileRunner, bar: ProgressBar, *, verify: bool
) -> None:
    """Predict one image into a folder of our own, or go on with it."""
    source, destination = image.source, image.destination
    source.check_unchanged()
    with StackReader(  # opened now and closed again: a PNG file is decoded as a whole
        source.path,
        channels=source.channels,
        axes=image.job.settings.axes or None,
        cache_bytes=image.buffers.cache_bytes,
        files=[source.path / source.names[0]],
    ) as reader:
        assert isinstance(destination, Destination)
        here = replace(destination, path=folder / destination.path.name)
        opened = replace(image, source=reader, destination=here)
        opened.run(resume=True, overwrite=True, verify=verify, runner=runner, bar=bar)
