"""docs/defects.md: its keys exist, its values change something, its variants do the same."""

import ast
import importlib
import pathlib
import re

import pytest

from cmunet_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "defects.md").read_text(encoding="utf-8")
KEY = re.compile(r"`((pretrain|finetune|evaluate|sweep)\.([\w.]+?)(?:=([^`]+?))?)`")


def get(part, arg="preset=fixed"):
    argument = None if part in ("evaluate", "sweep") else f"size=small,{arg}"
    config = importlib.import_module(f"configs.{part}").get_config(argument)
    return dict(config_lib.flatten(config))


def value_of(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def rows():
    """Row number -> (cells of the table, switches as (config, key, value))."""
    found = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0].isdigit():
            switches = [(m[2], m[3], value_of(m[4])) for m in KEY.finditer(cells[2])]
            found[int(cells[0])] = (cells, switches)
    return found


ROWS = rows()


def test_every_row_of_the_method_has_a_line():
    assert list(ROWS) == list(range(1, 13))
    assert [n for n, (cells, _) in ROWS.items() if cells[2] == "none"] == [10, 11]
    assert all(f"**Row {n} has no switch.**" in TEXT for n in (10, 11))


@pytest.mark.parametrize("match", list(KEY.finditer(TEXT)), ids=lambda m: m[1])
def test_every_key_exists_and_takes_the_value(match):
    known = get(match[2])
    key, text = match[3], match[4]
    if text is None:
        assert key in known
        return
    for pair in f"{key}={text}".split(f" {match[2]}."):
        key, _, text = pair.partition("=")
        assert key in known, f"configs/{match[2]}.py has no {key}"
        assert isinstance(value_of(text), type(known[key]))


@pytest.mark.parametrize("number", [n for n, (cells, _) in ROWS.items() if cells[2] != "none"])
def test_a_switch_changes_what_the_fixed_preset_has(number):
    switches = ROWS[number][1]
    assert switches
    changed = [get(part).get(key) != value for part, key, value in switches]
    assert all(changed), f"row {number}: {switches}"


@pytest.mark.parametrize(
    "part,key",
    [(p, k) for _, switches in ROWS.values() for p, k, _ in switches if k.startswith("objective")],
)
def test_the_paper_preset_has_the_released_value(part, key):
    released = {k: v for _, switches in ROWS.values() for p, k, v in switches if p == part}
    assert get(part, "preset=paper")[key] == released[key]
    assert get("finetune", "preset=paper")["train_for"] == "128 epochs"


def test_the_variants_of_a_study_are_these_switches():
    config = importlib.import_module("configs.sweep").get_config()
    named = {cells[3]: switches for cells, switches in ROWS.values() if cells[3] != "–"}
    assert set(config.known_variants) == set(named)
    for name, switches in named.items():
        changes = dict(config_lib.flatten(config.known_variants[name]))
        changes = {key.replace("pretrain.cmunet.", "pretrain."): v for key, v in changes.items()}
        changes = {
            k: v.replace("{test}", "test") if isinstance(v, str) else v for k, v in changes.items()
        }
        for part, key, value in switches:
            assert changes.pop(f"{part}.{key}") == value
        assert set(changes) <= {"finetune.eval_every"}
