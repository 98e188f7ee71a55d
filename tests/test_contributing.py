"""The method that CONTRIBUTING.md shows is complete: it trains, draws and transfers as it is."""

import pathlib
import re
import sys
import textwrap
import types

from cmunet_jax import objectives
from cmunet_jax.stages import train as train_stage
from configs import pretrain
from tests.stage_helpers import tiny

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()


def test_the_seventh_method_is_one_file_and_one_line(tiny_dataset, monkeypatch, tmp_path):
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1])
    module = types.ModuleType("superres")
    monkeypatch.setitem(sys.modules, "superres", module)
    exec(code, module.__dict__)
    for name, value in (
        ("OBJECTIVES", module.SuperResolution),
        ("PRESETS", module.preset_options),
    ):
        table = {**getattr(objectives, name), "superres": value}
        monkeypatch.setattr(objectives, name, types.MappingProxyType(table))
    monkeypatch.setattr(pretrain, "OBJECTIVES", (*pretrain.OBJECTIVES, "superres"))
    monkeypatch.setitem(pretrain.RECIPES, "superres", pretrain.RECIPES["mae"])
    config = tiny("pretrain", tiny_dataset, 2)
    full = pretrain.get_config("size=tiny,objective=superres")
    config.objective, config.views = full.objective, full.views
    assert train_stage.run(config, tmp_path / "pretrain") == 0
    assert list((tmp_path / "pretrain" / "pictures").glob("restored_*.png"))
    tuned = tiny("finetune", tiny_dataset, 2, init_from=str(tmp_path / "pretrain"))
    assert train_stage.run(tuned, tmp_path / "finetune") == 0
