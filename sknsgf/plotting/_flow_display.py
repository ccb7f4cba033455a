"""Rows on their way along a fitted flow."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from sknsgf._nsgf_plus_plus import NSGFPlusPlus
from sknsgf._torch_bridge import random_rows, seed_of
from sknsgf._validation import (
    check_parameter,
    check_rows,
    check_target,
    options,
    real,
    whole_number,
)
from sknsgf.plotting._drawing import (
    BLUE,
    VERMILION,
    add_legend,
    axes_or_new,
    check_flow,
    import_matplotlib,
)

ROWS = {"trajectories": 200, "velocity": 300, "density": 2_000}  # drawn by default, by kind
TARGET_ROWS = 2_000  # drawn at least, where there are as many
ARROW_TIME = 0.2  # an arrow is as long as the way of this flow time
REGIONS = (0.9, 0.5)  # shares of a density that its regions hold
GRID, SMOOTHING = 200, 4.0  # cells of a density along each axis, and cells that smooth it
GREY, PALE_VERMILION = "#A8A8A8", "#F4C7A9"


def _projection(target, names):
    """Function from rows to the picture's coordinates, and the labels of its axes."""
    if len(names) <= 2:
        return np.asarray, list(names)
    pca = PCA(n_components=2, random_state=0).fit(target)
    return pca.transform, [
        f"principal component {number} ({share:.1%} of target variance)"
        for number, share in enumerate(pca.explained_variance_ratio_, start=1)
    ]


def _density(rows, edges):
    """Density of rows in the cells of a grid, and its levels around the regions."""
    density = gaussian_filter(np.histogram2d(*rows.T, bins=edges)[0], SMOOTHING)
    highest_first = np.sort(density, axis=None)[::-1]
    held = np.cumsum(highest_first) / density.sum()
    return density.T, highest_first[np.searchsorted(held, REGIONS)]


class _Phase(NamedTuple):
    """Part of a trajectory that is drawn in one colour."""

    name: str
    color: str
    first: int  # time that it begins with
    last: int


