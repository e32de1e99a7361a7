"""Fitting other families than the plain neural ODE: what each of them finds, keeps, and refuses."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

import pydiffeqflux as pdf
from pydiffeqflux import errors
from pydiffeqflux.cli import main
from pydiffeqflux.training import FitInterrupted, FitOptions, FittedSDE, Progress, Series, fit, load, read_csv
from pydiffeqflux.training.known import ScaledKnown, known_terms
from pydiffeqflux.training.scaling import scaling_of

LYNX_HARE = Path(__file__).parents[1] / "data" / "lynx_hare.csv"
OUTPUTS = {"fit.png", "loss.png", "model.pt", "report.json", "checkpoint.pt"}
DAMPING = 0.2

#: A pendulum whose friction nobody knows, and whose frequency is to be found.
FRICTIONLESS = """
import torch

class Pendulum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.square = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, y):
        angle, speed = y.unbind(-1)
        return torch.stack([speed, -self.square * angle.sin()], -1)

def timed(t, y):
    return t * y

def wrong(y):
    return y[..., 0]

number = 3.0
"""


def pendulum(square: float = 2.0, damping: float = DAMPING, n: int = 41, scale: float = 1.0) -> Series:
    """Angle and speed of a pendulum, exactly; angles in units of ``1 / scale``."""
    t = np.linspace(0.0, 8.0, n)

    def motion(t: float, y: NDArray[np.float64]) -> list[float]:
        return [y[1], -square * math.sin(y[0]) - damping * y[1]]

    y = solve_ivp(motion, (0.0, 8.0), [1.2, 0.0], t_eval=t, rtol=1e-9, atol=1e-9).y.T
    return Series("t", ("angle", "speed"), t, scale * y)


def ornstein_uhlenbeck(n: int = 600, h: float = 0.05) -> Series:
    """dx = -2 x dt + 0.7 dW, by its exact transition."""
    random = np.random.default_rng(0)
    decay, spread = math.exp(-2.0 * h), 0.7 * math.sqrt((1 - math.exp(-4.0 * h)) / 4.0)
    x = [0.0]
    for _ in range(n - 1):
        x.append(decay * x[-1] + spread * random.normal())
    return Series("t", ("x",), h * np.arange(n), np.array(x)[:, None])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "known.py"
    path.write_text(FRICTIONLESS)
    return path


#: What makes a small fit of each family, in about a second.
FAMILIES = {
    "augmented": (pendulum(n=12), {"extra_dims": 2}),
    "ude": (pendulum(n=12), {"known": "kinematics"}),
    "hamiltonian": (pendulum(n=12), {}),
    "dde": (pendulum(n=14), {"lags": (1.0,)}),
    "sde": (ornstein_uhlenbeck(40), {}),
}


def options_of(model: str) -> FitOptions:
    return FitOptions(model=model, width=8, depth=1, epochs=30, **FAMILIES[model][1])


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# -- what all of them do ------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_is_resumed_bit_for_bit_written_and_read_back(model, tmp_path):
    series, options = FAMILIES[model][0], options_of(model)
    straight = fit(series, options)

    def stop(now: Progress) -> None:
        if now.epoch == 28:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(FitInterrupted):
        fit(series, options, out=tmp_path, progress=stop)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt"}
    resumed = fit(series, options, out=tmp_path, resume=True)
    assert same(resumed.module, straight.module)
    assert resumed.history == straight.history
    assert {p.name for p in tmp_path.iterdir()} == OUTPUTS
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("fit", "loss"))
    back = load(tmp_path)
    assert same(back, straight.module) and back.model == model
    assert torch.equal(back(), straight.module()) and back().shape == series.values.shape
    assert back([1.0, 1.5, 30.0]).shape == (3, series.values.shape[1])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["arguments"] == options.as_dict() and report["model"]["family"] == model
    assert report["backend"] == "torch" and report["method"] == options.solver
    assert report["resumed"] is True and report["objective"]
    assert set(report["states"]) == set(series.state_names)
    assert report["parameters"] == sum(p.numel() for p in back.parameters())


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_runs_from_the_command_line(model, tmp_path):
    series = FAMILIES[model][0]
    rows = [",".join([series.time_name, *series.state_names])]
    rows += [",".join(map(str, [t, *y])) for t, y in zip(series.times, series.values.tolist(), strict=True)]
    data = tmp_path / "data.csv"
    data.write_text("\n".join(rows))
    more = [w for k, v in FAMILIES[model][1].items() for w in (f"--{k.replace('_', '-')}", str(v).strip("(),"))]
    arguments = ["fit", str(data), "--time", "t", "--state", ",".join(series.state_names), "--model", model, *more]
    result = CliRunner().invoke(main, [*arguments, "--epochs", "5", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert all(f"{name}: R^2" in result.stdout for name in series.state_names)
    assert load(tmp_path / "out").model == model


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "nodes"}, errors.UnknownNameError, "Did you mean 'node'"),
        ({"model": "node", "extra_dims": 2}, errors.InvalidArgumentError, "option of model 'augmented'; leave it out"),
        ({"model": "augmented", "augment": 2}, errors.InvalidArgumentError, "option of model 'node' and 'ude'"),
        ({"model": "augmented", "extra_dims": 0}, errors.InvalidArgumentError, "extra_dims=0 .*at least 1"),
        ({"known": "kinematics"}, errors.InvalidArgumentError, "known='kinematics' with model='node'"),
        ({"model": "ude"}, errors.InvalidArgumentError, "needs known.*FILE.py:NAME"),
        ({"model": "ude", "known": "kinematic"}, errors.UnknownNameError, "Did you mean 'kinematics'"),
        ({"model": "ude", "known": "no.py:f"}, errors.DataFileNotFoundError, r"no file .*no\.py"),
        ({"model": "sde", "method": "tsit5"}, errors.UnknownNameError, "method='tsit5' is not known.*em"),
        ({"model": "node", "method": "em"}, errors.UnknownNameError, "method='em' is not known"),
        ({"model": "hamiltonian", "transform": "log"}, errors.InvalidArgumentError, "transform='log'.*'none'"),
        ({"model": "dde"}, errors.InvalidArgumentError, "lags=None with model='dde'"),
        ({"model": "dde", "lags": (1.0, -1.0)}, errors.InvalidArgumentError, "positive numbers"),
        ({"model": "dde", "lags": (6.0,)}, errors.InvalidArgumentError, "begins with a history of 6, and 3 rows"),
        ({"model": "dde", "lags": (1.0,), "method": "qndf"}, errors.UnsupportedError, "method=qndf"),
        ({"model": "dde", "lags": (1.0,), "backend": "compiled"}, errors.UnsupportedError, "DDEProblem"),
        ({"lags": (1.0,)}, errors.InvalidArgumentError, "option of model 'dde'"),
        ({"model": "sde", "backend": "compiled"}, errors.UnsupportedError, "SDEProblem"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(changes, error, words):
    with pytest.raises(error, match=words):
        fit(pendulum(n=12), **changes)


# -- augmented ----------------------------------------------------------------------------------


def test_an_augmented_state_starts_at_zero_and_helps():
    """Twice the same height with different slopes: no autonomous equation of one state does that."""
    t = np.linspace(0.0, 12.0, 41)
    series = Series("t", ("x",), t, np.sin(t)[:, None])
    options = {"transform": "none", "width": 16, "depth": 1, "epochs": 150}
    result = fit(series, model="augmented", extra_dims=1, **options)
    states = result.module.solve().ys
    assert states.shape == (41, 2) and states[0, 1] == 0
    assert result.module.initial.shape == (1,)
    assert result.r2["x"] > 0.95
    assert fit(series, augment=0, **options).r2["x"] < 0.5


# -- universal ----------------------------------------------------------------------------------


def test_a_universal_ode_finds_the_known_number_and_leaves_the_rest_to_the_network(file):
    series = pendulum()
    result = fit(series, model="ude", known=f"{file}:Pendulum", width=16, depth=1, epochs=200)
    found = result.report["model"]
    assert found["known_parameters"]["square"] == pytest.approx(2.0, abs=0.15)
    assert found["network_share"] < 0.4  # friction is a small part of the motion
    assert min(result.r2.values()) > 0.99
    # What the network has learnt is the friction: -damping * speed, in data units.
    module = result.module
    states = module.solve().ys.detach()
    unit = module.scaling.stds[1] / module.scaling.time_unit
    learnt = module.net(states)[:, 1].detach().numpy() * unit
    assert np.corrcoef(learnt, -DAMPING * series.values[:, 1])[0, 1] > 0.8


def test_known_terms_are_in_the_data_s_units(file):
    """Logarithms, units and times are taken care of: the rates of an exact solution are met, whatever its scaling."""
    t = np.linspace(2.0, 4.0, 30)
    series = Series("t", ("x", "y"), t, np.stack([np.exp(t**2 / 2), -3 * np.exp(t**2 / 2)], axis=1))
    scaling, _, _ = scaling_of(series, "auto")
    assert scaling.logs == (True, False)
    known = ScaledKnown(known_terms(f"{file}:timed", scaling), scaling, 1)
    z = scaling.states(series.values)
    times = scaling.times(t)[:, None]
    rates = known(times, torch.cat([z, torch.zeros(30, 1)], dim=1))
    unit = scaling.time_unit
    assert torch.allclose(rates[:, 0], times[:, 0] * 0 + torch.as_tensor(t) * unit / scaling.stds[0])
    assert torch.allclose(rates[:, 1], torch.as_tensor(t * series.values[:, 1]) * unit / scaling.stds[1])
    assert not rates[:, 2].any()


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("Pendulums", errors.DataError, "defines no Pendulums; it has torch, Pendulum, timed, wrong, number"),
        ("number", errors.InvalidArgumentError, "is a float"),
        ("wrong", errors.ShapeError, r"returned shape \(3,\) for states of shape \(3, 2\)"),
    ],
)
def test_known_terms_that_are_not_rates(file, name, error, words):
    with pytest.raises(error, match=words):
        fit(pendulum(n=12), model="ude", known=f"{file}:{name}")


def test_a_file_of_known_terms_that_cannot_be_run(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(errors.DataError, match="cannot be run: ZeroDivisionError"):
        fit(pendulum(n=12), model="ude", known=f"{tmp_path / 'broken.py'}:f")


def test_kinematics_need_pairs():
    with pytest.raises(errors.PhaseSpaceError, match="must be even"):
        fit(ornstein_uhlenbeck(12), model="ude", known="kinematics")


def test_known_terms_that_changed_or_moved_are_noticed(file, tmp_path):
    out = tmp_path / "out"
    options = FitOptions(model="ude", known=f"{file}:Pendulum", width=8, depth=1, epochs=3)
    result = fit(pendulum(n=12), options, out=out)
    moved = tmp_path / "elsewhere.py"
    moved.write_text(FRICTIONLESS)
    file.write_text(FRICTIONLESS + "\n")
    with pytest.raises(errors.CheckpointError, match="have changed since the fit"):
        load(out)
    with pytest.raises(errors.CheckpointError, match="has changed since"):
        fit(pendulum(n=12), options, out=out, resume=True)
    assert torch.equal(load(out, known=f"{moved}:Pendulum")(), result.module())
    file.unlink()
    with pytest.raises(errors.DataFileNotFoundError, match="cannot be read"):
        load(out)


# -- Hamiltonian --------------------------------------------------------------------------------


def test_a_hamiltonian_fit_keeps_its_energy_and_finds_the_true_one():
    """Positions and momenta in other units than the network's, and of different sizes."""
    series = pendulum(damping=0.0, scale=3.0)
    result = fit(series, model="hamiltonian", width=16, depth=1, epochs=100)
    assert min(result.r2.values()) > 0.995
    # H = p^2 / 2 + 18 (1 - cos(q / 3)) is the energy of the motion in these units; its slopes along the orbit, which is
    # all that one orbit tells, are those of the learnt energy.
    module = result.module
    y = torch.as_tensor(series.values)
    z = module.scaling.states(series.values).requires_grad_()
    slopes = torch.autograd.grad(module.energy(z).sum(), z)[0] / z.new_tensor(module.scaling.stds)
    true = torch.stack([6 * torch.sin(y[:, 0] / 3), y[:, 1]], dim=1)
    assert float((slopes - true).square().mean()) < 0.01 * float(true.square().mean())
    with torch.no_grad():
        states = module.solve([0.5, 30.0], rtol=1e-8, atol=1e-8).ys  # far beyond the data
        early, late = module.energy(states)
    height = float(y[:, 1].square().max()) / 2
    assert abs(float(late - early)) < 1e-4 * height
    assert result.report["model"]["energy"]["range"] < 0.02 * height


