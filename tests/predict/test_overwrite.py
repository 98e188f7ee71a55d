"""What predict replaces when it is asked to, and what it never does."""

import numpy as np
import pytest

from cmunet_jax.predict import outputs, record
from cmunet_jax.stages import predict
from tests.predict.test_stage import configured, files_of, images
from tfds_angio.errors import UserError


def test_results_are_not_overwritten_unless_asked(checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "one.png"), probability="npz")
    out = tmp_path / "out"
    assert predict.run(config, out) == 0
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    config.input = str(images(tmp_path / "in2", "two.png"))
    with pytest.raises(UserError, match=r"holds results.*overwrite"):
        predict.run(config, out)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    (out / "mine.txt").write_text("kept")
    config.overwrite = True
    assert predict.run(config, out) == 0
    names = files_of(out)
    assert "masks/two.png" in names and "mine.txt" in names and ".partial" not in str(names)
    assert not [name for name in names if "one" in name], "of one run, not of two"
    probability = record.read_probability(out / "probabilities/two.npz")
    assert probability.dtype == np.float32


def test_results_without_their_index_are_not_overwritten_either(checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "one.png"))
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "label.png").write_text("by hand")
    with pytest.raises(UserError, match=r"masks/.*overwrite"):
        predict.run(config, tmp_path / "out")
    assert files_of(tmp_path / "out") == ["masks/label.png"]


def test_overwrite_replaces_what_a_run_wrote_and_nothing_else(checkpoint, tmp_path):
    config = configured(checkpoint, images(tmp_path / "in", "one.png"), overwrite=True, qca=True)
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "label.png").write_text("by hand")
    with pytest.raises(UserError, match=r"masks/label.png.*not replaced"):
        predict.run(config, out)
    assert files_of(out) == ["masks/label.png"]
    (out / "masks" / "label.png").unlink()
    assert predict.run(config, out) == 0
    first = files_of(out)
    assert predict.run(config, out) == 0, "its own results, those of the measurement among them"
    assert files_of(out) == first
    (out / "frames" / "label.png").write_text("by hand")
    with pytest.raises(UserError, match=r"frames/label.png"):
        predict.run(config, out)


def test_what_cannot_be_replaced_stays_as_it_was(checkpoint, tmp_path, monkeypatch):
    config = configured(checkpoint, images(tmp_path / "in", "one.png"))
    out = tmp_path / "out"
    assert predict.run(config, out) == 0
    before = {name: (out / name).read_bytes() for name in files_of(out)}

    def full(*unused):
        raise OSError(28, "No space left on device")

    config.overwrite = True
    config.input = str(images(tmp_path / "in2", "two.png"))
    monkeypatch.setattr(outputs.record, "write", full)
    with pytest.raises(UserError, match="No space left"):
        predict.run(config, out)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
