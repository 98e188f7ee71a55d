"""The predict stage on real files: what it writes, what it refuses, what its status says."""

import hashlib
import importlib
import json
import os

import cv2
import numpy as np
import PIL.Image
import pydicom
import pytest

from cmunet_jax import config as config_lib
from cmunet_jax import qca
from cmunet_jax.predict import outputs, record
from cmunet_jax.predict import run as run_lib
from cmunet_jax.stages import predict
from cmunet_jax.train.checkpoint import load
from tests.data.fakes import angiogram
from tests.imaging import xa
from tfds_angio.errors import UserError


def configured(weights, source, **changes):
    config = importlib.import_module("configs.predict").get_config()
    config.checkpoint, config.input, config.batch_size = str(weights), str(source), 4
    config.threshold = 0.45  # the weights are about undecided
    config.update(changes)
    config_lib.check(config)
    return config


def images(folder, *names, shape=(60, 80)):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / name), angiogram(*shape, seed))
    return folder


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def mixed(checkpoint, tmp_path_factory):
    """Everything at once: images, a run, a DICOM, and files that cannot be used."""
    folder = images(tmp_path_factory.mktemp("mixed"), "a.png", "tiny.png", "sub/a.png")
    cv2.imwrite(str(folder / "tiny.png"), angiogram(15, 15))
    rgba = np.dstack([angiogram(40, 50)] * 3 + [np.full((40, 50), 255, np.uint8)])
    cv2.imwrite(str(folder / "rgba.png"), rgba)
    cv2.imwrite(str(folder / "deep.png"), angiogram(40, 50).astype(np.uint16) * 200)
    np.save(folder / "run.npy", np.stack([angiogram(50, 64, n) for n in range(5)]))
    np.save(folder / "nan.npy", np.stack([angiogram(20, 30) * x for x in (1.0, np.nan)]))
    (folder / "empty.jpg").write_bytes(b"")
    for name in ("film.avi", "copy.avi"):
        (folder / name).write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("")
    elements = {"BurnedInAnnotation": "NO", "PixelSpacing": [0.3, 0.25]}
    xa.write(folder, xa.run(3, 70, 64), bits=12, elements=elements)
    (folder / "Erika_cut.dcm").write_bytes(
        (folder / "Mustermann_Erika_19510203.dcm").read_bytes()[:400]
    )
    workdir = tmp_path_factory.mktemp("run") / "predictions"
    status = predict.run(configured(checkpoint, folder, qca=True), workdir)
    return status, folder, workdir, record.read(workdir)


def test_what_can_be_used_is_and_the_status_says_that_something_failed(mixed):
    status, _, _, content = mixed
    assert status == predict.EXIT_SOME_FAILED == 3
    kinds = {case["id"]: (case["kind"], len(case["frames"])) for case in content["cases"]}
    digests = {i for i in kinds if i.startswith(("a-", "dicom-"))}
    assert len(digests) == 3
    assert {i: kinds[i] for i in kinds.keys() - digests} == {
        "deep": ("image", 1), "rgba": ("image", 1), "tiny": ("image", 1), "run": ("array", 5),
    }  # fmt: skip
    failed = {entry["input"]: entry["reason"] for entry in content["failed"]}
    assert failed["empty.jpg"] == "empty file" and "NaN" in failed["nan.npy"]
    assert "frame 1: " in failed["nan.npy"]
    others = sorted(name for name in failed if name not in ("empty.jpg", "nan.npy"))
    assert len(others) == 3 and others[0].startswith("dicom-") and others[1].startswith("file-")
    assert others[2] == f"{others[1]}-2", "copies of one file are told apart"


