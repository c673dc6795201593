"""The families whose heads and layers can be removed."""

import pytest
from tiny_models import FAMILIES

PRUNABLE = sorted(set(FAMILIES) - {"bert-mlm", "mpnet", "t5"})


@pytest.fixture(params=PRUNABLE)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return str(request.param)
