"""Displays of fitted flows, as facts about what they draw."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.animation import AbstractMovieWriter
from matplotlib.colors import to_rgba
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.plotting import FlowDisplay, LossCurveDisplay

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

CHEAP = {
    "n_flows": 4,
    "flow_batch_size": 64,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
CHEAP_PAIRS = {"n_pairings": 4, "pairing_size": 64}
KINDS = ["trajectories", "velocity", "density"]

rng = np.random.default_rng(0)
X_source, X_target = rng.normal(size=(120, 2)), rng.normal(size=(90, 2)) * [1.0, 0.4] + [5.0, 2.0]
WIDE_SOURCE, WIDE_TARGET = rng.normal(size=(120, 5)), 3 + rng.normal(size=(90, 5)) * [4, 3, 2, 1, 1]


def one_phase(X=X_source, Y=X_target, **parameters):
    return NSGFSampler(**CHEAP | parameters).fit(X, Y)


def two_phases(X=X_source, Y=X_target, **parameters):
    return NSGFPlusPlus(**CHEAP | CHEAP_PAIRS | {"n_steps": 2} | parameters).fit(X, Y)


@pytest.fixture(scope="module")
def sampler():
    return one_phase()


@pytest.fixture
def flow_in_two_phases():
    return two_phases()


@pytest.fixture(scope="module")
def wide_sampler():
    return one_phase(WIDE_SOURCE, WIDE_TARGET)


@pytest.fixture(scope="module")
def narrow_sampler():
    return one_phase(X_source[:, :1], X_target[:, :1])


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def moving(n_times=3, n_rows=40):
    """Display of rows that turn halfway: first (2, 0), then (0, 6)."""
    start = X_source[:n_rows]
    ways = (
        np.interp(np.linspace(0, 1, n_times), [0, 0.5, 1], [0, 1, 1]),
        np.linspace(-1, 1, n_times),
    )
    shift = np.stack([2 * ways[0], 6 * np.maximum(ways[1], 0)], axis=1)
    return FlowDisplay(start + shift[:, None], target=X_target)


def segments(lines):
    return np.array(lines.get_segments())


def offsets(artist):
    return np.asarray(artist.get_offsets())


def legend_names(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# matplotlib is optional, and stays as the caller has set it


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, sknsgf.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("caller", "call"),
    [
        ("FlowDisplay.from_estimator", lambda: FlowDisplay.from_estimator(NSGFSampler(), X_source)),
        ("FlowDisplay.plot", lambda: moving().plot()),
        ("FlowDisplay.animate", lambda: moving().animate()),
        ("LossCurveDisplay.from_estimator", lambda: LossCurveDisplay.from_estimator(NSGFSampler())),
        ("LossCurveDisplay.plot", lambda: LossCurveDisplay({"network": [1.0]}).plot()),
    ],
)
def test_a_missing_matplotlib_is_named_before_anything_else(caller, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=rf"{caller} requires matplotlib. .*'sknsgf\[plot\]'"):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_given_axes_are_used_and_nothing_else_of_pyplot_changes(sampler, kind):
    figure, (left, _) = plt.subplots(1, 2)
    other = plt.figure()
    before = dict(mpl.rcParams)
    display = FlowDisplay.from_estimator(sampler, X_source, kind=kind, ax=left)
    LossCurveDisplay.from_estimator(sampler, ax=plt.figure(other).add_subplot())
    assert display.ax_ is left
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number, other.number]
    assert plt.gcf() is other
    assert figure.axes[0] is left
    assert len(figure.axes) == 2
    assert dict(mpl.rcParams) == before


def test_without_axes_each_picture_has_one_new_figure(sampler):
    displays = [FlowDisplay.from_estimator(sampler, X_source, kind=kind) for kind in KINDS]
    displays.append(LossCurveDisplay.from_estimator(sampler))
    assert [display.figure_.number for display in displays] == plt.get_fignums()
    assert all(display.figure_.axes == [display.ax_] for display in displays)


def test_global_random_states_and_the_arrays_of_the_caller_stay(wide_sampler):
    X, before = WIDE_SOURCE.copy(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for random_state in (0, None):
        FlowDisplay.from_estimator(wide_sampler, X, n_rows=10, random_state=random_state)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.testing.assert_array_equal(X, WIDE_SOURCE)


# Trajectories


def test_lines_are_the_trajectories_of_the_rows(sampler):
    display = FlowDisplay.from_estimator(sampler, X_source)
    trajectory = sampler.trajectory(X_source)
    paths = segments(display.artists_["paths"])
    assert len(paths) == len(X_source)
    np.testing.assert_allclose(paths, trajectory.swapaxes(0, 1))
    np.testing.assert_allclose(offsets(display.artists_["start"]), X_source)
    np.testing.assert_allclose(offsets(display.artists_["end"]), sampler.transform(X_source))
    np.testing.assert_allclose(offsets(display.artists_["target"]), sampler.target_sample_)
    assert legend_names(display.ax_) == ["start", "end", "paths", "target"]


def test_two_phases_have_two_colours_and_meet_where_the_second_begins(flow_in_two_phases):
    display = FlowDisplay.from_estimator(flow_in_two_phases, X_source)
    first, second = (display.artists_[f"{name} phase"] for name in ("Sinkhorn", "straight"))
    paths = flow_in_two_phases.trajectory(X_source).swapaxes(0, 1)
    np.testing.assert_allclose(segments(first), paths[:, :3])
    np.testing.assert_allclose(segments(second), paths[:, 2:])
    assert tuple(first.get_color()[0]) != tuple(second.get_color()[0])
    assert "paths" not in display.artists_


def test_a_straight_phase_of_no_steps_is_not_drawn(flow_in_two_phases):
    flow_in_two_phases.n_straight_steps_ = 0
    display = FlowDisplay.from_estimator(flow_in_two_phases, X_source)
    assert legend_names(display.ax_) == ["start", "end", "Sinkhorn phase", "target"]


@pytest.mark.parametrize("kind", ["trajectories", "velocity", "density"])
def test_a_flow_of_one_step_is_drawn(kind):
    flow = NSGFPlusPlus(n_flows=2, n_pairings=2, max_iter=20, random_state=0)
    flow.fit(X_source, X_source + 3)
    flow.n_straight_steps_ = 0
    display = FlowDisplay.from_estimator(flow, X_source, kind=kind)
    assert display.positions.shape == (2, len(X_source), 2)
    assert display.n_sinkhorn_steps == 1


def test_one_feature_is_drawn_against_the_flow_time(narrow_sampler):
    display = FlowDisplay.from_estimator(narrow_sampler, X_source[:, :1])
    paths = segments(display.artists_["paths"])
    times = np.linspace(0, 1, 11)
    np.testing.assert_allclose(paths[..., 0], np.tile(times, (len(X_source), 1)))
    np.testing.assert_allclose(paths[..., 1].T, narrow_sampler.trajectory(X_source[:, :1])[..., 0])
    np.testing.assert_allclose(
        offsets(display.artists_["target"])[:, 1], narrow_sampler.target_sample_[:, 0]
    )
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("flow time", "x0")


@pytest.mark.parametrize(("kind", "share"), [("trajectories", 1), ("velocity", 0.4)])
def test_all_of_the_way_lies_within_the_axes(kind, share):
    away = np.array([[[0.0, 0.0]], [[9.0, -7.0]], [[1.0, 1.0]]])  # far out, and back
    ax = FlowDisplay(away).plot(kind=kind).ax_
    assert ax.get_xlim()[1] > 9 * share
    assert ax.get_ylim()[0] < -7 * share


def test_properties_of_the_caller_reach_the_main_artist(sampler):
    lines = FlowDisplay.from_estimator(sampler, X_source, lw=3, alpha=1).artists_["paths"]
    assert lines.get_linewidth() == [3]
    assert lines.get_alpha() == 1
    arrows = moving().plot(kind="velocity", color="k").artists_["velocity"]
    assert tuple(arrows.get_facecolor()[0]) == to_rgba("k")
    assert moving().plot(kind="density", alpha=0.5).artists_["moved"].get_alpha() == 0.5
    with pytest.raises(AttributeError, match="unexpected keyword argument 'colour'"):
        moving().plot(colour="k")


# Velocities


@pytest.mark.parametrize(("time", "step"), [(None, 0), (0.3, 3), (0.35, 3), (1, 9)])
def test_arrows_are_displacements_over_the_time_step(sampler, time, step):
    arrows = FlowDisplay.from_estimator(sampler, X_source, kind="velocity", time=time).artists_[
        "velocity"
    ]
    trajectory = sampler.trajectory(X_source)
    velocity = (trajectory[step + 1] - trajectory[step]) / 0.1
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), velocity)
    here = trajectory[step] + ((time or 0) - step / 10) * velocity
    np.testing.assert_allclose(offsets(arrows), here, atol=1e-12)


def test_a_time_that_rounding_puts_below_its_step_belongs_to_the_step():
    assert 0.29 * 100 < 29
    display = moving(101)
    display.positions[29] += 1
    arrows = display.plot(kind="velocity", time=0.29).artists_["velocity"]
    np.testing.assert_allclose(arrows.V, -100)


def test_arrows_are_drawn_as_long_as_the_way_of_a_fifth_of_the_flow_time():
    display = FlowDisplay(np.array([[[0.0, 0.0]], [[5.0, 0.0]]])).plot(kind="velocity")
    display.figure_.canvas.draw()
    arrow = display.artists_["velocity"]
    tip = arrow.get_paths()[0].vertices[:, 0].max()  # in the units of the arrow's width
    pixels = arrow.get_transform().transform([[0, 0], [tip, 0]])
    length = np.diff(display.ax_.transData.inverted().transform(pixels), axis=0)[0, 0]
    assert length == pytest.approx(1)


def test_arrows_have_the_colour_of_their_phase(flow_in_two_phases):
    display = FlowDisplay.from_estimator(flow_in_two_phases, X_source)
    for time, phase in ((0, "Sinkhorn phase"), (0.4, "straight phase"), (1, "straight phase")):
        color = to_rgba(display.artists_[phase].get_color()[0], 1)
        shown = FlowDisplay.from_estimator(flow_in_two_phases, X_source, kind="velocity", time=time)
        assert tuple(shown.artists_["velocity"].get_facecolor()[0]) == color
        assert legend_names(shown.ax_) == [f"velocity at flow time {time:.2f}", "target"]


# Densities


def test_regions_hold_half_and_nine_tenths_of_the_rows():
    cloud = np.random.default_rng(1).normal(size=(3, 2_000, 2)) + [[[0, 0]], [[5, 5]], [[9, 0]]]
    display = FlowDisplay(cloud[:2], target=cloud[2]).plot(kind="density")
    for name, rows in zip(("source", "moved", "target"), cloud, strict=True):
        held = [path.contains_points(rows).mean() for path in display.artists_[name].get_paths()]
        assert held == pytest.approx([0.9, 0.5], abs=0.05)
    assert legend_names(display.ax_) == ["source", "moved", "target"]


def test_densities_of_rows_in_one_point_or_on_a_line_are_drawn():
    for direction in ([0.0, 0.0], [1.0, 0.0]):
        positions = np.stack([X_source[:, :1] * direction] * 2)
        display = FlowDisplay(positions, target=positions[0]).plot(kind="density")
        region = display.artists_["moved"].get_paths()[0].vertices
        assert (region.min(axis=0) < 0).all()
        assert (region.max(axis=0) > 0).all()


# Projections, names, targets


def test_more_features_are_projected_on_components_of_the_target(wide_sampler):
    display = FlowDisplay.from_estimator(wide_sampler, WIDE_SOURCE)
    pca = PCA(2).fit(WIDE_TARGET)
    trajectory = wide_sampler.trajectory(WIDE_SOURCE)
    np.testing.assert_allclose(display.positions, [pca.transform(rows) for rows in trajectory])
    np.testing.assert_allclose(display.target, pca.transform(wide_sampler.target_sample_))
    labels = display.ax_.get_xlabel(), display.ax_.get_ylabel()
    for label, share in zip(labels, pca.explained_variance_ratio_, strict=True):
        assert f"({share:.1%} of target variance)" in label
    assert display.ax_.get_aspect() == 1


def test_a_given_target_is_drawn_and_projected_on(wide_sampler):
    X_target = WIDE_SOURCE[:30] * [1, 1, 1, 5, 9]
    display = FlowDisplay.from_estimator(wide_sampler, WIDE_SOURCE, X_target=X_target)
    np.testing.assert_allclose(
        offsets(display.artists_["target"]), PCA(2).fit_transform(X_target), rtol=1e-6
    )


def test_axes_have_the_names_of_the_features():
    frames = (pd.DataFrame(X, columns=["age", "height"]) for X in (X_source, X_target))
    source, target = frames
    flow = one_phase(source, target)
    ax = FlowDisplay.from_estimator(flow, source, X_target=target, n_rows=50).ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("age", "height")


def test_a_display_without_target_draws_none():
    for kind in KINDS:
        display = FlowDisplay(moving().positions).plot(kind=kind)
        assert "target" not in display.artists_
        assert "target" not in legend_names(display.ax_)


# Bounded pictures


def test_a_million_rows_are_drawn_as_a_fixed_random_subset(sampler):
    X = np.arange(2_000_000).reshape(-1, 2) / 1e6
    shown = [FlowDisplay.from_estimator(sampler, X, random_state=s).positions for s in (0, 0, 1)]
    assert shown[0].shape == (11, 200, 2)
    np.testing.assert_array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])
    indices = shown[0][0, :, 0] * 1e6 / 2
    np.testing.assert_allclose(indices, np.round(indices), atol=1e-6)
    assert (np.diff(indices) > 0.5).all()  # no row twice
    assert indices[0] < 50_000 < 950_000 < indices[-1]


@pytest.mark.parametrize(("n_rows", "n_target"), [(100, 2_000), (2_500, 2_500)])
def test_rows_of_the_target_are_bounded_too(sampler, n_rows, n_target):
    X = np.random.default_rng(0).normal(size=(3_000, 2))
    display = FlowDisplay.from_estimator(sampler, X, X_target=X, n_rows=n_rows)
    assert display.positions.shape[1] == n_rows
    assert len(display.target) == n_target


def test_every_kind_has_its_number_of_rows(sampler):
    X = np.random.default_rng(0).normal(size=(3_000, 2))
    numbers = [
        FlowDisplay.from_estimator(sampler, X, kind=kind).positions.shape[1] for kind in KINDS
    ]
    assert numbers == [200, 300, 2_000]


# Animations


class Recorder(AbstractMovieWriter):
    """A writer that keeps where the rows are, and their colour, in each frame."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.places, self.colors = rows, [], []

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)

    def grab_frame(self, **kwargs):
        self.places.append(offsets(self.rows).copy())
        self.colors.append(tuple(self.rows.get_facecolor()[0]))

    def finish(self):
        """Nothing to write."""