def test_positions_need_as_many_momenta():
    with pytest.raises(errors.PhaseSpaceError, match=r"the series has 1 states \(x\)"):
        fit(ornstein_uhlenbeck(12), model="hamiltonian")


def test_pairs_share_their_units():
    t = np.arange(12.0)
    values = np.stack([np.sin(t), 50 * np.sin(t), np.cos(t), 3 * np.cos(t)], axis=1)
    scaling, _, _ = scaling_of(Series("t", ("q1", "q2", "p1", "p2"), t, values + 100), "auto", pairs=True)
    assert scaling.logs == (False,) * 4
    assert scaling.stds[0] == scaling.stds[1] > scaling.stds[2] == scaling.stds[3]


# -- delayed ------------------------------------------------------------------------------------


def delayed_logistic(lag: float = 1.0, rate: float = 1.8, n: int = 61) -> Series:
    """Hutchinson's equation x' = r x (1 - x(t - lag)): for r above pi / 2 it swings for ever."""
    problem = pdf.DDEProblem(
        lambda t, y, past: rate * y * (1 - past), torch.tensor([0.5]).double(), (0.0, 12.0), lags=lag
    )
    t = np.linspace(0.0, 12.0, n)
    ys = pdf.solve(problem, "tsit5", saveat=t.tolist(), rtol=1e-7, atol=1e-9).ys
    return Series("t", ("x",), t, ys.numpy())


