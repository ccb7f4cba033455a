import math
import subprocess
import sys

import geomloss
import pytest
import torch

from sknsgf.flow import external
from sknsgf.flow.external import SOLVERS, choose_solver, geomloss_velocity, pot_velocity
from sknsgf.flow.sinkhorn import sinkhorn_velocity

EXTERNAL = {"geomloss": geomloss_velocity, "pot": pot_velocity}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(batch=2, n=30, m=40, d=2, dtype=torch.float64):
    x, y = normal(batch, n, d, dtype=dtype), 0.5 * normal(batch, m, d, seed=1, dtype=dtype) + 1
    a, b = (
        torch.rand(batch, k, generator=torch.Generator().manual_seed(k), dtype=dtype) + 0.1
        for k in (n, m)
    )
    return x, y, a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)


def median_relative_error(v, reference):
    return ((v - reference).norm(dim=-1) / reference.norm(dim=-1)).median().item()


def converged_velocity(x, y, a=None, b=None, *, blur):
    return sinkhorn_velocity(x, y, a, b, blur=blur, tol=1e-11, max_iter=5000).velocity


@pytest.fixture(params=EXTERNAL)
def solver(request):
    return EXTERNAL[request.param]


# Accuracy


@pytest.mark.parametrize(("d", "blur"), [(2, 0.3), (10, 1.0), (64, 2.0)])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_pot_is_as_accurate_as_its_docstring_says(d, blur, tol):
    x, y, a, b = problem(d=d)
    reference = converged_velocity(x, y, a, b, blur=blur)
    solved = pot_velocity(x, y, a, b, blur=blur, tol=tol, max_iter=3000)
    assert (solved.error < tol).all()
    assert median_relative_error(solved.velocity, reference) < tol


@pytest.mark.parametrize(("d", "blur"), [(2, 0.3), (10, 1.0), (64, 2.0)])
@pytest.mark.parametrize(("tol", "accuracy"), [(1e-2, 0.08), (1e-3, 0.05), (1e-4, 0.03)])
def test_geomloss_is_as_accurate_as_its_docstring_says(d, blur, tol, accuracy):
    x, y, a, b = problem(d=d)
    reference = converged_velocity(x, y, a, b, blur=blur)
    v = geomloss_velocity(x, y, a, b, blur=blur, tol=tol).velocity
    assert median_relative_error(v, reference) < accuracy


