"""Wanda's mask against an independent NumPy count, row by row and group by group."""

import numpy as np
import pytest
import torch

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels import wanda_mask


def expected(weight: torch.Tensor, norm: torch.Tensor, group: int, removed: int) -> np.ndarray:
    """The official rule in loops: of each group the `removed` lowest scores go, the first one first among equals."""
    scores = np.abs(weight.float().numpy()) * norm.numpy()
    kept = np.ones(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], group):
            part = list(enumerate(scores[row, start : start + group]))
            for index, _ in sorted(part, key=lambda item: (item[1], item[0]))[:removed]:
                kept[row, start + index] = False
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 64), (3, 33)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_each_row_loses_exactly_its_share_of_the_lowest_scores(shape, sparsity, dtype):
    torch.manual_seed(0)
    weight, norm = torch.randn(shape).to(dtype), torch.rand(shape[1])
    mask = wanda_mask(weight, norm, sparsity)
    removed = round(sparsity * shape[1])
    assert (mask.numpy() == expected(weight, norm, shape[1], removed)).all()
    assert (~mask).sum(1).tolist() == [removed] * shape[0]


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (3, 3)])
def test_each_group_keeps_its_n_highest_of_m(pattern):
    torch.manual_seed(0)
    kept, group = pattern
    weight, norm = torch.randn(6, 8 * group), torch.rand(8 * group)
    mask = wanda_mask(weight, norm, pattern=pattern)
    assert (mask.numpy() == expected(weight, norm, group, group - kept)).all()
    assert (mask.view(6, 8, group).sum(-1) == kept).all()


def test_ties_go_from_the_left():
    assert wanda_mask(torch.ones(2, 6), torch.ones(6), 0.5).tolist() == [[False] * 3 + [True] * 3] * 2


def test_equal_norms_give_magnitude_pruning_by_row_and_a_large_input_saves_a_small_weight():
    torch.manual_seed(0)
    weight = torch.randn(4, 10)
    by_magnitude = weight.abs() >= weight.abs().sort(dim=1).values[:, 5:6]
    assert torch.equal(wanda_mask(weight, torch.full((10,), 3.0), 0.5), by_magnitude)
    assert wanda_mask(torch.tensor([[10.0, 0.1]]), torch.tensor([0.01, 10.0]), 0.5).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either sparsity or pattern"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "either sparsity or pattern"),
        ({"sparsity": 1.0}, "must be in"),
        ({"pattern": (2, 3)}, "divide the 4 inputs"),
        ({"pattern": (5, 4)}, "keeps 5 of every 4"),
        ({"sparsity": 0.5, "backend": "sse"}, 'no backend "sse"'),
    ],
)
def test_what_makes_no_mask_is_refused(options, says):
    with pytest.raises(DefinitionError, match=says):
        wanda_mask(torch.ones(2, 4), torch.ones(4), **options)
    with pytest.raises(DefinitionError, match=r"\[2, 4\] and \[3\]"):
        wanda_mask(torch.ones(2, 4), torch.ones(3), 0.5)
