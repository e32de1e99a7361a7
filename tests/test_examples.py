"""Every script in examples/ runs, draws its picture, and shows what it says it shows."""

from __future__ import annotations

import importlib
import itertools
import runpy
import sys
from pathlib import Path
from types import ModuleType

import matplotlib.image
import pytest
import torch

import pydiffeqflux as pdf

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(request.param)


def check_picture(path: Path) -> None:
    """A picture of some size with something on it."""
    image = matplotlib.image.imread(path)
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.05


@pytest.mark.parametrize("example", ["spiral_neural_ode"], indirect=True)
def test_the_spiral_is_learnt(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.losses[0] > 100
    assert outcome.losses[-1] < 20  # 80 iterations; the full 400 reach 0.1
    assert outcome.prediction.shape == outcome.data.shape == (30, 2)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["resnet_as_euler"], indirect=True)
def test_a_resnet_is_eulers_method(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.outputs_equal and outcome.gradients_equal  # to the last bit
    assert outcome.accuracy > 0.9
    assert outcome.slopes["euler"] == pytest.approx(1.0, abs=0.1)
    assert outcome.slopes["midpoint"] == pytest.approx(2.0, abs=0.2)
    assert outcome.slopes["rk4"] == pytest.approx(4.0, abs=0.4)
    check_picture(outcome.picture)


def jump_at(example: ModuleType, mu: float) -> float:
    with torch.no_grad():
        crossing = pdf.Event(lambda t, y: y[0])
        sol = pdf.solve(example.van_der_pol(mu), "rodas5p", event=crossing, rtol=1e-7, atol=1e-9, dense=False)
    return float(sol.events[0].ts[0])


@pytest.mark.parametrize("example", ["van_der_pol_stiff"], indirect=True)
def test_a_stiff_oscillator_is_solved_and_differentiated(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    ends = torch.stack([sol.ys[-1] for sol in outcome.stiff.values()])
    assert torch.allclose(ends, ends[0].expand_as(ends), rtol=1e-3)
    # The implicit methods' evaluations, Jacobians counted as three, against those of an explicit one.
    for sol in outcome.stiff.values():
        assert 100 * (sol.stats.nf + 3 * sol.stats.njac) < outcome.explicit_total
    assert outcome.explicit.status.value == "max steps"
    # Two solves at other values of mu give the slope without any differentiation.
    mu, step = example.MU, 1.0
    down, up = jump_at(example, mu - step), jump_at(example, mu + step)
    when, slope = outcome.jumps[mu]
    assert down < when < up
    assert slope == pytest.approx((up - down) / (2 * step), rel=1e-3)
    assert slope == pytest.approx(example.LIMIT, abs=1e-3)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["augmented_circles"], indirect=True)
def test_circles_are_told_apart_with_room(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.augmented.accuracy > 0.95
    assert outcome.augmented.losses[-1] < 0.5 * outcome.plain.losses[-1]
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["ffjord_two_moons"], indirect=True)
def test_moons_have_a_density(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.held_out > outcome.normal + 0.2  # 100 iterations; the full 500 gain 1.1
    assert outcome.mass == pytest.approx(1.0, abs=0.02)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["hamiltonian_mass_spring"], indirect=True)
def test_a_learnt_energy_is_kept(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    first, last = outcome.own
    assert first < 1e-3 and last < 1.2 * first + 1e-6
    first, last = outcome.hamiltonian
    assert last < 1.2 * first  # as wrong as what was learnt, and no worse with time
    assert outcome.plain[1] > 2 * last
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["tensor_layer_oscillator"], indirect=True)
def test_an_oscillator_s_force_is_found(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.before > 0.5 and outcome.after < 0.1  # six iterations; eighty reach 0.0003
    assert outcome.force < 0.3
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["lynx_hare_universal"], indirect=True)
def test_lynx_and_hare_are_followed(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.error < 0.6 * outcome.spread  # the full fit gets to 0.22 of it
    assert 0.1 < outcome.births < 2 and 0.1 < outcome.deaths < 3
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["rober_mass_matrix"], indirect=True)
def test_robertsons_rates_are_found_under_the_conservation_law(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.violation < 1e-13
    assert outcome.losses[-1] < 0.6 * outcome.losses[0]  # twelve iterations; the full 200 are another matter
    assert torch.allclose(outcome.data.sum(1), torch.ones(25, dtype=torch.float64), atol=1e-13)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["multiple_shooting"], indirect=True)
def test_groups_find_what_one_solve_does_not(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.shooting < 0.8 * outcome.single
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["collocation_pretraining"], indirect=True)
def test_collocation_gives_training_a_start(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.rates < 0.3
    assert outcome.both < 0.6 * outcome.without
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["lorenz_shadowing"], indirect=True)
def test_lorenz_has_a_gradient(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    chord = (outcome.averages[1] - outcome.averages[0]) / (outcome.rhos[1] - outcome.rhos[0])
    assert all(slope == pytest.approx(1.0, abs=0.1) for slope in outcome.slopes)
    assert chord == pytest.approx(1.0, abs=0.25)  # averages over so short a time are off by half a unit
    assert outcome.ordinary[-1] > 10 * outcome.ordinary[0]
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["neural_sde_moments"], indirect=True)
def test_a_neural_sde_is_fitted_by_moments(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.before.distance(outcome.data) > 200
    assert outcome.fitted.distance(outcome.data) < 30  # 60 iterations; the full 600 reach 0.1
    assert outcome.data.mean.shape == outcome.fitted.variance.shape == (30, 2)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["neural_dde_lotka_volterra"], indirect=True)
def test_a_lag_is_learnt_from_populations(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    delayed, instant = outcome.delayed, outcome.instant
    assert abs(delayed.lags[0] - 0.41) < 0.01 and delayed.lags[-1] > 0.55  # 40 iterations; the full 400 reach 0.78
    assert delayed.losses[-1] < 0.4 * delayed.losses[0]
    assert delayed.losses[-1] < 0.5 * instant.losses[-1]  # what no function of the present explains
    assert outcome.truth.shape == delayed.curve.shape == (199, 2)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["weather_forecast"], indirect=True)
def test_next_year_s_weather_is_forecast(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.climate < 3 < outcome.mean
    assert outcome.forecast < 0.7 * outcome.mean  # the full fit beats the average of the years before, too
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["bouncing_ball"], indirect=True)
def test_a_ball_is_weighed_by_its_clicks(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    off = (outcome.found[-1] - example.TRUTH).abs()
    assert bool((off < 3 * outcome.errors).all())
    assert bool((outcome.errors < torch.tensor([0.5, 0.02])).all())
    assert outcome.scatter < 2 * example.JITTER
    # The clicks of an exact ball: a fall, then hops that shrink by the restitution.
    gravity, restitution = example.TRUTH
    fall = (2 * example.HEIGHT / gravity).sqrt()
    hops = 2 * fall * restitution ** torch.arange(1, 4)
    exact = fall + torch.cat([torch.zeros(1), hops.cumsum(0)])
    assert torch.allclose(example.clicks(example.TRUTH, 4), exact, atol=1e-4)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["drug_dosing"], indirect=True)
def test_doses_are_found_in_the_blood(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.losses[0] > 20 and outcome.losses[-1] < 2  # in units of the samples' error
    for true, found in zip(*outcome.body, strict=True):
        assert found == pytest.approx(true, rel=0.15)
    for true, found in zip(*outcome.times, strict=True):
        assert found == pytest.approx(true, abs=0.5)
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["optimal_control"], indirect=True)
def test_a_pendulum_is_swung_up(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    before, after = outcome.upright
    assert before < 0.1 and after > 0.8  # from starts near the top; the full training brings them up from anywhere
    assert outcome.cost[1] < 0.6 * outcome.cost[0]
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["graph_karate"], indirect=True)
def test_a_club_splits_along_its_friendships(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.accuracy > 0.9
    assert outcome.without < 0.75  # two labels alone say nothing about the others
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["digits_convolution"], indirect=True)
def test_digits_are_read(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.accuracies[-1] > 0.9  # four epochs; the full twelve get above 0.98
    assert outcome.confusion.sum() == example.TEST
    assert outcome.confusion.diagonal().sum() / example.TEST == pytest.approx(outcome.accuracies[-1])
    check_picture(outcome.picture)


@pytest.mark.parametrize("example", ["newton_krylov"], indirect=True)
def test_newton_s_method_gets_down(example: ModuleType, tmp_path: Path) -> None:
    outcome = example.main(tmp_path, quick=True)
    assert outcome.off < 1e-5  # of the Hessian's products, against differences of gradients
    losses = [loss for _, loss in outcome.newton]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.4 * losses[0]
    check_picture(outcome.picture)


SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_say_how_they_are_used(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0
    assert "--out DIR" in capsys.readouterr().out