def test_a_delay_fit_follows_what_no_ordinary_equation_of_one_state_does():
    series = delayed_logistic()
    result = fit(series, model="dde", lags=(1.0,), width=16, depth=1, epochs=120)
    module = result.module
    assert module.start == pytest.approx(1.0) and result.report["model"]["lags"] == [1.0]
    assert result.r2["x"] > 0.97
    # The rates that were learnt are those of the equation, along the data.
    z = module.scaling.states(series.values)
    with torch.no_grad():
        rates = module.net(torch.cat([z[5:], z[:-5]], dim=1))[:, 0].numpy()
    x = series.values[:, 0]
    true = 1.8 * (1 - x[:-5]) * module.scaling.time_unit / module.scaling.stds[0]  # of the logarithm
    assert np.sqrt(np.mean((rates - true) ** 2)) < 0.1 * true.std()
    # What comes back before the equation takes over is the history: the data, smoothed.
    assert module()[:5].detach().numpy() == pytest.approx(series.values[:5], rel=0.02)
    with pytest.raises(errors.InvalidTimesError, match="must not be before 1, where the history ends"):
        module.solve([0.5, 2.0])
    assert fit(series, augment=0, width=16, depth=1, epochs=40).r2["x"] < 0.3


# -- stochastic ---------------------------------------------------------------------------------


