"""Full and read-only disks at each write: one line, nothing half-written, and the run goes on."""

import shutil

import numpy as np
import pytest

from cmunet_jax.evaluation import evaluator
from cmunet_jax.report import frame
from cmunet_jax.stages import record
from cmunet_jax.stages import train as train_stage
from cmunet_jax.sweep.store import open_store
from cmunet_jax.train import checkpoint, progress, writers
from tests.evaluation.fakes import bright, chain, dataset
from tests.faults.disks import small
from tests.stage_helpers import tiny
from tests.train.states import make_state, open_run
from tfds_angio.angio_folder.dummy_data import write_folder
from tfds_angio.base import UserError, build

pytestmark = pytest.mark.faults

STEPS = 6
SPACE = r"No space left on device|no space left|disk"
READ_ONLY = r"Read-only file system|read-only|not writable"


def training(dataset):
    config = tiny("pretrain", dataset, STEPS)
    config.update_from_flattened_dict(
        {"checkpoint.every": "2 steps", "pictures_every": "2 steps", "model.width": 2}
    )
    return config


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset, tmp_path_factory):
    """(digest, KiB on disk) of a run that nothing disturbs."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train_stage.run(training(tiny_dataset), workdir) == 0
    size = sum(f.stat().st_size for f in workdir.rglob("*") if f.is_file())
    return checkpoint.load(workdir).digest, size // 1024


def assert_one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 600, text


# --- training ---------------------------------------------------------------------------------


def test_a_training_on_a_full_disk_goes_on_when_there_is_space(
    undisturbed, tiny_dataset, tmp_path, capfd
):
    """The space ends at another write each time: the record, the events, a checkpoint."""
    digest, whole = undisturbed
    config = training(tiny_dataset)
    with small(tmp_path / "disk", kib=4) as disk:
        workdir, stopped = disk.path / "run", 0
        for kib in (4, 16, whole // 3, whole // 2, 4 * whole):
            disk.resize(kib)
            try:
                assert train_stage.run(config, workdir) == 0
                break
            except UserError as error:
                stopped += 1
                assert "\n" not in str(error) and "space" in str(error).lower(), error
        assert stopped >= 3
        assert checkpoint.load(workdir).digest == digest
        assert not list(workdir.rglob("*tmp*"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_disk_that_fills_up_during_training_and_is_read_only_afterwards(
    undisturbed, tiny_dataset, tmp_path, monkeypatch
):
    digest, whole = undisturbed
    config = training(tiny_dataset)
    with small(tmp_path / "disk", kib=4 * whole) as disk:
        workdir = disk.path / "run"

        class Fills(progress.Progress):
            def __call__(self, step, t=None):
                if step == 5:  # the first save is done
                    disk.fill()
                return super().__call__(step, t)

        with monkeypatch.context() as patched:
            patched.setattr(progress, "Progress", Fills)
            with pytest.raises(UserError, match=SPACE) as error:
                train_stage.run(config, workdir)
        assert_one_line(error)
        saved = checkpoint.load(workdir).step
        assert saved in (2, 4)
        kept = shutil.copytree(workdir, tmp_path / "kept")
    # The failed run may hold a file open, and then the kernel refuses to make its disk read-only.
    with small(tmp_path / "other", kib=4 * whole) as disk:
        workdir = shutil.copytree(kept, disk.path / "run")
        disk.read_only()
        with pytest.raises(UserError, match=READ_ONLY) as error:
            train_stage.run(config, workdir)
        assert_one_line(error)
        assert checkpoint.load(workdir).step == saved
        disk.read_only(False)
        assert train_stage.run(config, workdir) == 0
        assert checkpoint.load(workdir).digest == digest


# --- data sets --------------------------------------------------------------------------------


def test_a_build_keeps_nothing_on_a_full_disk_and_succeeds_later(tmp_path):
    source = write_folder(tmp_path / "source")
    quick = dict(source=source, workers=0, progress=False)
    expected = build("angio_folder", data_dir=tmp_path / "good", **quick).fingerprint
    with small(tmp_path / "disk", kib=16) as disk:
        for kib in (16, 40, 80, 200, 240):
            disk.resize(kib)
            with pytest.raises(
                UserError, match="no space left under .*; nothing was kept"
            ) as error:
                build("angio_folder", data_dir=disk.path / "data", **quick)
            assert_one_line(error)
            kept = [p for p in (disk.path / "data").rglob("*") if p.is_file()]
            assert all(p.name.endswith("lock") for p in kept), kept
        disk.resize(20_000)
        made = build("angio_folder", data_dir=disk.path / "data", **quick)
        assert made.fingerprint == expected
        disk.read_only()
        assert build("angio_folder", data_dir=disk.path / "data", **quick).sizes == made.sizes
        with pytest.raises(UserError, match=READ_ONLY) as error:
            build("angio_folder", data_dir=disk.path / "data", **quick, rebuild=True)
        assert_one_line(error)
        with pytest.raises(UserError, match=READ_ONLY):
            build("angio_folder", data_dir=disk.path / "other", **quick)


# --- every other writer -----------------------------------------------------------------------

PICTURE = np.random.default_rng(0).random((4, 64, 64, 1))


def save_checkpoint(folder):
    with open_run(folder / "checkpoints") as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.wait()


def write_metrics(folder):
    with writers.create_writer(folder, console=False) as writer:
        writer.write_scalars(1, {"train/loss": 1.0})
        writer.write_images(1, {"noise": PICTURE})


def create_in_a_store(folder):
    open_store(folder).create("trials/a/result.json", b"x" * 5000)


def write_to_a_store(folder):
    open_store(folder).write("trials/a/result.json", b"x" * 5000)


def write_evaluation(folder):
    made = evaluator.evaluate(bright, 0.9, dataset(), "val", chain(), progress=False, resamples=9)
    evaluator.write(made, folder / "evaluation")


WRITERS = {
    "checkpoint": save_checkpoint,
    "metrics, events and pictures": write_metrics,
    "record of a run": lambda folder: record.write_json(folder / "a" / "b.json", {"x": "y" * 5000}),
    "evaluation": write_evaluation,
    "report page": lambda folder: frame.write(folder / "report.html", "x" * 5000),
    "claim of a sweep": create_in_a_store,
    "state of a sweep": write_to_a_store,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_every_writer_says_it_in_one_line_and_leaves_no_part(name, fault, tmp_path):
    with small(tmp_path / "disk", kib=4000) as disk:
        folder = disk.path / "folder"
        folder.mkdir()
        if fault == "full":
            disk.fill()
        else:
            disk.read_only()
        with pytest.raises(UserError) as error:
            WRITERS[name](folder)
        assert_one_line(error)
        words = "No space left on device" if fault == "full" else "Read-only file system"
        assert words in str(error.value) and str(folder) in str(error.value)
        left = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
        assert left == []
        if fault == "full":
            disk.drain()
        else:
            disk.read_only(False)
        WRITERS[name](folder)
        assert [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
