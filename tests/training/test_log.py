import csv
import os
import sys

import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.training.log import COLUMNS, TrainLog


def row(iteration, **more):
    return {"iteration": iteration, "seconds": 1.5, "learning_rate": 0.25, "loss": 0.5, **more}


def iterations(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [line["iteration"] for line in csv.DictReader(file)]


@pytest.fixture
def accumulator(tmp_path):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read():
        found = module.EventAccumulator(str(tmp_path))
        found.Reload()
        return found

    return read


def test_of_several_channels_three_are_colours_and_others_the_first(tmp_path, monkeypatch):
    shown = {}

    class Events:
        def add_image(self, name, picture, iteration, dataformats):
            shown[name] = dataformats, picture.shape

        flush = close = lambda self: None

    monkeypatch.setattr("unet_repro.training.log._events", lambda *_: Events())
    pictures = {str(channels): np.zeros((channels, 700, 30), np.uint8) for channels in (2, 3)} | {
        "grey": np.zeros((9, 8), bool)
    }
    with TrainLog(tmp_path, 0) as opened:
        opened.show(20, pictures)
    assert shown == {
        "held_out/2": ("HW", (350, 15)),
        "held_out/3": ("CHW", (3, 350, 15)),
        "held_out/grey": ("HW", (9, 8)),
    }


def test_rows_are_there_at_once_and_in_order(tmp_path):
    with TrainLog(tmp_path, 0) as log:
        log.write(row(20))
        log.write(row(40, validation_loss=0.25, validation_pixel_error=0.125))
        text = (tmp_path / "log.csv").read_text().splitlines()
    assert text == [",".join(COLUMNS), "20,1.5,0.25,0.5,,", "40,1.5,0.25,0.5,0.25,0.125"]


def test_a_resumed_log_goes_on_from_its_iteration(tmp_path):
    with TrainLog(tmp_path, 0) as log:
        for iteration in (20, 40, 60):
            log.write(row(iteration))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("6a,garbage\n7,1,2,3,4,5,6,7\n")
    with TrainLog(tmp_path, 50) as log:
        log.write(row(60))
    assert iterations(tmp_path) == ["20", "40", "60"]
    with TrainLog(tmp_path, 0) as log:  # a new run
        log.write(row(20))
    assert iterations(tmp_path) == ["20"]


def test_rows_stay_whenever_a_resumed_run_is_killed(tmp_path, monkeypatch):
    """Also before it writes its first row, and while the table is rewritten."""
    with TrainLog(tmp_path, 0) as log:
        for iteration in (20, 40):
            log.write(row(iteration))
    before = (tmp_path / "log.csv").read_bytes()
    replace, seen = os.replace, []

    def look(*paths):
        seen.append((tmp_path / "log.csv").read_bytes())
        replace(*paths)
        seen.append((tmp_path / "log.csv").read_bytes())

    monkeypatch.setattr(os, "replace", look)
    log = TrainLog(tmp_path, 40)
    seen.append((tmp_path / "log.csv").read_bytes())  # a kill comes here: nothing is flushed
    log.__exit__()
    assert seen == [before] * 3


@pytest.mark.parametrize("torn", ["4", "40,1.5,0.2", "40,1.5,0.25,0.5,,"])
def test_a_torn_row_is_no_row(tmp_path, torn):
    """A full disk took a part of it; a part of a number is another number."""
    with TrainLog(tmp_path, 0) as log:
        log.write(row(20))
    with (tmp_path / "log.csv").open("a") as file:
        file.write(torn)
    with TrainLog(tmp_path, 40) as log:
        log.write(row(60))
    assert iterations(tmp_path) == ["20", "60"]


def test_a_full_disk_is_one_line(tmp_path):
    with TrainLog(tmp_path, 0) as log:
        log.write(row(20))
        file = log.file

        class Full:
            def write(self, line):
                return file.write(line[:5])  # what write(2) does when the disk fills up

            def close(self):
                file.close()

        log.file = Full()
        with pytest.raises(InputError, match="the log cannot be written: No space left"):
            log.write(row(40))
    with TrainLog(tmp_path, 20) as log:
        log.write(row(40))
    assert iterations(tmp_path) == ["20", "40"]


def test_tensorboard_has_the_same_scalars_and_no_step_twice(tmp_path, accumulator):
    with TrainLog(tmp_path, 0) as log:
        for iteration in (20, 40, 60):
            log.write(row(iteration))
    with TrainLog(tmp_path, 50) as log:  # killed after 60, resumed from 50
        log.write(row(60, validation_loss=0.25, validation_pixel_error=0.125))
        log.write(row(80))
    found = accumulator()
    assert sorted(found.Tags()["scalars"]) == sorted(COLUMNS[1:])
    assert [event.step for event in found.Scalars("loss")] == [20, 40, 60, 80]
    assert [(e.step, e.value) for e in found.Scalars("validation_pixel_error")] == [(60, 0.125)]


def test_tensorboard_shows_slices(tmp_path, accumulator):
    picture = np.zeros((600, 1100), np.uint16)
    picture[:, 550:] = 4000
    with TrainLog(tmp_path, 0) as log:
        log.show(20, {"image": picture, "labels": np.ones((8, 9), np.uint8)})
    found = accumulator()
    assert found.Tags()["images"] == ["held_out/image", "held_out/labels"]
    (event,) = found.Images("held_out/image")
    assert (event.step, event.height, event.width) == (20, 200, 367)  # every third px


def test_without_tensorboard_only_the_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TrainLog(tmp_path, 0) as log:
        log.write(row(20))
        log.show(20, {"image": np.zeros((4, 4))})
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
