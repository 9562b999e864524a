import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_repro.errors import InputError, InputNote
from unet_repro.files.lock import exclusive, run_lock
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.stacks import read_images, read_stack, write_stack
from unet_repro.network.model_file import load_model, read_metadata
from unet_repro.reports import drawing
from unet_repro.training.samples import LabelledStack
from unet_repro.training.state import Best
from unet_repro.training_run import _storable, evaluate_run, start_run


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    # most of a report's time; its own tests look at them
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")


@pytest.fixture
def data(two_cells) -> LabelledStack:
    images, labels = two_cells
    return LabelledStack(images, labels, "two cells", "images.tif", "labels.tif", True)


def test_run_folder_is_complete_and_its_record_true(data, tiny, tmp_path):
    folder = tmp_path / "run"
    settings = replace(tiny, val="1:3", seed=7)
    start_run(replace(data, command="the command"), settings, folder, is_quiet=True)
    result = evaluate_run(data, settings, folder, is_quiet=True)
    record = json.loads((folder / "config.json").read_text())
    assert record["data"]["train_slices"] == "0:1, 3:4"
    assert record["data"]["heldout_slices"] == "1:3"
    assert record["data"]["synthetic"] is True
    state = record["state"]
    assert state.keys() == {"iterations", "seconds", "stopped", "collapsed", "best"}
    assert state["iterations"] == 12 and state["stopped"] == "finished"
    assert record["settings"]["tile"] == tiny.tile
    mean = data.images[[0, 3]].mean()
    assert record["settings"]["model"]["input_mean"] == pytest.approx([mean], rel=1e-5)
    np.testing.assert_array_equal(read_stack(folder / "heldout_labels.tif"), data.labels[1:3])
    np.testing.assert_array_equal(read_stack(folder / "heldout_image.tif"), data.images[1:3])
    probability = read_stack(folder / "heldout_probability.tif")
    assert probability.dtype == np.float32 and probability.shape == (2, 64, 64)
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert [row["slice"] for row in result["heldout"]["slices"]] == [1, 2]
    assert (folder / "report.html").stat().st_size > 1000
    # the model says how its weights came about
    made = read_metadata(folder / "model.safetensors")["training"]
    assert record["command"] == "the command"
    assert made["versions"] == record["versions"] and made["settings"]["seed"] == 7
    assert made["processes"] == record["hardware"]["processes"] == 1
    pixels = np.ascontiguousarray(data.images).tobytes()
    assert made["data"]["images_sha256"] == hashlib.sha256(pixels).hexdigest()
    assert "images.tif" not in json.dumps(made)  # where they lay is nobody's business
    best, kept = record["state"]["best"], read_metadata(folder / "best.safetensors")["training"]
    assert kept["iterations"] == best["iteration"]
    assert kept["validation_pixel_error"] == best["pixel_error"]


def test_held_out_slices_do_not_reach_training(data, tiny, tmp_path):
    settings = replace(tiny, val="1:3", validate_every=12)
    start_run(data, settings, tmp_path / "a", is_quiet=True)
    other = replace(data, images=data.images.copy(), labels=data.labels.copy())
    other.images[1:3] = 7
    other.labels[1:3] = 0
    other.labels[1, :5] = 255
    start_run(other, settings, tmp_path / "b", is_quiet=True)
    first, second = (tmp_path / name / "model.safetensors" for name in "ab")
    assert first.read_bytes()[-1000:] == second.read_bytes()[-1000:]


