"""What the project declares is what it needs, and the lock pins all of it."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.conventions import imports, is_test, module_name

PACKAGES = ("cmunet_jax", "tfds_angio")
OURS = (*PACKAGES, "configs", "tests")
PYTHONS = ("3.11", "3.12", "3.13")
# Declared though nothing here imports them, and why.
NOT_IMPORTED = {
    "array-record": "the file format in which tensorflow-datasets writes",
    "flatbuffers": "jax.export serialises with it but does not declare it",
    "importlib-resources": "tensorflow-datasets imports it but does not declare it",
    "pillow": "tensorflow-datasets decodes PNG with it but does not declare it",
    "pyjpegls": "pydicom decodes JPEG-LS with it",
    "pylibjpeg": "pydicom asks it for openjpeg",
    "pylibjpeg-openjpeg": "pydicom decodes JPEG 2000 with it",
}
# Imported by the modules that an extra is for, and by nothing when it is not installed.
EXTRAS = {"torch": "bench", "onnx": "onnx", "onnxruntime": "onnx"}
RIVALS = ("cmunet_jax.benchmark.torch_", "cmunet_jax.interop.pytorch.")
# Imported only by tests that skip without them: large oracles, a fuzzer of one platform.
OPTIONAL_ORACLES = {"torch", "onnx", "onnxruntime", "monai", "torchmetrics", "atheris"}


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(r).name) for r in requirements}


def _modules() -> list[str]:
    """Every module of the two packages, tests that lie beside their data set left out."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = (path.relative_to(ROOT).as_posix() for path in sorted(files))
    return [module_name(name) for name in names if not is_test(name)]


def _third_party(*, tests: bool) -> Iterator[tuple[str, str]]:
    """Yields (file, top-level module) of each import that is neither standard library nor ours."""
    for folder in OURS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if is_test(name) != tests or "__pycache__" in name:
                continue
            for _, target in imports(ast.parse(path.read_text())):
                top = target.partition(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    yield name, top


def _undeclared(declared: set[str], *, tests: bool) -> set[str]:
    distributions = importlib.metadata.packages_distributions()
    problems = set()
    for name, top in _third_party(tests=tests):
        owners = {canonicalize_name(d) for d in distributions.get(top, [])}
        if not tests and top in EXTRAS:
            extra = _project()["optional-dependencies"][EXTRAS[top]]
            if top in _names(extra) and module_name(name).startswith(RIVALS):
                continue
        if not owners & declared and not (tests and top in OPTIONAL_ORACLES):
            problems.add(f"{name} imports {top}, of {', '.join(owners) or 'no installed package'}")
    return problems


def test_runtime_imports_are_declared():
    assert not _undeclared(_names(_project()["dependencies"]), tests=False)


def test_imports_of_the_tests_are_declared():
    project = _project()
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert not _undeclared(_names(requirements), tests=True)


def test_an_undeclared_import_is_noticed():
    declared = _names(_project()["dependencies"]) - {"numpy"}
    assert any("imports numpy" in problem for problem in _undeclared(declared, tests=False))


def test_declared_dependencies_are_used():
    distributions = importlib.metadata.packages_distributions()
    used = {
        canonicalize_name(d)
        for _, top in _third_party(tests=False)
        for d in distributions.get(top, [])
    }
    declared = _names(_project()["dependencies"])
    assert declared - used - set(NOT_IMPORTED) == set()
    assert set(NOT_IMPORTED) <= declared


@pytest.mark.parametrize("name", _modules())
def test_imports(name):
    if name.startswith(RIVALS):
        pytest.importorskip("torch")
    module = importlib.import_module(name)
    assert module.__name__ == name and module.__doc__


def _lock() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def _pins(python: str) -> dict[str, list[str]]:
    """The versions that the lock pins on Linux with CPython `python`, by name."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
    }
    pins: dict[str, list[str]] = {}
    for pin in _lock():
        if pin.marker is None or pin.marker.evaluate(environment):
            versions = [s.version for s in pin.specifier]
            pins.setdefault(canonicalize_name(pin.name), []).extend(versions)
    return pins


def test_lock_holds_exact_versions_and_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|^\s*-", text, re.MULTILINE)
    for pin in _lock():
        assert [s.operator for s in pin.specifier] == ["=="], pin
    assert not {"torch", "tensorflow"} & {canonicalize_name(pin.name) for pin in _lock()}


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_covers_what_is_declared(python):
    project = _project()
    pins = _pins(python)
    assert [f"{name}: {v}" for name, v in pins.items() if len(v) != 1] == []
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        (version,) = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), text


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_is_closed_over_the_installed_packages(python):
    """What the declared packages need is pinned as well, as far as they are installed here."""
    pins = _pins(python)
    project = _project()
    missing = set()
    for name in _names(project["dependencies"] + project["optional-dependencies"]["dev"]):
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                name_needed = canonicalize_name(need.name)
                if name_needed not in {*pins, "setuptools"}:  # every environment has it
                    missing.add(f"{name} needs {need.name}")
    assert not missing


def test_pre_commit_runs_the_locked_versions():
    """The hooks and `make lint` must not disagree."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = dict(re.findall(r"^\s*additional_dependencies: \[([\w-]+)==([\w.]+)\]", text, re.M))
    assert {"ruff", "pre-commit-hooks"} <= set(pinned)
    assert [pinned["ruff"]] == _pins("3.11")["ruff"]


def _copy_of_the_sources(target: pathlib.Path) -> pathlib.Path:
    """Copies what the build needs, so that it leaves nothing in the working tree."""
    target.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    return target


@pytest.mark.slow
def test_the_wheel_holds_the_packages_without_their_tests(tmp_path):
    sources = _copy_of_the_sources(tmp_path / "sources")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-w", tmp_path, sources], check=True, timeout=540)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert [name for name in names if name.endswith("_test.py")] == []
    modules = {module_name(name) for name in names if name.endswith(".py")}
    assert modules == set(_modules())
    assert {"tfds_angio/arcade/README.md", "tfds_angio/arcade/checksums.txt"} <= names


@pytest.mark.slow
def test_a_clean_environment_needs_only_pip_install(tmp_path):
    """`pip install .` alone, without the lock, brings everything that any module imports."""
    sources = _copy_of_the_sources(tmp_path / "sources")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", sources], check=True, timeout=540)
    modules = [name for name in _modules() if not name.startswith(RIVALS)]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)\nprint('all')"
    # -I: neither the working tree nor a PYTHONPATH may help.
    done = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.endswith("all\n"), done.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True, timeout=60
    )
    assert not re.search(r"^(tensorflow|torch) ", listed.stdout, re.MULTILINE)
