"""What is recorded, without a GPU: a stand-in for torch.cuda that replays by calling again."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from sknsgf.flow import recording
from sknsgf.flow.recording import WARM_UP_CALLS, Recorded

DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Graph:
    is_reset = False

    def replay(self):
        self.output.copy_(self.function(*self.inputs))

    def reset(self):
        self.is_reset = True


@pytest.fixture
def cuda(monkeypatch):
    """Stand-in for torch.cuda; an error that is put into ``error`` spoils a recording."""
    current = Stream(DEVICE)
    fake = SimpleNamespace(
        current_stream=lambda device: current,
        Stream=Stream,
        stream=lambda stream: nullcontext(),
        CUDAGraph=Graph,
        graph=lambda graph, **options: Recording(fake),
        error=None,
    )
    monkeypatch.setattr(recording.torch, "cuda", fake)
    monkeypatch.setattr(recording, "_idle_streams", recording.defaultdict(list))
    return fake


class Recording:
    def __init__(self, fake):
        self.fake = fake

    def __enter__(self):
        pass

    def __exit__(self, *error):
        if self.fake.error:
            raise self.fake.error


@pytest.fixture
def recorded(cuda):
    """A function that doubles."""
    return Recorded(lambda x: 2 * x, DEVICE)


def numbers(n=3, dtype=torch.float32):
    return torch.rand(n, generator=torch.Generator().manual_seed(n)).to(dtype)


def replayed(recorded, x):
    """Call, with what a recording would replay on a GPU."""
    if recorded.graph is not None:
        for name in ("function", "inputs", "output"):
            setattr(recorded.graph, name, getattr(recorded, name))
    return recorded(x)


def test_a_few_calls_are_made_then_one_is_recorded_and_replayed(recorded):
    for _ in range(WARM_UP_CALLS):
        recorded(numbers())
        assert recorded.graph is None
    recorded._record()
    graph = recorded.graph
    for value in (1.0, 2.0, 3.0):
        x = torch.full((3,), value)
        assert torch.equal(replayed(recorded, x), 2 * x)
    assert recorded.graph is graph


def test_what_is_returned_stays_when_the_next_call_is_replayed(recorded):
    for _ in range(WARM_UP_CALLS):
        recorded(numbers())
    recorded._record()
    first = replayed(recorded, torch.ones(3))
    replayed(recorded, torch.zeros(3))
    assert torch.equal(first, torch.full((3,), 2.0))


@pytest.mark.parametrize("other", [numbers(5), numbers(3, torch.float64)])
def test_other_tensors_are_not_replayed_and_are_no_warm_up(recorded, other):
    recorded(numbers())
    for _ in range(2 * WARM_UP_CALLS):
        result = recorded(other)
        assert result.dtype == other.dtype
        assert torch.equal(result, 2 * other)
    assert recorded.graph is None
    assert recorded.n_calls == 1


@pytest.mark.parametrize("error", [RuntimeError("capture"), torch.cuda.OutOfMemoryError("memory")])
def test_a_recording_that_fails_is_not_tried_again(recorded, cuda, error, caplog):
    cuda.error = error
    with caplog.at_level("INFO", logger="sknsgf"):
        for value in range(2 * WARM_UP_CALLS):
            x = torch.full((3,), float(value))
            assert torch.equal(recorded(x), 2 * x)
    assert caplog.messages == [f"Gradient steps are not recorded: {error}"]
    assert recorded.graph is None


def test_streams_are_used_again_but_not_by_two_at_once(cuda):
    def same(x):
        return x

    first, second = Recorded(same, DEVICE), Recorded(same, DEVICE)
    assert first.stream is not second.stream
    stream = first.stream
    first.close()
    assert Recorded(same, DEVICE).stream is stream
    assert Recorded(same, DEVICE).stream not in (stream, second.stream)


def test_close_resets_the_graph(recorded):
    for _ in range(WARM_UP_CALLS):
        recorded(numbers())
    recorded._record()
    graph = recorded.graph
    recorded.close()
    assert graph.is_reset
    assert recorded.graph is None
