"""A GPU at work: Sinkhorn iterations and velocities, gradient steps, whole fits.

    python benchmarks/bench_cuda.py

Needs a CUDA device (``--device cpu`` only shows that the script runs). Times of iterations and
velocities are medians of calls that were waited for, that of a step is the mean of 300 after they
were recorded, those of fits are of one. A floor is the time that counted operations or bytes take
at rates measured first: a stored kernel is read twice per iteration, a streamed one costs the
products of its clouds.
"""

import argparse
import copy
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch
from bench_velocity import clouds, geomloss, ours, relative_error
from results import publish
from sklearn.datasets import load_digits
from stages import FLOWS, PAIRING, TRAINING, StageClock

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import make_pair
from sknsgf.flow import kernels
from sknsgf.flow.networks import VelocityMLP, VelocityUNet
from sknsgf.flow.regression import fit_regression
from sknsgf.flow.sinkhorn import sinkhorn_velocity
from sknsgf.metrics import wasserstein_distance

COMMAND = "python benchmarks/bench_cuda.py"
STAGES = {"flows (s)": FLOWS, "pairs (s)": PAIRING, "training (s)": TRAINING}


def wait(device):
    """Wait for what was launched."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(call, device, rounds=11):
    """Median duration of a call, after another one."""
    times = []
    for _ in range(rounds + 1):
        wait(device)
        start = perf_counter()
        call()
        wait(device)
        times.append(1e3 * (perf_counter() - start))
    return median(times[1:])


def rates(device):
    """Bytes copied (read or written) and float32 operations of products per millisecond."""
    a = torch.randn(2**28 if device == "cuda" else 2**22, device=device)
    b = torch.empty_like(a)
    matrix = a[: 8192**2].view(8192, 8192) if device == "cuda" else a[: 1024**2].view(1024, 1024)
    copied = 8 * len(a) / milliseconds(lambda: b.copy_(a), device)
    multiplied = 2 * len(matrix) ** 3 / milliseconds(lambda: matrix @ matrix, device, 5)
    return copied, multiplied


def iterations(device):
    """One Sinkhorn iteration of 10,000 points on each side: stored, and streamed in blocks."""
    copied, multiplied = rates(device)
    print(f"{copied / 1e9:.2f} TB/s, {multiplied / 1e9:.1f} TFLOP/s")
    n = 10_000 if device == "cuda" else 1000
    for d, blur in ((2, 0.5), (64, 2.0)):
        x, y = (cloud.to(device) for cloud in clouds(d, n, 1))
        weights, h = x.new_full((1, n), 1 / n), x.new_zeros(1, n)
        scaled = x / blur, y / blur, -(y / blur).square().sum(-1) / 2, weights
        stored = kernels.DenseKernel(*scaled, x.new_empty(n * n))
        yield {
            "features": d,
            "kernel": "stored",
            "ms": f"{milliseconds(partial(stored.marginal, h), device):.3f}",
            "floor (ms)": f"{8 * n * n / copied:.3f}",
        }
        default = kernels.CUDA_STREAM_BLOCK
        for block in (2**18, 2**20, 2**22, default, 2**26):
            kernels.CUDA_STREAM_BLOCK = block
            buffer = kernels.KernelMemory(0).buffer(x, y)
            streamed = kernels.StreamedKernel(*scaled, buffer)
            yield {
                "features": d,
                "kernel": f"streamed, blocks of {len(buffer):,} entries",
                "ms": f"{milliseconds(partial(streamed.marginal, h), device):.3f}",
                "floor (ms)": f"{2 * n * n * d / multiplied:.3f}",
            }
        kernels.CUDA_STREAM_BLOCK = default


def with_tf32(call):
    """The same call with products of float32 numbers cut to ten bits of mantissa."""

    def other(*arguments):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return call(*arguments)
        finally:
            torch.set_float32_matmul_precision(before)

    return other


def velocities(device):
    """Velocities of the debiased flow, cold: ours, ours with TF32, GeomLoss."""
    tight = partial(ours, tol=1e-3)
    contenders = {
        "sknsgf tol=0.01": partial(ours, tol=1e-2),
        "sknsgf tol=0.001": tight,
        "sknsgf tol=0.001, TF32": with_tf32(tight),
        "sknsgf tol=0.001, streamed": partial(ours, tol=1e-3, max_bytes=0),
        "geomloss scaling=0.5": partial(geomloss, scaling=0.5),
        "geomloss scaling=0.9": partial(geomloss, scaling=0.9),
    }
    scenarios = [((2, 256, 64), 0.5), ((2, 2048, 64), 0.3), ((64, 1024, 4), 2.0)]
    scenarios += [((64, 1024, 128), 2.0), ((2, 10_000, 1), 0.5), ((64, 10_000, 1), 2.0)]
    for size, blur in scenarios[: None if device == "cuda" else 1]:
        x, y = (cloud.to(device) for cloud in clouds(*size))
        exact = sinkhorn_velocity(
            x[:4].double(), y[:4].double(), blur=blur, tol=1e-8, max_iter=5000, max_bytes=2**32
        )
        for name, call in contenders.items():
            velocity = call(x, y, blur)
            ms = milliseconds(lambda call=call: call(x, y, blur), device, 3)  # noqa: B023
            yield {
                "features, points, problems": ", ".join(map(str, size)),
                "blur": blur,
                "contender": name,
                "velocities per s": f"{1e3 * len(x) / ms:.4g}",
                "error": f"{relative_error(velocity, exact.velocity):.1e}",
            }


def steps(device):
    """Gradient steps of networks on random data, launched one by one and recorded."""
    generator = torch.Generator().manual_seed(0)
    cases = [
        ("MLP of 3 x 128", 2, 1024, lambda: VelocityMLP(2, (128,) * 3, "silu", generator)),
        ("MLP of 3 x 512", 784, 256, lambda: VelocityMLP(784, (512,) * 3, "silu", generator)),
        ("U-Net of 32, 64", 784, 256, lambda: VelocityUNet((1, 28, 28), (32, 64), generator)),
    ]
    for name, d, n, make in cases[: None if device == "cuda" else 1]:
        x, t = torch.randn(n, d, generator=generator), torch.rand(n, generator=generator)
        batch, network = [part.to(device) for part in (x, t, x)], make().to(device)
        row = {"network": name, "features": d, "batch": n}
        for title, record in (("one by one (ms)", False), ("recorded (ms)", True)):
            train = partial(fit_regression, draw=lambda batch=batch: batch, record=record)
            times = []
            for n_iterations in (100, 400, 100, 400):
                wait(device)
                start = perf_counter()
                train(copy.deepcopy(network), n_iterations=n_iterations)
                wait(device)
                times.append(perf_counter() - start)
            row[title] = f"{1e3 * (times[3] - times[2]) / 300:.3f}"
        yield row


def fits(device):
    """Default fits in two dimensions, and one of small images with a U-Net, by device."""
    pair = make_pair("8gaussians-moons", 20_000, random_state=0)
    held_out = make_pair("8gaussians-moons", 4096, random_state=1)
    digits = load_digits().data.astype(np.float32)
    images = {"network": "unet", "image_shape": (1, 8, 8)}
    cases = [
        ("8gaussians-moons", NSGFSampler(random_state=0), pair),
        ("8gaussians-moons", NSGFPlusPlus(random_state=0), pair),
        ("digits", NSGFSampler(random_state=0, max_iter=2000, **images), (digits, None)),
    ]
    for name, estimator, samples in cases if device == "cuda" else []:
        for place in ("cpu", "cuda"):
            if place == "cpu" and name == "digits":
                continue  # minutes
            clock = StageClock(perf_counter)
            estimator.set_params(device=place).set_callbacks(clock)
            start = perf_counter()
            estimator.fit(*samples)
            row = {"data": name, "estimator": type(estimator).__name__, "device": place}
            row["fit (s)"] = f"{perf_counter() - start:.2f}"
            row |= {stage: f"{s:.2f}" for stage, s in clock.totals(STAGES).items()}
            row["W2"] = ""
            if name != "digits":
                moved = estimator.transform(held_out[0])
                row["W2"] = f"{wasserstein_distance(moved, held_out[1]):.4f}"
            yield row


def main():
    """Run all parts."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    device = arguments.parse_args().device
    for part in (iterations, velocities, steps, fits):
        report(f"cuda_{part.__name__}", part(device), device)


def report(name, rows, device):
    """Print rows as they come, and publish them where they are of a GPU."""
    kept = []
    for row in rows:
        print(*row.values(), sep="  ", flush=True)
        kept.append(row)
    if device == "cuda":
        publish(name, kept, COMMAND, torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
