"""Samples as pure functions of (seed, epoch, index, stage), and the probabilities of a plan."""
import copy
import pickle
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import SampleIndex, StagedBatchSampler, StagedDataset, sample_seed
from tests.support.drawn import CountLoads, DropWhere, draw_set, full_pipeline, load_steps, mixup, mosaic, pack_step

MIXES = dict(mosaic=0.5, mixup=0.5)
PLAN = ({}, dict(MIXES, RandomFlip=0.5))
CONFIGS = Path(__file__).parents[3] / 'configs/_base_/datasets'


def at(index: int, stage: int = 0, epoch: int = 0) -> SampleIndex:
    """The index that a batch sampler of seed 0 would yield."""
    return SampleIndex(index, epoch, stage, sample_seed(0, epoch, index))


def facts(packed: dict[str, Any]) -> tuple[Any, ...]:
    """All of a packed sample, comparable bit by bit."""
    truth = packed['data_samples'].gt_instances
    return (packed['inputs'].numpy().tobytes(), truth.bboxes.tensor.numpy().tobytes(), tuple(truth.labels.tolist()),
            packed['data_samples'].img_id, packed['data_samples'].augmented)


@pytest.fixture
def pure(tmp_path: Path) -> StagedDataset:
    """A set of 12 images with all that is random."""
    return StagedDataset(dict(draw_set(tmp_path / 'set', 12), pipeline=full_pipeline()), PLAN)


def loaded(dataset: StagedDataset, indexes: Sequence[SampleIndex], passes: int = 1, **fields: Any) -> Iterator[list]:
    """The facts of samples from a dataloader, a list a pass."""
    loader = DataLoader(dataset, batch_sampler=[indexes[i:i + 3] for i in range(0, len(indexes), 3)],
                        collate_fn=list, **fields)
    for _ in range(passes):
        yield [facts(packed) for batch in loader for packed in batch]


@pytest.mark.parametrize('kind', ['Mosaic', 'CutMosaic', 'MixUp', 'ByteMixUp'])
def test_a_step_that_cannot_take_a_picture_is_named(kind: str, tmp_path: Path) -> None:
    steps = [*load_steps(), dict(type=kind, img_scale=(32, 32)), pack_step()]
    dataset = StagedDataset(dict(draw_set(tmp_path / 'set', 2), pipeline=steps), ({}, ))
    with pytest.raises(UserError, match=rf'step 2 of a pipeline, {kind}, .*into the transforms of a StagedMix step'):
        dataset[at(0)]


def test_same_sample_in_another_order_or_object(pure: StagedDataset) -> None:
    indexes = [at(i, stage, epoch) for i in range(12) for stage in (0, 1) for epoch in (0, 1)]
    first = [facts(pure[index]) for index in indexes]
    assert len(set(first)) == len(indexes)  # each differs from the others
    order = list(range(len(indexes)))
    random.Random(0).shuffle(order)
    again = {i: facts(pure[indexes[i]]) for i in order}
    assert [again[i] for i in range(len(indexes))] == first
    for twin in (copy.deepcopy(pure), pickle.loads(pickle.dumps(pure))):
        assert [facts(twin[index]) for index in indexes[::5]] == first[::5]


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_same_sample_in_persistent_workers(context: str, pure: StagedDataset) -> None:
    indexes = [at(i, stage=1, epoch=epoch) for epoch in range(3) for i in (3, 11, 0, 7, 8, 2, 6)]
    here, = loaded(pure, indexes)
    there = list(loaded(pure, indexes, passes=2, num_workers=2 if context == 'fork' else 1, persistent_workers=True,
                        multiprocessing_context=context))
    assert there == [here, here]


def test_main_process_keeps_its_randomness(pure: StagedDataset) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for i in range(12):
        _ = pure[at(i, stage=1)]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_plain_ints_are_stage_0_epoch_0_seed_0(pure: StagedDataset) -> None:
    assert facts(pure[4]) == facts(pure[at(4)]) == facts(pure[-8]) == facts(pure[np.int64(4)])
    with pytest.raises(IndexError, match='12'):
        _ = pure[12]
    assert sum(1 for _ in pure) == 12
    with pytest.raises(UserError, match='stage 2'):
        _ = pure[at(0, stage=2)]


