import math

import ot
import pytest
import torch
from threadpoolctl import threadpool_limits

from sknsgf.flow.paths import PAIRINGS, PlanPairing, exact_partners, make_pairing

PLANS = ("potentials", "sinkhorn")
BALANCED = ("exact", "independent")
NEAR = ("potentials", "sinkhorn", "exact")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are many times slower when the cores of a busy machine share each."""
    with threadpool_limits(limits=1, user_api="openmp"):
        yield


def generator(seed=0):
    return torch.Generator(device="cpu").manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def pairing_of(name, blur=0.1, tol=1e-4, max_iter=500):
    return make_pairing(name, blur=blur, tol=tol, max_iter=max_iter)


def transport_cost(x, partners):
    return ((partners - x).square().sum(-1).mean() / 2).item()


def indices(partners, y):
    """Which row of ``y`` each partner is; every one must be a row."""
    same = (partners[:, None] == y).all(-1)
    assert same.any(1).all()
    return same.int().argmax(1)


def counts_of(partners, y):
    return torch.bincount(indices(partners, y), minlength=len(y))


@pytest.fixture
def solves(monkeypatch):
    """Arguments of the Sinkhorn solves."""
    from sknsgf.flow import paths

    calls, solve = [], paths.cross_potential

    def counted(*args, **kwargs):
        calls.append(args)
        return solve(*args, **kwargs)

    monkeypatch.setattr(paths, "cross_potential", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (40, 15), (15, 40), (1, 7), (7, 1)])
@pytest.mark.parametrize("name", PAIRINGS)
def test_every_row_of_x_gets_a_row_of_y(name, n, m, dtype):
    x, y = normal(n, 3, dtype=dtype), normal(m, 3, seed=1, dtype=dtype) + 1
    partners = pairing_of(name, blur=0.5)(x, y, generator())
    assert partners.shape == (n, 3)
    assert partners.dtype == dtype
    indices(partners, y)


@pytest.mark.parametrize("name", NEAR)
def test_partners_of_points_far_apart_are_their_shifted_copies_in_the_order_of_x(name):
    x = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))[
        torch.randperm(25, generator=generator())
    ]
    y = x + torch.tensor([2.3, -1.1])
    shuffled = y[torch.randperm(25, generator=generator(1))]
    pairing = pairing_of(name)
    for _ in range(2):  # "potentials" solves for the first batches and extends to the second
        assert torch.equal(pairing(x, shuffled, generator()), y)


@pytest.mark.parametrize("name", BALANCED)
def test_every_row_of_an_equally_large_y_is_a_partner_once(name):
    x, y = normal(60, 2), normal(60, 2, seed=1)
    assert counts_of(pairing_of(name)(x, y, generator()), y).tolist() == [1] * 60


@pytest.mark.parametrize("name", BALANCED)
def test_every_row_of_y_is_a_partner_equally_often_where_the_sizes_divide(name):
    x, y = normal(60, 2), normal(20, 2, seed=1)
    assert counts_of(pairing_of(name)(x, y, generator()), y).tolist() == [3] * 20


@pytest.mark.parametrize(("n", "m"), [(50, 20), (20, 50)])
def test_independent_partners_come_equally_often_give_or_take_one(n, m):
    counts = counts_of(pairing_of("independent")(normal(n, 2), y := normal(m, 2), generator()), y)
    assert sorted(set(counts.tolist())) == [n // m, n // m + 1]


@pytest.mark.parametrize("name", [*PLANS, "exact"])
def test_over_many_draws_partners_have_the_law_of_y(name):
    x, y, g = normal(45, 2), normal(30, 2, seed=1) + 1, generator()
    pairing, n_draws = pairing_of(name, blur=0.5), 200
    counts = sum(counts_of(pairing(x, y, g), y) for _ in range(n_draws))
    deviation = math.sqrt(45 * n_draws / 30)  # of a count, at most
    assert (counts - 45 * n_draws / 30).abs().max() < 4.5 * deviation


def test_independent_partners_do_not_depend_on_the_place():
    x, y = torch.arange(4.0)[:, None], torch.arange(4.0)[:, None]
    pairing, g = pairing_of("independent"), generator()
    counts = sum(torch.nn.functional.one_hot(pairing(x, y, g)[:, 0].long(), 4) for _ in range(2000))
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 3 / 16)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("blur", [0.02, 0.1])
def test_a_plan_costs_what_exact_transport_does_up_to_the_blur(name, blur):
    x, y, g = normal(100, 2), normal(100, 2, seed=1) + 1, generator()
    weights = ot.unif(100, type_as=x)
    exact = ot.emd2(weights, weights, ot.dist(x, y) / 2).item()
    pairing = pairing_of(name, blur, max_iter=3000)
    cost = sum(transport_cost(x, pairing(x, y, g)) for _ in range(5)) / 5
    assert exact - 0.01 < cost < exact + blur**2 * math.log(100) + 0.01


def test_exact_partners_cost_what_pot_says():
    x, y = normal(80, 3), normal(80, 3, seed=1)
    weights = ot.unif(80, type_as=x)
    expected = ot.emd2(weights, weights, ot.dist(x, y) / 2).item()
    assert transport_cost(x, exact_partners(x, y, generator())) == pytest.approx(expected)


@pytest.mark.parametrize("name", NEAR)
def test_pairing_costs_far_less_than_none(name):
    x, y = normal(300, 2), normal(300, 2, seed=1)
    cost, cost_of_none = (
        transport_cost(x, pairing_of(pairing)(x, y, generator()))
        for pairing in (name, "independent")
    )
    assert cost < 0.1 * cost_of_none


def test_extended_potentials_cost_about_as_little_as_a_solve_on_fresh_points(solves):
    shift, factor = torch.tensor([2.0, 1.0]), torch.tensor([1.5, 0.4])
    extended, solved = pairing_of("potentials"), pairing_of("sinkhorn")
    costs = {"extended": 0.0, "solved": 0.0, "none": 0.0}
    for seed in range(5):
        x = normal(400, 2, seed=seed, dtype=torch.float32)
        y = normal(400, 2, seed=10 + seed, dtype=torch.float32) * factor + shift
        costs["extended"] += transport_cost(x, extended(x, y, generator()))
        costs["solved"] += transport_cost(x, solved(x, y, generator()))
        costs["none"] += transport_cost(x, y)
    assert costs["extended"] - costs["solved"] < 0.05 * (costs["none"] - costs["solved"])


@pytest.mark.parametrize(("name", "n_solves"), [("potentials", 1), ("sinkhorn", 4)])
def test_potentials_are_solved_for_once_and_plans_each_time(name, n_solves, solves):
    pairing = pairing_of(name, blur=0.5)
    for seed in range(4):
        pairing(normal(20, 2, seed=seed), normal(20, 2, seed=seed + 9), generator())
    assert len(solves) == n_solves


def test_draws_follow_the_softmax_of_the_extended_potential():
    x, y, blur = normal(8, 2), normal(6, 2, seed=1) + 0.5, 0.7
    cost = torch.cdist(x, y).square() / 2
    f = torch.zeros(8, 1, dtype=torch.float64)
    for _ in range(300):  # Sinkhorn's iterations as in the books
        g = -(blur**2) * torch.logsumexp((f - cost) / blur**2 - math.log(8), 0, keepdim=True)
        f = -(blur**2) * torch.logsumexp((g - cost) / blur**2 - math.log(6), 1, keepdim=True)
    fresh_x, fresh_y = normal(1, 2, seed=2), normal(5, 2, seed=3)
    to_fresh = (f - torch.cdist(x, fresh_y).square() / 2) / blur**2
    g = -(blur**2) * torch.logsumexp(to_fresh, 0)
    expected = ((g - torch.cdist(fresh_x, fresh_y)[0].square() / 2) / blur**2).softmax(0)

    pairing, n_draws = pairing_of("potentials", blur, tol=1e-9), 40_000
    pairing(x, y, generator())
    partners = pairing(fresh_x.expand(n_draws, 2), fresh_y, generator())
    frequencies = counts_of(partners, fresh_y) / n_draws
    assert expected.max() > 2 * expected.min()
    torch.testing.assert_close(
        frequencies.double(), expected, atol=4 / math.sqrt(4 * n_draws), rtol=0
    )


@pytest.mark.parametrize("name", PLANS)
def test_blocks_of_rows_are_drawn_like_one(name, monkeypatch):
    x, y = normal(100, 2), normal(50, 2, seed=1)
    together = pairing_of(name, blur=0.5)(x, y, generator())
    monkeypatch.setattr("sknsgf.flow.kernels.STREAM_BLOCK", 1)
    assert torch.equal(pairing_of(name, blur=0.5)(x, y, generator()), together)


@pytest.mark.parametrize("name", PLANS)
def test_the_error_is_that_of_the_worst_solve(name):
    pairing, y = pairing_of(name, tol=1e-3, max_iter=2), normal(30, 2, seed=1)
    pairing(normal(30, 2) * 4, y, generator())
    worst = pairing.error
    assert worst > 1e-3
    pairing(y, y, generator())
    assert pairing.error == worst
    converged = pairing_of(name, tol=1e-3)
    converged(normal(30, 2), y, generator())
    assert 0 < converged.error < 1e-3


@pytest.mark.parametrize("name", PAIRINGS)
def test_partners_are_a_function_of_the_generator_and_leave_the_global_one_alone(name):
    x, y = normal(50, 2), normal(20, 2, seed=1)
    before = torch.get_rng_state()
    first, again, other = (pairing_of(name, blur=1.0)(x, y, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    if name != "exact":  # which draws only where it must split the mass of a row
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", PAIRINGS)
def test_partners_do_not_depend_on_the_defaults_of_the_caller(name):
    x, y = normal(50, 2, dtype=torch.float32), normal(20, 2, seed=1, dtype=torch.float32)

    def partners():
        pairing = pairing_of(name, blur=1.0)
        pairing(x, y, generator())
        return pairing(x, y, generator(1))

    expected, default = partners(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(partners(), expected)
    finally:
        torch.set_default_dtype(default)
    with torch.device("meta"):
        assert torch.equal(partners(), expected)


@pytest.mark.parametrize("name", PAIRINGS)
def test_the_points_are_not_modified(name):
    x, y = normal(20, 2), normal(20, 2, seed=1)
    pairing_of(name, blur=1.0)(x, y, generator())
    assert torch.equal(x, normal(20, 2))
    assert torch.equal(y, normal(20, 2, seed=1))


def test_a_point_far_from_all_others_is_paired():
    x, y = normal(20, 2, dtype=torch.float32), normal(20, 2, seed=1, dtype=torch.float32)
    pairing = PlanPairing(0.1, extend=True)
    pairing(x, y, generator())
    far = torch.tensor([[1e3, 0.0]])
    partner = pairing(far, y, generator())
    assert torch.equal(partner[0], y[y[:, 0].argmax()])


@pytest.mark.parametrize("far", [1e15, 1e30])
def test_a_plan_that_float32_is_too_short_for_gives_some_partners_and_reports_it(far):
    x = torch.tensor([[far, -far], [0.0, 1.0], [-far, 0.0]])
    y = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 5.0]])
    pairing = make_pairing("sinkhorn", blur=0.1, tol=1e-2, max_iter=20)
    partners = pairing(x, y, torch.Generator().manual_seed(0))
    assert torch.isin(partners, y).all()
    assert pairing.error == torch.inf
