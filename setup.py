"""Where the packages are. Everything else about the distribution stands in pyproject.toml.

Three folders of the repository become one import package, so that nothing but `accelaes_export` lands in
site-packages: `plugins/` is installed as `accelaes_export.plugins` and `engines/` as `accelaes_export.engines`.
"""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["accelaes_export", "accelaes_export.*"]),
        "accelaes_export.engines",
        "accelaes_export.plugins",
        *(f"accelaes_export.plugins.{name}" for name in find_packages("plugins")),
    ],
    package_dir={
        "accelaes_export": "accelaes_export",
        "accelaes_export.engines": "engines",
        "accelaes_export.plugins": "plugins",
    },
)
