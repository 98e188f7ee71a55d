"""Damaged files: what cannot be trusted is named and never used, whichever file it is."""

import json
import os
import random
import re
import shutil
import time

import numpy as np
import pytest

from cmunet_jax.data import cache
from cmunet_jax.train.checkpoint import load
from tests.train.states import assert_same, make_state, open_run, saved
from tests.train.test_damage import files_of, flip
from tfds_angio.angio_folder.dummy_data import picture, save, write_folder
from tfds_angio.base import AngioDataset, UserError, build, open_dataset

pytestmark = pytest.mark.faults

CASES = 200
DAMAGES = {
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "flipped bit": flip,
    "missing": None,
}


def damage(path, kind, rng):
    """Damages one file."""
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes(), rng))


def kind_of(path, folder):
    """'state/d/0f3a…' and its siblings are one kind of file."""
    return re.sub(r"[0-9a-f]{16,}", "*", path.relative_to(folder).as_posix())


# --- checkpoints ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("good"), [1, 2])


def kinds(folder):
    found = {}
    for path in files_of(folder):
        found.setdefault(kind_of(path, folder), []).append(path)
    return found


def seeded_cases(folder):
    """200 (kind of file, damage, file, generator), all kinds and damages equally often."""
    by_kind = kinds(folder)
    pairs = [(kind, how) for kind in sorted(by_kind) for how in DAMAGES]
    for number in range(CASES):
        rng = random.Random(f"damage {number}")
        kind, how = pairs[number % len(pairs)]
        yield kind, how, rng.choice(by_kind[kind]), rng


def test_no_damaged_checkpoint_is_loaded_wrong(tmp_path, good):
    """By a resume, which falls back, and by a consumer, who asks for that very step."""
    outcomes = {}
    right = load(good, step=2, extra=True)
    for kind, how, path, rng in seeded_cases(good / "2"):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(good, run)
        damage(run / path.relative_to(good), how, rng)
        try:
            loaded = load(run, step=2, extra=True)
        except UserError as error:
            outcome = "refused"
            assert "damaged" in str(error) and "\n" not in str(error)
        else:
            outcome = "right"
            assert loaded.digest == right.digest
            assert_same(loaded.params, right.params)
            assert_same(loaded.extra, right.extra)
        with open_run(run) as checkpointer:
            restored = checkpointer.restore(make_state(1))
        # A resume reads all that a consumer does, and the optimiser's state.
        assert restored.step == 1 or outcome == "right"
        assert_same(restored.state, make_state(restored.step))
        outcomes.setdefault((kind, how), set()).add(outcome)
    assert outcomes[("manifest/metadata", "missing")] == {"refused"}
    assert {how for (_, how), found in outcomes.items() if "refused" in found} == set(DAMAGES)
    assert len(outcomes) == 3 * len(kinds(good / "2"))


# --- data sets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return build("angio_folder", data_dir=folder, source=source, workers=0, progress=False)


def content(dataset):
    return [
        (example["id"], example["image"].tobytes(), example["mask"].tobytes())
        for split in dataset.sizes
        for example in map(dataset.source(split).__getitem__, range(dataset.sizes[split]))
    ]


def occupied(path, rng):
    """A place in a file that holds something: ArrayRecord pads to 64 KiB with zeros."""
    return int(rng.choice(np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8))))


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_records_are_never_read_wrong(built, tmp_path, how):
    expected, refused = content(built), 0
    names = sorted(p.name for p in built.directory.iterdir() if p.is_file())
    names = [name for name in names if "array_record" in name or name in ("features.json",)]
    for number in range(12 * len(names)):
        rng = random.Random(f"{how} {number}")
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(built.directory, run)
        path = run / names[number % len(names)]
        if how == "flipped bit":
            data, place = bytearray(path.read_bytes()), occupied(path, rng)
            data[place] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        else:
            damage(path, how, rng)
        try:
            assert content(AngioDataset(run)) == expected
        except UserError as error:
            refused += 1
            assert "is damaged" in str(error) and "--rebuild" in str(error)
            assert "\n" not in str(error) and str(run) in str(error)
    assert refused >= 12


def test_a_replaced_source_image_is_noticed_and_the_data_set_keeps_its_own(tmp_path):
    source = write_folder(tmp_path / "source")
    quick = dict(data_dir=tmp_path / "data", source=source, workers=0, progress=False)
    before = build("angio_folder", **quick)
    expected = content(before)
    image = sorted((source / "imgs").iterdir())[0]
    time.sleep(0.01)
    save(image, picture(987))
    with pytest.raises(UserError, match="has changed since; add --rebuild"):
        build("angio_folder", **quick)
    assert content(open_dataset("angio_folder", data_dir=tmp_path / "data")) == expected
    after = build("angio_folder", **quick, rebuild=True)
    assert after.fingerprint != before.fingerprint


def test_a_run_is_not_continued_on_other_images(tiny_dataset, tmp_path):
    """The fingerprint of the data is part of a run: images exchanged by a rebuild are noticed."""
    from cmunet_jax.stages import record

    class Rebuilt:
        name, fingerprint = tiny_dataset.name, "0" * 64

    facts = {"data": {"fingerprint": tiny_dataset.fingerprint}}
    record.check_data(tmp_path, facts, tiny_dataset)
    with pytest.raises(UserError, match="was started on another build"):
        record.check_data(tmp_path, facts, Rebuilt)


# --- files of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_prepared_images_are_made_again(tmp_path, how):
    arrays = {"code": np.random.default_rng(0).integers(0, 255, (4, 16, 16), np.uint8)}
    digest = "ab" * 32
    cache.save(tmp_path / "good", digest, arrays)
    for number in range(20):
        rng = random.Random(f"{how} {number}")
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "good", run)
        damage(rng.choice(files_of(run)), how, rng)
        found = cache.load(run, digest)
        assert found is None or np.array_equal(found["code"], arrays["code"])
        cache.save(run, digest, arrays)
        assert np.array_equal(cache.load(run, digest)["code"], arrays["code"])


def test_a_damaged_record_of_a_run_is_one_line(tmp_path):
    from cmunet_jax import config as config_lib
    from cmunet_jax.stages import record

    config = config_lib.from_dict({"stage": "pretrain", "seed": 0})
    text = json.dumps({"config": config_lib.to_dict(config)})
    for broken in (text[: len(text) // 2], "[]", "null", "3", '{"config": 3}', "\xff"):
        (tmp_path / record.FILE).write_bytes(broken.encode("latin-1"))
        with pytest.raises(UserError, match="damaged"):
            record.check_workdir(tmp_path, config)
    os.unlink(tmp_path / record.FILE)
    record.check_workdir(tmp_path, config)