def test_an_sde_fit_finds_drift_and_noise():
    series = ornstein_uhlenbeck()
    result = fit(series, model="sde", width=8, depth=1, epochs=200)
    assert isinstance(result.module, FittedSDE)
    module, scaling = result.module, result.module.scaling
    x = np.linspace(-0.5, 0.5, 5)[:, None]
    z = scaling.states(x)
    with torch.no_grad():
        drift = module.drift(z) * scaling.stds[0] / scaling.time_unit
        noise = module.diffusion(z) * scaling.stds[0] / math.sqrt(scaling.time_unit)
    slope = np.polyfit(x[:, 0], drift[:, 0].numpy(), 1)[0]
    assert slope == pytest.approx(-2.0, abs=0.7)  # thirty units of time say no more about it
    assert noise.numpy() == pytest.approx(0.7, abs=0.08)
    # Paths spread as the stationary distribution does: variance 0.7^2 / 4.
    with torch.no_grad():
        ends = module.paths(2000, [0.1, 10.0])[-1]
    assert float(ends.std()) == pytest.approx(0.35, abs=0.07)
    state = result.report["states"]["x"]
    assert 0.92 < state["within_95"] < 0.98
    # The best prediction one step ahead leaves the noise of a step.
    assert state["rmse"] == pytest.approx(0.7 * math.sqrt(0.05), rel=0.1)


