"""What every flow estimator shares: everything but ``fit``."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import gen_batches
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from sknsgf import _persistence
from sknsgf._callbacks import CallbackSupportMixin
from sknsgf._file_rows import in_parts
from sknsgf._torch_bridge import (
    Frame,
    available_device,
    balanced_rows,
    full_precision,
    load_linear_algebra,
    mean_and_variance,
    one_thread,
    random_rows,
    seed_of,
    thread_map,
)
from sknsgf._validation import (
    check_out,
    check_parameter,
    check_rows,
    check_target,
    check_weights,
    whole_number,
)
from sknsgf.flow.module import FlowModule
from sknsgf.metrics import sinkhorn_divergence

# Rows transported at a time, and entries of a layer for these: bound the memory of the layers,
# which the cache should hold.
CPU_CHUNK, CUDA_CHUNK = 2**12, 2**18
CPU_ENTRIES, CUDA_ENTRIES = 2**21, 2**27
SCORE_ROWS = 4_096  # rows of each sample that a score compares


def reference_blur(n_features):
    """Blur, over the scale of the data, that is sharp yet cheap: 0.1 per feature pair's radius.

    Distances between points grow with the square root of the number of features, and so does it.
    """
    return 0.1 * float(np.sqrt(max(n_features, 2) / 2))


def rows_at_a_time(design, device):
    """Number of rows that networks of a design carry together."""
    on_cpu = torch.device(device).type == "cpu"
    rows, entries = (CPU_CHUNK, CPU_ENTRIES) if on_cpu else (CUDA_CHUNK, CUDA_ENTRIES)
    return max(1, min(rows, entries // design.widest_layer))


class BaseFlow(CallbackSupportMixin, OneToOneFeatureMixin, TransformerMixin, BaseEstimator, ABC):
    """Base of the flow estimators; a subclass brings ``fit`` and what is abstract here."""

    # X_target is data, as y is: meta-estimators pass it on to fit without being asked to.
    __metadata_request__fit = {"X_target": True}
    __metadata_request__score = {"X_target": False}
    # out belongs to one call: there is nothing to pass on.
    __metadata_request__transform = {"out": UNUSED}
    __metadata_request__inverse_transform = {"out": UNUSED}

    @abstractmethod
    def _networks(self):
        """Fitted networks by name, on the CPU in float32."""

    @abstractmethod
    def _follow(self):
        """Function ``(networks, *, backward, return_trajectory)``, made of plain values.

        It returns the function that carries a tensor of points along the flow of the networks.
        """

    @property
    @abstractmethod
    def _n_times(self):
        """Number of times of a trajectory."""

    def __sklearn_is_fitted__(self):
        return hasattr(self, "network_parameters_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def transform(self, X, *, out=None):
        """Carry rows of the source along the flow to the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows to transport, each on its own: the result for a row does not depend on the others.
            After ``fit(X)`` the source is a normal law: give draws of it, not rows of the target.
        out : ndarray or writable memmap of shape (n_samples, n_features), default=None
            Where the rows are put, of the dtype of the result: nothing of the size of `X` is then
            allocated. It may be `X` itself, whose rows are then replaced. None allocates an array.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Transported rows, in the units of `X`; `out` if it was given. float32 rows stay float32
            (and are faster); everything else is computed and returned in float64.
        """
        check_is_fitted(self)
        return self._transport_rows(check_rows(self, X), out)

    def inverse_transform(self, X, *, out=None):
        """Carry rows of the target back along the flow to the source.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows to transport.
        out : ndarray or writable memmap of shape (n_samples, n_features), default=None
            Where the rows are put, of the dtype of the result: nothing of the size of `X` is then
            allocated. It may be `X` itself, whose rows are then replaced. None allocates an array.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Where the flow takes the rows on its way back. Euler steps are solved for where they
            began: by one iteration with two evaluations, or, for steps of ``time="discrete"`` and
            of the Sinkhorn phase, by 50 evaluations. So :meth:`transform` is undone up to an error
            that shrinks with the number of steps, down to that of the network near time 1, and
            least where the flow tears a cloud apart. Steps of other methods are integrated
            backward (``mode="paper"`` always takes Euler steps back).
        """
        check_is_fitted(self)
        return self._transport_rows(check_rows(self, X), out, backward=True)

    def trajectory(self, X):
        """Positions of rows of the source along the flow.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows to transport.

        Returns
        -------
        ndarray of shape (n_times, n_samples, n_features)
            Positions at equally spaced flow times from 0 (`X` itself) to 1 (``transform(X)``).
        """
        check_is_fitted(self)
        return self._transport_rows(check_rows(self, X), return_trajectory=True)

    def sample(self, n_samples=1, random_state=None):
        """Draw new rows of the target's law by transporting draws of the source.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Source of the draws; None uses the estimator's `random_state`.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Transported rows. The source rows are drawn from the normal law that ``fit(X)`` takes as
            source, or from the rows of the source that a two-sample fit keeps: every row is used
            once before any is used again.
        """
        check_is_fitted(self)
        caller = f"{type(self).__name__}.sample"
        check_parameter("n_samples", n_samples, whole_number(1), caller)
        check_parameter("random_state", random_state, "random_state", caller)
        state = self.random_state if random_state is None else random_state
        return self._sample(n_samples, seed_of(state, "sampling"))

    def score(self, X, y=None, *, X_target=None, sample_weight=None):
        """Closeness of transported rows to the target: minus the Sinkhorn divergence.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the source. For an estimator fitted on one sample, and without `X_target`: rows
            of that sample's law, which are compared with draws of the estimator.
        y : array-like of shape (n_samples,) or (n_target, n_features), or path, default=None
            Two-dimensional: the target. One-dimensional: labels, ignored.
        X_target : array-like of shape (n_target, n_features), or path, default=None
            The target. None means `y` if it is two-dimensional, else the target rows kept by
            :meth:`fit`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows of `X`.

        Returns
        -------
        float
            Minus the divergence, in units of length squared; higher is better and 0 is the best.
            The blur is a share of the spread of the target that `fit` was given: the same for every
            estimator fitted to that target, whatever its own blur. Above 4096 rows a side, a fixed
            random subset is compared.
        """
        check_is_fitted(self)
        X = check_rows(self, X)
        target = check_target(self, X, y, X_target)
        weights = check_weights(sample_weight, X, "sample_weight")
        counted = np.arange(len(X)) if weights is None else np.flatnonzero(weights)
        rows = counted[random_rows(len(counted), SCORE_ROWS, seed_of(0, "scoring"))]
        X, weights = X[rows], None if weights is None else weights[rows]
        if target is None and self.source_sample_ is None:
            moved, target = X, self._sample(SCORE_ROWS, seed_of(0, "scoring"))
        else:
            moved = self._transport_rows(X)
        target = self.target_sample_ if target is None else target
        target = target[random_rows(len(target), SCORE_ROWS, seed_of(0, "scoring"))]
        scale = np.sqrt(mean_and_variance(self.target_sample_)[1].mean())
        blur = reference_blur(self.n_features_in_) * float(scale) or None
        with one_thread():
            return -sinkhorn_divergence(moved, target, X_weight=weights, blur=blur, tol=1e-3)

    def save(self, path):
        """Write the fitted estimator to a file that :func:`sknsgf.load` opens.

        Parameters
        ----------
        path : str or os.PathLike
            Name of the file; `.safetensors` is the usual suffix. A file that is there is replaced
            at once when the new one is complete: whatever goes wrong, it is left as it was.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If a parameter or an attribute cannot be written: `network` is a callable, or
            `random_state` a generator. Use pickle or joblib then.
        ValueError
            If parameters or attributes were set that :func:`sknsgf.load` would refuse.
        OSError
            If the file cannot be written.

        See Also
        --------
        sknsgf.load : Open the file; has an example.

        Notes
        -----
        The file holds all parameters and fitted attributes, `source_sample_` and `target_sample_`,
        which are rows of the training data, among them. Of several processes that belong to a group
        (:func:`sknsgf.distributed`), only the first writes.
        """
        check_is_fitted(self)
        _persistence.save(self, path)

    def to_module(self):
        """The learned flow as a torch module, which does what :meth:`transform` does.

        Returns
        -------
        torch.nn.Module
            ``module(rows)`` takes a float32 tensor of shape (n_samples, n_features) and returns the
            transported rows, also in the units of the data. It is on the CPU, in evaluation mode,
            shares nothing with the estimator, and is ready for :func:`torch.export.export` and for
            autograd. ``module.double()`` takes float64 rows, as exactly as :meth:`transform`.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> import numpy as np
        >>> import torch
        >>> from sknsgf import NSGFSampler
        >>> X_source = np.random.default_rng(0).normal(size=(100, 2))
        >>> flow = NSGFSampler(max_iter=50, random_state=0)
        >>> module = flow.fit(X_source, X_source + [3.0, 1.0]).to_module().double()
        >>> moved = module(torch.tensor(X_source)).detach().numpy()
        >>> np.allclose(moved, flow.transform(X_source))
        True
        """
        check_is_fitted(self)
        center = torch.tensor(self.center_, dtype=torch.float64, device="cpu")
        scale = torch.tensor(self.scale_, dtype=torch.float64, device="cpu")
        module = FlowModule(self._networks(), self._follow(), center, scale).eval()
        return module.to(memory_format=torch.contiguous_format)  # export.save warns of others

    def _flow(self, device, dtype, **direction):
        """Function that carries a tensor of points, in the flow's units, along the learned flow."""
        follow, networks = self._follow(), self._networks()
        networks = {name: network.to(device, dtype) for name, network in networks.items()}
        return follow(networks, **direction)

    def _sample(self, n_samples, seed):
        if self.source_sample_ is None:
            rng = np.random.default_rng(seed)
            rows = rng.standard_normal((n_samples, self.n_features_in_))
            rows = (rows * self.source_std_ + self.source_mean_).astype(self.target_sample_.dtype)
        else:
            rows = self.source_sample_[balanced_rows(len(self.source_sample_), n_samples, seed)]
        return self._transport_rows(rows)

    def _transport_rows(self, X, out=None, **direction):
        """Transport an array of rows, a chunk at a time, on `n_jobs` threads."""
        frame, device = Frame(self.center_, self.scale_), available_device(self.device_)
        load_linear_algebra(device)
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        flow = self._flow(device, dtype, **direction)
        times = (self._n_times,) if direction.get("return_trajectory") else ()
        moved = check_out(out, X, (*times, *X.shape))
        filled = in_parts(moved)

        def transport(chunk):
            with torch.no_grad(), full_precision():
                points = flow(frame.to_tensor(X[chunk], device, dtype))
            filled[..., chunk, :] = frame.to_array(points, X.dtype)

        chunks = gen_batches(len(X), rows_at_a_time(self._design, device))
        thread_map(transport, chunks, self.n_jobs)
        return moved