def test_files_are_those_of_the_contract(mixed):
    _, folder, workdir, content = mixed
    named = {"predictions.json"}
    for case in content["cases"]:
        assert case["source_frames"] == len(case["frames"])
        for frame in case["frames"]:
            mask = record.read_mask(workdir / frame["mask"])
            stored = cv2.imread(str(workdir / frame["mask"]), cv2.IMREAD_UNCHANGED)
            assert set(np.unique(stored)) <= {0, 255} and stored.dtype == np.uint8
            probability = record.read_probability(workdir / frame["probability"])
            assert mask.shape == probability.shape == (case["height"], case["width"])
            assert frame["artery_pixels"] == mask.sum()
            np.testing.assert_array_equal(mask, probability > 0.45)
            shown = cv2.imread(str(workdir / frame["frame"]), cv2.IMREAD_UNCHANGED)
            assert shown.dtype == np.uint8 and shown.shape == mask.shape
            overlay = cv2.imread(str(workdir / frame["overlay"]), cv2.IMREAD_UNCHANGED)
            assert overlay.shape == (*mask.shape, 3)
            analysis = json.loads((workdir / frame["qca"]).read_text())
            assert analysis["format"] == 1
            named |= {frame[key] for key in ("mask", "probability", "frame", "overlay")}
            stem = frame["qca"].removesuffix(".json")
            named |= {stem + end for end in (".json", ".csv", "_segments.csv", ".png")}
        if case["segmentation"]:
            named.add(case["segmentation"])
    assert sorted(named) == files_of(workdir), "and nothing else is there"
    run = next(case for case in content["cases"] if case["id"] == "run")
    assert [f["mask"] for f in run["frames"]][3] == "masks/run_0003.png"
    assert run["sha256"] == hashlib.sha256((folder / "run.npy").read_bytes()).hexdigest()


def test_a_dicom_segmentation_names_its_source(mixed):
    _, _, workdir, content = mixed
    (case,) = [case for case in content["cases"] if case["kind"] == "dicom"]
    made = pydicom.dcmread(workdir / case["segmentation"])
    assert made.Modality == "SEG" and made.NumberOfFrames == 3
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == xa.SERIES
    masks = np.stack([record.read_mask(workdir / f["mask"]) for f in case["frames"]])
    np.testing.assert_array_equal(made.pixel_array, masks)
    assert (case["spacing"]["rows_mm"], case["spacing"]["columns_mm"]) == (0.3, 0.25)


def test_no_identifier_is_in_any_output_but_the_segmentation(mixed):
    _, folder, workdir, content = mixed
    secrets = [word.encode() for word in (*xa.IDENTIFIERS, str(folder))]
    for name in files_of(workdir):
        if name.startswith("segmentations/"):
            continue
        data = (workdir / name).read_bytes()
        assert not [word for word in secrets if word in data or word in name.encode()], name
    assert "input" not in content["options"] and content["options"]["fit"] == "auto"


def test_provenance_names_weights_and_versions(mixed, checkpoint):
    (stated,) = mixed[3]["checkpoints"]
    loaded = load(checkpoint)
    assert stated["digest"] == loaded.digest and stated["step"] == 2 and stated["weights"] == "raw"
    assert stated["preprocessing"] == dict(loaded.preprocessing) and stated["width"] == 4
    assert {"jax", "source", "cmunet-jax"} <= set(mixed[3]["versions"])


def test_windows_of_a_pixel_are_refused(checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "one.png"), fit="tiles", tile=1)
    with pytest.raises(UserError, match="config.tile is 1.*at least 16"):
        predict.run(config, tmp_path / "out")


def test_a_killed_run_starts_again_cleanly(checkpoint, tmp_path, monkeypatch):
    config = configured(checkpoint, images(tmp_path / "in", "a.png", "b.png"))
    out = tmp_path / "out"
    (out / outputs.PARTIAL / "masks").mkdir(parents=True)
    (out / outputs.PARTIAL / "masks" / "old.png").write_text("half")
    (out / outputs.PARTIAL / outputs.OWNER).write_text("999999999")  # no such process
    assert predict.run(config, out) == 0
    assert not (out / outputs.PARTIAL).exists() and "masks/old.png" not in files_of(out)

    (out / outputs.PARTIAL).mkdir()
    (out / outputs.PARTIAL / outputs.OWNER).write_text(str(os.getppid()))
    config.overwrite = True
    with pytest.raises(UserError, match="is predicting into"):
        predict.run(config, out)
    assert (out / outputs.PARTIAL).exists(), "that of the other run"