def test_a_smaller_tol_makes_geomloss_more_accurate():
    x, y, a, b = problem(d=10)
    reference = converged_velocity(x, y, a, b, blur=0.5)
    errors = [
        median_relative_error(geomloss_velocity(x, y, a, b, blur=0.5, tol=tol).velocity, reference)
        for tol in (0.1, 1e-2, 1e-3, 1e-4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_the_three_solvers_agree_with_equal_weights():
    x, y, _, _ = problem()
    reference = converged_velocity(x, y, blur=0.5)
    for name, accuracy in {"native": 1e-3, "geomloss": 3e-2, "pot": 1e-4}.items():
        v = SOLVERS[name](x, y, blur=0.5, tol=1e-4).velocity
        assert median_relative_error(v, reference) < accuracy


def test_velocity_is_the_shift_for_a_shifted_copy(solver):
    x = normal(2, 30, 3)
    shift = torch.tensor([3.0, -1.0, 0.5], dtype=x.dtype)
    v = solver(x, x + shift, blur=0.5, tol=1e-5).velocity
    torch.testing.assert_close(v, shift.expand_as(v), atol=1e-2, rtol=0)


def test_an_offset_of_1000_costs_no_accuracy_in_float32(solver):
    x, y = (cloud.mul(1024).round().div(1024).float() for cloud in problem()[:2])
    v, shifted = (solver(x + k, y + k, blur=0.3).velocity for k in (0, 1000))
    torch.testing.assert_close(shifted, v, atol=1e-3, rtol=0)


# Weights


def test_points_without_weight_do_not_count_and_move_with_the_others(solver):
    x, y, a, b = problem()
    a[:, 20:], b[:, 25:] = 0, 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    v = solver(x, y, a, b, blur=0.5).velocity
    without = solver(x[:, :20], y[:, :25], a[:, :20], b[:, :25], blur=0.5).velocity
    torch.testing.assert_close(v[:, :20], without, atol=1e-2, rtol=0)
    field = converged_velocity(x, y, a, b, blur=0.5)
    torch.testing.assert_close(v[:, 20:], field[:, 20:], atol=0.1, rtol=0)


def test_small_weights_do_not_spoil_the_velocity_in_float32(solver):
    x, y, a, b = problem()
    a[:, :15] *= 1e-6
    a = a / a.sum(1, keepdim=True)
    reference = converged_velocity(x, y, a, b, blur=0.5)
    v = solver(x.float(), y.float(), a.float(), b.float(), blur=0.5).velocity
    assert median_relative_error(v[:, :15].double(), reference[:, :15]) < 0.05


# What the options do


def test_a_state_has_no_effect_and_none_is_returned(solver):
    x, y, a, b = problem()
    state = sinkhorn_velocity(x, y, a, b, blur=0.5).state
    solved, without = (solver(x, y, a, b, blur=0.5, state=s) for s in (state, None))
    assert solved.state is None
    assert torch.equal(solved.velocity, without.velocity)


def test_max_iter_bounds_the_levels_of_geomloss():
    x, y, a, b = problem()
    few, many = (geomloss_velocity(x, y, a, b, blur=0.1, max_iter=k) for k in (5, 1000))
    assert few.n_iterations <= 5 + 3  # the two ends, and rounding
    assert many.n_iterations > 50
    assert not torch.equal(few.velocity, many.velocity)


def test_geomloss_makes_the_number_of_levels_that_it_reports(monkeypatch):
    schedules = []
    name = geomloss.SamplesLoss.__module__.replace("samples_loss", "sinkhorn_divergence")
    original = sys.modules[name].epsilon_schedule

    def recorded(*args):
        schedules.append(original(*args))
        return schedules[-1]

    monkeypatch.setattr(sys.modules[name], "epsilon_schedule", recorded)
    x, y, a, b = problem()
    for tol in (1e-1, 1e-2, 1e-3):
        n_iterations = geomloss_velocity(x, y, a, b, blur=0.1, tol=tol).n_iterations
        assert abs(len(schedules[-1]) - n_iterations) <= 1  # rounding
        assert schedules[-1][-1] == pytest.approx(0.01)  # eps = blur ** 2


def test_max_bytes_groups_problems_without_changing_the_velocity_of_geomloss():
    x, y, a, b = problem(batch=5)
    at_once, one_by_one = (
        geomloss_velocity(x, y, a, b, blur=0.5, max_bytes=k).velocity for k in (2**29, 1)
    )
    torch.testing.assert_close(one_by_one, at_once)


def test_geomloss_reports_no_error():
    x, y, a, b = problem()
    error = geomloss_velocity(x, y, a, b, blur=0.5).error
    assert error.shape == (2,)
    assert error.isnan().all()


def test_pot_reports_the_error_of_a_solve_that_did_not_converge():
    x, y, a, b = problem()
    solved = pot_velocity(x, y, a, b, blur=0.05, tol=1e-6, max_iter=1)
    assert solved.error.shape == (2,)
    assert (solved.error > 1e-3).all()
    assert solved.n_iterations == 2 * external.POT_ITERATIONS


def test_coinciding_points_have_no_velocity(solver):
    x = torch.ones(1, 3, 2)
    v = solver(x, torch.ones(1, 4, 2), blur=0.5).velocity
    torch.testing.assert_close(v, torch.zeros_like(v), atol=1e-6, rtol=0)


# Good manners


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_left_as_it_was(solver, enabled):
    x, y, a, b = problem()
    with torch.set_grad_enabled(enabled):
        v = solver(x, y, a, b, blur=0.5).velocity
        assert torch.is_grad_enabled() == enabled
    assert not v.requires_grad


def test_grad_mode_is_left_as_it_was_when_geomloss_fails(monkeypatch):
    def fail(*args):
        torch.set_grad_enabled(True)
        raise MemoryError

    monkeypatch.setattr("geomloss.SamplesLoss.forward", fail)
    x, y, a, b = problem()
    with torch.no_grad():
        with pytest.raises(MemoryError):
            geomloss_velocity(x, y, a, b, blur=0.5)
        assert not torch.is_grad_enabled()


def test_velocity_is_the_same_in_inference_mode(solver):
    expected = solver(*problem(), blur=0.5).velocity
    with torch.inference_mode():
        v = solver(*problem(), blur=0.5).velocity
        assert torch.is_inference_mode_enabled()
    assert torch.equal(v, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("other_default", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_clouds_whatever_the_default(solver, dtype, other_default):
    tensors = problem(dtype=dtype)
    default = torch.get_default_dtype()
    torch.set_default_dtype(other_default)
    try:
        solved = solver(*tensors, blur=0.5)
    finally:
        torch.set_default_dtype(default)
    assert solved.velocity.dtype == solved.error.dtype == dtype
    assert solved.velocity.shape == (2, 30, 2)


def test_tensors_of_the_caller_are_left_unchanged(solver):
    tensors = problem()
    solver(*tensors, blur=0.5)
    assert all(torch.equal(*pair) for pair in zip(tensors, problem(), strict=True))
    assert not any(tensor.requires_grad for tensor in tensors)


def test_libraries_are_imported_when_first_used():
    code = (
        "import sys, sknsgf.flow.external\n"
        "assert not {'ot', 'geomloss', 'pykeops'} & set(sys.modules), 'imported too early'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Choices


def pretend_keops_is(installed, monkeypatch):
    monkeypatch.setattr(external, "_has_keops", lambda: installed)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_named_solver_is_chosen_as_it_is(name):
    assert choose_solver(name, 10**6, 10**6, 2) == name


@pytest.mark.parametrize(
    ("n", "m", "d", "keops", "chosen"),
    [
        (10**4, 10**4, 3, True, "geomloss"),
        (10**4, 10**4, 3, False, "native"),
        (10**4, 10**4, 4, True, "native"),
        (10**4, 10**4 - 1, 3, True, "native"),
    ],
)
def test_auto_is_geomloss_only_for_many_points_in_few_dimensions(
    n, m, d, keops, chosen, monkeypatch
):
    pretend_keops_is(keops, monkeypatch)
    assert choose_solver("auto", n, m, d) == chosen


@pytest.mark.parametrize(
    ("d", "many", "keops", "backend"),
    [
        (3, True, True, "multiscale"),
        (4, True, True, "online"),
        (3, False, True, "online"),
        (3, True, False, "tensorized"),
    ],
)
def test_a_problem_that_does_not_fit_goes_to_keops(d, many, keops, backend, monkeypatch):
    pretend_keops_is(keops, monkeypatch)
    monkeypatch.setattr(external, "MULTISCALE_SIZE", 1 if many else math.inf)
    backends = []

    def record(x, y, a, b, blur, schedule, backend):
        backends.append((backend, x.shape[0]))
        return torch.zeros_like(x)

    monkeypatch.setattr(external, "_geomloss_descent", record)
    x, y, a, b = problem(d=d)
    geomloss_velocity(x, y, a, b, blur=0.5, max_bytes=1)
    assert backends == [(backend, 1), (backend, 1)]
    geomloss_velocity(x, y, a, b, blur=0.5)
    assert backends[2:] == [("tensorized", 2)]


@pytest.mark.parametrize(("d", "max_bytes"), [(2, 2**20), (5, 2**20)])
def test_geomloss_agrees_with_ours_through_keops_where_it_is_installed(d, max_bytes):
    pytest.importorskip("pykeops")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 600, d, generator=generator)
    y = torch.randn(1, 500, d, generator=generator) + 1
    ours = sinkhorn_velocity(x, y, blur=0.5, tol=1e-5).velocity
    theirs = geomloss_velocity(x, y, blur=0.5, tol=1e-4, max_bytes=max_bytes).velocity
    assert (theirs - ours).norm(dim=-1).median() < 0.03 * ours.norm(dim=-1).mean()
