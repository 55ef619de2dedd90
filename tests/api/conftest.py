from collections.abc import AsyncIterator

import pytest

from tests.fakes.api import Api, serving


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as api:
        yield api