def test_a_gif_has_the_frames_that_were_asked_for(tmp_path):
    moving().animate(tmp_path / "flow.gif", n_frames=7, fps=10)
    with Image.open(tmp_path / "flow.gif") as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 7
        assert picture.info["duration"] == 100


def test_frames_lie_on_straight_lines_between_the_times(tmp_path):
    display = moving(3)
    animation = display.animate(n_frames=5)
    recorder = Recorder(display.artists_["rows"])
    animation.save(tmp_path / "none", writer=recorder)
    source, halfway, target = display.positions
    expected = [source, (source + halfway) / 2, halfway, (halfway + target) / 2, target]
    np.testing.assert_allclose(recorder.places, expected, atol=1e-12)
    assert legend_names(display.ax_) == ["rows at flow time 1.00", "target"]
    assert len(set(recorder.colors)) == 1


def test_moving_rows_change_their_colour_with_the_phase(tmp_path):
    display = FlowDisplay(moving(3).positions, n_sinkhorn_steps=1)
    animation = display.animate(n_frames=4, alpha=0.5)
    recorder = Recorder(display.artists_["rows"])
    animation.save(tmp_path / "none", writer=recorder)
    first, second, third, fourth = recorder.colors
    assert first == second != third == fourth
    assert first[3] == 0.5


