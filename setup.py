"""What pyproject.toml cannot say: files at the top of a checkout that are a part of the package.

Recipes, Accelerate configs and constraints.txt are in pipelines/shipped/ of a wheel.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "accelerate_configs")


class BuildWithConstraints(build_py):
    """Copies constraints.txt too, except into an editable installation, which has it anyway."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "pipelines", "shipped", "constraints.txt")
            self.copy_file("constraints.txt", str(target))


setup(
    packages=[*find_packages(include=["pipelines*"]), *(f"pipelines.shipped.{f}" for f in SHIPPED)],
    package_dir={f"pipelines.shipped.{folder}": folder for folder in SHIPPED},
    cmdclass={"build_py": BuildWithConstraints},
)
