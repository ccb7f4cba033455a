"""Speed and accuracy of Sinkhorn velocities, ours and those of other libraries.

    python benchmarks/bench_velocity.py

Every contender computes the same velocity of the debiased flow for the same clouds, cold, on one
thread, in turn: round after round, all in one run. Printed are velocities per second (problems over
the median time of a call), the error (median over particles of ``|v - v_ref|`` over the mean of
``|v_ref|``, against a converged float64 solve of ours, which the tests check against POT), and the
memory that a call needs beyond what the process held before (Linux). ott-jax takes part where it is
installed; its compilation is not counted.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import importlib.util
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch
from geomloss import SamplesLoss
from memory import peak_memory, reset_peak
from results import publish

from sknsgf.datasets import make_pair
from sknsgf.flow.external import pot_velocity
from sknsgf.flow.sinkhorn import sinkhorn_velocity

N_REFERENCE = 4  # problems of a batch that errors are measured on
ROUNDS = 11
PATIENCE = 10  # seconds after which a contender sits the remaining rounds out


def clouds(d, n, batch):
    """Eight Gaussians (d = 2) or a wider, shifted normal law from a normal law; unscaled."""
    if d == 2:
        pairs = [make_pair("8gaussians", n, random_state=seed) for seed in range(batch)]
        return [
            torch.tensor(np.stack(side), dtype=torch.float32) for side in zip(*pairs, strict=True)
        ]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n, d, generator=generator)
    return x, 0.5 + 1.5 * torch.randn(batch, n, d, generator=generator)


def ours(x, y, blur, *, tol, max_bytes=2**29):
    """Our solver."""
    return sinkhorn_velocity(x, y, blur=blur, tol=tol, max_bytes=max_bytes).velocity


def geomloss(x, y, blur, *, scaling):
    """GeomLoss: gradient of its divergence with respect to the particles."""
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y).sum(), [x])
    return -gradient * x.shape[1]


def pot(x, y, blur, *, tol):
    """POT: log-domain Sinkhorn, problem by problem, in float64."""
    return pot_velocity(x, y, blur=blur, tol=tol).velocity


def make_ott():
    """ott-jax: one compiled function for the batch, or None where it is not installed."""
    if importlib.util.find_spec("ott") is None:
        return None
    import jax
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    def projection(x, y, epsilon, threshold):
        geometry = pointcloud.PointCloud(x, y, epsilon=2 * epsilon)  # its cost is |x - y|^2
        solver = sinkhorn.Sinkhorn(threshold=threshold, max_iterations=2000)
        plan = solver(linear_problem.LinearProblem(geometry)).matrix
        return plan @ y / plan.sum(1, keepdims=True)

    @partial(jax.jit, static_argnames=("epsilon", "threshold"))
    def velocity(x, y, epsilon, threshold):
        def one(pair):
            x, y = pair
            return projection(x, y, epsilon, threshold) - projection(x, x, epsilon, threshold)

        return jax.lax.map(one, (x, y))

    def call(x, y, blur, *, tol):
        out = velocity(x.numpy(), y.numpy(), blur**2, tol)
        return torch.from_numpy(np.array(out))

    return call


def extra_memory(call, x, y, blur):
    """Memory (MB) that one call needs beyond what the process holds.

    Not measured while timing: it returns freed memory to the system first, and a call that has to
    fetch it again is slower than the calls of a simulation are.
    """
    reset_peak()
    before = peak_memory()
    call(x, y, blur)
    return peak_memory() - before


def seconds(call, x, y, blur):
    """Duration of one call."""
    start = perf_counter()
    call(x, y, blur)
    return perf_counter() - start


def relative_error(velocity, reference):
    """Median over particles of the error's length, over the mean length of the velocity."""
    distance = (velocity[: len(reference)].double() - reference).norm(dim=-1)
    return float(distance.median() / reference.norm(dim=-1).mean())


def compare(title, size, blur, contenders):
    """Measure all contenders on one scenario, in turn."""
    x, y = clouds(*size)
    reference = sinkhorn_velocity(
        x[:N_REFERENCE].double(), y[:N_REFERENCE].double(), blur=blur, tol=1e-8, max_iter=5000
    )
    velocity = {name: call(x, y, blur) for name, call in contenders.items()}  # and warm up
    memory = {name: extra_memory(call, x, y, blur) for name, call in contenders.items()}
    times = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            if sum(times[name]) < PATIENCE:
                times[name].append(seconds(call, x, y, blur))
    for name in contenders:
        row = {
            "scenario": title,
            "contender": name,
            "velocities per s": f"{len(x) / median(times[name]):.3g}",
            "error": f"{relative_error(velocity[name], reference.velocity):.1e}",
            "extra memory (MB)": f"{memory[name]:.0f}",
        }
        print(*row.values(), sep="  ", flush=True)
        yield row


def main():
    """Run all scenarios."""
    torch.set_num_threads(1)
    loose, tight = ({f"sknsgf tol={tol:g}": partial(ours, tol=tol)} for tol in (1e-2, 1e-3))
    gl = {s: {f"geomloss scaling={s}": partial(geomloss, scaling=s)} for s in (0.5, 0.9, 0.97)}
    gl[0.99] = {"geomloss scaling=0.99": partial(geomloss, scaling=0.99)}
    ott = make_ott()
    ott = {"ott-jax 1e-3": partial(ott, tol=1e-3)} if ott else {}
    small = loose | tight | gl[0.5] | gl[0.9] | gl[0.97] | ott
    pot3 = {"POT tol=1e-3": partial(pot, tol=1e-3)}
    large = {
        "sknsgf tol=0.001 streamed": partial(ours, tol=1e-3, max_bytes=2**26),
        "sknsgf tol=0.001 stored": partial(ours, tol=1e-3),
    }
    scenarios = [
        ("2-d, n=256, B=64, blur 0.5", (2, 256, 64), 0.5, small | gl[0.99] | pot3),
        ("2-d, n=256, B=16, blur 0.1", (2, 256, 16), 0.1, small),
        ("64-d, n=1024, B=4, blur 2", (64, 1024, 4), 2.0, small | pot3),
        ("64-d, n=1024, B=4, blur 1", (64, 1024, 4), 1.0, small),
        ("2-d, n=10000, B=1, blur 0.5", (2, 10_000, 1), 0.5, large | gl[0.5] | ott),
        ("64-d, n=10000, B=1, blur 2", (64, 10_000, 1), 2.0, large | gl[0.5] | ott),
    ]
    rows = [row for scenario in scenarios for row in compare(*scenario)]
    publish("velocity", rows, "python benchmarks/bench_velocity.py")


if __name__ == "__main__":
    main()
