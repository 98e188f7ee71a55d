"""Writers: TensorBoard, JSON lines, pictures, console; the progress line."""

import io
import json
import math
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from cmunet_jax.train import writers
from cmunet_jax.train.metrics_file import JsonLinesWriter
from cmunet_jax.train.pictures import PictureWriter, grid
from cmunet_jax.train.progress import Progress, periodic_actions
from cmunet_jax.train.tensorboard import TensorBoardWriter
from cmunet_jax.train.writers import metric_writers
from tfds_angio.errors import UserError

# --- reading back -------------------------------------------------------------------------------


def crc32c(data):
    """Castagnoli CRC, bit by bit: slow, and independent of tensorboardX's table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(folder):
    """All events of a folder, file by file; the record checksums are verified."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        file = io.BytesIO(path.read_bytes())
        while header := file.read(12):
            length, header_crc = struct.unpack("<QI", header)
            body = file.read(length)
            assert header_crc == masked(header[:8])
            assert struct.unpack("<I", file.read(4))[0] == masked(body)
            events.append(Event.FromString(body))
    return events


def values_in(folder):
    return {(e.step, v.tag): v for e in events_in(folder) for v in e.summary.value}


# --- TensorBoard --------------------------------------------------------------------------------


def test_tensorboard_holds_what_was_written(tmp_path):
    with writers.create_writer(tmp_path, console=False) as writer:
        writer.write_hparams({"lr": 1e-3, "model": {"width": 16, "up": None}, "betas": (0.9, 0.95)})
        writer.write_scalars(3, {"train/loss": jnp.float32(0.25), "n": 7, "bad": float("nan")})
        writer.write_images(3, {"view": np.linspace(0, 1, 2 * 4 * 6).reshape(2, 4, 6, 1)})
        writer.write_texts(3, {"note": "**grüße**"})
        writer.write_histograms(3, {"h": np.array([0.0, 1.0, 1.0, np.inf])}, {"h": 2})
    events = events_in(tmp_path / "tensorboard")
    values = values_in(tmp_path / "tensorboard")
    assert events[0].file_version == "brain.Event:2"
    assert values[3, "train/loss"].simple_value == 0.25
    assert values[3, "n"].simple_value == 7
    assert math.isnan(values[3, "bad"].simple_value)
    image = values[3, "view"].image
    assert (image.height, image.width) == (4, 14)
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (pixels[0, 0] == 0).all() and (pixels[-1, -1] == 255).all()
    text = values[3, "note/text_summary"]
    assert text.tensor.string_val[0].decode() == "**grüße**"
    assert text.metadata.plugin_data.plugin_name == "text"
    assert list(values[3, "h"].histo.bucket)[-2:] == [1, 2]
    start = values[0, "_hparams_/session_start_info"].metadata.plugin_data
    assert start.plugin_name == "hparams" and b"model.width" in start.content


def test_resumed_tensorboard_hides_the_lost_steps(tmp_path):
    TensorBoardWriter(tmp_path).write_scalars(10, {"a": 1.0})
    TensorBoardWriter(tmp_path, start_step=5).write_scalars(10, {"a": 2.0})
    assert len(list(tmp_path.iterdir())) == 2  # In one second, and yet no file overwritten.
    restart = [e for e in events_in(tmp_path) if e.HasField("session_log")]
    assert [e.step for e in restart] == [6]  # TensorBoard drops what is at or after this step.


