"""What pyproject cannot say: the packages behind the symlinks, and the C++ extension."""

from setuptools import find_namespace_packages, setup

setup(packages=find_namespace_packages(include=["stagebeam", "stagebeam.*"]))
