"""What the processes of one run say when they do not see the same; threads stand for them."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from concurrent import futures

import jax
import numpy as np
import pytest

from cmunet_jax.stages import train
from cmunet_jax.train import processes
from tfds_angio.errors import UserError


@pytest.fixture
def compare(monkeypatch):
    """Calls require_same as several processes; returns what each said and the exchanges."""

    def compare(*facts):
        count = len(facts)
        meeting, sent, exchanges = threading.Barrier(count), {}, []

        def gather(value):
            sent[threading.get_ident()] = value
            if meeting.wait(10) == 0:
                exchanges.append(np.stack(list(sent.values())))
            meeting.wait(10)
            return exchanges[-1]

        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(processes, "meet", lambda place, **_: None)
        monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)

        def one(own):
            try:
                processes.require_same(own)
            except UserError as error:
                return str(error)
            return ""

        with futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, facts)), len(exchanges)

    return compare


CONFIG = {"config.seed": 0, "config.train_for": "20 steps", "config.views.mean": (0.5, 0.5)}


def test_processes_that_see_the_same_exchange_once(compare):
    facts = {"--workdir": "/a", "the config": CONFIG, "the images": ["a", "b"]}
    other = facts | {"the config": dict(reversed(CONFIG.items()))}
    assert compare(facts, other, facts) == ([""] * 3, 1)


def test_the_keys_of_the_config_that_differ_are_told_with_their_own_values(compare):
    long = {f"config.a{i:03}": "x" * 50 for i in range(30)}  # sorted before the one that differs
    configs = [long | CONFIG | {"config.train_for": f"{n} steps"} for n in (20, 20, 21)]
    said, _ = compare(*({"--workdir": "/a", "the config": one} for one in configs))
    for text, steps in zip(said, (20, 20, 21)):
        assert text.startswith(
            "the 3 processes of this run differ in the config: config.train_for (here: "
            f"'{steps} steps'). Start all"
        )
        assert "config.a0" not in text and "--workdir and config.data.dir" in text


def test_few_of_many_keys_are_told_and_those_of_others_counted(compare):
    many = {f"config.k{i}": i for i in range(9)}
    changed = {key: value + 1 for key, value in many.items()} | {"config.more": "y" * 500}
    said, exchanges = compare({"the config": many}, {"the config": changed})
    assert exchanges == 3
    assert "config.k2 (here: 2), 6 more, 1 that is not here." in said[0]
    assert "config.k2 (here: 3), 7 more." in said[1]
    assert all(len(text) < 300 for text in said)


def test_of_images_their_number_and_the_first_that_differs_are_told(compare):
    here = {"the data set": "x", "the images": [f"image{i}" for i in range(1200)]}
    fewer = {"the data set": "x", "the images": here["the images"][:1100]}
    swapped = {"the data set": "x", "the images": ["image0", "other", *here["the images"][2:]]}
    said, _ = compare(here, fewer)
    assert "differ in the images (here: 1,200, number 1101 is 'image1100')." in said[0]
    assert "differ in the images (here: 1,100)." in said[1]
    said, _ = compare(here, swapped)
    assert "(here: 1,200, number 2 is 'image1')." in said[0]
    assert "(here: 1,200, number 2 is 'other')." in said[1]
    said, _ = compare(here, here | {"the data set": "y"})
    assert "differ in the data set (here: x)." in said[0]


class Reached(Exception):
    """The stage came this far."""


@pytest.mark.parametrize("number", [0, 1])
def test_only_the_first_process_shows_bars(tiny_dataset, monkeypatch, tmp_path, capfd, number):
    config = importlib.import_module("configs.pretrain").get_config("size=tiny")
    config.data.dir = str(tiny_dataset.directory.parents[2])
    config.data.workers = 1
    built = []
    own = dataclasses.replace(train.choose_images(config), ids=tiny_dataset.ids("train")[:8])

    def choose_images(config, *, progress):
        built.append(progress)
        return own

    def prepare(dataset, split, chain, **how):
        return prepare_in(dataset, split, chain, cache_dir=tmp_path / "prepared", **how)

    def durations(*_):
        raise Reached

    prepare_in = train.source.prepare
    monkeypatch.setattr(train, "choose_images", choose_images)
    monkeypatch.setattr(train.source, "prepare", prepare)
    monkeypatch.setattr(train, "durations", durations)
    monkeypatch.setattr(processes, "is_first", lambda: number == 0)
    with pytest.raises(Reached):
        train.run(config, tmp_path / "run")
    assert built == [number == 0]
    assert ("preparing" in capfd.readouterr().err) == (number == 0)
