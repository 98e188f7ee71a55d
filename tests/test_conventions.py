"""The rules of the house hold for the repository, and each rule can fail.

The rules are functions in tests/conventions.py. SAMPLES gives each of them contents that break it
(every single one must be reported) and contents that do not.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests import conventions as rules
from tests.conftest import ROOT

Files = dict[str, str]
MODEL, STAGE, TEST = "cmunet_jax/models/m.py", "cmunet_jax/stages/s.py", "tests/test_m.py"
LOSS, AUGMENT, DATA = "cmunet_jax/losses.py", "cmunet_jax/data/augment.py", "tfds_angio/d.py"
TORCH = "cmunet_jax/benchmark/torch_a.py"
LATER = "TO" + "DO"  # spelled so that this file does not break the rule that it tests


class Samples(NamedTuple):
    """File sets that a rule must and must not report."""

    bad: list[Files]
    good: list[Files]


def _loss(doc: str, body: str = "return a") -> Files:
    return {LOSS: f'def f(a: Array):\n    """{doc}"""\n    {body}\n'}


SAMPLES: dict[Callable[..., Iterator[str]], Samples] = {
    rules.backward_imports: Samples(
        bad=[
            {MODEL: "from cmunet_jax.train import loop\n"},
            {MODEL: "def f():\n    import cmunet_jax.objectives.base\n"},
            {MODEL: "from cmunet_jax import stages\n"},
            {MODEL: "from ..train import loop\n"},
            {"cmunet_jax/train/loop.py": "from cmunet_jax.objectives import cmunet\n"},
            {"cmunet_jax/train/loop.py": "from cmunet_jax.stages import train\n"},
            {"cmunet_jax/objectives/mae.py": "from cmunet_jax.data import source\n"},
            {STAGE: "from cmunet_jax.main import dispatch\n"},
            {STAGE: "from tests import conftest\n"},
            {DATA: "from cmunet_jax.config import suggestion\n"},
            {"cmunet_jax/__init__.py": "from cmunet_jax.models import unet\n"},
        ],
        good=[
            {MODEL: "from cmunet_jax.models import layers\nimport jax\n"},
            {MODEL: "from tfds_angio.errors import UserError\n"},
            {"cmunet_jax/train/loop.py": "from cmunet_jax.objectives.base import Out\n"},
            {STAGE: "from cmunet_jax.train import loop\nfrom cmunet_jax import losses\n"},
            {"cmunet_jax/main.py": "from cmunet_jax import stages\n"},
            {DATA: "import tfds_angio.base\n"},
        ],
    ),
    rules.import_cycles: Samples(
        bad=[
            {
                "tfds_angio/a.py": "from tfds_angio import b\n",
                "tfds_angio/b.py": "from tfds_angio.c import x\n",
                "tfds_angio/c.py": "import tfds_angio.a\n",
            },
        ],
        good=[
            {
                "tfds_angio/a.py": "from tfds_angio import b\n",
                "tfds_angio/b.py": "def f():\n    from tfds_angio import a\n",
            },
        ],
    ),
    rules.undocumented: Samples(
        bad=[
            {MODEL: "X = 1\n"},
            {MODEL: '"""M."""\ndef f(): pass\n'},
            {MODEL: '"""M."""\nclass C: pass\n'},
            {MODEL: '"""M."""\nclass C:\n    """C."""\n    def f(self): pass\n'},
        ],
        good=[
            {MODEL: '"""M."""\ndef _f(): pass\nclass _C:\n    def f(self): pass\n'},
            {MODEL: '"""M."""\nclass C:\n    """C."""\n    def __len__(self): pass\n'},
            {TEST: "def test_a(): pass\n"},
        ],
    ),
    rules.impure: Samples(
        bad=[
            {LOSS: "import os\n"},
            {LOSS: "from pathlib import Path\n"},
            {LOSS: "def f():\n    global a\n"},
            {LOSS: "def f():\n    print(1)\n"},
        ],
        good=[{LOSS: "import jax\ndef f(a):\n    return a\n"}, {STAGE: "import os\n"}],
    ),
    rules.unstated_ranges: Samples(
        bad=[
            _loss("Mean of a, in [0, 1]."),
            _loss("Mean of a [B, H, W]."),
            _loss(""),
        ],
        good=[
            _loss("Mean of a [B, H, W], in [0, 1]."),
            _loss("Mean distance of a [B, H, W] in pixels."),
            {LOSS: "def _f(a: Array): pass\ndef g(n: int): pass\n"},
        ],
    ),
    rules.augment_signatures: Samples(
        bad=[
            {AUGMENT: "def flip(image, key):\n    return jax.random.bernoulli(key)\n"},
            {AUGMENT: "def flip(image, *, seed):\n    return jax.random.key(seed)\n"},
            {AUGMENT: "def flip(image, key):\n    return image\n"},
            {AUGMENT: "def flip(key, image, probability=0.5):\n    return image\n"},
        ],
        good=[
            {AUGMENT: "def flip(key, image, *, p=0.5):\n    return jax.random.bernoulli(key, p)\n"},
            {AUGMENT: "def resize(image, *, size):\n    return image\n"},
        ],
    ),
    rules.mutable_state: Samples(
        bad=[
            {MODEL: "cache = {}\n"},
            {MODEL: "_seen: list[int] = []\n"},
            {MODEL: "import collections\ncounts = collections.Counter()\n"},
            {MODEL: "class C:\n    items = []\n"},
            {MODEL: "TABLE = {}\ndef f(k):\n    TABLE[k] = 1\n"},
            {MODEL: "TABLE = {}\ndef f(k):\n    del TABLE[k]\n"},
            {MODEL: "NAMES = []\ndef f(n):\n    NAMES.append(n)\n"},
            {STAGE: "from a import m\ndef f(k):\n    m.TABLE.update(k)\n"},
            {MODEL: "n = 0\ndef f():\n    global n\n    n += 1\n"},
        ],
        good=[
            {MODEL: "TABLE = {'a': 1}\ndef f(k):\n    return TABLE[k], TABLE.get(k)\n"},
            {MODEL: "__all__ = ['f']\ndef f():\n    found = []\n    found.append(1)\n"},
        ],
    ),
    rules.swallowed: Samples(
        bad=[
            {STAGE: "try:\n    f()\nexcept KeyError:\n    pass\n"},
            {STAGE: "for x in y:\n    try:\n        f()\n    except OSError:\n        continue\n"},
            {STAGE: "try:\n    f()\nexcept Exception:\n    value = 0\n"},
            {STAGE: "try:\n    f()\nexcept:\n    value = 0\n"},
            {STAGE: "try:\n    f()\nexcept OSError:\n    ...\n"},
            {STAGE: "with contextlib.suppress(Exception):\n    f()\n"},
        ],
        good=[
            {STAGE: "try:\n    f()\nexcept KeyError:\n    value = 0\n"},
            {STAGE: "try:\n    f()\nexcept Exception as e:\n    report(e)\n"},
            {STAGE: "while a:\n    try:\n        f()\n    except E:\n        continue  # why\n"},
            {STAGE: "try:\n    f()\nexcept BaseException:\n    clean()\n    raise\n"},
            {STAGE: "with contextlib.suppress(FileNotFoundError):\n    f()\n"},
        ],
    ),
    rules.foreign_frameworks: Samples(
        bad=[
            {STAGE: "import tensorflow as tf\n"},
            {STAGE: "def f():\n    from torch.nn import functional\n"},
            {TORCH: "import tensorflow as tf\n"},
        ],
        good=[
            {STAGE: "import tensorflow_datasets as tfds\n"},
            {TEST: "import torch\n"},
            {TORCH: "import torch\n"},
        ],
    ),
    rules.hidden_randomness: Samples(
        bad=[
            {DATA: "import random\n"},
            {DATA: "import numpy as np\nx = np.random.rand(3)\n"},
            {DATA: "import numpy as np\nnp.random.seed(0)\n"},
            {DATA: "import numpy as np\nrng = np.random.default_rng()\n"},
            {DATA: "import numpy as np\nrng = np.random.RandomState()\n"},
        ],
        good=[
            {DATA: "import numpy as np\nrng = np.random.default_rng((seed, 1))\n"},
            {DATA: "import numpy as np\nrng = np.random.RandomState(42)\n"},
            {DATA: "def f(rng: np.random.Generator): pass\nx = jax.random.key(0)\n"},
        ],
    ),
    rules.too_long: Samples(
        bad=[
            {MODEL: "x = 1\n" * 401},
            {MODEL: "def f():\n" + "    x = 1\n" * 70},
        ],
        good=[
            {MODEL: "x = 1\n" * 400},
            {MODEL: "def f():\n" + "    x = 1\n" * 69},
            {TEST: "def f():\n" + "    x = 1\n" * 90},
        ],
    ),
    rules.too_large: Samples(bad=[{"a.png": "x" * 1_000_001}], good=[{"a.png": "x" * 1_000_000}]),
    rules.machine_paths: Samples(
        bad=[
            {"README.md": "cd " + "/ho" + "me/ann/angio\n"},
            {MODEL: "DATA = '" + "/wo" + "rk/data'\n"},
            {"requirements.lock": "--index-" + "url https://example.org/simple\n"},
            {"Makefile": "pip install -i https://py" + "pi.org/simple x\n"},
        ],
        good=[
            {"README.md": "see ../shared and ~/angio and https://arxiv.org/abs/2507.17779\n"},
            {"launch/a.sh": 'cd "${HOME}/work/x"\n'},
        ],
    ),
    rules.unfinished: Samples(
        bad=[
            {"README.md": f"{LATER}: write this\n"},
            {MODEL: f"x = 1  # {LATER} later\n"},
            {MODEL: "def f():\n    raise NotImplemented" + "Error\n"},
            {TEST: "@pytest.mark.xfa" + "il\ndef test_a(): pass\n"},
            {MODEL: "# import os\n"},
            {MODEL: "x = 1\n# print(x)\n"},
        ],
        good=[
            {MODEL: "x = 1  # the side in pixels (an even number)\n# noqa: E501\n"},
            {MODEL: "raise NotImplemented" + "Error('audio is not supported')\n"},
        ],
    ),
    rules.empty_tests: Samples(
        bad=[
            {TEST: "def test_a():\n    f()\n"},
            {"tfds_angio/a/a_test.py": "def test_a():\n    x = 1\n"},
        ],
        good=[
            {TEST: "def test_a():\n    assert f()\n"},
            {TEST: "def test_a():\n    with pytest.raises(ValueError):\n        f()\n"},
            {TEST: "def test_a():\n    np.testing.assert_allclose(f(), 1)\n"},
        ],
    ),
    rules.config_headers: Samples(
        bad=[
            {"configs/a.py": '"""A."""\ndef get_config(arg=None): pass\n'},
            {"configs/a.py": '"""python -m cmunet_jax.main --config configs/a.py"""\n'},
        ],
        good=[
            {
                "configs/a.py": '"""A.\n\npython -m cmunet_jax.main --config configs/a.py\n"""\n'
                "def get_config(arg=None): pass\n"
            },
            {"configs/common.py": '"""Shared."""\n'},
        ],
    ),
}
RULES = list(SAMPLES)


def _encoded(files: Files) -> dict[str, bytes]:
    return {path: content.encode() for path, content in files.items()}


@pytest.fixture(scope="session")
def repository() -> dict[str, bytes]:
    """The tracked files with their content; all sources where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        folders = ("cmunet_jax", "tfds_angio", "configs", "tests", "launch")
        paths = [p for folder in folders for p in (ROOT / folder).rglob("*")]
    files = (p for p in paths if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in files}


def test_the_repository_is_seen(repository):
    assert {"cmunet_jax/main.py", "tfds_angio/base.py", "tests/conventions.py"} <= set(repository)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps(rule, repository):
    problems = list(rule(repository))
    assert not problems, f"{rule.__doc__}\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "rule, files",
    [(rule, files) for rule, samples in SAMPLES.items() for files in samples.bad],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rule_can_fail(rule, files):
    assert list(rule(_encoded(files)))


@pytest.mark.parametrize(
    "rule, files",
    [(rule, files) for rule, samples in SAMPLES.items() for files in samples.good],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rule_is_not_overzealous(rule, files):
    assert not list(rule(_encoded(files)))


def test_every_rule_has_samples():
    public = {
        value
        for name, value in vars(rules).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == rules.__name__
        and getattr(value, "__annotations__", {}).get("return") == "Iterator[str]"
    }
    assert public == set(RULES)
    assert all(samples.bad and samples.good for samples in SAMPLES.values())
