import torch
from torch import nn

from sknsgf.flow.module import FlowModule


def module_of(follow, **networks):
    center = torch.tensor([1.0, -2.0], dtype=torch.float64)
    return FlowModule(networks, follow, center, torch.tensor(4.0, dtype=torch.float64))


def test_a_flow_that_rests_leaves_rows_where_they_are():
    rows = torch.tensor([[3.0, 5.0], [0.0, 1.0]])
    assert torch.equal(module_of(lambda networks: lambda x: x)(rows), rows)


def test_points_are_in_units_of_the_flow():
    moved = module_of(lambda networks: lambda x: x + 1)(torch.tensor([[3.0, 5.0]]))
    assert torch.equal(moved, torch.tensor([[7.0, 9.0]]))


def test_points_have_the_dtype_of_the_rows():
    seen = []

    def follow(networks):
        return lambda x: seen.append(x.dtype) or x

    for dtype in (torch.float32, torch.float64):
        assert module_of(follow)(torch.zeros(1, 2, dtype=dtype)).dtype == dtype
    assert seen == [torch.float32, torch.float64]


def test_the_flow_follows_the_networks_that_the_module_has():
    module = module_of(lambda networks: networks["shift"], shift=nn.Linear(2, 2))
    assert len(list(module.parameters())) == 2
    before = module(torch.zeros(1, 2))
    with torch.no_grad():
        module.networks["shift"].bias += 1
    torch.testing.assert_close(module(torch.zeros(1, 2)), before + 4)
