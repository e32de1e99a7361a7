"""Shared by all tests."""

import os

import matplotlib
import pytest
import torch

# Small tensors: a second thread only adds overhead, and results stay the same on every machine.
torch.set_num_threads(1)
# No test opens a window.
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _julia_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    """Start Julia for tests marked ``julia``; skip them, with the reason, where that fails.

    With ``PYDIFFEQFLUX_REQUIRE_JULIA=1`` they fail instead.
    """
    if request.node.get_closest_marker("julia") is None:
        return
    from pydiffeqflux.backends.julia.session import session
    from pydiffeqflux.errors import BackendUnavailableError

    try:
        session()
    except BackendUnavailableError as why:
        if os.environ.get("PYDIFFEQFLUX_REQUIRE_JULIA") == "1":
            pytest.fail(str(why))
        pytest.skip(str(why))