def test_rows_far_apart_get_a_note(tmp_path):
    arguments = ["fit", str(LYNX_HARE), "--time", "Year", "--state", "Hare,Lynx", "--model", "sde", "--width", "8"]
    result = CliRunner().invoke(main, [*arguments, "--epochs", "200", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "note: from row to row the states move by 0." in result.stdout and "% within 95 % bounds" in result.stdout


def test_the_likelihood_of_a_step_is_that_of_euler_and_maruyama():
    result = fit(ornstein_uhlenbeck(20), model="sde", width=4, depth=1, epochs=2)
    module = result.module
    z, h, later = torch.tensor([[0.3]]).double(), torch.tensor([[0.2]]).double(), torch.tensor([[0.5]]).double()
    with torch.no_grad():
        mean, deviation = z + module.drift(z) * h, module.diffusion(z) * h.sqrt()
    expected = -torch.distributions.Normal(mean, deviation).log_prob(later)
    assert torch.allclose(module.surprise(z, h, later), expected)
    # A path of one step of the solver has the same mean and variance.
    layer = pdf.NeuralDSDE(module.drift, module.diffusion, (0.0, 0.2), "em", dt=0.2, seed=1)
    with torch.no_grad():
        ends = layer(z.expand(20000, 1))
    assert float(ends.mean()) == pytest.approx(float(mean), abs=4 * float(deviation) / math.sqrt(20000))
    assert float(ends.std()) == pytest.approx(float(deviation), rel=0.03)


def test_few_data_do_not_drive_the_noise_to_nothing():
    result = fit(read_csv(LYNX_HARE, "Year", ["Hare", "Lynx"]), model="sde", width=8, depth=1, epochs=300)
    assert 0.3 < result.report["model"]["step"] < 1.5  # a year is long: the report says so
    for state in result.report["states"].values():
        assert 0.8 < state["within_95"] <= 1.0 and state["mean_diffusion"] > 0.1


# -- engines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["node", "augmented", "ude", "hamiltonian"])
def test_compiled_fits_do_not_depend_on_what_the_program_did_before(model, monkeypatch):
    monkeypatch.setattr("pydiffeqflux.backends.native.WARM_UP", 1000)
    options = FitOptions(model=model, width=4, depth=1, epochs=10, **FAMILIES.get(model, (None, {}))[1])
    first, second = (fit(pendulum(n=8), options) for _ in range(2))
    assert first.report["backend"] == "compiled"
    assert same(first.module, second.module)


@pytest.mark.julia
@pytest.mark.slow
@pytest.mark.parametrize("model", ["node", *FAMILIES])
def test_every_family_is_fitted_on_julia(model):
    series, extra = FAMILIES.get(model, (pendulum(n=12), {}))
    result = fit(series, model=model, width=8, depth=1, epochs=4, backend="julia", **extra)
    assert result.report["backend"] == "julia"
    assert all(math.isfinite(loss) for loss in result.history.misfit)
