"""The runner over the fixtures, and its behaviour on cases that do not match."""

import pathlib
import shutil

import numpy as np
import pytest

from tests.golden import __main__ as runner
from tests.golden import unet
from tests.golden.case import Check, absolute, formula, relative

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def _copy(tmp_path, stem, *, name=None, without=(), **changes):
    with np.load(FIXTURES / f"{stem}.npz") as archive:
        case = {k: archive[k] for k in archive.files if k not in without}
    np.savez(tmp_path / f"{name or stem}.npz", **(case | changes))
    return ["--dir", str(tmp_path)]


def test_every_fixture_passes(capsys):
    assert runner.main(["--dir", str(FIXTURES)]) == 0
    lines = capsys.readouterr().out.splitlines()
    stems = sorted(p.stem for p in FIXTURES.glob("*.npz"))
    assert [line.split()[1].rstrip(":") for line in lines[:-1]] == stems
    passed = [line for line in lines if line.startswith("ok")]
    kinds = {line.split("_")[1].split(":")[0] for line in passed}
    assert kinds == {"unet", "cmunet", "spark", "moco", "metrics"}


@pytest.mark.slow
def test_a_step_passes_as_users_compile_it(tmp_path, run_python):
    """With LLVM's optimisation, which the other tests leave out."""
    shutil.copy(FIXTURES / "public_cmunet_w4.npz", tmp_path)
    done = run_python("-m", "tests.golden", "--dir", str(tmp_path), XLA_FLAGS="")
    assert "1 of 1 cases pass" in done.stdout


def test_a_wrong_value_fails_and_is_named(tmp_path, capsys):
    with np.load(FIXTURES / "public_cmunet_w4.npz") as archive:
        wrong = archive["released/loss_ct"] * 1.001
    arguments = _copy(tmp_path, "public_cmunet_w4", **{"released/loss_ct": wrong})
    assert runner.main(arguments) == 1
    out = capsys.readouterr().out
    assert "FAIL  public_cmunet_w4" in out and "released/loss_ct" in out
    assert "0 of 1 cases pass" in out


@pytest.mark.parametrize("change", ["loss", "queue_after", "ptr_after"])
def test_a_wrong_queue_fails_and_is_named(tmp_path, capsys, change):
    with np.load(FIXTURES / "public_moco.npz") as archive:
        wrong = archive[change] + archive[change].dtype.type(1)
    assert runner.main(_copy(tmp_path, "public_moco", name="x_moco_b", **{change: wrong})) == 1
    assert f"({change}, " in capsys.readouterr().out


@pytest.mark.parametrize("change", ["seed", "width", "nan"])
def test_wrong_weights_or_values_fail(tmp_path, capsys, change, monkeypatch):
    monkeypatch.setattr(unet, "_training", lambda *args: [])
    name, changes = "public_unet_w8", {}
    if change == "seed":
        changes["seed"] = np.int64(1)
    elif change == "nan":
        changes["logits_eval"] = np.full((2, 2, 64, 64), np.nan, np.float32)
    else:
        name = "public_unet_w4"
    assert runner.main(_copy(tmp_path, "public_unet_w8", name=name, **changes)) == 1
    assert capsys.readouterr().out.startswith("FAIL")


def test_a_case_that_crashes_is_one_line_and_hides_no_other(tmp_path, capsys):
    (tmp_path / "a_unet_w8.npz").write_bytes(b"damaged")
    _copy(tmp_path, "public_cmunet_w4", name="b_cmunet_w4", without=("img",))
    np.savez(tmp_path / "c_unet_w4.npz", x=np.zeros((1, 30, 32), np.float32), seed=0)
    shutil.copy(FIXTURES / "public_metrics_perfect.npz", tmp_path / "d_metrics_perfect.npz")
    assert runner.main(["--dir", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("FAIL  a_unet_w8: could not be checked")
    assert lines[1].startswith("FAIL  b_cmunet_w4") and "'img'" in lines[1]
    assert "multiples of 16" in lines[2]
    assert lines[3].startswith("ok    d_metrics_perfect")


def test_a_folder_without_cases_is_an_error(tmp_path, capsys):
    assert runner.main(["--dir", str(tmp_path)]) == 2
    assert "no case" in capsys.readouterr().err
    assert runner.main(["--dir", str(tmp_path / "absent")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_formula_weights_follow_the_name():
    a = formula("up_conv4.up_sample.weight", (4, 2, 2, 2), 0)
    assert np.array_equal(a, formula("up_conv4.up_sample.weight", (4, 2, 2, 2), 0))
    assert not np.array_equal(a, formula("up_conv3.up_sample.weight", (4, 2, 2, 2), 0))
    assert not np.array_equal(a, formula("up_conv4.up_sample.weight", (4, 2, 2, 2), 1))
    assert abs(formula("x.weight", (1000,), 0).mean() - 1) < 0.02
    assert formula("x.running_var", (1000,), 0).min() >= 1
    assert abs(formula("x.weight", (100, 50), 0).std() - 0.2) < 0.01


def test_checks_measure_what_they_say():
    assert absolute("x", [1, 2], [1, 2.5], 1).error == 0.5
    assert relative("x", [1, 2], [1, 2.5], 1).error == pytest.approx(0.2)
    assert not Check("x", float("nan"), 1).passed and not absolute("x", [np.nan], [1], 1).passed
    with pytest.raises(ValueError, match="shape"):
        absolute("x", [1], [1, 2], 1)
