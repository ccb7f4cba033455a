"""Fitted flows as torch modules, and as what torch exports of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sknsgf import NSGFPlusPlus, NSGFSampler

CHEAP = {
    "n_flows": 2,
    "max_iter": 100,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "random_state": 0,
}
DOUBLE = {**CHEAP, "n_pairings": 2, "pairing_size": 64}
IMAGES = {"network": "unet", "image_shape": (1, 8, 8), "unet_channels": (4, 8), "max_iter": 5}
IMAGES |= {"device": "cpu"}  # as the modules; on a GPU a U-Net computes in bfloat16
SINGLE = NSGFSampler(**CHEAP)
FLOWS = {
    "euler": SINGLE,
    "endpoint": NSGFSampler(**CHEAP, prediction="endpoint", method="midpoint"),
    "discrete": NSGFSampler(**CHEAP, time="discrete", n_steps=3),
    "consistent": NSGFPlusPlus(**DOUBLE),
    "paper": NSGFPlusPlus(**DOUBLE, mode="paper", prediction="endpoint"),
    "images": NSGFPlusPlus(**DOUBLE | IMAGES, mode="paper", n_steps=1, n_straight_steps=1),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}  # over the spread of the target
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def make_samples(n_features=2, offset=0.0):
    rng = np.random.default_rng(0)
    X_source = rng.normal(size=(200, n_features))
    X_target = 5 + rng.normal(size=(150, n_features)) * np.linspace(1, 3, n_features)
    return X_source + offset, X_target + offset


X_source, X_target = make_samples()


@pytest.fixture(scope="module")
def flows():
    samples = {name: make_samples(64 if name == "images" else 2) for name in FLOWS}
    return {name: clone(flow).fit(*samples[name]) for name, flow in FLOWS.items()}


def module_of(flow, dtype):
    module = flow.to_module()
    return module.double() if dtype == torch.float64 else module


def assert_same_map(module, flow, dtype, n_rows=(1, 7, 200)):
    """Check that a module transforms rows as the flow does."""
    X = make_samples(flow.n_features_in_)[0] + flow.source_mean_
    rows = torch.tensor(X, dtype=dtype)
    for n in n_rows:
        with torch.no_grad():
            moved = module(rows[:n])
        assert moved.dtype == dtype
        expected = flow.transform(rows[:n].numpy())
        tolerance = TOLERANCES[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=tolerance)


@each_dtype
@pytest.mark.parametrize("name", FLOWS)
def test_a_module_transforms_as_the_flow_does(name, dtype, flows):
    assert_same_map(module_of(flows[name], dtype), flows[name], dtype)


@each_dtype
@pytest.mark.parametrize("name", FLOWS)
def test_an_exported_module_transforms_any_number_of_rows(name, dtype, flows, tmp_path):
    module = module_of(flows[name], dtype)
    rows = torch.zeros(3, flows[name].n_features_in_, dtype=dtype)
    n_rows = torch.export.Dim("n_rows")
    program = torch.export.export(module, (rows,), dynamic_shapes=({0: n_rows},))
    torch.export.save(program, tmp_path / "flow.pt2")
    opened = torch.export.load(tmp_path / "flow.pt2").module()
    assert_same_map(opened, flows[name], dtype)


@pytest.mark.parametrize("name", ["endpoint", "paper"])
def test_a_module_is_exported_in_strict_mode_as_well(name, flows):
    rows, n_rows = torch.zeros(3, 2), torch.export.Dim("n_rows")
    program = torch.export.export(
        flows[name].to_module(), (rows,), dynamic_shapes=({0: n_rows},), strict=True
    )
    assert_same_map(program.module(), flows[name], torch.float32)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, about itself
@pytest.mark.parametrize("name", ["euler", "paper"])
def test_an_onnx_file_transforms_any_number_of_rows(name, flows, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(
        flows[name].to_module(),
        (torch.zeros(3, 2),),
        tmp_path / "flow.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("n_rows")},),
        verbose=False,
    )
    session = runtime.InferenceSession(tmp_path / "flow.onnx")
    (argument,) = session.get_inputs()

    def module(rows):
        return torch.from_numpy(session.run(None, {argument.name: rows.numpy()})[0])

    assert_same_map(module, flows[name], torch.float32)


@each_dtype
def test_rows_far_from_the_origin_lose_no_more_than_their_own_rounding(dtype):
    flow = clone(SINGLE).fit(*make_samples(offset=1e4))
    assert_same_map(module_of(flow, dtype), flow, dtype)


def test_a_module_of_a_one_sample_flow_carries_normal_draws(flows):
    flow = clone(SINGLE).fit(X_target)
    assert_same_map(flow.to_module(), flow, torch.float32)


def test_a_module_takes_the_steps_that_were_assigned(flows):
    flow = copy.deepcopy(flows["euler"])
    flow.n_integration_steps_, flow.method_ = 3, "rk4"
    assert_same_map(flow.to_module(), flow, torch.float32)


def test_a_module_is_in_evaluation_mode_on_the_cpu(flows):
    module = flows["paper"].to_module()
    assert not any(part.training for part in module.modules())
    tensors = [*module.parameters(), *module.buffers()]
    assert {str(tensor.device) for tensor in tensors} == {"cpu"}


def test_a_module_shares_nothing_with_the_flow(flows):
    flow = flows["consistent"]
    before = flow.transform(X_source)
    module = flow.to_module()
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for weights in changed.parameters():
            weights.zero_()
    np.testing.assert_array_equal(flow.transform(X_source), before)
    assert_same_map(module, flow, torch.float32)
    rows = torch.tensor(X_source, dtype=torch.float32)
    torch.testing.assert_close(changed(rows), rows)  # no velocity: nothing moves


def test_a_module_pickles(flows):
    module = pickle.loads(pickle.dumps(flows["paper"].to_module()))
    assert_same_map(module, flows["paper"], torch.float32)


def test_the_map_of_a_module_can_be_differentiated(flows):
    module = flows["euler"].to_module().double()
    row, step = torch.tensor([[0.3, -0.4]], dtype=torch.float64), 1e-6
    jacobian = torch.autograd.functional.jacobian(module, row)[0, :, 0]
    shifts = step * torch.eye(2, dtype=torch.float64)
    differences = (module(row + shifts) - module(row - shifts)) / (2 * step)
    torch.testing.assert_close(jacobian, differences.mT, rtol=1e-5, atol=1e-6)


def test_only_a_fitted_flow_has_a_module():
    with pytest.raises(NotFittedError):
        clone(SINGLE).to_module()
