from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the expected manifests again from what is rendered now"
    )
    parser.addoption(
        "--update-release", action="store_true", help="take the golden manifests as those of a release made now"
    )