def test_slices_held_out_here_and_there_keep_their_numbers(data, tiny, tmp_path, capsys):
    settings = replace(tiny, val="3, 1", iterations=2)
    start_run(data, settings, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert "val: 3, 1 holds out slices 1, 3" in lines
    leak = (
        "2 of 2 held-out slices are next to a training slice of the same stack and nearly the same "
        "image: figures there are optimistic"
    )
    assert f"val: {leak}" in lines
    result = evaluate_run(data, settings, tmp_path / "run", is_quiet=True)
    assert [row["slice"] for row in result["heldout"]["slices"]] == [1, 3]
    stored = read_stack(tmp_path / "run/heldout_image.tif")
    np.testing.assert_array_equal(stored, data.images[[1, 3]])
    stored = read_stack(tmp_path / "run/heldout_labels.tif")
    np.testing.assert_array_equal(stored, data.labels[[1, 3]])
    record = json.loads((tmp_path / "run/config.json").read_text())["data"]
    assert (record["train_slices"], record["heldout_slices"]) == ("0:1, 2:3", "1:2, 3:4")
    assert record["beside_training"] == leak
    page = (tmp_path / "run/report.html").read_text()
    assert f"{leak}." in page and "trained on slices 0, 2" in page
    copy = f"unet-repro predict {tmp_path}/run/heldout_image.tif --model NEW_RUN/model.safetensors"
    assert f"{copy} --average" in page and "--z" not in page


def test_images_of_a_folder_are_held_out_by_name_and_are_no_neighbours(
    data, tiny, tmp_path, capsys
):
    files = replace(data, names=("a.png", "b.png", "c.png", "d.png"))
    settings = replace(tiny, val="d,b", iterations=1)
    start_run(files, settings, tmp_path)
    said = capsys.readouterr().err
    assert "val: d,b holds out slices 1, 3 (b.png, d.png)\n" in said and "next to" not in said
    record = json.loads((tmp_path / "config.json").read_text())["data"]
    assert record["heldout_slices"] == "1:2, 3:4" and "beside_training" not in record
    with pytest.raises(InputError, match=r"no image is called 'e'; the nearest name is"):
        start_run(files, replace(settings, val="e"), tmp_path, overwrite=True)


def test_a_run_that_begins_from_a_model_says_so(data, tiny, tmp_path, capsys):
    start_run(data, tiny, tmp_path / "first", is_quiet=True)
    model = tmp_path / "first/model.safetensors"
    settings = replace(tiny, init=str(model), model=load_model(model).config, iterations=2)
    brighter = replace(data, images=data.images + 20)
    start_run(brighter, settings, tmp_path / "second")
    mean, std = data.images.mean(), data.images.std()
    line = (
        "4 channels, 2 classes, from model.safetensors; input statistics of the model (mean "
        f"{mean:.4g}, deviation {std:.4g}; the images have {mean + 20:.4g}, {std:.4g})"
    )
    assert f"init: {line}" in capsys.readouterr().err.splitlines()
    record = json.loads((tmp_path / "second/config.json").read_text())
    assert record["init"]["line"] == line and record["init"]["name"] == "model.safetensors"
    assert record["settings"]["init"] == str(model)
    assert record["settings"]["model"]["input_mean"] == [pytest.approx(mean, rel=1e-5)]
    made = read_metadata(tmp_path / "second/model.safetensors")["training"]
    assert made["init"] == record["init"] and "first" not in json.dumps(made)
    assert len(record["init"]["sha256"]) == 64
    evaluate_run(brighter, settings, tmp_path / "second", is_quiet=True)
    page = (tmp_path / "second/report.html").read_text()
    assert "Initial weights" in page and line in page
    assert f"--init {model} " in page and "model.depth" not in page
    far = replace(data, images=data.images * 257.0)
    with pytest.warns(InputNote, match="far from what the network expects"):
        start_run(far, replace(settings, iterations=1), tmp_path / "far", is_quiet=True)
    with pytest.raises(InputError, match="made with other initial weights"):
        start_run(brighter, replace(tiny, iterations=2), tmp_path / "second", resume=True)
    other = replace(settings, model=replace(settings.model, depth=3))
    with pytest.raises(InputError, match="its network has depth = 2, not 3"):
        start_run(brighter, other, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    before = model.read_bytes()
    with pytest.raises(InputError, match="would be among the files of"):  # it would be replaced
        start_run(brighter, settings, tmp_path / "first", overwrite=True)
    assert model.read_bytes() == before


def test_patience_needs_held_out_slices_and_is_recorded(data, tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"patience is 1: .* needs held-out slices \(--val\)"):
        start_run(data, replace(tiny, patience=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("unet_repro.training.train.Best", lambda k, error: Best(k, 0.0))
    settings = replace(tiny, patience=2, val="1:3", validate_every=2, iterations=30)
    start_run(data, settings, tmp_path / "run", is_quiet=True)
    evaluate_run(data, settings, tmp_path / "run", is_quiet=True)
    state = json.loads((tmp_path / "run/config.json").read_text())["state"]
    assert (state["stopped"], state["iterations"]) == ("patience", 6)
    page = (tmp_path / "run/report.html").read_text()
    assert "stopped early by its patience" in page and "--patience 2" in page


def test_classes_of_colour_images_of_several_sizes(tiny, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (64, 30), (33, 48)]
    labels = [np.zeros(size, np.uint8) for size in sizes]
    for one in labels:
        one[4:20, 4:15], one[8:30, 18:28], one[:2] = 1, 2, 9
    images = [rng.integers(0, 255, (3, *size)).astype(np.uint16) for size in sizes]
    how = LabelSettings("classes", ignore_label=9)
    data = LabelledStack(images, labels, "colours", "images", "labels", how=how)
    model = replace(tiny.model, classes=3, in_channels=3)
    settings = replace(tiny, model=model, val="1:3", iterations=2, validate_every=2)
    folder = tmp_path / "run"
    trained = start_run(data, settings, folder, is_quiet=True)
    result = evaluate_run(data, settings, folder, average="none", is_quiet=True)
    confusion = np.array(result["heldout"]["confusion"])
    known = [one != 9 for one in labels[1:]]
    assert confusion.sum() == sum(map(np.count_nonzero, known)) and result["unknown_label"] == 255
    for z, is_known in zip((1, 2), known):
        written = read_stack(folder / f"heldout_labels/{z}.tif")[0]
        np.testing.assert_array_equal(written, np.where(is_known, labels[z], 255))
        image = read_images(folder / f"heldout_image/{z}.tif", channels=3)
        np.testing.assert_array_equal(image[0], images[z])
        found = read_stack(folder / f"heldout_prediction/{z}.tif")[0]
        for k in range(3):
            confusion[k] -= np.bincount(found[(written == k)], minlength=3)
    assert not confusion.any()
    assert trained.best is not None
    accuracy = result["heldout"]["figures"]["pixel_accuracy"]
    assert trained.best.pixel_error == pytest.approx(1 - accuracy, abs=1e-3)
    assert "Confusion matrix" in (folder / "report.html").read_text()


def test_held_out_slices_of_several_sizes_are_files_of_their_own(data, tiny, tmp_path):
    sizes = [(64, 64), (64, 50), (40, 64), (64, 50)]
    several = replace(
        data,
        images=[image[:y, :x] for image, (y, x) in zip(data.images, sizes)],
        labels=[
            np.where(one[:y, :x] > 0, 70_000 * (z + 1), 0)
            for z, (one, (y, x)) in enumerate(zip(data.labels, sizes))
        ],
        how=LabelSettings("ids"),
    )
    settings = replace(tiny, val="1:3", iterations=2, validate_every=2)
    start_run(several, settings, tmp_path, is_quiet=True)
    result = evaluate_run(several, settings, tmp_path, is_quiet=True)
    record = json.loads((tmp_path / "config.json").read_text())["data"]
    pixels = b"".join(np.ascontiguousarray(image).tobytes() for image in several.images)
    assert record["images_sha256"] == hashlib.sha256(pixels).hexdigest()
    assert record["slices"] == 4
    for name in ("image", "labels", "probability"):
        assert not (tmp_path / f"heldout_{name}.tif").exists()
        read = read_stack(tmp_path / f"heldout_{name}")
        assert [image.shape for image in read] == [(64, 50), (40, 64)]
    ranks = read_stack(tmp_path / "heldout_labels")  # of 140000 and 210000
    assert [np.unique(image).tolist() for image in ranks] == [[0, 1], [0, 2]]
    assert [row["slice"] for row in result["heldout"]["slices"]] == [1, 2]
    (tmp_path / "heldout_image" / "notes.txt").write_text("mine")
    start_run(data, settings, tmp_path, overwrite=True, is_quiet=True)
    evaluate_run(data, settings, tmp_path, is_quiet=True)
    assert read_stack(tmp_path / "heldout_image.tif").shape == (2, 64, 64)
    assert [path.name for path in tmp_path.glob("heldout_*/*")] == ["notes.txt"]
    # where a run's images differ in size, its folders hold also what agrees
    equal = replace(settings, val="1:2")
    start_run(several, equal, tmp_path, overwrite=True, is_quiet=True)
    evaluate_run(several, equal, tmp_path, is_quiet=True)
    assert [path.name for path in tmp_path.glob("heldout_labels*/*")] == ["1.tif"]
    assert not list(tmp_path.glob("heldout_*.tif"))


def test_an_existing_run_is_neither_overwritten_nor_resumed_unasked(data, tiny, tmp_path):
    start_run(data, replace(tiny, val="1:3"), tmp_path, is_quiet=True)
    assert (tmp_path / "best.safetensors").exists()
    events = set(tmp_path.glob("events.out.tfevents.*"))
    # overwriting removes all that training wrote; nothing is held out now
    start_run(data, tiny, tmp_path, overwrite=True, is_quiet=True)
    assert not (tmp_path / "best.safetensors").exists()
    assert not events & set(tmp_path.glob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "config.json").read_text())["state"]["best"] is None
    assert evaluate_run(data, tiny, tmp_path, is_quiet=True)["heldout"] is None
    assert (tmp_path / "report.html").exists()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        start_run(data, tiny, tmp_path, is_quiet=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    resumed = start_run(data, tiny, tmp_path, resume=True, is_quiet=True)
    assert resumed.iterations == 12


def test_what_is_refused_makes_no_folder(data, tiny, tmp_path):
    with pytest.raises(InputError, match="--val"):
        start_run(data, replace(tiny, val="0:4"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        start_run(data, tiny, tmp_path / "file" / "run")


def test_a_refused_resume_or_overwrite_changes_no_file(data, tiny, tmp_path):
    settings = replace(tiny, val="1:3")
    start_run(data, settings, tmp_path, is_quiet=True)
    evaluate_run(data, settings, tmp_path, is_quiet=True)
    (tmp_path / "submission.tif").write_bytes(b"as it was")

    def contents():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = contents()
    with pytest.raises(InputError, match="was made with seed"):
        start_run(data, replace(settings, seed=3), tmp_path, resume=True)
    other = replace(settings, augmentation=replace(settings.augmentation, unwarped=0.5))
    with pytest.raises(InputError, match=r"made with augmentation.unwarped = 0.0, not 0.5; "):
        start_run(data, other, tmp_path, resume=True)
    flat = replace(data, images=np.full_like(data.images, 7))
    with pytest.raises(InputError, match="nothing to learn"):
        start_run(flat, settings, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="give one"):
        start_run(data, settings, tmp_path, resume=True, overwrite=True)
    assert contents() == before
    # going on makes the old figures stale; so does beginning anew
    start_run(data, replace(settings, iterations=13), tmp_path, resume=True, is_quiet=True)
    assert not {"metrics.json", "submission.tif", "heldout_image.tif"} & set(contents())


def test_a_run_begun_before_a_setting_existed_goes_on(data, tiny, tmp_path):
    settings = replace(tiny, iterations=4)
    start_run(data, settings, tmp_path, is_quiet=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    identity = json.loads(state["identity"])
    del identity["augmentation"]["unwarped"]
    torch.save(state | {"identity": json.dumps(identity)}, tmp_path / "checkpoint.pt")
    longer = replace(settings, iterations=6)
    assert start_run(data, longer, tmp_path, resume=True, is_quiet=True).iterations == 6
    torch.save(state | {"identity": json.dumps(identity)}, tmp_path / "checkpoint.pt")
    other = replace(longer, augmentation=replace(longer.augmentation, unwarped=0.5))
    with pytest.raises(InputError, match="was made with augmentation"):
        start_run(data, other, tmp_path, resume=True)


def test_the_report_is_there_from_the_first_validation_on_and_changes_no_bit(
    data, tiny, tmp_path, monkeypatch
):
    import unet_repro.training_run as run_module

    seen, write = [], run_module.write_report

    def write_and_look(folder):
        write(folder)
        state = json.loads((folder / "config.json").read_text())["state"]
        seen.append((state["iterations"], state["stopped"], (folder / "report.html").read_text()))

    settings = replace(tiny, val="1:3", validate_every=3)
    monkeypatch.setattr(run_module, "write_report", write_and_look)
    start_run(data, settings, tmp_path / "a", is_quiet=True)
    assert [(iterations, stopped) for iterations, stopped, _ in seen] == [
        (iterations, "running") for iterations in (3, 6, 9, 12)
    ]
    assert all("still running when this page was written" in page for *_, page in seen)
    assert "lowest pixel error of a validation so far is" in " ".join(seen[0][2].split())
    monkeypatch.setattr(run_module, "write_report", lambda folder: None)
    start_run(data, settings, tmp_path / "b", is_quiet=True)
    first, second = (load_model(tmp_path / name / "model.safetensors") for name in "ab")
    for one, other in zip(first.parameters(), second.parameters()):
        assert torch.equal(one, other)


def test_what_a_killed_run_was_writing_is_removed(data, tiny, tmp_path):
    settings = replace(tiny, iterations=2)
    start_run(data, settings, tmp_path, is_quiet=True)
    stale = (".checkpoint.0123abcd.pt", ".log.0123abcd.csv", ".heldout_image.0123abcd.tif")
    others = (".notes.pt", ".checkpoint.mine.pt", "checkpoint.0123abcd.pt")
    for name in (*stale, *others):
        (tmp_path / name).write_bytes(b"half")
    start_run(data, settings, tmp_path, resume=True, is_quiet=True)
    assert not any((tmp_path / name).exists() for name in stale)
    assert all((tmp_path / name).exists() for name in others)


def test_any_type_that_can_be_read_is_evaluated(data, tiny, tmp_path):
    settings = replace(tiny, val="1:3", iterations=1)
    other = replace(data, images=data.images.astype("int16"), labels=data.labels > 0)
    start_run(other, settings, tmp_path, is_quiet=True)
    evaluate_run(other, settings, tmp_path, is_quiet=True)
    np.testing.assert_array_equal(read_stack(tmp_path / "heldout_image.tif"), data.images[1:3])
    np.testing.assert_array_equal(read_stack(tmp_path / "heldout_labels.tif"), other.labels[1:3])


@pytest.mark.parametrize(
    ("dtype", "values", "stored"),
    [
        ("float64", [0.5, -2, 1e9], [0.5, -2, 1e9]),
        ("int64", [0, 7, 65535], [0, 7, 65535]),
        ("uint32", [0, 70_000, 9], [0, 2, 1]),  # beyond 16 bits: ranks
        ("int16", [-5, 40, 0], [0, 2, 1]),
    ],
)
def test_stacks_are_stored_in_types_that_every_reader_takes(tmp_path, dtype, values, stored):
    write_stack(tmp_path / "a.tif", _storable(np.array([[values]], dtype)))
    found = read_stack(tmp_path / "a.tif")
    assert found.tolist() == [[stored]] and found.dtype.name in ("float32", "uint16")


def test_one_process_at_a_time_writes_a_run(data, tiny, tmp_path):
    start_run(data, replace(tiny, iterations=2), tmp_path, is_quiet=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert ".lock" not in before
    with exclusive(tmp_path / ".lock", "busy"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="another process is writing it"):
                start_run(data, tiny, tmp_path, is_quiet=True, **options)
        with pytest.raises(InputError, match="another process is writing it"):
            evaluate_run(data, tiny, tmp_path, is_quiet=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_job_holds_its_run_from_step_to_step(data, tiny, tmp_path):
    settings = replace(tiny, iterations=2, val="1:3")
    with run_lock(tmp_path):
        for step in (start_run, evaluate_run):
            step(data, settings, tmp_path, is_quiet=True)
            with pytest.raises(InputError, match="busy"), exclusive(tmp_path / ".lock", "busy"):
                pass
    assert not (tmp_path / ".lock").exists()