def test_events_are_on_disk_before_close(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.write_scalars(1, {"a": 1.0})
    assert (1, "a") in values_in(tmp_path)
    writer.close()
    writer.close()


def test_what_cannot_be_written_says_so(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    with pytest.raises(NotImplementedError):
        writer.write_videos(0, {})
    with pytest.raises(NotImplementedError):
        writer.write_audios(0, {}, sample_rate=1)
    with pytest.raises(NotImplementedError):
        writer.write_summaries(0, {})


# --- JSON lines ---------------------------------------------------------------------------------


def lines_in(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_are_valid_json_whatever_the_values(tmp_path):
    with writers.create_writer(tmp_path, console=False) as writer:
        writer.write_scalars(0, {"a": float("nan"), "b": np.float32("inf"), "c": -math.inf, "n": 3})
        writer.write_scalars(1, {"a": 0.1})

    def refuse(constant):
        raise AssertionError(constant)

    raw = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first = json.loads(raw[0], parse_constant=refuse)
    assert first == {"step": 0, "a": "NaN", "b": "Infinity", "c": "-Infinity", "n": 3}
    rows = writers.read_metrics(tmp_path)
    assert math.isnan(rows[0]["a"]) and rows[0]["b"] == math.inf and rows[0]["c"] == -math.inf
    assert rows[1] == {"step": 1, "a": 0.1}
    assert writers.read_metrics(tmp_path / "nothing") == []


def run_steps(workdir, start, stop, *, tail=""):
    """Logs each step, evaluates every third one before it is saved, and is then killed."""
    writer = JsonLinesWriter(workdir / "metrics.jsonl", start_step=start)
    for step in range(start, stop + 1):
        if step > start:
            writer.write_scalars(step, {"loss": 1.0 / step})
        if step and step % 3 == 0:
            writer.write_scalars(step, {"dice": step / 10})
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(tail)


@pytest.mark.parametrize("tail", ["", '{"step": 8, "lo', '{"step": 9}\n{"st'])
@pytest.mark.parametrize("saved", [0, 3, 4, 6])
def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path, saved, tail):
    straight, resumed = tmp_path / "a", tmp_path / "b"
    straight.mkdir(), resumed.mkdir()
    run_steps(straight, 0, 12)
    run_steps(resumed, 0, 7, tail=tail)
    run_steps(resumed, saved, 12)  # Evaluates again at the restored step.
    assert lines_in(resumed) == lines_in(straight)


def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\nxx\n[1]\n{"step": 2, "a": 2}\n')
    assert [row["step"] for row in writers.read_metrics(tmp_path)] == [1, 2]
    assert "2 unreadable lines" in caplog.text


def test_an_unwritable_workdir_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (
        lambda path: writers.create_writer(path),
        lambda path: TensorBoardWriter(path),
        lambda path: PictureWriter(path).write_images(0, {"a": np.zeros((1, 2, 2, 1))}),
    ):
        with pytest.raises(UserError, match="cannot write"):
            make(tmp_path / "file" / "run")


# --- pictures and console -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, expected",
    [((1, 4, 6, 1), (4, 6)), ((4, 6, 3), (4, 6, 3)), ((3, 4, 6, 3), (4, 22, 3)),
     ((10, 4, 6, 1), (16, 30))],
)  # fmt: skip
def test_grids(shape, expected):
    assert grid(np.zeros(shape, np.uint8)).shape == expected


def test_pictures_are_png_files_named_by_step(tmp_path):
    images = np.zeros((2, 3, 4, 1), np.float32)
    images[1] = [[[2.0], [0.5], [-1.0], [np.nan]]]
    with writers.create_writer(tmp_path, console=False) as writer:
        writer.write_images(120, {"train/masked view": jnp.asarray(images)})
    files = list((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["train_masked_view_00000120.png"]
    pixels = np.asarray(Image.open(files[0]))
    assert pixels.shape == (3, 10)
    assert pixels[0, 6:].tolist() == [255, 128, 0, 0]


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros((1, 2, 2, 2)), np.zeros((0, 2, 2, 1)),
                                 np.zeros((1, 2, 2, 1), np.int32)])  # fmt: skip
def test_shapes_that_are_no_pictures_are_refused(bad):
    with pytest.raises(ValueError):
        grid(bad)


def test_console_line(tmp_path, capsys):
    with writers.create_writer(tmp_path) as writer:
        writer.write_scalars(1200, {"train/loss": 0.123456, "learning_rate": np.float32(1.5e-4)})
    assert capsys.readouterr().out == "step 1,200  train/loss 0.1235  learning_rate 0.00015\n"


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.processes, "is_first", lambda: False)
    with writers.create_writer(tmp_path / "run") as writer:
        writer.write_scalars(1, {"a": 1.0})
    assert not (tmp_path / "run").exists()


# --- clu and TensorFlow -------------------------------------------------------------------------


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_clu_imports_without_tensorflow():
    """Also where TensorFlow is installed: any attempt to import it fails here."""
    done = run_python(
        "import sys; sys.modules['tensorflow'] = None; sys.modules['torch'] = None\n"
        "import cmunet_jax.train.writers\n"
        "from clu import metric_writers, periodic_actions\n"
        "assert sys.modules['tensorflow'] is None\n"
        "assert not [m for m in sys.modules if m.startswith(('tensorflow.', 'torch.'))]"
    )
    assert done.returncode == 0, done.stderr


def test_clu_default_writer_uses_ours(tmp_path):
    writer = metric_writers.create_default_writer(tmp_path, asynchronous=False)
    writer.write_scalars(1, {"a": 2.0})
    writer.close()
    assert values_in(tmp_path)[1, "a"].simple_value == 2.0
    assert isinstance(writers.create_writer(tmp_path), metric_writers.MultiWriter)


def test_clu_periodic_actions_write_through_ours(tmp_path):
    with writers.create_writer(tmp_path, console=False) as writer:
        report = periodic_actions.ReportProgress(num_train_steps=4, writer=writer)
        for step in range(5):
            report(step, t=float(step))
    assert writers.read_metrics(tmp_path)[0]["steps_per_sec"] == 1.0


# --- progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_prints_whole_lines_to_a_file():
    stream = io.StringIO()
    progress = Progress(1000, 16, start=500, stream=stream, every_secs=10)
    for step in range(501, 1001):
        progress(step, t=0.5 * (step - 501) + 100)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 250 // 10.5 and "\r" not in stream.getvalue()
    assert lines[0].startswith("step 522/1,000 (52 %)  2 steps/s  32 images/s")
    assert lines[0].endswith("4 min left")
    assert lines[-1].startswith("step 1,000/1,000 (100 %)") and "500 steps in" in lines[-1]


def test_progress_rewrites_one_line_on_a_terminal():
    stream = Terminal()
    progress = Progress(10, 4, stream=stream)
    for step in range(1, 11):
        progress(step, t=float(step))
    text = stream.getvalue()
    assert text.count("\r") == 9 and text.count("\n") == 1 and text.endswith("\n")
    assert "1 steps/s  4 images/s" in text
    assert progress.steps_per_second == 1.0


def test_time_left_counts_what_else_the_loop_does():
    stream = io.StringIO()
    progress = Progress(100, 1, stream=stream, every_secs=1)
    progress(1, t=0.0)
    progress(2, t=100.0)  # An evaluation in between.
    progress(3, t=102.0)
    assert "0.5 steps/s" in stream.getvalue().splitlines()[-1]
    assert stream.getvalue().splitlines()[-1].endswith("82 min left")


def test_a_run_of_one_step_reports_its_end():
    stream = io.StringIO()
    Progress(1, 8, stream=stream)(1)
    assert stream.getvalue().startswith("step 1/1 (100 %)") and stream.getvalue().endswith("\n")
