"""Shared by all tests."""

import math
import os
import signal

import matplotlib
import pytest
import torch

# Small tensors: a second thread only adds overhead, and results stay the same on every machine.
torch.set_num_threads(1)
# A shell lets what it starts in the background ignore Ctrl-C; the tests of Ctrl-C want Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No test opens a window.
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend="torch"`` stays eager, however often a test evaluates a function.

    With PDF_TEST_COMPILED=1 in the environment it is compiled at once, where the engine covers it. What the compiled
    engine does is asked for by name in its own tests.
    """
    at_once = os.environ.get("PDF_TEST_COMPILED") == "1"
    monkeypatch.setattr("pydiffeqflux.backends.native.WARM_UP", 0 if at_once else math.inf)


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
