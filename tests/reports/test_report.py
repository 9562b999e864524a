import base64
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from unet_repro import config
from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack
from unet_repro.reports import drawing, evaluation, report
from unet_repro.reports.report import write_report

LOG_HEADER = "iteration,seconds,learning_rate,loss,validation_loss,validation_pixel_error\r\n"


class Page(HTMLParser):
    """What a reader of a page gets: its text, its tags, and every address it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: dict[str, np.ndarray] = {}
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.addresses += [v for k, v in found.items() if k in ("src", "href", "xlink:href")]
        if tag == "img":
            png = base64.b64decode(found["src"].partition("base64,")[2])
            self.images[found["alt"]] = imagecodecs.png_decode(png)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def heldout() -> dict[str, np.ndarray]:
    """Four slices of nine cells: one merger, perfect, membranes gone, one membrane too many."""
    inside = np.arange(48) % 16 >= 2
    labels = np.zeros((4, 48, 48), np.uint8)
    labels[:, inside[:, None] & inside] = 255
    probability = np.where(labels > 0, 0.85, 0.15).astype(np.float32)
    probability[0, 4:12, 16:18] = 0.85
    probability[2, 2:46, 2:46] = 0.85
    probability[3, 24, 18:32] = 0.15
    image = np.random.default_rng(0).integers(0, 256, labels.shape, dtype=np.uint8)
    return {"image": image, "labels": labels, "probability": probability}


@pytest.fixture(scope="module")
def evaluated() -> dict:
    found = heldout()
    return evaluation.evaluate_em(found["labels"], found["probability"], numbers=range(25, 29))


@pytest.fixture
def run(tmp_path: Path, evaluated: dict) -> Path:
    """The folder of a finished run, complete but for an evaluated test set."""
    return finished_run(tmp_path, evaluated)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, evaluated: dict) -> Page:
    """The page of that run."""
    return Page(write_report(finished_run(tmp_path_factory.mktemp("run"), evaluated)))


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes nearly all the time of a page, where its words alone are looked at."""
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")


