"""What a training step costs: the plain loop assigns as the assigner does, and rows of each suite."""
import pytest
import torch

from benchmarks.speed import in_turns
from benchmarks.training.keep_step import keep_step_rows
from benchmarks.training.steps import batch_of
from benchmarks.training.targets import assign_by_loop
from mgdet_plugin.models import MultiGridAssigner
from tests.conftest import ANCHORS, STRIDES


@pytest.mark.parametrize(('side', 'boxes'), [(608, 100), (160, 100), (96, 40), (320, 1)])
def test_the_reference_rule_is_that_of_the_plain_loop(side, boxes):
    objects = [each.gt_instances for each in batch_of(3, side, boxes)['data_samples']]
    sizes = [(side // stride, side // stride) for stride in STRIDES]
    targets = MultiGridAssigner(ANCHORS, STRIDES).assign(objects, sizes)
    grid, cell = targets.grid, targets.cell
    cells = zip(targets.image.tolist(), grid.level[cell].tolist(), grid.row[cell].tolist(), grid.col[cell].tolist())
    found = dict(zip(cells, zip(targets.gt.tolist(), targets.anchor.tolist(), targets.label.tolist())))
    looped = assign_by_loop(objects, ANCHORS, STRIDES, sizes)
    assert found == {place: target[:3] for place, target in looped.items()}
    values = torch.cat((targets.xy, targets.wh), 1)
    torch.testing.assert_close(values, torch.tensor([looped[place][3:] for place in found]), rtol=0, atol=1e-4)


def test_cases_take_turns_and_the_first_is_not_counted():
    order = []
    seconds = in_turns(dict(a=lambda: order.append('a'), b=lambda: order.append('b')), 2)
    assert order == ['a', 'b'] * 3 and all(0 <= each < 0.1 for each in seconds.values())


def test_old_images_are_held_beside_as_many_new_ones():
    rows = {each['suite']: each for each in keep_step_rows(repeats=1)}
    assert list(rows) == ['keep_step_nothing_held', 'keep_step_cached', 'keep_step_asked']
    assert all(each['ours_s'] > 0 and each['peer_s'] == rows['keep_step_asked']['peer_s'] for each in rows.values())
