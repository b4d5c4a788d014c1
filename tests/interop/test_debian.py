"""The builders that Debian packages: every kind of file is served with its own bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.behaviours import BEHAVIOURS, Behaviour
from tests.interop.builders import DEBIAN, served
from tests.interop.registries import DEBIAN as REGISTRY
from tests.interop.site import ROWS, Row
from tests.support.parts.server import Server


@pytest.fixture(scope="module", params=DEBIAN, ids=lambda builder: builder.name)
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    """A server and the path of the image that one builder made."""
    with served(request.param) as found:
        yield found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_files_of_builders(built: Any, row: Row) -> None:
    """A file of any kind has the same bytes as before it was packed."""
    row.check(*built)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.name)
def test_behaviours_of_docker_registry(behaviour: Behaviour) -> None:
    """An image of Debian's docker-registry is served in every situation."""
    behaviour.check(REGISTRY)
