"""What the exit status of predict says of inputs and results that failed."""

from cmunet_jax.predict import record
from cmunet_jax.stages import predict
from tests.imaging import xa
from tests.imaging.special import deadline, special
from tests.predict.test_stage import configured, images


def test_a_segmentation_that_cannot_be_written_is_in_the_status(checkpoint, tmp_path, capsys):
    folder, out = images(tmp_path / "in", "a.png"), tmp_path / "out"
    xa.write(folder, xa.run(1), bits=12, name="good.dcm")
    bad = xa.write(folder, xa.run(2), bits=12, name="b.dcm", elements={"StudyInstanceUID": None})
    config = configured(checkpoint, folder)
    assert predict.run(config, out) == predict.EXIT_NO_SEGMENTATION == 1
    content = record.read(out)
    by_frames = {len(c["frames"]): c for c in content["cases"] if c["kind"] == "dicom"}
    assert by_frames[1]["segmentation"] and by_frames[2]["segmentation"] is None
    assert all((out / frame["mask"]).is_file() for frame in by_frames[2]["frames"])
    assert content["failed"] == []
    assert by_frames[2]["notes"][-1].startswith("no DICOM segmentation: it has no valid Study")
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "StudyInstanceUID" in x)
    assert line.startswith(f"{bad}: ") and "--config.segmentation=False" in line
    config.segmentation, config.overwrite = False, True
    assert predict.run(config, out) == 0, "none is asked for"
    config.segmentation = True
    (folder / "empty.png").write_bytes(b"")
    assert predict.run(config, out) == predict.EXIT_SOME_FAILED, "an input is more"


def test_a_cut_image_without_a_suffix_is_a_failure_of_the_run(checkpoint, tmp_path, capsys):
    folder = images(tmp_path / "in", "a.png")
    (folder / "IM0001").write_bytes(b"")
    (folder / "IM0002").write_bytes(b"\0" * 100)
    (folder / "README").write_text("text")
    status = predict.run(configured(checkpoint, folder), tmp_path / "out")
    assert status == predict.EXIT_SOME_FAILED
    reasons = sorted(entry["reason"] for entry in record.read(tmp_path / "out")["failed"])
    assert reasons == ["empty file", "truncated, or no DICOM and no image"]
    shown = capsys.readouterr().err
    assert "IM0001: empty file" in shown and "README: ignored, not an image" in shown


def test_a_pipe_is_a_failure_of_the_run(checkpoint, tmp_path, capsys):
    folder = images(tmp_path / "in", "a.png")
    special(folder / "pipe.png")
    special(folder / "socket.dcm")
    with deadline(60):
        status = predict.run(configured(checkpoint, folder), tmp_path / "out")
    assert status == predict.EXIT_SOME_FAILED
    written = record.read(tmp_path / "out")
    assert [entry["input"] for entry in written["failed"]] == ["file-special", "file-special-2"]
    assert len(written["cases"]) == 1
    assert "pipe.png: is not a file" in capsys.readouterr().err
