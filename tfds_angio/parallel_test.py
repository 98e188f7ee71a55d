"""The ordered map over processes."""

import os
import time

import pytest

from tfds_angio.errors import UserError
from tfds_angio.parallel import parallel_map


def slow_square(x):
    time.sleep(0.02 * (x % 3))  # later items finish first
    return x * x


def fail(x):
    if x == 3:
        raise UserError("three is not allowed")
    return x


def die(x):
    if x == 1:
        os._exit(9)
    return x


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_items(workers):
    results = parallel_map(slow_square, list(range(20)), workers=workers, progress=False)
    assert list(results) == [x * x for x in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller(workers):
    with pytest.raises(UserError, match="three is not allowed"):
        list(parallel_map(fail, list(range(6)), workers=workers, progress=False))


def test_a_killed_worker_is_one_clear_line():
    with pytest.raises(UserError, match="worker process died") as caught:
        list(parallel_map(die, list(range(6)), workers=2, progress=False))
    # It is raised by the build command as well as by a run.
    assert "--workers 1" in str(caught.value)
    assert "--config.data.workers=1" in str(caught.value)


def test_nothing_to_do():
    assert list(parallel_map(slow_square, [], workers=2, progress=False)) == []


def test_progress_is_drawn_only_when_asked(capfd):
    list(parallel_map(slow_square, [1, 2], workers=0, progress=False))
    assert capfd.readouterr().err == ""
    list(parallel_map(slow_square, [1, 2], workers=0, progress=True, label="squares"))
    assert "squares" in capfd.readouterr().err
