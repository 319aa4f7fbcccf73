"""The loss of holding, against numbers worked out by hand and against what it must leave alone."""
import math

import pytest
import torch

from mgdet_plugin.keep.holding import (
    Scales,
    cell_terms,
    divergence,
    feature_term,
    sigmoid_divergence,
    softmax_divergence,
)
from mgdet_plugin.keep.teacher import SILENT

ANCHORS, CLASSES = 3, 4
CHANNELS = 5 + ANCHORS + CLASSES


@pytest.fixture
def cells():
    return torch.randn(2, 7, CHANNELS, generator=torch.Generator().manual_seed(0))


def test_nothing_is_lost_where_the_model_thinks_as_the_teacher_does(cells):
    model = cells.clone().requires_grad_(True)
    terms = cell_terms(model, cells, ANCHORS, Scales())
    assert len(terms) == 4 and all(abs(float(value.detach())) < 1e-5 for value in terms.values())
    sum(terms.values()).backward()
    assert model.grad.abs().max() < 1e-6


def test_one_cell_by_hand():
    teacher, model = torch.zeros(1, 1, CHANNELS), torch.zeros(1, 1, CHANNELS)
    teacher[0, 0, 4] = math.log(3)  # q = 3/4
    teacher[0, 0, 5 + ANCHORS] = math.log(3)  # classes 1/2, 1/6, 1/6, 1/6
    teacher[0, 0, 2] = 0.5  # width
    terms = cell_terms(model, teacher, ANCHORS, Scales())
    q = 0.75
    assert float(terms['loss_keep_obj']) == pytest.approx(
        (0.5 + 0.5 * q) * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5)), rel=1e-5)
    assert float(terms['loss_keep_cls']) == pytest.approx(
        q * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log((1 / 6) / 0.25)), rel=1e-5)
    assert float(terms['loss_keep_box']) == pytest.approx(5 * q * 0.5**2, rel=1e-5)
    assert float(terms['loss_keep_anchor']) == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_objectness_is_that_of_the_cross_entropy(cells):
    model = (cells[..., 4] + 1).requires_grad_(True)
    divergence(model, cells[..., 4]).sum().backward()
    assert torch.allclose(model.grad, model.detach().sigmoid() - cells[..., 4].sigmoid(), atol=1e-6)


def test_a_class_the_teacher_does_not_know_is_pushed_to_nothing(cells):
    """Its softmax is over its own columns: the others' share is as if the column were not there."""
    teacher = cells[..., 5 + ANCHORS:].clone()
    teacher[..., -1] = SILENT
    model = torch.zeros_like(teacher).requires_grad_(True)
    lost = softmax_divergence(model, teacher)
    own = teacher[..., :-1].softmax(-1)
    assert torch.allclose(lost, (own * (own.log() - math.log(0.25))).sum(-1), atol=1e-5)
    lost.sum().backward()
    assert torch.allclose(model.grad[..., -1], torch.full_like(model.grad[..., -1], 0.25))  # down to 0


def test_temperature_softens_and_keeps_the_scale_of_gradients():
    model = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    softmax_divergence(model, torch.zeros(3), 10.0).backward()
    assert torch.allclose(model.grad, model.detach() / 3, atol=0.02)  # the limit of high temperatures, logits of mean 0


def test_each_part_counts_by_its_own_number_of_images(cells):
    one = cell_terms(cells[:1] + 0.3, cells[:1], ANCHORS, Scales())
    twice = cell_terms(cells[[0, 0]] + 0.3, cells[[0, 0]], ANCHORS, Scales())
    for name in one:
        assert float(one[name]) == pytest.approx(float(twice[name]), rel=1e-5)


def test_cells_can_be_left_out(cells):
    counts = torch.zeros(2, 7)
    assert all(float(value) == 0 for value in cell_terms(cells + 1, cells, ANCHORS, Scales(), counts).values())


def test_features_are_measured_by_the_teachers_own_size():
    maps = (torch.randn(1, 2, 3, 3), torch.randn(1, 4, 2, 2))
    assert float(feature_term(maps, maps)) == 0
    assert float(feature_term(tuple(map(torch.zeros_like, maps)), maps)) == pytest.approx(1.0)


def test_events_that_do_not_exclude_one_another_by_hand():
    """Sigmoids of the logits over T, the divergences summed and times T squared."""
    model, teacher, heat = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]), 2.0
    wanted = 0.0
    for one, other in ((1.0, 0.5), (-2.0, 3.0)):
        p, q = 1 / (1 + math.exp(-one / heat)), 1 / (1 + math.exp(-other / heat))
        wanted += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert sigmoid_divergence(model, teacher, heat).tolist() == pytest.approx([4 * wanted])
    cells = torch.zeros(1, 1, 5 + 1 + 1)
    terms = cell_terms(cells, torch.ones(1, 1, 7), 1, Scales(use_softmax=False, anchor=2.0, cls=3.0))
    q = 1 / (1 + math.exp(-1))
    assert float(terms['loss_keep_anchor']) == pytest.approx(
        2 * q * (q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q))), rel=1e-5)
    assert float(terms['loss_keep_cls']) == pytest.approx(float(terms['loss_keep_anchor']) * 1.5)