def finished_run(folder: Path, evaluated: dict) -> Path:
    for name, stack in heldout().items():
        write_stack(folder / f"heldout_{name}.tif", stack)
    settings = config.to_dict(config.PRESETS["quick"])
    names = {"images": "some data/train-volume.tif", "labels": "some data/train-labels.tif"}
    slices = {"train_slices": "0:25", "heldout_slices": "25:29"}
    about = {"name": "ISBI 2012", "synthetic": False, "images_sha256": "200da3d4"}
    record = {
        "settings": settings | {"val": "25:29", "seed": 3, "learning_rate": 0.0123},
        "versions": {"unet_repro": "9.8.7", "torch": "2.4.0"},
        "hardware": {"device": "cpu", "cores": 2},
        "data": {**about, **names, **slices},
        "state": {"iterations": 2140, "seconds": 598.2, "stopped": "time budget"},
    }
    write_json(folder / "config.json", record)
    rows = [f"{i},{i / 4},0.001,{1 / i},," for i in range(20, 200, 20)]
    rows[4] = "100,25.0,0.001,0.01,0.2,0.0678"
    (folder / "log.csv").write_text(LOG_HEADER + "".join(row + "\r\n" for row in rows))
    metrics = {"heldout": evaluated, "test": None, "average": "dihedral", "remark": "A remark."}
    write_json(folder / "metrics.json", metrics)
    (folder / "model.safetensors").write_bytes(bytes(1_500_000))
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def change(path: Path, **changes: object) -> None:
    """Update objects of a JSON file, one level deep."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        both_objects = isinstance(value, dict) and isinstance(content.get(key), dict)
        content[key] = content[key] | value if both_objects else value
    write_json(path, content)


def test_page_shows_the_figures_beside_the_published_ones(page: Page, evaluated: dict) -> None:
    assert page.path.name == "report.html"
    figures = evaluated["figures"]
    for value in (f"{figures['v_rand']:.4f}", f"{figures['warping_error']:.6f}"):
        assert page.text.count(value) >= 2  # tile and table
    for published in ("0.000353", "0.0382", "0.0611", "0.97276", "0.98662", "0.0504", "0.0021"):
        assert published in page.text
    assert "2,140 iterations" in page.text and "9 min 58 s" in page.text
    assert "stopped at its time budget" in page.text
    assert "trained on slices 0–24" in page.text and "held out 25–28" in page.text
    assert "model.safetensors, 1.43 MiB" in page.text and "9.8.7" in page.text
    assert "A remark." in page.text and "(dihedral)" in page.text
    assert "last 0.0678, lowest 0.0678" in page.text


def test_page_refers_to_nothing_outside_itself(page: Page) -> None:
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", page.source)


def test_best_median_and_worst_slice_are_shown_with_their_own_pixels(page: Page) -> None:
    found = heldout()
    assert len(page.images) == 12
    # V_rand: slice 26 is perfect, 28 has one cell of nine split, 25 two merged, 27 all merged.
    for title, z in (("Best slice: 26", 1), ("Median slice: 25", 0), ("Worst slice: 27", 2)):
        assert title in page.text
        assert (page.images[f"{title}: image"] == found["image"][z]).all()
        probability = page.images[f"{title}: probability of cell interior"]
        assert (probability == np.round(255 * found["probability"][z])).all()
        overlay = next(v for k, v in page.images.items() if k.startswith(f"{title}: segm"))
        is_merger = (overlay == list(bytes.fromhex("d8001d"))).all(axis=-1)
        assert is_merger.any() == (z != 1)


def test_per_slice_table_marks_best_and_worst(page: Page) -> None:
    assert 'class="best"><th scope="row">26<' in page.source
    assert 'class="worst"><th scope="row">27<' in page.source


@pytest.mark.usefixtures("no_charts")
def test_banner_is_there_only_for_synthetic_data(run: Path, page: Page) -> None:
    assert "SYNTHETIC" not in page.text and "no figure here compares" not in page.text
    assert "not the hidden test set" in page.text
    change(run / "config.json", data={"synthetic": True})
    synthetic = Page(write_report(run)).text
    assert "SYNTHETIC DATA" in synthetic and "no figure here compares" in synthetic
    assert synthetic.startswith("SYNTHETIC")  # the title bar says it too
    assert "not the hidden test set" not in synthetic


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize(
    ("name", "has_test", "said", "unsaid"),
    [
        ("ISBI 2012", False, "was not at hand", "that column, and only that"),
        ("ISBI 2012", True, "that column, and only that, compares directly", "not at hand"),
        ("my folder", True, "is not the challenge's", "that column, and only that"),
        ("my folder", False, "not directly comparable", "not at hand"),
    ],
)
def test_remark_says_what_compares(
    run: Path, evaluated: dict, name: str, has_test: bool, said: str, unsaid: str
) -> None:
    change(run / "config.json", data={"name": name})
    change(run / "metrics.json", test=evaluated if has_test else None)
    page = Page(write_report(run))
    assert said in page.text and unsaid not in page.text
    assert ("this run, test set" in page.text) == has_test


@pytest.mark.usefixtures("no_charts")
def test_names_from_outside_are_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>"
    quoted = '"><img src=x onerror=alert(1)>'
    change(
        run / "config.json",
        data={"name": evil, "images": quoted, "labels": evil, evil: evil},
        settings={"preset": evil, quoted: evil},
        versions={evil: quoted},
        hardware=evil and {quoted: evil},
        state={"stopped": evil},
    )
    change(run / "metrics.json", remark=evil, average=quoted)
    page = Page(write_report(run))
    assert "script" not in page.tags and evil not in page.source
    assert page.tags.count("img") == 12
    assert evil in page.text and quoted in page.text


def test_a_run_with_nothing_but_its_settings_has_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"settings": {}, "state": None})
    page = Page(write_report(tmp_path))
    assert "no figures yet" in page.text and "Run it again" in page.text
    assert not page.images and "svg" not in page.tags and "–" not in page.text[:100]


@pytest.mark.usefixtures("no_charts")
def test_blocks_of_slices_are_shown_with_their_last_slice(tmp_path: Path) -> None:
    absurd = "0:" + 5000 * "9"  # beyond int()
    data = {"train_slices": "0:25, 29:30", "heldout_slices": f"25:x, {absurd}"}
    write_json(tmp_path / "config.json", {"data": data})
    text = Page(write_report(tmp_path)).text
    assert "trained on slices 0–24, 29 " in text and f"held out 25:x, {absurd}" in text


def test_a_run_that_still_writes_its_log_has_a_page(run: Path) -> None:
    for file in (*run.glob("heldout_*"), run / "metrics.json", run / "model.safetensors"):
        file.unlink()
    change(run / "config.json", state={"stopped": "running"})
    (run / "log.csv").write_text(LOG_HEADER + "20,5,0.1,0.7,,\n40,10,0.1,0.6,,\n60,15,0.")
    page = Page(write_report(run))
    assert "still running" in page.text
    assert page.tags.count("svg") == 2  # loss, learning rate


@pytest.mark.usefixtures("no_charts")
def test_heldout_stacks_are_optional(run: Path) -> None:
    (run / "heldout_image.tif").unlink()
    page = Page(write_report(run))
    assert not page.images and "Slice by slice" in page.text


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize(("n_slices", "words"), [(1, ["Best"]), (2, ["Best", "Worst"])])
def test_fewer_than_three_heldout_slices(run: Path, n_slices: int, words: list[str]) -> None:
    found = {name: stack[:n_slices] for name, stack in heldout().items()}
    for name, stack in found.items():
        write_stack(run / f"heldout_{name}.tif", stack, overwrite=True)
    heldout_figures = evaluation.evaluate_em(found["labels"], found["probability"])
    change(run / "metrics.json", heldout=heldout_figures)
    page = Page(write_report(run))
    assert len(page.images) == 4 * n_slices
    assert re.findall(r"(Best|Median|Worst) slice:", page.text) == words


@pytest.mark.usefixtures("no_charts")
def test_failure_leaves_the_old_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(run).read_bytes()
    files = sorted(run.iterdir())

    def fail(self: Path, *args: object, **kwargs: object) -> int:
        Path(self).write_bytes(b"half a page")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(run.iterdir()) == files


def test_same_run_gives_the_same_page(page: Page) -> None:
    assert write_report(page.path.parent).read_text(encoding="utf-8") == page.source


def test_command_makes_the_run_again(page: Page) -> None:
    lines = re.findall(r"<code>(.*?)</code>", page.source)
    train = shlex.split(lines[0].replace("&#39;", "'"))
    pair = ["some data/train-volume.tif", "some data/train-labels.tif"]
    assert train[:4] == ["unet-repro", "train", *pair]
    options = dict(zip(train[4::2], train[5::2], strict=True))
    assert options["--preset"] == "quick" and options["--val"] == "25:29"
    assert options["--seed"] == "3" and "--iterations" not in options
    assert "--z 25:29 --average dihedral" in lines[1]
    assert f"evaluate {page.path.parent}/heldout_labels.tif" in lines[2]
    assert "learning_rate = 0.0123 (preset: " in page.text and "momentum = " not in page.text


@pytest.mark.usefixtures("no_charts")
def test_command_of_the_run_is_taken_from_its_record(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"command": "bash experiments/em.sh --seed 3"})
    page = write_report(tmp_path).read_text()
    assert "<code>bash experiments/em.sh --seed 3</code>" in page


def test_large_slices_are_shown_where_most_pixels_are_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "PANEL_PX", 8)
    is_wrong = np.random.default_rng(1).random((20, 13)) < 0.2
    counts = {(y, x): is_wrong[y : y + 8, x : x + 8].sum() for y in range(13) for x in range(6)}
    rows, columns = drawing.worst_window(is_wrong)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (8, 8)
    assert counts[rows.start, columns.start] == max(counts.values())
    assert drawing.worst_window(is_wrong[:5, :8]) == (slice(0, 5), slice(0, 8))
    labels = np.where(is_wrong, 0, 255).astype(np.uint8)
    shown = report._panels(labels, labels, np.ones(labels.shape, np.float32), 0.5)
    assert (shown["height"], shown["width"]) == (8, 8) and "most wrong pixels" in shown["crop"]


def bad_file(file: str, text: str):  # type: ignore[no-untyped-def]
    return lambda run: (run / file).write_text(text)


def without_a_field_of_the_rule(run: Path) -> None:
    about = {"title": "T", "views": "none", "train_sequence": "01", "test_sequence": "02"}
    frame = dict.fromkeys(("frame", "cells", "iou", "missed", "found", "complete"), 1)
    cells = {**about, "is_heldout": False, "is_synthetic": False, "rule": {}, "frames": [frame]}
    change(run / "metrics.json", cells=cells | {"figures": {"iou": 0.5, "seg": 0.5}})


def stacks(change):  # type: ignore[no-untyped-def]
    return lambda run: [
        write_stack(run / f"heldout_{name}.tif", stack, overwrite=True)
        for name, stack in change(heldout()).items()
    ]


CONFIG, METRICS, LOG = "config.json", "metrics.json", "log.csv"
NESTED = '{"a": ' + 50_000 * "[" + 50_000 * "]" + "}"
NO_THRESHOLD = '{"test": {"figures": {}, "curves": {"thresholds": []}, "slices": []}}'
WRONG = {
    "no such folder": shutil.rmtree,
    "holds no config.json": lambda run: (run / CONFIG).unlink(),
    "config.json: is not valid JSON: it is nested in more": bad_file(CONFIG, NESTED),
    "config.json: is not valid JSON": bad_file(CONFIG, '{"settings": {'),
    "config.json: holds no JSON object": bad_file(CONFIG, "[1, 2]"),
    "'data' is not an object": bad_file(CONFIG, '{"data": "x"}'),
    "metrics.json: is not valid JSON": bad_file(METRICS, "\x00"),
    "'heldout' is not what": bad_file(METRICS, '{"heldout": {"figures": {}}}'),
    "'test' is not what": bad_file(METRICS, NO_THRESHOLD),
    "log.csv: the first line must be iteration,": bad_file(LOG, "a,b\n1,2\n"),
    "line 2: learning_rate is 'x'": bad_file(LOG, LOG_HEADER + "1,2,x,4,,\n"),
    "line 2: loss is nan": bad_file(LOG, LOG_HEADER + "1,2,3,nan,,\n"),
    "1e301, not a number within": bad_file(LOG, LOG_HEADER + "1,2,3,1e301,,\n"),
    "line 2: learning_rate is None": bad_file(LOG, LOG_HEADER + "1,2\n"),
    "cannot be read as text": lambda run: (run / LOG).write_bytes(b"\xff\xfe\x00"),
    "heldout_image.tif": bad_file("heldout_image.tif", "no"),
    "differ in shape": stacks(lambda all_: {"labels": np.ones((4, 48, 40), np.uint8)}),
    "of 4 held-out slices, but the stacks have 3": stacks(
        lambda all_: {name: stack[:3] for name, stack in all_.items()}
    ),
    "heldout_probability.tif: holds values outside 0 to 1": stacks(
        lambda all_: {"probability": 300 * all_["probability"]}
    ),
    "one of its files cannot be understood": without_a_field_of_the_rule,
    "is not a regular file": lambda run: (run / "report.html").mkdir(),
}


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_understood_is_one_clear_line(run: Path, message: str) -> None:
    WRONG[message](run)
    with pytest.raises(InputError) as error:
        write_report(run)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.usefixtures("no_charts")
def test_best_validation_is_told_as_optimistic_and_as_not_shown(run: Path) -> None:
    change(run / "config.json", state={"best": {"iteration": 1500, "pixel_error": 0.06784}})
    text = Page(write_report(run)).text
    assert "figures are of the last weights (model.safetensors)" in text
    assert "so far is 0.0678 at iteration 1,500 (best.safetensors)" in text
    assert "chosen" in text and "better there than they are" in text


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("best", [None, [], {"iteration": 1}])
def test_no_best_validation_no_word_of_it(run: Path, best: object) -> None:
    change(run / "config.json", state={"best": best})
    assert "best.safetensors" not in Page(write_report(run)).text


def test_numbers_beyond_any_axis_are_no_figures(run: Path, evaluated: dict) -> None:
    """Matplotlib's axes would overflow at 1e308, and JSON holds integers that no float can."""
    curves = evaluated["curves"] | {"pixel_error": [0.1, 1e308]}
    figures = evaluated["figures"] | {"v_rand": 10**400, "pixel_error": 1e308}
    change(run / "metrics.json", heldout=evaluated | {"figures": figures, "curves": curves})
    change(run / "config.json", state={"iterations": 10**400, "seconds": -(10**400)})
    text = write_report(run).read_text()
    assert "10000000000" not in text and "1e+308" not in text
    assert not evaluation.is_number(10**309) and evaluation.is_number(10**30)


@pytest.mark.usefixtures("no_charts")
def test_half_a_character_does_not_prevent_a_page(tmp_path: Path) -> None:
    # a name in Latin-1, as Python has it
    write_json(tmp_path / "config.json", {"data": {"name": "caf\udce9"}})
    assert "U-Net on caf?" in Page(write_report(tmp_path)).text
