"""The families whose heads and layers can be removed."""

import pytest
from tiny_models import FAMILIES

PRUNABLE = sorted(set(FAMILIES) - {"bert-mlm", "mpnet", "t5"})


WITH_HEADS = sorted({*PRUNABLE, "mpnet", "bart", "t5", "gpt-neox", "phi3"})
"""The families whose heads can be removed."""


@pytest.fixture(params=WITH_HEADS)
def family_with_heads(request: pytest.FixtureRequest) -> str:
    """The name of each family with removable heads in turn."""
    return str(request.param)


@pytest.fixture(params=PRUNABLE)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family in turn."""
    return str(request.param)
