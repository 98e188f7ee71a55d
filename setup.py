"""Keeps the tests that lie beside their modules out of what is installed.

Everything else is declared in pyproject.toml, which can choose packages but not modules.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class WithoutTests(build_py):
    """Leaves *_test.py out: they import pytest, which an installation does not bring."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """(package, module, file) of every module of `package` but its tests."""
        found = super().find_package_modules(package, package_dir)
        return [one for one in found if not one[1].endswith("_test")]


setup(cmdclass={"build_py": WithoutTests})