class FlowDisplay:
    """Pictures of rows on their way from the source to the target.

    Use :meth:`from_estimator` to create and draw it. :meth:`plot` draws what it holds again, and
    :meth:`animate` makes it move. Read more on the page :doc:`/plotting`.

    Parameters
    ----------
    positions : array-like of shape (n_times, n_rows, n_dimensions)
        Positions of rows at equally spaced flow times from 0 to 1, in one or two dimensions.
    target : array-like of shape (n_target, n_dimensions), default=None
        Rows of the target.
    n_sinkhorn_steps : int, default=None
        Steps of the first phase of a flow in two phases, which are drawn in two colours. None means
        one phase.
    labels : sequence of str, default=None
        Name of each dimension. None means "x0" and "x1".

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that were drawn on last.
    figure_ : matplotlib Figure
        Their figure.
    artists_ : dict of str to matplotlib artist
        What was drawn on them: "target", and

        - trajectories: "start", "end" and the LineCollection "paths", in its place "Sinkhorn phase"
          and "straight phase" where there are two;
        - velocity: the Quiver "velocity";
        - density: the ContourSets "source" and "moved" ("target" is one, too);
        - :meth:`animate`: "rows".

    See Also
    --------
    LossCurveDisplay : How the training went.

    Examples
    --------
    >>> import numpy as np
    >>> from sknsgf.plotting import FlowDisplay
    >>> rows = np.random.default_rng(0).normal(size=(50, 2))
    >>> positions = np.linspace(rows, rows + [3.0, 1.0], 5)  # all rows move with one velocity
    >>> display = FlowDisplay(positions).plot(kind="velocity")
    >>> arrows = display.artists_["velocity"]
    >>> round(float(arrows.U[0]), 6), round(float(arrows.V[0]), 6)
    (3.0, 1.0)
    """

    def __init__(self, positions, *, target=None, n_sinkhorn_steps=None, labels=None):
        self.positions = np.asarray(positions)
        shape = self.positions.shape
        if len(shape) != 3 or shape[0] < 2 or shape[1] < 1 or shape[2] not in (1, 2):
            raise ValueError(
                "The 'positions' parameter of FlowDisplay must have shape (n_times, n_rows, "
                "n_dimensions), with at least 2 times and 1 row, and 1 or 2 dimensions. Got "
                f"{shape} instead. FlowDisplay.from_estimator projects rows of more dimensions."
            )
        self.target = None if target is None else np.asarray(target)
        if target is not None and (self.target.ndim != 2 or self.target.shape[1] != shape[2]):
            raise ValueError(
                "The 'target' parameter of FlowDisplay must be rows of shape (n_target, "
                f"{shape[2]}), with the dimensions of the positions. Got {self.target.shape} "
                "instead."
            )
        if n_sinkhorn_steps is not None:
            steps = whole_number(1, shape[0] - 1)
            check_parameter("n_sinkhorn_steps", n_sinkhorn_steps, steps, "FlowDisplay")
        self.n_sinkhorn_steps = n_sinkhorn_steps
        self.labels = ["x0", "x1"][: shape[2]] if labels is None else list(labels)
        if len(self.labels) != shape[2]:
            raise ValueError(
                "The 'labels' parameter of FlowDisplay must hold one name for each of the "
                f"{shape[2]} dimensions of the positions. Got {self.labels} instead."
            )

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        X_target=None,
        kind="trajectories",
        time=None,
        n_rows="auto",
        random_state=0,
        ax=None,
        **kwargs,
    ):
        """Carry rows along a fitted flow and draw them.

        Rows of more than two features are projected on the first two principal components of the
        drawn target rows.

        Parameters
        ----------
        estimator : NSGFSampler or NSGFPlusPlus
            Fitted flow.
        X : array-like of shape (n_samples, n_features)
            Rows of the source. After ``fit(X)`` the source is a normal law: give draws of it.
        X_target : array-like of shape (n_target, n_features), default=None
            Rows of the target. None means those kept by the estimator.
        kind : {"trajectories", "velocity", "density"}, default="trajectories"
            The picture, see :meth:`plot`.
        time : float in [0, 1], default=None
            Flow time of the velocity, see :meth:`plot`.
        n_rows : int or "auto", default="auto"
            Rows of `X` that are carried and drawn, at most: a random subset where there are more.
            "auto" is 200 trajectories, 300 velocities, or the density of 2000 rows. Of the target
            at most as many, or 2000, are drawn.
        random_state : int, RandomState instance or None, default=0
            Determines the subsets.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **kwargs : dict
            Properties of the main artist, see :meth:`plot`.

        Returns
        -------
        FlowDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If a parameter is not valid, or the kind needs two features and there is one.
        TypeError
            If the estimator is not a flow.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from sknsgf import NSGFSampler
        >>> from sknsgf.plotting import FlowDisplay
        >>> rng = np.random.default_rng(0)
        >>> X_source, X_target = rng.normal(size=(300, 2)), rng.normal(size=(200, 2)) + 5
        >>> flow = NSGFSampler(max_iter=60, random_state=0).fit(X_source, X_target)
        >>> display = FlowDisplay.from_estimator(flow, X_source, n_rows=50)
        >>> display.positions.shape
        (11, 50, 2)
        """
        caller = f"{cls.__name__}.from_estimator"
        import_matplotlib(caller)
        check_flow(estimator, caller)
        check_parameter("kind", kind, options(*ROWS), caller)
        n_rows = ROWS[kind] if n_rows == "auto" else n_rows
        check_parameter("n_rows", n_rows, whole_number(), caller)
        check_parameter("random_state", random_state, "random_state", caller)
        X = check_rows(estimator, X)
        target = check_target(estimator, X, None, X_target)
        target = estimator.target_sample_ if target is None else target
        seed = seed_of(random_state, "plotting")
        X = X[random_rows(len(X), n_rows, seed)]
        target = target[random_rows(len(target), max(n_rows, TARGET_ROWS), seed)]

        project, labels = _projection(target, estimator.get_feature_names_out())
        trajectory = estimator._transport_rows(X, return_trajectory=True)
        two_phases = isinstance(estimator, NSGFPlusPlus)
        display = cls(
            np.stack([project(rows) for rows in trajectory]),
            target=project(target),
            n_sinkhorn_steps=len(estimator.step_sizes_) if two_phases else None,
            labels=labels,
        )
        return display.plot(ax, kind=kind, time=time, **kwargs)

    def plot(self, ax=None, *, kind="trajectories", time=None, **kwargs):
        """Draw the rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        kind : {"trajectories", "velocity", "density"}, default="trajectories"
            "trajectories": the path of each row from its start to its end, in front of the target.
            One dimension is drawn against the flow time. "velocity": an arrow from where each row
            is at a flow time. Its components are the displacement in the step that follows, over
            the flow time this step takes (length per flow time); it is drawn as long as the way of
            a fifth of the flow time. "density": the smallest regions that hold half and 90 % of the
            densities of the source, of the moved rows and of the target. They are histograms,
            smoothed over 2 % of the picture's width.
        time : float in [0, 1], default=None
            Flow time of the velocity; None means 0. Other kinds have none.
        **kwargs : dict
            Properties, such as ``alpha``, of the main artist: the LineCollection of paths, the
            Quiver of velocities or the filled ContourSet of the moved rows.

        Returns
        -------
        self : FlowDisplay
            The display, with what was drawn in `artists_`.

        Raises
        ------
        ValueError
            If a parameter is not valid, or the kind needs two dimensions and there is one.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from sknsgf.plotting import FlowDisplay
        >>> rows = np.random.default_rng(0).normal(size=(50, 2))
        >>> display = FlowDisplay([rows, rows + 1, rows + 3], n_sinkhorn_steps=1).plot(alpha=0.9)
        >>> sorted(display.artists_)
        ['Sinkhorn phase', 'end', 'start', 'straight phase']
        """
        check_parameter("kind", kind, options(*ROWS), "FlowDisplay.plot")
        if kind != "trajectories" and len(self.labels) == 1:
            raise ValueError(
                f"kind={kind!r} of FlowDisplay needs two dimensions or more. Got one. Use "
                "kind='trajectories', which draws it against the flow time."
            )
        if kind != "velocity" and time is not None:
            raise ValueError(
                "The 'time' parameter of FlowDisplay.plot is the flow time of kind='velocity'. Got "
                f"time={time!r} with kind={kind!r} instead. Leave it out, or use kind='velocity'."
            )
        if kind == "velocity":
            time = 0.0 if time is None else time
            check_parameter("time", time, real(0, 1, closed="both"), "FlowDisplay.plot")
        mpl = self._start(ax, "FlowDisplay.plot")
        if kind == "trajectories":
            self._draw_trajectories(mpl, **kwargs)
        elif kind == "velocity":
            self._draw_velocity(time, **kwargs)
        else:
            self._draw_density(**kwargs)
        return self

    def animate(self, path=None, *, ax=None, n_frames=60, fps=20, **kwargs):
        """Let the rows move, and save it as a GIF.

        Between the times of the trajectory, rows move straight and at constant speed.

        Parameters
        ----------
        path : str or path-like, default=None
            File to write, such as ``"flow.gif"``. None writes none.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        n_frames : int, default=60
            Pictures, at equally spaced flow times from 0 to 1; at least 2.
        fps : float, default=20
            Pictures per second.
        **kwargs : dict
            Properties of the PathCollection of moving rows.

        Returns
        -------
        matplotlib.animation.FuncAnimation
            The animation. Keep it as long as it is shown.

        Raises
        ------
        ValueError
            If a parameter is not valid.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from sknsgf.plotting import FlowDisplay
        >>> rows = np.random.default_rng(0).normal(size=(50, 2))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "flow.gif"
        ...     animation = FlowDisplay([rows, rows + 3]).animate(path, n_frames=3)
        ...     path.exists()
        True
        """
        check_parameter("n_frames", n_frames, whole_number(2), "FlowDisplay.animate")
        check_parameter("fps", fps, real(0, closed="neither"), "FlowDisplay.animate")
        mpl = self._start(ax, "FlowDisplay.animate")
        rows = self.artists_["rows"] = self.ax_.scatter([], [], s=12, linewidths=0, zorder=3)
        self.ax_.update_datalim(self._paths().reshape(-1, 2))  # room for the whole way
        self._draw_target()

        def draw(frame):
            time = frame / (n_frames - 1)
            rows.set(offsets=self._place(time), color=self._phase(time).color)
            rows.set(label=f"rows at flow time {time:.2f}", **kwargs)
            self._finish()

        draw(0)
        animation = mpl.animation.FuncAnimation(
            self.figure_, draw, frames=n_frames, interval=1_000 / fps, cache_frame_data=False
        )
        if path is not None:
            animation.save(path, writer=mpl.animation.PillowWriter(fps=fps))
        return animation

    @property
    def _phases(self):
        """Phases of the flow, in order."""
        last = len(self.positions) - 1
        if self.n_sinkhorn_steps is None:
            return [_Phase("paths", BLUE, 0, last)]
        sinkhorn = _Phase("Sinkhorn phase", BLUE, 0, self.n_sinkhorn_steps)
        straight = _Phase("straight phase", VERMILION, self.n_sinkhorn_steps, last)
        return [sinkhorn] if straight.first == last else [sinkhorn, straight]

    def _step(self, time):
        """Step that begins at a flow time or contains it; at time 1 the last one."""
        n_steps = len(self.positions) - 1
        return min(int(time * n_steps + 1e-9), n_steps - 1)  # 0.29 * 100 is below 29

    def _phase(self, time):
        """Phase at a flow time."""
        return next(phase for phase in self._phases if self._step(time) < phase.last)

    def _position(self, time):
        """Positions of the rows at a flow time."""
        step = self._step(time)
        share = time * (len(self.positions) - 1) - step
        return (1 - share) * self.positions[step] + share * self.positions[step + 1]

    def _velocity(self, time):
        """Displacement of the rows in the step at a flow time, over the flow time it takes."""
        step = self._step(time)
        return (self.positions[step + 1] - self.positions[step]) * (len(self.positions) - 1)

    def _place(self, time):
        """Points of the picture at a flow time; the time is the abscissa of one dimension."""
        rows = self._position(time)
        return rows if rows.shape[1] == 2 else np.insert(rows, 0, time, axis=1)

    def _paths(self):
        """Points of the picture for each row, of shape (n_rows, n_times, 2)."""
        times = np.linspace(0, 1, len(self.positions))
        return np.stack([self._place(time) for time in times], axis=1)

    def _start(self, ax, caller):
        """Take the axes to draw on, with nothing drawn yet; return matplotlib."""
        self.ax_ = axes_or_new(ax, caller)
        self.figure_ = self.ax_.figure
        self.artists_ = {}
        return import_matplotlib(caller)

    def _finish(self, title=None):
        """Name the axes and what is drawn, and make room for all of it."""
        if len(self.labels) == 1:
            self.ax_.set(xlabel="flow time", ylabel=self.labels[0])
        else:
            self.ax_.set(xlabel=self.labels[0], ylabel=self.labels[1], aspect="equal")
        self.ax_.autoscale_view()
        add_legend(self.ax_, ncols=3, title=title)

    def _add_key(self, label, **style):
        """Add an entry to the legend, for artists that have none."""
        self.ax_.plot([], [], label=label, **style)

    def _draw_target(self):
        """Draw rows of the target behind the others; those of one dimension beside time 1."""
        if self.target is None:
            return
        style = {"color": GREY, "alpha": 0.7, "zorder": 1, "label": "target"}
        if len(self.labels) == 1:
            times = np.full(len(self.target), 1.03)
            target = self.ax_.scatter(times, self.target, marker="_", s=40, linewidths=0.6, **style)
        else:
            target = self.ax_.scatter(*self.target.T, s=5, linewidths=0, **style)
        self.artists_["target"] = target

    def _draw_trajectories(self, mpl, **kwargs):
        paths = self._paths()
        style = {"s": 8, "linewidths": 0.5, "edgecolors": "black", "zorder": 3}
        for name, index, color in (("start", 0, "white"), ("end", -1, "black")):
            points = self.ax_.scatter(*paths[:, index].T, facecolors=color, label=name, **style)
            self.artists_[name] = points
        for phase in self._phases:
            lines = mpl.collections.LineCollection(
                paths[:, phase.first : phase.last + 1],
                colors=phase.color,
                linewidths=0.8,
                alpha=0.5,
                zorder=2,
                label=phase.name,
            )
            lines.set(**kwargs)
            self.artists_[phase.name] = self.ax_.add_collection(lines)
        self._draw_target()
        self._finish()

    def _draw_velocity(self, time, **kwargs):
        rows, velocity = self._position(time), self._velocity(time)
        color = self._phase(time).color
        arrows = self.ax_.quiver(
            *rows.T,
            *velocity.T,
            color=color,
            angles="xy",
            scale_units="xy",
            scale=1 / ARROW_TIME,
            width=0.003,
            zorder=2,
        )
        arrows.set(**kwargs)
        self.artists_["velocity"] = arrows
        self.ax_.update_datalim(rows + ARROW_TIME * velocity)  # room for the heads
        name = f"velocity at flow time {time:.2f}"
        self._add_key(name, color=color, marker=r"$\rightarrow$", markersize=12, linestyle="none")
        self._draw_target()
        self._finish()

    def _draw_density(self, **kwargs):
        samples = {"source": self.positions[0], "moved": self.positions[-1]}
        if self.target is not None:
            samples["target"] = self.target
        everything = np.concatenate(list(samples.values()))
        low, high = everything.min(axis=0), everything.max(axis=0)
        # More than a density is smoothed over, and a width for rows that are all the same.
        margin = 0.1 * np.where(high > low, high - low, 1.0)
        edges = np.linspace(low - margin, high + margin, GRID + 1).T
        centers = (edges[:, 1:] + edges[:, :-1]) / 2
        for name, rows in samples.items():
            density, levels = _density(rows, edges)
            if name == "moved":
                regions = self.ax_.contourf(
                    *centers,
                    density,
                    levels,
                    colors=[PALE_VERMILION, VERMILION],
                    extend="max",
                    antialiased=True,
                )
                regions.set(**kwargs)
                self._add_key(name, color=VERMILION, marker="s", linestyle="none")
            else:
                color = BLUE if name == "source" else "black"
                regions = self.ax_.contour(*centers, density, levels, colors=color, linewidths=1)
                self._add_key(name, color=color)
            self.artists_[name] = regions
        self._finish(title="regions with 50 % and 90 % of the density")