def test_an_interruption_leaves_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    config = configured(checkpoint, images(tmp_path / "in", "a.png", "b.png"))

    def interrupt(*unused, **also_unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_lib.record, "case_entry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict.run(config, tmp_path / "out")
    assert files_of(tmp_path / "out") == []


def test_a_workdir_that_cannot_be_written_is_named(checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "a.png"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken/out cannot be written"):
        predict.run(config, tmp_path / "taken" / "out")


def test_nothing_usable_is_an_error_and_writes_nothing(checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "zero.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 inputs"):
        predict.run(configured(checkpoint, tmp_path / "in"), tmp_path / "out")
    assert "zero.png: empty file" in capsys.readouterr().err
    (tmp_path / "in" / "zero.png").unlink()
    with pytest.raises(UserError, match="names nothing"):
        predict.run(configured(checkpoint, tmp_path / "in"), tmp_path / "out")
    assert "a folder without images" in capsys.readouterr().err
    assert files_of(tmp_path) == []


def test_an_earlier_run_below_the_input_is_no_input(checkpoint, tmp_path, capsys):
    folder = images(tmp_path, "a.png")
    config = configured(checkpoint, folder, overwrite=True)
    assert predict.run(config, folder / "runs") == 0
    assert predict.run(config, folder / "runs") == 0
    assert [case["id"] for case in record.read(folder / "runs")["cases"]] == ["a"]
    assert "left out" in capsys.readouterr().err


def test_a_pretrained_network_is_refused(pretrained, tmp_path):
    config = configured(pretrained, images(tmp_path / "in", "a.png"))
    with pytest.raises(UserError, match="Fine-tune it first"):
        predict.run(config, tmp_path / "out")
    assert not files_of(tmp_path / "out")


def test_the_best_frame_of_a_run_and_of_an_image(checkpoint, tmp_path):
    folder = images(tmp_path / "in", "image.png")
    run = np.stack([angiogram(60, 60, n) for n in range(5)])
    np.save(folder / "run.npy", run)
    assert predict.run(configured(checkpoint, folder), tmp_path / "all") == 0
    assert predict.run(configured(checkpoint, folder, frames="best"), tmp_path / "best") == 0
    every, chosen = record.read(tmp_path / "all")["cases"], record.read(tmp_path / "best")["cases"]
    assert [len(case["frames"]) for case in chosen] == [1, 1]
    evidence = [
        float(p[record.read_mask(tmp_path / "all" / f["mask"])].sum())
        for f in every[1]["frames"]
        for p in [record.read_probability(tmp_path / "all" / f["probability"])]
    ]
    padded = np.pad(evidence, 1, mode="edge")
    expected = int(np.argmax(padded[:-2] + 2 * padded[1:-1] + padded[2:]))
    (frame,) = chosen[1]["frames"]
    assert frame["index"] == expected and frame["mask"] == f"masks/run_{expected:04d}.png"
    assert (tmp_path / "best" / frame["mask"]).read_bytes() == (
        tmp_path / "all" / frame["mask"]
    ).read_bytes()


def test_burned_in_annotations_are_in_no_picture_unless_asked(checkpoint, tmp_path, capsys):
    xa.write(tmp_path, xa.run(1), bits=12, elements={"BurnedInAnnotation": "YES"})
    config = configured(checkpoint, tmp_path / "*.dcm", qca=True)
    assert predict.run(config, tmp_path / "out") == 0
    (case,) = record.read(tmp_path / "out")["cases"]
    (frame,) = case["frames"]
    assert frame["frame"] is None and frame["overlay"] is None and case["notes"]
    names = files_of(tmp_path / "out")
    assert not [name for name in names if name.startswith(("frames", "overlays"))]
    assert "annotations" in capsys.readouterr().err
    config.burned_in, config.overwrite = "keep", True
    assert predict.run(config, tmp_path / "out") == 0
    (case,) = record.read(tmp_path / "out")["cases"]
    assert case["frames"][0]["overlay"] and not case["notes"]


def test_results_of_a_turned_photograph_are_turned_and_an_animation_is_none(checkpoint, tmp_path):
    folder, exif = images(tmp_path / "in", "a.png"), PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(angiogram(60, 80)).save(folder / "turned.jpg", exif=exif)
    frames = [PIL.Image.fromarray(angiogram(20, 30, at)) for at in range(2)]
    frames[0].save(folder / "film.png", save_all=True, append_images=frames[1:])
    assert predict.run(configured(checkpoint, folder), tmp_path / "out") == 3
    content = record.read(tmp_path / "out")
    (failed,) = content["failed"]
    assert failed["input"] == "film.png" and "animated PNG of 2 frames" in failed["reason"]
    plain, turned = content["cases"]
    assert (turned["height"], turned["width"]) == (80, 60)
    assert record.read_mask(tmp_path / "out" / turned["frames"][0]["mask"]).shape == (80, 60)
    assert "EXIF orientation 6: turned" in turned["notes"][0] and not plain["notes"]


def test_a_frame_too_speckled_to_measure_has_a_note_in_place_of_measurements(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(qca.graph, "MAX_SEGMENTS", -1)
    folder = images(tmp_path / "in", "a.png")
    np.save(folder / "run.npy", np.stack([angiogram(50, 64, n) for n in range(3)]))
    assert predict.run(configured(checkpoint, folder, qca=True), tmp_path / "out") == 0
    image, run = record.read(tmp_path / "out")["cases"]
    assert [frame["qca"] for frame in (*image["frames"], *run["frames"])] == [None] * 4
    assert [note.split(":")[0] for note in run["notes"]] == ["frame 0", "frame 1", "frame 2"]
    (note,) = image["notes"]
    assert note.startswith("not measured: ") and f"a: {note}" in capsys.readouterr().err
    assert not [name for name in files_of(tmp_path / "out") if name.startswith("qca")]


def test_an_ensemble_and_all_options_together(checkpoint, tmp_path):
    config = configured(
        f"{checkpoint},{checkpoint}/checkpoints/2", images(tmp_path / "in", "a.png"),
        tta="flips", fit="tiles", tile=40, keep_components=1, min_length="1 mm", spacing=0.3,
    )  # fmt: skip
    assert predict.run(config, tmp_path / "out") == 0
    content = record.read(tmp_path / "out")
    assert len(content["checkpoints"]) == 2
    (case,) = content["cases"]
    assert case["spacing"] == {"rows_mm": 0.3, "columns_mm": 0.3, "source": "config"}
    mask = record.read_mask(tmp_path / "out" / case["frames"][0]["mask"]).astype(np.uint8)
    assert cv2.connectedComponents(mask)[0] <= 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("input", "", "config.input is empty"),
        ("checkpoint", "", "config.checkpoint is empty"),
        ("checkpoint", "nowhere", "nowhere"),
        ("fit", "stretch", "config.fit"),
        ("tta", "flip", "did you mean 'flips'"),
        ("min_length", "5", "'20 px'"),
        ("frames", "first", "all, best"),
        ("probability", "tif", "png, npz"),
        ("burned_in", "drop", "withhold, keep"),
    ],
)
def test_a_bad_value_is_one_line_and_nothing_is_written(key, value, words, checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "a.png"), **{key: value})
    with pytest.raises(UserError, match=words) as error:
        predict.run(config, tmp_path / "out")
    assert "\n" not in str(error.value) and not files_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"), [("threshold", 1.5), ("keep_components", -1), ("tile", -4), ("spacing", -0.1)]
)
def test_ranges_are_checked_before_anything_is_read(key, value):
    config = importlib.import_module("configs.predict").get_config()
    config[key] = value
    with pytest.raises(UserError, match=f"config.{key}={value}"):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "cannot be read"), ("{}", "format"), ('{"format": 1}', "lacks checkpoints")],
)
def test_a_damaged_index_is_named(text, words, tmp_path):
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(UserError, match=words):
        record.read(tmp_path)
    with pytest.raises(UserError, match=r"configs/predict\.py"):
        record.read(tmp_path / "none")


@pytest.mark.slow
def test_the_command_says_which_file_failed_and_its_status(checkpoint, tmp_path, run_python):
    folder = images(tmp_path / "in", "good.png")
    (folder / "zero.png").write_bytes(b"")
    done = run_python(
        "-m", "cmunet_jax.main", "--config", "configs/predict.py", f"--config.input={folder}",
        f"--config.checkpoint={checkpoint}", f"--workdir={tmp_path / 'out'}", check=False,
    )  # fmt: skip
    assert done.returncode == predict.EXIT_SOME_FAILED, done.stderr
    assert "zero.png: empty file" in done.stderr and "Traceback" not in done.stderr
    assert f"{folder / 'good.png'} -> good" in done.stdout
