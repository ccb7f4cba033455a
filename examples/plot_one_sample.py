"""
One sample only: a generative model
===================================

Given a single sample, ``fit(X)`` makes a generative model of :class:`~sknsgf.NSGFSampler`: the flow
carries a normal law to `X`, and ``sample(n)`` draws new rows. scikit-learn has generative models
too, :class:`~sklearn.mixture.GaussianMixture` and :class:`~sklearn.neighbors.KernelDensity`. Whose
rows are closest to rows that none of them has seen?

None wins everywhere. On two moons all three are as close as chance lets us tell, and the flow has
a fault that the others lack: rows astray between the moons. On images of digits the flow needs many
steps to come as close as the mixture, and its digits are the cleaner ones.
"""

# %%
# The models
# ----------
#
# Each model gets the choice that is usual for it: of the mixtures, that with the lowest BIC; of the
# bandwidths of the kernel density, that with the highest held-out likelihood. The flow keeps its
# defaults, but for fewer flows and a shorter training.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity, NearestNeighbors

from sknsgf import NSGFSampler
from sknsgf.datasets import make_scaled_moons
from sknsgf.metrics import energy_distance

N_ROWS = 2_000  # of each sample of moons
N_DRAWS = 5  # samples drawn from each model, as large as the test sample
COMPONENTS = (10, 20, 40)
BANDWIDTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
N_FLOWS = 16
TRAINING_STEPS = 3_000
FEW = 10  # steps of integration, the default
MANY = 50
MOSAIC = 8  # rows and columns of digits in a picture
BRIGHTEST = 16
COLOURS = ("#808080", "#009E73", "#E69F00", "#D55E00")


def fit_models(X):
    """Fit the three models of a sample, and say what was chosen."""
    mixtures = [
        GaussianMixture(n, covariance_type=kind, reg_covar=1e-4 * X.var(), random_state=0).fit(X)
        for n in COMPONENTS
        for kind in ("full", "diag")
    ]
    mixture = min(mixtures, key=lambda mixture: mixture.bic(X))
    kernels = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=3).fit(X)
    flow = NSGFSampler(n_flows=N_FLOWS, max_iter=TRAINING_STEPS, random_state=0, n_jobs=-1)
    print(f"Mixture: {mixture.n_components} components, covariance {mixture.covariance_type}.")
    print(f"Kernel density: bandwidth {kernels.best_params_['bandwidth']}.")
    return mixture, kernels.best_estimator_, flow.fit(X)


def draw(mixture, kernels, flow, n_rows):
    """Draw samples from each model; the flow is followed with few steps and with many."""
    seeds = range(N_DRAWS)
    draws = {
        "mixture": [mixture.set_params(random_state=seed).sample(n_rows)[0] for seed in seeds],
        "kernel density": [kernels.sample(n_rows, random_state=seed) for seed in seeds],
    }
    for n_steps in (FEW, MANY):
        flow.n_integration_steps_ = n_steps
        draws[f"flow, {n_steps} steps"] = [flow.sample(n_rows, random_state=i) for i in seeds]
    return draws


# %%
# What tells how good draws are? The *energy distance* to test rows, with real rows for its floor,
# compares the laws as a whole. *Nearest* is the median distance of a draw to the nearest row of the
# training sample, over the same median for test rows: well below 1, draws are copies; above, they
# are off. *Strays* are farther from the training sample than all but 0.1 % of the test rows.


def judge(draws, X, X_test, real):
    """Print the three measures of draws, and the floor that real samples set to the first."""
    neighbors = NearestNeighbors(n_neighbors=1).fit(X)
    test = neighbors.kneighbors(X_test)[0]
    print(f"{'':19}{'energy distance':>17}{'nearest':>9}{'strays':>9}")
    for name, samples in draws.items():
        energy = [energy_distance(rows, X_test) for rows in samples]
        distances = np.concatenate([neighbors.kneighbors(rows)[0] for rows in samples])
        nearest = np.median(distances) / np.median(test)
        strays = (distances > np.quantile(test, 0.999)).mean()
        text = f"{np.mean(energy):.4f} ± {np.std(energy):.4f}"
        print(f"{name:19}{text:>17}{nearest:9.2f}{strays:9.1%}")
    floor = np.mean([energy_distance(rows, X_test) for rows in real])
    print(f"{'real rows':19}{floor:8.4f} (floor)")


def pictures(draws, X_test):
    """Choose what to show: real rows, and one draw of each model."""
    few = f"flow, {FEW} steps"
    shown = {"real rows": X_test} | {name: rows[0] for name, rows in draws.items() if name != few}
    shuffle = np.random.default_rng(0).permutation  # a mixture sorts its draws by component
    return {name: shuffle(rows) for name, rows in shown.items()}


# %%
# Two moons
# ---------
#
# In the plane the differences of the energy distances are within the spread over draws, which is
# large. Strays tell the models apart. Those of the mixture lie beside its moons, whose edges it
# blurs; only the flow has rows halfway between the moons: a normal law is in one piece, a flow is
# continuous, and so some rows are bound to end between the pieces of the target. More steps do not
# help against that.

X, X_test = (make_scaled_moons(N_ROWS, random_state=seed) for seed in range(2))
draws = draw(*fit_models(X), N_ROWS)
judge(draws, X, X_test, [make_scaled_moons(N_ROWS, random_state=2 + i) for i in range(N_DRAWS)])

figure, panels = plt.subplots(
    2, 2, figsize=(9, 5.8), layout="constrained", sharex=True, sharey=True
)
for axes, (name, rows), colour in zip(
    panels.flat, pictures(draws, X_test).items(), COLOURS, strict=True
):
    axes.scatter(*rows.T, s=3, color=colour)
    axes.set(title=name, aspect="equal", xticks=(), yticks=())
plt.show()

# %%
# Digits
# ------
#
# Images of 8 x 8 pixels have 64 features. In energy distance the flow with its default of 10 steps
# is far behind; with 50 it is at least as close as the others. But look: within a component the
# mixture's pixels vary each on its own, so that its digits are ragged, and farther from real ones
# than those are from each other (*nearest*). The kernel density copies training digits and adds
# noise to every pixel, even to those that are always white. The flow's digits are clean, though not
# each of them is one, and they lie about as far from the training digits as the test digits do.
#
# What the flow does not have is a density: where likelihoods are wanted, take one of the others.
# Where network evaluations count, see :ref:`sphx_glr_auto_examples_plot_digits.py`.

X, digit = load_digits(return_X_y=True)
X, X_test = train_test_split(X, test_size=0.5, stratify=digit, random_state=0)
draws = draw(*fit_models(X), len(X_test))
judge(draws, X, X_test, [X])

figure, panels = plt.subplots(2, 2, figsize=(7.5, 8), layout="constrained")
for axes, (name, rows) in zip(panels.flat, pictures(draws, X_test).items(), strict=True):
    tiles = rows[: MOSAIC**2].reshape(MOSAIC, MOSAIC, 8, 8)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)))
    picture = tiles.swapaxes(1, 2).reshape(10 * MOSAIC, 10 * MOSAIC)
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=BRIGHTEST)
    axes.set_title(name)
    axes.set_axis_off()
plt.show()
