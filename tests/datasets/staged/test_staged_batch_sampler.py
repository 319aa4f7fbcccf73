"""Order, length, stages and resuming of the batches."""
import json
from pathlib import Path

import pytest
from mmdet.registry import DATA_SAMPLERS, DATASETS
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import SampleIndex, StagedBatchSampler, sample_seed
from tests.support.drawn import draw_set, load_steps


def make(count: int = 10, batch_size: int = 4, **fields) -> StagedBatchSampler:
    """A sampler of ``count`` shuffled indices."""
    return StagedBatchSampler(DefaultSampler(range(count), seed=3), batch_size, **fields)


def flat(batches: list[list[int]]) -> list[int]:
    """The indices of all batches, as plain ints."""
    return [int(index) for batch in batches for index in batch]


def test_order_is_the_samplers_and_indices_carry_progress() -> None:
    sampler = make(seed=8)
    reference = DefaultSampler(range(10), seed=3)
    for epoch in (0, 1, 5):
        sampler.set_progress(epoch, stage=2)
        reference.set_epoch(epoch)
        batches = list(sampler)
        assert flat(batches) == list(reference) and [len(batch) for batch in batches] == [4, 4, 2]
        for index in batches[1]:
            assert isinstance(index, SampleIndex)
            assert (index.epoch, index.stage, index.seed) == (epoch, 2, sample_seed(8, epoch, index))


def test_a_seed_set_later_is_the_samplers_too() -> None:
    resumed, fresh = make(seed=1), StagedBatchSampler(DefaultSampler(range(10), seed=42), 4, seed=42)
    resumed.set_seed(42)
    got, expected = list(resumed), list(fresh)
    assert got == expected and [i.seed for i in got[0]] == [i.seed for i in expected[0]]


@pytest.mark.parametrize('drop_last', [False, True])
def test_skip_leaves_out_the_first_batches_until_progress_is_set_again(drop_last: bool) -> None:
    sampler = make(drop_last=drop_last)
    whole = list(sampler)
    sampler.set_progress(0, 0, skip=1)
    assert len(sampler) == len(whole) == (2 if drop_last else 3)
    assert list(sampler) == whole[1:]
    assert list(sampler) == whole[1:]  # a dataloader with workers begins a pass twice
    sampler.set_progress(0, 0)
    assert list(sampler) == whole


def test_progress_is_that_of_the_start_of_a_pass() -> None:
    sampler = make()
    sampler.set_progress(1, 1, skip=1)
    batches = iter(sampler)
    sampler.set_progress(2, 2)
    read = list(batches)
    assert {(index.epoch, index.stage) for batch in read for index in batch} == {(1, 1)} and len(read) == 2
    assert len(list(sampler)) == 3


def test_each_stage_has_its_batch_size() -> None:
    sampler = make(batch_sizes=(None, 5, 3))
    assert [sampler.batches_of(stage) for stage in range(3)] == [3, 2, 4]
    for stage, sizes in enumerate(([4, 4, 2], [5, 5], [3, 3, 3, 1])):
        sampler.set_progress(stage, stage)
        assert [len(batch) for batch in sampler] == sizes and len(sampler) == len(sizes)
    with pytest.raises(UserError, match='stage 3'):
        sampler.set_progress(3, 3)


@pytest.fixture
def sides(tmp_path: Path):
    """A dataset of 5 tall and 5 wide images in turn."""
    cfg = draw_set(tmp_path / 'set', 10)
    path = tmp_path / 'set' / 'ann.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        image['width' if image['id'] % 2 else 'height'] = 64
    path.write_text(json.dumps(content))
    return DATASETS.build(dict(cfg, pipeline=load_steps()))


def test_inner_groups_by_aspect_ratio(sides) -> None:
    inner = dict(type='AspectRatioBatchSampler')
    sampler = StagedBatchSampler(DefaultSampler(sides, seed=3), 2, inner=inner, batch_sizes=(2, 5))
    plain = DATA_SAMPLERS.build(dict(inner, sampler=DefaultSampler(sides, seed=3), batch_size=2))
    whole = list(sampler)
    assert whole == list(plain) and len(whole) == len(sampler) == 5
    assert all(len({int(index) % 2 for index in batch}) == 1 for batch in whole[:4])
    next(iter(sampler))  # a pass given up half way leaves nothing behind
    assert list(sampler) == whole
    sampler.set_progress(0, 0, skip=2)
    assert list(sampler) == whole[2:]
    sampler.set_progress(0, 1)
    assert len(sampler) == len(list(sampler)) == 2


def test_the_runner_builds_it(sides) -> None:
    loader = Runner.build_dataloader(dict(
        dataset=sides, batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
        batch_sampler=dict(type='StagedBatchSampler', seed=5)), seed=9)
    assert isinstance(loader.batch_sampler, StagedBatchSampler) and len(loader) == 3
    assert loader.batch_sampler.sampler.seed == 9
    assert len(next(iter(loader))['img_id']) == 4


@pytest.mark.parametrize(('fields', 'match'), [
    (dict(batch_size=0), '0'), (dict(batch_size=2.5), '2.5'), (dict(batch_sizes=(4, -1)), '-1'),
    (dict(inner=dict(type='AspectRatioBatchSampler', batch_size=3)), 'batch_size=3')])
def test_refuses(fields: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make(**fields)


@pytest.mark.parametrize('progress', [(-1, 0), (0, -1), (0, 0, -1)])
def test_refuses_negative_progress(progress: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='-1'):
        make().set_progress(*progress)
