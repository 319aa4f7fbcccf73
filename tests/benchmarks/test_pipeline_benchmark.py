"""What a worker gives: each side mixes as its row says, at one size, and rows are medians of turns."""
import pytest
import torch
from mmengine.registry import init_default_scope

from benchmarks.training import pipeline
from benchmarks.training.pipeline import (
    MIXED,
    Decoded,
    leaf,
    our_dataset,
    our_pipeline,
    pipeline_rows,
    processor_in_turns,
    stock_dataset,
    stock_steps,
    write_pictures,
)
from mgdet_plugin.datasets import StagedDataset


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """As many as a mosaic and the partner of a mixup can tell apart."""
    monkeypatch.setattr(pipeline, 'PICTURES', 6)


def test_all_sides_make_pictures_of_one_size_and_ours_are_mixed_as_asked(tmp_path):
    init_default_scope('mmdet')
    folder, files, side = tmp_path, write_pictures(tmp_path), pipeline.our_side()
    for probs, mixed in ((MIXED, ('mosaic', 'mixup')), (dict.fromkeys(MIXED, 0.0), ())):
        dataset = our_dataset(folder, probs)
        for index in range(3):
            sample = dataset[index]
            assert sample['data_samples'].augmented == mixed and sample['inputs'].shape == (3, side, side)
    stock = stock_dataset(folder)
    assert [type(step).__name__ for step in stock.pipeline[:3]] == ['Mosaic', 'RandomAffine', 'MixUp']
    assert stock[0]['inputs'].shape == (3, side, side) and len(stock) == len(files) == 6
    assert [each.shape for each in Decoded(files)[len(files) - 1]] == [(480, 640, 3)] * 5


@pytest.mark.parametrize('mixed', [dict(mosaic=1.0, mixup=1.0), dict(mosaic=0.5, mixup=0.5)])
def test_the_pixels_are_those_of_the_steps_of_mmdet_within_rounding(tmp_path, mixed):
    init_default_scope('mmdet')
    write_pictures(tmp_path)
    steps = our_pipeline()
    ours, theirs = (StagedDataset(leaf(tmp_path, each), stage_probs=[mixed]) for each in (steps, stock_steps(steps)))
    assert [step['type'] for step in stock_steps(steps)[3]['transforms']] == ['Mosaic', 'RandomAffine']
    worst, unequal, augmented = [], [], set()
    for index in range(6):
        one, other = ours[index], theirs[index]
        apart = (one['inputs'].int() - other['inputs'].int()).abs()
        worst.append(int(apart.max()))
        unequal.append(float((apart > 1).float().mean()))
        one, other = one['data_samples'], other['data_samples']
        assert torch.equal(one.gt_instances.bboxes.tensor, other.gt_instances.bboxes.tensor)
        assert torch.equal(one.gt_instances.labels, other.gt_instances.labels) and one.augmented == other.augmented
        augmented.add(one.augmented)
    assert max(worst) <= 2 and max(unequal) < 1e-3
    assert len(augmented) > 1 or mixed['mosaic'] == 1


def test_sides_take_turns_and_the_first_is_not_counted(monkeypatch):
    """A takes 1 s an image and B 2 s, each ten times as much in the first turn."""
    order, clock = [], [0.0]

    class Dataset:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def __len__(self):
            return 3

        def __getitem__(self, index):
            clock[0] += self.seconds * (10 if len(order) < 4 else 1)
            order.append((self.name, index))

    monkeypatch.setattr(pipeline.time, 'process_time', lambda: clock[0])
    seconds = processor_in_turns(dict(a=Dataset('a', 1.0), b=Dataset('b', 2.0)), samples=2, repeats=2)
    assert order == [(name, index) for turn in ((0, 1), (2, 0), (1, 2)) for name in 'ab' for index in turn]
    assert seconds == dict(a=1.0, b=2.0)


def test_rows_of_one_turn():
    rows = {each['suite']: each for each in pipeline_rows(samples=1, repeats=1)}
    assert list(rows) == ['pipeline_mixed', 'pipeline_plain', 'pipeline_decoding', 'pipeline_same_pixels']
    assert len({each['peer_s'] for each in rows.values()}) == 2 and rows['pipeline_same_pixels']['ours_s'] == rows[
        'pipeline_mixed']['ours_s']
    for each in rows.values():
        assert each['ours_s'] > 0 and each['ratio'] == each['ours_s'] / each['peer_s']
