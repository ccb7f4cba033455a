"""How good generated images are, in the eyes of a small classifier of the real ones.

The Frechet distance here is *not* the Inception FID of the literature and can't be compared with
it: features are the 32 of a small network that was trained on the data set in question, each of
unit variance there. Distances in the features of one classifier can be compared with one another,
and with nothing else.
"""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn.functional import cross_entropy

N_FEATURES, N_CLASSES = 32, 10
CHANNELS = 16, 32
N_ITERATIONS, BATCH_SIZE, LEARNING_RATE = 2_000, 128, 3e-3
CHUNK = 1_000  # images that are classified at a time
N_COMPARED = 2_000  # images whose nearest neighbour is looked for


class ImageClassifier:
    """Small convolutional network with a layer of 32 features; the same seed, the same network.

    Attributes
    ----------
    body, head : nn.Module
        Images to features, features to logits.
    """

    def __init__(self, image_shape, seed=0):
        n_channels, height, width = image_shape
        near, far = CHANNELS
        self.seed = seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Unflatten(1, image_shape),
                nn.Conv2d(n_channels, near, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(near, far, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(far * (height // 4) * (width // 4), N_FEATURES, bias=False),
                nn.BatchNorm1d(N_FEATURES, affine=False),  # unit variance, and no dead features
            )
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(N_FEATURES, N_CLASSES))

    def fit(self, X, y):
        """Train on real images; the learning rate falls to zero."""
        X, y = torch.as_tensor(X), torch.as_tensor(y)
        generator = torch.Generator().manual_seed(self.seed)
        parameters = [*self.body.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_ITERATIONS)
        for _ in range(N_ITERATIONS):
            rows = torch.randint(len(X), (BATCH_SIZE,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(self.head(self.body(X[rows])), y[rows]).backward()
            optimizer.step()
            schedule.step()
        self.body.eval()
        return self

    @torch.no_grad()
    def features(self, X):
        """Features (n, 32) of images, in float64."""
        chunks = torch.as_tensor(X, dtype=torch.float32).split(CHUNK)
        return torch.cat([self.body(chunk) for chunk in chunks]).double().numpy()

    @torch.no_grad()
    def predict_proba(self, X):
        """Probabilities of the classes."""
        logits = self.head(torch.as_tensor(self.features(X), dtype=torch.float32))
        return logits.double().softmax(1).numpy()

    def score(self, X, y):
        """Share of the images that are classified as labelled."""
        return float((self.predict_proba(X).argmax(1) == y).mean())


def frechet_distance(A, B):
    """Squared Frechet (2-Wasserstein) distance between normal laws with the moments of two samples.

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``: Dowson and Landau, "The Frechet distance
    between multivariate normal distributions", Journal of Multivariate Analysis 12, 1982; used for
    images since Heusel et al., arXiv:1706.08500. The trace of the root is the sum of the roots of
    the eigenvalues of ``S_a S_b``, which are those of a symmetric matrix.
    """
    shift = A.mean(0) - B.mean(0)
    cov_a, cov_b = np.cov(A, rowvar=False), np.cov(B, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0))
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())


def confidence(probabilities):
    """Mean of the largest probability: whether the images look like some class."""
    return float(probabilities.max(1).mean())


def class_balance(probabilities):
    """Entropy of the predicted classes over that of equal shares: whether all are there."""
    shares = np.bincount(probabilities.argmax(1), minlength=N_CLASSES) / len(probabilities)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(N_CLASSES))


def nearest_distance(X, X_train):
    """Median distance to the nearest training image; short of test images', it means copies."""
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(X_train)
    return float(np.median(search.kneighbors(X[:N_COMPARED])[0]))