def flips(*plans: dict[str, float], prob: float, root: Path) -> StagedDataset:
    """A set whose pipeline flips."""
    pipeline = [*load_steps(), dict(type='RandomFlip', prob=prob), pack_step()]
    return StagedDataset(dict(draw_set(root / 'set', 10), pipeline=pipeline), plans)


@pytest.mark.parametrize('own', [0.0, 1.0, 0.5])
def test_the_plan_replaces_a_steps_own_probability(own: float, tmp_path: Path) -> None:
    dataset = flips({}, dict(RandomFlip=0.2), dict(RandomFlip=0.0), dict(RandomFlip=1.0), prob=own, root=tmp_path)
    for stage, expected in enumerate((own, 0.2, 0.0, 1.0)):
        metas = [dataset[at(i % 10, stage, i // 10)]['data_samples'] for i in range(500)]
        assert abs(np.mean([meta.get('flip', False) for meta in metas]) - expected) < 0.06
        if stage:
            assert all(meta.augmented == (('RandomFlip', ) if meta.get('flip') else ()) for meta in metas)
    assert dataset.pipeline.transforms[2].prob == own


def test_a_step_without_probability_and_steps_in_compose_are_gated(tmp_path: Path) -> None:
    pipeline = [*load_steps(), dict(type='Compose', transforms=[dict(type='PhotoMetricDistortion')]), pack_step()]
    dataset = StagedDataset(dict(draw_set(tmp_path / 'set', 10), pipeline=pipeline), [dict(PhotoMetricDistortion=0.3)])
    samples = [dataset[at(i % 10, 0, i // 10)] for i in range(300)]
    done = [packed['data_samples'].augmented == ('PhotoMetricDistortion', ) for packed in samples]
    assert abs(np.mean(done) - 0.3) < 0.08
    assert [packed['inputs'].dtype == torch.float32 for packed in samples] == done


@pytest.mark.parametrize(('plan', 'match'), [
    (dict(Mosaic=0.3), r"'Mosaic'.*: LoadImageFromFile, LoadAnnotations, mosaic, RandomFlip"),
    (dict(mosaic=1.2), '1.2'), (dict(mosaic=-0.1), '-0.1'), (dict(mosaic='much'), 'much'),
    (dict(mosaic=float('nan')), 'nan'), (dict(RandomFlip=0.3), r'\[0.3, 0.5\]')])
def test_refuses_plans(plan: dict[str, Any], match: str, tmp_path: Path) -> None:
    flip = dict(type='RandomFlip', prob=[0.3, 0.5], direction=['horizontal', 'vertical'])
    cfg = dict(draw_set(tmp_path / 'set', 2), pipeline=[*load_steps(), mosaic(), flip])
    with pytest.raises(UserError, match=match):
        StagedDataset(cfg, [{}, plan])


def test_refuses_datasets_that_load_in_their_own_way(tmp_path: Path) -> None:
    cfg = dict(draw_set(tmp_path / 'set', 2), pipeline=load_steps())
    with pytest.raises(UserError, match='MultiImageMixDataset'):
        StagedDataset(dict(type='MultiImageMixDataset', dataset=cfg, pipeline=[]))


def test_wrapped_datasets_mix_within_their_leaf(tmp_path: Path) -> None:
    seen = CountLoads(), CountLoads()
    big, small = (dict(draw_set(tmp_path / name, count), pipeline=[*load_steps(), step, mosaic(), pack_step()])
                  for name, count, step in (('big', 9, seen[0]), ('small', 5, seen[1])))
    concat = dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', dataset=big, times=2),
        dict(type='ClassBalancedDataset', dataset=small, oversample_thr=1e-3)])
    dataset = StagedDataset(concat, [dict(mosaic=1.0)])
    dataset.full_init()
    assert len(dataset) == 23 and dataset.metainfo['classes'] == ('a', 'b', 'c')
    leaves = [DATASETS.build(big), DATASETS.build(small)]
    for index in range(23):
        leaf, inner = (leaves[0], index % 9) if index < 18 else (leaves[1], index - 18)
        assert dataset[index]['data_samples'].img_id == inner
        assert dataset[index]['data_samples'].augmented == ('mosaic', )
        assert [len(step.seen) for step in seen] == ([8, 0] if index < 18 else [0, 8])  # own image and 3, twice
        for step in seen:
            step.seen.clear()
        assert dataset.get_data_info(index) == leaf.get_data_info(inner)
        assert dataset.get_cat_ids(index) == leaf.get_cat_ids(inner)
    assert dataset.datasets is dataset.dataset.datasets
    with pytest.raises(AttributeError):
        _ = dataset.no_such_thing


@pytest.mark.parametrize(('prob', 'images'), [(0.0, 0), (1.0, 2)])
def test_partners_go_through_the_gates_of_the_stage(prob: float, images: int, tmp_path: Path) -> None:
    seen = CountLoads()
    cfg = dict(draw_set(tmp_path / 'set', 8), pipeline=[*load_steps(), mosaic(), seen, mixup()])
    results = StagedDataset(cfg, [dict(CountLoads=prob, mosaic=1.0, mixup=1.0)])[0]
    assert len(seen.seen) == images  # the image and mixup's partner, which is no mosaic
    assert results['augmented'] == ('mosaic', *['CountLoads'] * (images // 2), 'mixup')


def test_samples_that_are_dropped_are_replaced(tmp_path: Path) -> None:
    drop = DropWhere(lambda image: image % 4 != 1)
    cfg = dict(draw_set(tmp_path / 'set', 8), pipeline=[*load_steps(), drop, mosaic(), pack_step()])
    dataset = StagedDataset(cfg, [dict(mosaic=0.5)], max_refetch=100)
    samples = [facts(dataset[at(i % 8, 0, i)]) for i in range(40)]
    assert {each[3] for each in samples} == {1, 5} and {each[4] for each in samples} == {(), ('mosaic', )}
    assert samples == [facts(dataset[at(i % 8, 0, i)]) for i in range(40)]
    drop.rule = lambda image: True
    dataset.max_refetch = 3
    with pytest.raises(UserError, match='sample 5 and 3 tried'):
        _ = dataset[5]


@pytest.mark.parametrize(('name', 'side'), [('coco_letterbox', 608), ('digits_source', 192)])
def test_the_configs_pipelines_mix(name: str, side: int, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    drawn = dict(draw_set(tmp_path / 'set', 6, (100, 80)), pipeline=cfg.train_pipeline)
    assert StagedDataset(drawn)[0]['data_samples'].augmented == ()
    assert 'augmented' not in DATASETS.build(drawn)[0]['data_samples'].metainfo
    packed = StagedDataset(drawn, [dict(mosaic=1.0, mixup=1.0)])[0]
    assert packed['inputs'].shape == (3, side, side) and packed['inputs'].dtype == torch.uint8
    assert packed['data_samples'].augmented == ('mosaic', 'mixup')


def test_measured_share_follows_the_plan_with_persistent_workers(tmp_path: Path, capsys) -> None:
    plan = [dict(mosaic=0.0, mixup=0.0), dict(mosaic=0.3, mixup=0.1), dict(mosaic=0.3, mixup=0.1)]
    pipeline = [*load_steps(), mosaic(), dict(type='Letterbox', scale=(32, 32)), mixup(), pack_step()]
    repeated = dict(type='RepeatDataset', dataset=dict(draw_set(tmp_path / 'set', 20), pipeline=pipeline), times=100)
    dataset = StagedDataset(repeated, plan)
    sampler = StagedBatchSampler(DefaultSampler(dataset, seed=0), 50, batch_sizes=(None, None, 100))
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=list, num_workers=2, persistent_workers=True)
    start, lines = time.perf_counter(), ['']
    for stage, probs in enumerate(plan):
        sampler.set_progress(epoch=stage, stage=stage)
        done = [packed['data_samples'].augmented for batch in loader for packed in batch]
        counts = Counter(name for names in done for name in names)
        assert len(done) == 2000 and len(sampler) == (20 if stage == 2 else 40)
        shares = {name: counts[name] / len(done) for name in probs}
        both = sum(len(names) == 2 for names in done) / len(done)
        lines.append(f'stage {stage}: plan {probs}, measured {shares}, both {both:.4f}')
        for name, prob in probs.items():
            assert abs(shares[name] - prob) < 0.03 and (prob or not shares[name])
        assert abs(both - probs['mosaic'] * probs['mixup']) < 0.01  # one coin has nothing to do with the other
    with capsys.disabled():
        print(*lines, f'{6_000 / (time.perf_counter() - start):.0f} samples a second', sep='\n')
