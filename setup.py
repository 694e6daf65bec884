"""What pyproject.toml cannot say: recipes and Accelerate configs are a part of the package.

They are at the top of a checkout, and in pipelines/shipped/ of a wheel.
"""

from setuptools import find_packages, setup

SHIPPED = ("recipes", "accelerate_configs")

setup(
    packages=[*find_packages(include=["pipelines*"]), *(f"pipelines.shipped.{f}" for f in SHIPPED)],
    package_dir={f"pipelines.shipped.{folder}": folder for folder in SHIPPED},
)
