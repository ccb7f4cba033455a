"""
Which settings? A grid search
=============================

A flow has settings, and ``score`` to compare them by. How are blur and the size of the network
chosen by :class:`~sklearn.model_selection.GridSearchCV`, when the features need scaling, the target
must be scaled along, and there is no `y`?

The target goes in as ``X_target``, and the pipeline is told to transform it. The search then tells
which settings matter: too wide a blur and too small a network cost much; the others differ by no
more than folds do, and any of them will do. How long to train is not for the grid:
``early_stopping`` finds out within one fit.
"""

# %%
# Two samples in different units
# ------------------------------
#
# The second feature has values a hundred times as large as the first. Distances, and so the flow,
# would see nothing but the second: a scaler is needed. In a pipeline, metadata routing takes the
# target through it: ``transform_input`` names it. ``fit(X_source, y=X_target)`` would not do, since
# a pipeline never transforms `y`.

import matplotlib.pyplot as plt
import numpy as np
import sklearn
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknsgf import NSGFSampler
from sknsgf.datasets import make_pair
from sknsgf.metrics import energy_distance
from sknsgf.plotting import LossCurveDisplay

N_SOURCE = 2_000
N_TARGET = 1_500
N_HELD_OUT = 3_000
BLURS = (0.1, 0.3, 1.0)
SIZES = (8, 32, 128)  # units of each of the three hidden layers
TRAINING_STEPS = 400  # few, for a quick search
FINAL_STEPS = 8_000  # at most
UNITS = np.array([1.0, 100.0])

sklearn.set_config(enable_metadata_routing=True)

X_source, X_target = make_pair("8gaussians-moons", (N_SOURCE, N_TARGET), random_state=0)
X_new, X_test = make_pair("8gaussians-moons", N_HELD_OUT, random_state=1)
X_source, X_target, X_new, X_test = (X * UNITS for X in (X_source, X_target, X_new, X_test))

flow = NSGFSampler(max_iter=TRAINING_STEPS, random_state=0, n_jobs=-1)
model = make_pipeline(StandardScaler(), flow, transform_input=["X_target"])

# %%
# The search
# ----------
#
# Each candidate is fitted to a part of the source and the whole target, and scored on held-out rows
# of the source: ``score`` carries them, and is minus their Sinkhorn divergence to the target. Its
# own blur is the same for all candidates, whatever theirs, so that blurs can be compared. Zero
# would be perfect, but cannot be reached: two finite samples always differ.
#
# (Mind that a target with *as many* rows as the source is split along with it, row by row, as if it
# were a column of weights: leave out a row then, ``X_target=X_target[1:]``.)

grid = {
    "nsgfsampler__blur": BLURS,
    "nsgfsampler__hidden_layer_sizes": [(size, size, size) for size in SIZES],
}
search = GridSearchCV(model, grid, cv=3).fit(X_source, X_target=X_target)

shape = len(BLURS), len(SIZES)  # the grid goes through the sizes for each blur
scores = search.cv_results_["mean_test_score"].reshape(shape)
spreads = search.cv_results_["std_test_score"].reshape(shape)

figure, axes = plt.subplots(figsize=(6.5, 4.4), layout="constrained")
image = axes.imshow(scores, cmap="viridis", aspect="auto")
figure.colorbar(image, label="score (higher is better)")
for (row, column), score in np.ndenumerate(scores):
    text = f"{score:.4f}\n± {spreads[row, column]:.4f}"
    colour = "black" if score > (scores.min() + scores.max()) / 2 else "white"
    axes.text(column, row, text, ha="center", va="center", color=colour)
axes.set_xticks(range(len(SIZES)), [f"3 x {size}" for size in SIZES])
axes.set_yticks(range(len(BLURS)), [f"{blur:g}" for blur in BLURS])
axes.set(xlabel="hidden layers", ylabel="blur")
plt.show()

print("Best of the grid:", search.best_params_)

# %%
# Blur 1 is bad whatever the network, and the smallest network is bad whatever the blur. The four
# scores that remain differ by about a standard deviation over the folds: the search says where not
# to go, and hardly which of these is the best.
#
# How long to train?
# ------------------
#
# The fits of the search are short, which is enough to compare. For the final one, a tenth of the
# rows is held out and decides: training stops when the loss on flows between them has fallen by
# less than 1 % in each of five checks. (A learning rate that falls to zero would be at odds with
# stopping early, hence "constant".)

blur, sizes = (search.best_params_[name] for name in grid)
final = NSGFSampler(
    blur=blur,
    hidden_layer_sizes=sizes,
    max_iter=FINAL_STEPS,
    learning_rate="constant",
    early_stopping=True,
    tol=0.01,
    n_iter_no_change=5,
    random_state=0,
    n_jobs=-1,
)
trained_longer = make_pipeline(StandardScaler(), final, transform_input=["X_target"])
trained_longer.fit(X_source, X_target=X_target)
print(f"Stopped after {final.n_iter_} gradient steps of at most {FINAL_STEPS}.")

LossCurveDisplay.from_estimator(final)
plt.show()

# %%
# The loss on rows that are trained on falls on and on, since the network learns by heart where each
# of them goes. What it knows about others is seen in the dashed line, which has become flat. (Its
# height says little: so few rows as are held out have a rougher flow between them.)
#
# Does another measure agree?
# ---------------------------
#
# A score that chose the settings should not be the only judge of them. So here are fresh rows,
# moved by the worst and the best of the grid and by the final fit, and taken back to their units.
# Their energy distance to unseen rows of the target (the second feature divided by a hundred)
# agrees, and says what the short fits of the search left to gain by a longer training.

worst = search.cv_results_["params"][np.argmin(search.cv_results_["mean_test_score"])]
fits = {
    "worst of the grid": sklearn.clone(model).set_params(**worst).fit(X_source, X_target=X_target),
    "best of the grid": search.best_estimator_,
    "best, trained longer": trained_longer,
}
pictures = {
    name: fitted[0].inverse_transform(fitted.transform(X_new)) for name, fitted in fits.items()
}

print("Energy distance to unseen rows of the target:")
for name, rows in {**pictures, "floor": X_target}.items():
    print(f"  {name:22}{energy_distance(rows / UNITS, X_test / UNITS):.4f}")

figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharex=True, sharey=True)
for axes, (name, rows) in zip(panels.flat, {**pictures, "target": X_test}.items(), strict=True):
    axes.scatter(*rows.T, s=2, color="#808080" if name == "target" else "#D55E00")
    axes.set_title(name)
plt.show()

# %%
# More on routing, other searches and data frames: :doc:`/pipelines`.
sklearn.set_config(enable_metadata_routing=False)
plt.show()