def test_an_animation_draws_on_given_axes_that_hold_all_of_the_way(tmp_path):
    _, ax = plt.subplots()
    display = FlowDisplay(np.array([[[0.0]], [[9.0]], [[1.0]]]))
    display.animate(tmp_path / "flow.gif", ax=ax, n_frames=2)
    assert display.ax_ is ax
    assert len(plt.get_fignums()) == 1
    assert ax.get_ylim()[1] > 9
    assert ax.get_xlim()[1] > 1


# Losses


def test_losses_are_drawn_with_their_moving_average(sampler):
    display = LossCurveDisplay.from_estimator(sampler, smoothing=7)
    losses = sampler.loss_curve_
    raw, line = display.raw_lines_["network"], display.lines_["network"]
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_array_equal(raw.get_xdata(), np.arange(1, len(losses) + 1))
    np.testing.assert_array_equal(line.get_xdata(), raw.get_xdata())
    expected = [np.mean(losses[max(i // 2, i - 7) : i]) for i in range(1, len(losses) + 1)]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert raw.get_alpha() < 0.5
    assert display.ax_.get_yscale() == "log"
    assert display.validation_lines_ == {}
    assert legend_names(display.ax_) == ["network"]


def test_held_out_losses_stand_where_they_were_looked_at():
    flow = one_phase(early_stopping=True, max_iter=250)
    display = LossCurveDisplay.from_estimator(flow)
    line = display.validation_lines_["network"]
    np.testing.assert_array_equal(line.get_xdata(), [100, 200, 250])
    np.testing.assert_array_equal(line.get_ydata(), flow.validation_loss_curve_)
    assert legend_names(display.ax_) == ["network", "network, held out"]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_each_network_of_two_phases_has_a_line_with_its_name_and_colour(early_stopping):
    flow = two_phases(mode="paper", early_stopping=early_stopping)
    display = LossCurveDisplay.from_estimator(flow, linewidth=3)
    names = ["sinkhorn", "straight", "transition"]
    assert list(display.lines_) == names
    assert len({line.get_color() for line in display.lines_.values()}) == 3
    for name in names:
        np.testing.assert_array_equal(display.raw_lines_[name].get_ydata(), flow.loss_curves_[name])
        assert display.lines_[name].get_label() == name
        assert display.lines_[name].get_linewidth() == 3
    assert list(display.validation_lines_) == (names if early_stopping else [])


# What is refused


@pytest.mark.parametrize("display", [FlowDisplay, LossCurveDisplay])
@pytest.mark.parametrize("estimator", [NSGFSampler(), NSGFPlusPlus()])
def test_an_unfitted_flow_is_refused(display, estimator):
    arguments = (X_source,) if display is FlowDisplay else ()
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        display.from_estimator(estimator, *arguments)


@pytest.mark.parametrize("display", [FlowDisplay, LossCurveDisplay])
def test_what_is_no_flow_is_refused(display, sampler):
    arguments = (X_source,) if display is FlowDisplay else ()
    message = (
        f"The 'estimator' parameter of {display.__name__}.from_estimator must be a fitted "
        "NSGFSampler or NSGFPlusPlus. Got Pipeline instead. Of a pipeline, pass the step"
    )
    with pytest.raises(TypeError, match=message):
        display.from_estimator(make_pipeline(StandardScaler(), sampler), *arguments)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kind": "lines"}, "The 'kind' parameter .* must be a str among .*Got 'lines' instead"),
        ({"n_rows": 0}, r"The 'n_rows' parameter .* int in the range \[1, inf\). Got 0 instead"),
        ({"random_state": "x"}, "The 'random_state' parameter .* Got 'x' instead"),
        (
            {"kind": "velocity", "time": 2},
            r"The 'time' .* in the range \[0.0, 1.0\]. Got 2 instead",
        ),
        ({"time": 0.5}, "'time' .* of kind='velocity'. Got time=0.5 with kind='trajectories'"),
        ({"X_target": X_target[:, :1]}, "The target sample does not match X. It has 1 features"),
    ],
)
def test_bad_parameters_are_named(sampler, parameters, message):
    with pytest.raises(ValueError, match=message):
        FlowDisplay.from_estimator(sampler, X_source, **parameters)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", ["velocity", "density"])
def test_one_feature_has_trajectories_only(narrow_sampler, kind):
    with pytest.raises(ValueError, match=f"kind='{kind}' .*needs two dimensions.*'trajectories'"):
        FlowDisplay.from_estimator(narrow_sampler, X_source[:, :1], kind=kind)


@pytest.mark.parametrize(
    ("shape", "parameters", "message"),
    [
        ((3, 4), {}, r"'positions' parameter of FlowDisplay must have shape .* Got \(3, 4\)"),
        ((1, 4, 2), {}, r"at least 2 times and 1 row.* Got \(1, 4, 2\) instead"),
        ((3, 0, 2), {}, r"at least 2 times and 1 row.* Got \(3, 0, 2\) instead"),
        ((3, 4, 5), {}, r"1 or 2 dimensions. Got \(3, 4, 5\) instead. .*from_estimator projects"),
        ((3, 4, 2), {"target": np.ones((9, 3))}, r"'target' .*\(n_target, 2\).* Got \(9, 3\)"),
        ((3, 4, 2), {"target": np.ones(9)}, r"'target' .*\(n_target, 2\).* Got \(9,\) instead"),
        ((3, 4, 2), {"n_sinkhorn_steps": 3}, r"'n_sinkhorn_steps' .*\[1, 2\]. Got 3 instead"),
        ((3, 4, 2), {"labels": ["a"]}, r"'labels' .* each of the 2 dimensions.* Got \['a'\]"),
    ],
)
def test_positions_that_cannot_be_drawn_are_refused(shape, parameters, message):
    with pytest.raises(ValueError, match=message):
        FlowDisplay(np.ones(shape), **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_frames": 1}, r"'n_frames' parameter of FlowDisplay.animate .*\[2, inf\). Got 1"),
        ({"fps": 0}, r"'fps' parameter of FlowDisplay.animate .*\(0.0, inf\). Got 0 instead"),
    ],
)
def test_bad_parameters_of_an_animation_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        moving().animate(**parameters)
    assert plt.get_fignums() == []


def test_bad_losses_are_refused():
    with pytest.raises(TypeError, match=r"'losses' .* dict of losses by the name.* Got \[1.0\]"):
        LossCurveDisplay([1.0])
    with pytest.raises(ValueError, match=r"'validation_losses' .*\['a'\]. Got \['b'\] instead"):
        LossCurveDisplay({"a": [1.0]}, validation_losses={"b": [1.0]})
    with pytest.raises(ValueError, match=r"'smoothing' .* in the range \[1, inf\). Got 0 instead"):
        LossCurveDisplay({"a": [1.0]}).plot(smoothing=0)
