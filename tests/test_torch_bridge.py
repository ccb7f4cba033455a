import subprocess
import sys
from itertools import combinations
from textwrap import dedent
from threading import Barrier, current_thread, get_ident

import numpy as np
import pytest
import torch

from sknsgf import NSGFSampler
from sknsgf._torch_bridge import (
    STATISTICS_ENTRIES,
    STREAMS,
    Frame,
    available_device,
    balanced_rows,
    empty_on_disk,
    flow_chunks,
    load_arrays,
    mean_and_variance,
    one_thread,
    parameters_to_arrays,
    pooled_frame,
    random_rows,
    seed_from,
    seed_of,
    seed_of_batch,
    thread_map,
    torch_generator,
    training_mode,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Units


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_rows_come_back_from_the_frame(rng, dtype, tolerance):
    rows = rng.normal(size=(50, 3)) * 20 + [5, -3, 0]
    frame = Frame(rows.mean(axis=0), 20.0)
    points = frame.to_tensor(rows, "cpu", dtype)
    assert points.dtype == dtype
    again = frame.to_array(points, np.float64)
    assert again.dtype == np.float64
    np.testing.assert_allclose(again, rows, atol=100 * tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_frame_gives_rows_of_the_dtype_asked_for(rng, dtype):
    assert Frame(np.zeros(2), 1.0).to_array(torch.zeros(4, 2), dtype).dtype == dtype


def test_the_frame_is_applied_in_float64():
    frame = Frame(np.array([1e8]), 0.5)
    points = frame.to_tensor(np.array([[1e8 + 1]]), "cpu")
    assert points.dtype == torch.float32
    assert points.tolist() == [[2.0]]  # 1e8 + 1 is not a float32


def test_the_frame_does_not_change_or_share_the_rows():
    rows = np.arange(6.0).reshape(3, 2)
    Frame(np.zeros(2), 1.0).to_tensor(rows, "cpu", torch.float64).zero_()
    np.testing.assert_array_equal(rows, np.arange(6.0).reshape(3, 2))


@pytest.mark.parametrize("offset", [0, -1e3, 1e9])
@pytest.mark.parametrize("n_rows", [2, 1000, STATISTICS_ENTRIES // 4 + 3])
def test_moments_are_those_of_numpy_at_any_offset(rng, n_rows, offset):
    centred = np.round(rng.normal(size=(n_rows, 4)) * 2**10) / 2**10  # exact beside the offset
    mean, variance = mean_and_variance(centred + offset)
    np.testing.assert_allclose(mean - offset, centred.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance, centred.var(axis=0), rtol=1e-12)


def test_moments_of_float32_rows_are_computed_in_float64(rng):
    rows = rng.normal(size=(100_000, 2)).astype(np.float32) + np.float32(100)
    mean, variance = mean_and_variance(rows)
    assert mean.dtype == variance.dtype == np.float64
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variance, rows.astype(np.float64).var(axis=0), rtol=1e-10)


def test_the_variance_of_equal_rows_is_zero():
    mean, variance = mean_and_variance(np.full((1000, 2), 0.1))
    np.testing.assert_array_equal(mean, 0.1)
    np.testing.assert_array_equal(variance, 0)


def test_the_pooled_frame_counts_both_samples_equally(rng):
    source, target = rng.normal(size=(10, 3)) * [1, 2, 3], rng.normal(size=(5000, 3)) + 4
    frame = pooled_frame(*mean_and_variance(source), *mean_and_variance(target))
    np.testing.assert_allclose(frame.center, (source.mean(axis=0) + target.mean(axis=0)) / 2)
    squares = [np.square(rows - frame.center).mean() for rows in (source, target)]
    assert frame.scale == pytest.approx(np.sqrt(np.mean(squares)))


def test_the_pooled_frame_of_one_point_has_scale_one():
    moments = np.array([2.0, 3.0]), np.zeros(2)
    frame = pooled_frame(*moments, *moments)
    assert frame.scale == 1
    np.testing.assert_array_equal(frame.center, [2, 3])


# Random streams


def test_streams_of_one_random_state_differ():
    assert len({seed_of(0, stream) for stream in STREAMS}) == len(STREAMS)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_seed_is_a_function_of_the_random_state(stream):
    seeds = [seed_of(random_state, stream) for random_state in (0, 0, 1, 2)]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch and NumPy generators take


def test_no_random_state_gives_fresh_seeds_and_leaves_the_global_one():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert len({seed_of(None, "source") for _ in range(20)}) == 20
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_a_random_state_instance_is_drawn_from():
    first, second = (np.random.RandomState(4) for _ in range(2))  # noqa: NPY002
    seeds = [seed_of(first, "source") for _ in range(3)]
    assert len(set(seeds)) == 3
    assert seeds == [seed_of(second, "source") for _ in range(3)]


@pytest.mark.parametrize("state", [7, None, np.random.RandomState(4)])
def test_the_seed_from_a_random_state_is_one_itself(state):
    seed = seed_from(state)
    assert seed_from(seed) == seed
    assert NSGFSampler(random_state=seed)._validate_params() is None


def test_batches_of_a_stream_have_seeds_of_their_own():
    assert len({seed_of_batch(seed, batch) for seed in (0, 1) for batch in range(50)}) == 100


# Arrays on disk


def test_a_tensor_on_disk_keeps_what_is_put_in_and_leaves_no_file(tmp_path):
    values = torch.arange(12, dtype=torch.float16).view(2, 3, 2)
    tensor = empty_on_disk(values.shape, values.dtype, tmp_path)
    assert list(tmp_path.iterdir()) == []
    tensor[:] = values
    assert torch.equal(tensor, values)
    assert tensor.dtype == values.dtype


def test_without_preallocation_the_file_is_filled(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    monkeypatch.setattr("sknsgf._torch_bridge.WRITTEN_BYTES", 10)
    tensor = empty_on_disk((3, 5), torch.float32, tmp_path)
    assert torch.equal(tensor, torch.zeros(3, 5))


@pytest.mark.parametrize(("n_rows", "n_draws"), [(5, 3), (5, 5), (5, 13), (1, 4), (7, 700)])
def test_balanced_rows_are_drawn_equally_often_give_or_take_one(n_rows, n_draws):
    rows = balanced_rows(n_rows, n_draws, seed=0)
    counts = np.bincount(rows, minlength=n_rows)
    assert len(rows) == n_draws
    assert set(counts) <= {n_draws // n_rows, -(-n_draws // n_rows)}


def test_balanced_rows_come_in_shuffled_passes():
    rows = balanced_rows(50, 125, seed=0)
    for start in (0, 50):
        assert sorted(rows[start : start + 50]) == list(range(50))
    assert not np.array_equal(rows[:50], rows[50:100])
    np.testing.assert_array_equal(rows, balanced_rows(50, 125, seed=0))
    assert not np.array_equal(rows, balanced_rows(50, 125, seed=1))


@pytest.mark.parametrize("n_wanted", [1, 10, 99])
def test_random_rows_are_a_subset_in_order(n_wanted):
    rows = random_rows(100, n_wanted, seed=0)
    assert len(rows) == n_wanted
    assert np.all(np.diff(rows) > 0)
    assert 0 <= rows[0] <= rows[-1] < 100
    np.testing.assert_array_equal(rows, random_rows(100, n_wanted, seed=0))


def test_another_seed_gives_another_subset():
    assert not np.array_equal(random_rows(100, 10, seed=0), random_rows(100, 10, seed=1))


@pytest.mark.parametrize("n_wanted", [100, 1000])
def test_random_rows_of_few_are_all(n_wanted):
    np.testing.assert_array_equal(random_rows(100, n_wanted, seed=0), np.arange(100))


def test_a_generator_is_its_own_and_follows_the_seed():
    before = torch.get_rng_state()
    draws = [torch.rand(5, generator=torch_generator(seed)).tolist() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)


# Chunks


@pytest.mark.parametrize("n_flows", [1, 7, 128])
@pytest.mark.parametrize("n_pairs", [4, 2**16, 2**18, 2**30])
def test_chunks_of_flows_cover_each_flow_once(n_flows, n_pairs):
    chunks = flow_chunks(n_flows, n_pairs, "cpu")
    flows = [flow for chunk in chunks for flow in range(chunk.start, chunk.stop)]
    assert flows == list(range(n_flows))
    longest = max(chunk.stop - chunk.start for chunk in chunks)
    assert longest == 1 or longest * n_pairs <= 2**20


# Networks


def small_network():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def test_weights_and_buffers_go_to_arrays_and_back():
    network, other = small_network(), small_network()
    arrays = parameters_to_arrays(network)
    assert {type(array) for array in arrays.values()} == {np.ndarray}
    loaded = load_arrays(other, arrays)
    assert loaded is other
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_arrays_and_networks_share_no_memory():
    network = small_network()
    arrays = parameters_to_arrays(network)
    before = {name: array.copy() for name, array in arrays.items()}
    with torch.no_grad():
        for weights in load_arrays(network, arrays).parameters():
            weights.fill_(9)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_loaded_network_can_be_trained_further():
    network = load_arrays(small_network(), parameters_to_arrays(small_network()))
    network(torch.ones(4, 2)).sum().backward()
    assert all(weights.grad is not None for weights in network.parameters())


# Modes, devices, threads


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_training_works_in_any_mode_and_leaves_it(mode):
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with training_mode():
            weights = torch.ones(2, requires_grad=True)
            weights.sum().backward()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert weights.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("count", "opened"),
    [(0, ["cpu", "cpu", "cpu"]), (1, ["cpu", "cuda", "cuda"]), (2, ["cpu", "cuda", "cuda:1"])],
)
def test_a_device_is_replaced_only_where_it_is_missing(monkeypatch, count, opened):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    assert [available_device(device) for device in ("cpu", "cuda", "cuda:1")] == opened


@pytest.mark.usefixtures("two_threads")
def test_one_thread_is_a_limit_that_ends():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_one_thread_gives_the_same_bits_whatever_torch_was_given(two_threads):
    generator = torch.Generator().manual_seed(0)
    narrow, square = (torch.randn(n, 2048, generator=generator) for n in (3, 2048))
    with one_thread():
        limited = narrow @ square
    torch.set_num_threads(1)
    assert torch.equal(narrow @ square, limited)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1])
def test_thread_map_keeps_the_order_and_gives_each_call_one_thread(n_jobs):
    def call(item):
        return item**2, torch.get_num_threads()

    assert thread_map(call, range(20), n_jobs) == [(item**2, 1) for item in range(20)]
    assert torch.get_num_threads() == 2


def test_thread_map_works_at_once_in_the_threads_asked_for():
    barrier = Barrier(2, timeout=30)  # passes only if two calls are under way

    def meet(item):
        barrier.wait()
        return get_ident()

    assert len(set(thread_map(meet, range(2), 2))) == 2
    threads = thread_map(lambda item: current_thread(), range(3), 1)
    assert all(first is second for first, second in combinations(threads, 2))


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda item: 1 / item, [1, 0, 2], 2)


def test_every_call_has_one_thread_also_where_torch_was_given_more():
    code = """
        import torch
        from sknsgf._torch_bridge import one_thread, thread_map
        torch.set_num_threads(2)
        assert thread_map(lambda _: torch.get_num_threads(), range(6), 2) == [1] * 6
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)
