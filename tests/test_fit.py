"""Training: reading a series, the recipe, resuming, and what is left on the disk."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import pydiffeqflux as pdf
from pydiffeqflux import errors
from pydiffeqflux.training import FitInterrupted, FitOptions, Progress, Series, fit, load, read_csv
from pydiffeqflux.training.descent import TrialDescent
from pydiffeqflux.training.recipe import Trainer
from pydiffeqflux.training.scaling import scaling_of
from pydiffeqflux.training.shooting import Shooting
from pydiffeqflux.training.smoothing import smooth

LYNX_HARE = Path(__file__).parents[1] / "data" / "lynx_hare.csv"
OUTPUTS = {"fit.png", "loss.png", "model.pt", "report.json", "checkpoint.pt"}
#: Small enough to run in about a second.
SMALL = FitOptions(width=8, depth=1, epochs=30)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lynx_hare() -> Series:
    return read_csv(LYNX_HARE, "Year", ["Hare", "Lynx"])


def decay(n: int = 9) -> Series:
    t = np.linspace(0.0, 2.0, n)
    return Series("t", ("x",), t, np.exp(-t)[:, None])


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- the series ---------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "t,a,b\n0,1,2\n1,2,3\n2,3,4\n3,4,5\n4,5,6\n"


def test_read_csv_gives_the_numbers(lynx_hare):
    assert len(lynx_hare) == 21
    assert lynx_hare.times[0] == 1900 and lynx_hare.times[-1] == 1920
    assert lynx_hare.values[4].tolist() == [36.3, 59.4]
    assert lynx_hare.values.sum(axis=0) == pytest.approx([715.7, 423.5])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        "# a comment\n\n" + GOOD.replace("2,3,4\n", "# another\n2, 3, 4\n\n"),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        '"t","a","b"\r\n' + GOOD[6:].replace("\n", "\r\n"),
    ],
    ids=["byte order mark", "comments and blanks", "semicolons", "tabs", "quotes and CRLF"],
)
def test_read_csv_takes_the_usual_dialects(tmp_path, text):
    path = tmp_path / "d.csv"
    path.write_bytes(text.encode())
    series = read_csv(path, "t", ["b", "a"])
    assert series.state_names == ("b", "a")
    assert series.values.tolist() == [[2, 1], [3, 2], [4, 3], [5, 4], [6, 5]]


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        (GOOD, ("t", ["c"]), ["no column 'c'", "t, a, b"]),
        (GOOD.replace("a", "Hare"), ("t", ["hair"]), ["no column 'hair'", "Did you mean 'Hare'?"]),
        (GOOD, ("t", ["a", "a"]), ["'a' is asked for more than once"]),
        (GOOD, ("t", ["t"]), ["'t' is asked for more than once"]),
        (GOOD, ("t", []), ["no state column"]),
        (GOOD.replace("t,a,b", "t,a,a"), ("t", ["a"]), ["2 columns named 'a'"]),
        (GOOD.replace("2,3,4", "2,three,4"), ("t", ["a"]), ["row 3 (line 4)", "'a'", "'three'", "not a number"]),
        (GOOD.replace("2,3,4", "2,,4"), ("t", ["a"]), ["row 3 (line 4)", "'a'", "is empty"]),
        (GOOD.replace("2,3,4", "2,NaN,4"), ("t", ["a"]), ["row 3 (line 4)", "'NaN'", "fill the gap"]),
        (GOOD.replace("2,3,4", "2,inf,4"), ("t", ["a"]), ["row 3 (line 4)", "'inf'"]),
        (GOOD.replace("2,3,4", "2,3"), ("t", ["a"]), ["row 3 (line 4)", "2 cells", "header has 3"]),
        (GOOD.replace("2,3,4", "1,3,4"), ("t", ["a"]), ["t=1 in row 3", "row 2", "sort the rows"]),
        (GOOD.replace("2,3,4", "0.5,3,4"), ("t", ["a"]), ["t=0.5 in row 3 follows 1 in row 2"]),
        (GOOD.replace("4,5,6\n", ""), ("t", ["a"]), ["4 rows are too few", "at least 5"]),
        ("", ("t", ["a"]), ["is empty"]),
        ("t,a,b\n", ("t", ["a"]), ["0 rows are too few"]),
    ],
)
def test_a_bad_file_is_a_data_error_that_says_where(tmp_path, text, columns, words):
    with pytest.raises(errors.DataError) as caught:
        read_csv(write(tmp_path / "d.csv", text), *columns)
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(errors.DataFileNotFoundError, match=r"no file .*nowhere\.csv"):
        read_csv(tmp_path / "nowhere.csv", "t", ["a"])
    with pytest.raises(errors.DataError, match="cannot be read"):
        read_csv(tmp_path, "t", ["a"])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(errors.DataError, match="UTF-8"):
        read_csv(tmp_path / "picture.csv", "t", ["a"])


def test_series_from_arrays_is_checked_too():
    t = np.arange(6.0)
    with pytest.raises(errors.DataError, match=r"shape \(5, 1\)"):
        Series("t", ("x",), t, np.ones((5, 1)))
    with pytest.raises(errors.DataError, match="arrays of numbers"):
        Series("t", ("x",), t, np.array([["a"]] * 6))
    with pytest.raises(errors.DataError, match="'x' is not finite in row 2"):
        Series("t", ("x",), t, np.array([[1.0], [math.nan], [1], [1], [1], [1]]))
    assert Series("t", ("x",), t, np.ones((6, 1))).digest != Series("t", ("y",), t, np.ones((6, 1))).digest


# -- the parts of the recipe --------------------------------------------------------------------


def test_smoothing_is_exact_for_parabolas_and_averages_noise():
    t = np.sort(np.random.default_rng(0).uniform(0, 4, 30))
    level, slope = smooth(t, (t**2 - 3 * t)[:, None], np.array([1.0, 2.5]))
    assert level[:, 0] == pytest.approx([-2.0, -1.25], abs=1e-9)
    assert slope[:, 0] == pytest.approx([-1.0, 2.0], abs=1e-8)
    t = np.linspace(0, 6, 300)
    noisy = np.sin(t) + 0.2 * np.random.default_rng(1).normal(size=300)
    at = np.linspace(0.5, 5.5, 40)
    level, slope = smooth(t, noisy[:, None], at)
    assert np.abs(level[:, 0] - np.sin(at)).max() < 0.1
    assert np.abs(slope[:, 0] - np.cos(at)).max() < 0.4


def test_scaling_goes_there_and_back(lynx_hare):
    scaling, levels, rates = scaling_of(lynx_hare, "auto")
    states = scaling.states(lynx_hare.values)
    assert scaling.logs == (True, True)
    assert states.mean(0) == pytest.approx([0, 0], abs=1e-12) and states.std(0, correction=0) == pytest.approx([1, 1])
    assert torch.allclose(scaling.values(states), torch.as_tensor(lynx_hare.values), rtol=1e-12)
    assert levels.shape == rates.shape == (161, 2)
    assert float(rates.square().mean()) == pytest.approx(1.0)


def test_transform_is_checked_and_keeps_a_constant_state_finite():
    t = np.arange(6.0)
    series = Series("t", ("x", "c"), t, np.stack([t - 2, np.full(6, 3.0)], axis=1))
    scaling, _, _ = scaling_of(series, "auto")
    assert scaling.logs == (False, True)
    assert bool(scaling.states(series.values).isfinite().all())
    with pytest.raises(errors.InvalidArgumentError, match="'x' has values that are not positive"):
        scaling_of(series, "log")
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'log'"):
        scaling_of(series, "logs")


@pytest.mark.parametrize("n", [6, 33, 34, 70])
@pytest.mark.parametrize("even", [True, False])
def test_shooting_from_a_true_trajectory_has_neither_misfit_nor_gap(n, even):
    times = torch.linspace(0, 3, n, dtype=torch.float64)
    if not even:
        times = times**2 / 3 + times / 7
    truth = torch.stack([times.cos(), -times.sin()], dim=1)
    net = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))

    def rhs(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return net(z)

    shooting = Shooting(times, truth, {"method": "tsit5", "rtol": 1e-9, "atol": 1e-9})
    nodes = shooting.nodes(0)
    assert len(nodes) <= 32
    assert shooting.segments.even == (even or shooting.length == 1)  # of the spacing within each segment
    with torch.no_grad():
        shot = shooting.shoot(rhs, nodes)
    assert float(shot.misfit) < 1e-14 and float(shot.gap) < 1e-14 and shot.nf > 0
    # Every point is compared exactly once: a shift of all the data by 1 is a misfit of exactly d * 1 / d.
    shifted = Shooting(times, truth + 1.0, {"method": "tsit5", "rtol": 1e-9, "atol": 1e-9})
    assert float(shifted.shoot(rhs, nodes).misfit.detach()) == pytest.approx(1.0, abs=1e-6)
    moved = nodes.detach().clone()
    moved[1] += 0.5
    assert float(shooting.shoot(rhs, moved).gap.detach()) > 1e-3


def test_trial_descent_never_goes_up_and_survives_a_failed_solve():
    p = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    calls = 0

    def loss() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise errors.MaxStepsError("too many")
        return (p * torch.tensor([1.0, 10.0], dtype=torch.float64)).square().sum()

    descent = TrialDescent([p], 0.1)
    values = [descent.step(loss) for _ in range(200)]
    assert values[0] == 409.0 and values[3] == values[2]
    assert all(b <= a for a, b in itertools.pairwise(values))
    assert values[-1] < 1e-2
    assert float(loss().detach()) == values[-1]  # the parameters are left at the best point
    calls = 3
    with pytest.raises(errors.MaxStepsError):
        TrialDescent([p], 0.1).step(loss)


# -- fitting ------------------------------------------------------------------------------------


def test_lynx_hare_is_fitted_well_and_smoothly(lynx_hare):
    """The main job, with fewer epochs than by default: both cycles of both states."""
    result = fit(lynx_hare, epochs=300)
    r2 = result.r2
    assert r2["Hare"] > 0.95 and r2["Lynx"] > 0.95
    fine = torch.linspace(1900, 1920, 801, dtype=torch.float64)
    curve = result.module(fine).detach().numpy()
    assert curve.min() > 0 and curve.max() < 110
    # Two cycles, and no wiggles between the points: each state turns only a few times.
    turns = (np.diff(np.sign(np.diff(curve, axis=0)), axis=0) != 0).sum(axis=0)
    assert (turns >= 3).all() and (turns <= 7).all()
    # The quality is that of the equation, not of the solver's steps.
    exact = result.module.observed(result.module.solve(fine, rtol=1e-9, atol=1e-11).ys).detach().numpy()
    assert np.abs(exact - curve).max() < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_lynx_hare_with_the_defaults_and_several_seeds(lynx_hare, seed):
    r2 = fit(lynx_hare, seed=seed).r2
    assert min(r2["Hare"], r2["Lynx"]) > 0.98


def test_r2_and_rmse_are_those_of_the_trajectory_in_data_units(lynx_hare):
    result = fit(lynx_hare, SMALL)
    fitted = result.module().detach().numpy()
    for i, name in enumerate(("Hare", "Lynx")):
        y = lynx_hare.values[:, i]
        error = ((fitted[:, i] - y) ** 2).sum()
        assert result.r2[name] == pytest.approx(1 - error / ((y - y.mean()) ** 2).sum())
        assert result.report["states"][name]["rmse"] == pytest.approx(math.sqrt(error / 21))


def test_a_constant_state_has_no_r2():
    t = np.arange(8.0)
    result = fit(Series("t", ("x", "c"), t, np.stack([np.exp(-t / 3), np.ones(8)], axis=1)), SMALL)
    assert result.r2["c"] is None and result.r2["x"] is not None


@pytest.mark.parametrize("method", ["euler", "rk4", "bosh3", "rosenbrock23"])
def test_other_methods_fit_too(method):
    result = fit(decay(), SMALL, method=method, epochs=40)
    assert result.report["method"] == method
    assert result.r2["x"] > 0.98


def test_a_fixed_step_is_in_the_data_s_unit_of_time():
    series = decay()
    trainer = Trainer(series, FitOptions(method="euler", dt=0.05, width=4, depth=1))
    sol = trainer.module.solve()
    assert sol.stats.naccept == 40
    assert Trainer(series, FitOptions(method="euler", width=4, depth=1)).module.solve().stats.naccept == 80


def test_same_seed_same_weights_and_the_caller_s_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = fit(decay(), SMALL)
    assert torch.equal(torch.rand(3), expected)
    second = fit(decay(), SMALL)
    other = fit(decay(), SMALL, seed=1)
    assert same(weights(first.module), weights(second.module))
    assert not same(weights(first.module), weights(other.module))


def test_progress_is_called_after_each_epoch():
    seen: list[Progress] = []
    fit(decay(), SMALL, progress=seen.append)
    assert [p.epoch for p in seen] == list(range(1, 31))
    assert {p.stage for p in seen} == {"shooting", "trajectory"}
    assert all(p.epochs == 30 and math.isfinite(p.loss) for p in seen)


@pytest.mark.parametrize("lags", [None, (2.0,)])
def test_what_is_trained_is_traced_once_a_stage_not_once_an_epoch(monkeypatch, lynx_hare, lags):
    """What a right-hand side can reach is compared at every solve: it must not hold on to what training changes."""
    from pydiffeqflux.backends.compiled import model

    traced, trace = [], model._trace
    monkeypatch.setattr("pydiffeqflux.backends.native.WARM_UP", 0)
    monkeypatch.setattr(model, "_trace", lambda *given: traced.append(1) or trace(*given))
    fit(lynx_hare, FitOptions(epochs=12, width=8, depth=1, model="dde" if lags else "node", lags=lags))
    assert 1 <= len(traced) <= 3


def test_a_single_epoch_is_enough_to_run():
    result = fit(decay(), SMALL, epochs=1)
    assert len(result.history) == 1 and math.isfinite(result.report["losses"]["final"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epochs": 0}, errors.InvalidArgumentError, "epochs=0"),
        ({"width": 2.5}, errors.InvalidArgumentError, r"width=2\.5"),
        ({"lr": -1.0}, errors.InvalidArgumentError, r"lr=-1\.0"),
        ({"rtol": math.nan}, errors.InvalidArgumentError, "rtol=nan"),
        ({"dt": 0.0}, errors.InvalidArgumentError, r"dt=0\.0"),
        ({"method": "tsit6"}, errors.UnknownNameError, "Did you mean 'tsit5'"),
        ({"backend": "torhc"}, errors.UnknownNameError, "Did you mean 'torch'"),
        ({"widht": 3}, errors.UnknownNameError, "Did you mean 'width'"),
    ],
)
def test_options_are_checked(change, error, words):
    with pytest.raises(error, match=words):
        fit(decay(), **change)


# -- files --------------------------------------------------------------------------------------


def test_a_fit_writes_its_files_and_load_gives_the_module_back(lynx_hare, tmp_path):
    out = tmp_path / "deep" / "out"
    result = fit(lynx_hare, SMALL, out=out)
    assert {p.name for p in out.iterdir()} == OUTPUTS
    assert out.joinpath("fit.png").read_bytes().startswith(b"\x89PNG")
    assert out.joinpath("loss.png").read_bytes().startswith(b"\x89PNG")
    module = load(out)
    assert isinstance(module, torch.nn.Module) and module.state_names == ("Hare", "Lynx")
    assert torch.equal(module(), result.module())
    assert module().shape == (21, 2)
    ahead = module([1905.5, 1930.0])
    assert ahead.shape == (2, 2) and bool(ahead.isfinite().all())
    assert torch.equal(load(out / "model.pt")(), module())
    assert torch.equal(module.observed(module.solve().ys), module())
    assert module.solve(rtol=1e-10).stats.nf > module.solve().stats.nf  # options reach the solver
    report = json.loads(out.joinpath("report.json").read_text())
    assert report["arguments"] == SMALL.as_dict()
    assert report["seed"] == 0 and report["backend"] == "torch" and report["method"] == "tsit5"
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["pydiffeqflux"] == pdf.__version__
    assert report["function_evaluations"]["training"] > report["function_evaluations"]["trajectory"] > 21
    assert report["seconds"] > 0
    assert report["data"]["rows"] == 21
    assert len(report["history"]["misfit"]) == 30
    assert report["losses"]["final"] == pytest.approx(report["history"]["misfit"][-1])


@pytest.mark.parametrize("times", [[], [1899.0, 1901.0], [1901.0, 1901.0], [1902.0, 1901.0], [math.nan], [1900.0]])
def test_a_module_asked_for_impossible_times(lynx_hare, times):
    module = Trainer(lynx_hare, SMALL).module
    with pytest.raises(errors.InvalidTimesError, match="strictly increasing, not before"):
        module(times)


class Stop(Exception):
    pass


def stop_at(epoch: int, how):
    def progress(now: Progress) -> None:
        if now.epoch == epoch:
            how()

    return progress


@pytest.mark.parametrize("epoch", [1, 12, 27, 28, 30])
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path, epoch):
    """Epochs 1 to 27 are multiple shooting; 28 to 30 descend along the one trajectory."""
    straight = fit(decay(), SMALL)
    with pytest.raises(FitInterrupted) as caught:
        fit(decay(), SMALL, out=tmp_path, progress=stop_at(epoch, lambda: signal.raise_signal(signal.SIGINT)))
    assert caught.value.epoch == epoch and "--resume" in str(caught.value)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    result = fit(decay(), SMALL, out=tmp_path, resume=True)
    assert same(weights(result.module), weights(straight.module))
    assert result.history == straight.history
    assert result.report["function_evaluations"] == straight.report["function_evaluations"]
    assert result.report["resumed"] is True
    assert torch.equal(load(tmp_path)(), straight.module())


def test_a_killed_run_resumes_from_its_last_periodic_checkpoint(tmp_path):
    """A second Ctrl-C, or a kill, gets no chance to write: the last checkpoint is whole and enough."""
    straight = fit(decay(), SMALL)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(decay(), SMALL, out=tmp_path, progress=stop_at(26, twice))
    assert not isinstance(caught.value, FitInterrupted)
    seen: list[Progress] = []
    result = fit(decay(), SMALL, out=tmp_path, resume=True, progress=seen.append)
    assert seen[0].epoch == 26
    assert same(weights(result.module), weights(straight.module))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = fit(decay(), SMALL, out=tmp_path)
    again = fit(decay(), SMALL, out=tmp_path, resume=True)
    assert same(weights(first.module), weights(again.module))
    assert {p.name for p in tmp_path.iterdir()} == OUTPUTS


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("epoch", [1, 29])
def test_a_failing_run_leaves_an_earlier_one_as_it_was(tmp_path, epoch):
    fit(decay(), SMALL, out=tmp_path)
    before = contents(tmp_path)

    def fail() -> None:
        raise Stop

    with pytest.raises(Stop):
        fit(decay(), SMALL, seed=3, out=tmp_path, progress=stop_at(epoch, fail))
    assert contents(tmp_path) == before
    with pytest.raises(Stop):
        fit(decay(), SMALL, out=tmp_path / "new" / "er", progress=stop_at(epoch, fail))
    assert contents(tmp_path) == before  # the new folder is gone again


def test_a_failure_while_writing_the_results_leaves_nothing_half_written(tmp_path):
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(errors.OutputError, match=r"loss\.png"):
        fit(decay(), SMALL, out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"loss.png"}


def test_an_unfinished_run_is_not_overwritten_by_accident(tmp_path):
    with pytest.raises(FitInterrupted):
        fit(decay(), SMALL, out=tmp_path, progress=stop_at(5, lambda: signal.raise_signal(signal.SIGINT)))
    before = contents(tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"unfinished run \(after 5 epochs\).*--resume.*--overwrite"):
        fit(decay(), SMALL, out=tmp_path)
    assert contents(tmp_path) == before
    fit(decay(), SMALL, out=tmp_path, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == OUTPUTS


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(decay(), SMALL, out=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"other options \(epochs=30 there, 40 now; seed=0 there, 2 now\)"):
        fit(decay(), SMALL, out=tmp_path, resume=True, epochs=40, seed=2)
    with pytest.raises(errors.CheckpointError, match="other data"):
        fit(decay(10), SMALL, out=tmp_path, resume=True)
    assert contents(tmp_path) == before
    with pytest.raises(errors.DataFileNotFoundError, match=r"no .*checkpoint\.pt"):
        fit(decay(), SMALL, out=tmp_path / "empty", resume=True)
    assert not (tmp_path / "empty").exists()
    with pytest.raises(errors.InvalidArgumentError, match="one of them"):
        fit(decay(), SMALL, out=tmp_path, resume=True, overwrite=True)
    with pytest.raises(errors.InvalidArgumentError, match="need out"):
        fit(decay(), SMALL, resume=True)


def spoil(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "cut":
        raw = raw[: len(raw) // 2]
    elif how == "one bit":
        raw[raw.index(b"initial") + 400] ^= 1
        middle = len(raw) // 2
        raw[middle] ^= 1
    elif how == "empty":
        raw = bytearray()
    elif how == "text":
        raw = bytearray(b"not a checkpoint\n")
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("how", ["cut", "one bit", "empty", "text"])
def test_a_damaged_file_is_noticed(tmp_path, how):
    fit(decay(), SMALL, out=tmp_path)
    spoil(tmp_path / "checkpoint.pt", how)
    spoil(tmp_path / "model.pt", how)
    before = contents(tmp_path)
    with pytest.raises(errors.CheckpointError, match="damaged"):
        fit(decay(), SMALL, out=tmp_path, resume=True)
    with pytest.raises(errors.CheckpointError, match="--overwrite"):
        fit(decay(), SMALL, out=tmp_path)
    with pytest.raises(errors.CheckpointError, match="damaged"):
        load(tmp_path)
    assert contents(tmp_path) == before


def test_loading_what_is_not_a_model(tmp_path):
    with pytest.raises(errors.DataFileNotFoundError, match=r"model\.pt"):
        load(tmp_path)
    torch.save({"weights": {}}, tmp_path / "model.pt")
    with pytest.raises(errors.CheckpointError, match="something else"):
        load(tmp_path)
    fit(decay(), SMALL, out=tmp_path)
    with pytest.raises(errors.CheckpointError, match="pydiffeqflux fit checkpoint"):
        (tmp_path / "model.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes())
        load(tmp_path)


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here already")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(errors.OutputError, match="cannot write into"):
            fit(decay(), SMALL, out=out)
    assert contents(tmp_path) == {"file": b"here already"}
