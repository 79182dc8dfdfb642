"""What producers import: loaded when it is used, and not before."""

import subprocess
import sys

import pytest

import shardctl


@pytest.mark.parametrize("name", shardctl.__all__)
def test_each_public_name_can_be_imported(name):
    assert getattr(shardctl, name).__name__ == name
    assert name in dir(shardctl)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute 'Publishr'"):
        shardctl.Publishr  # noqa: B018
    with pytest.raises(ImportError):
        exec("from shardctl import Publishr")


def test_the_package_alone_loads_nothing():
    heavy = ("shardctl.", "google", "grpc", "pydantic")
    code = f"import sys, shardctl; print([name for name in sys.modules if name.startswith({heavy})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
