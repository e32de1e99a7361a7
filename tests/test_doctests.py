"""Every example in a docstring of the package does what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import matplotlib
import pytest
import torch

import pydiffeqflux as pdf

matplotlib.use("Agg")


def modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(pdf.__path__, "pydiffeqflux.") if not m.name.endswith("__main__")]
    return [pdf, *(importlib.import_module(name) for name in sorted(names))]


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]


EXAMPLES = examples()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("example", EXAMPLES, ids=[test.name.removeprefix("pydiffeqflux.") for test in EXAMPLES])
def test_example(example: doctest.DocTest) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(example, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)


#: Names that need no example of their own: single methods, what others return, what others show.
SHOWN_ELSEWHERE = {
    *(
        name
        for name in pdf.__all__
        if isinstance(getattr(pdf, name), type) and issubclass(getattr(pdf, name), pdf.Method)
    ),
    *("AutoDopri5", "AutoVern7", "AutoVern9", "IController", "PIController"),
    *("EventRecord", "PyDiffEqFluxError", "SenseAlg", "Status"),
} - {"Method"}


@pytest.mark.parametrize("name", [name for name in pdf.__all__ if name not in SHOWN_ELSEWHERE])
def test_what_users_call_has_an_example(name: str) -> None:
    public = getattr(pdf, name)
    assert f"{public.__module__}.{name}" in {test.name for test in EXAMPLES}


def test_everything_public_is_described() -> None:
    for name in pdf.__all__:
        public = getattr(pdf, name)
        assert public.__doc__, name
        assert public.__module__.startswith("pydiffeqflux")
