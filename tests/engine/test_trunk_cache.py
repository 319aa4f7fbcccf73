"""Runs in which the frozen part looks at each image once: as without, resumed, out of room, and what is refused."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from mgdet_plugin.common.array_store import ArrayStore
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.trunk_cache import TrunkCache
from mgdet_plugin.plan.freezing import frozen_of, hold, trunk_of
from mgdet_plugin.plan.plan import Plan, Stage
from mgdet_plugin.plan.report import plan_report, plan_text
from tests.engine.test_keep_run import Witness, hook_of
from tests.engine.test_resume import BY_ITERATION, EMA, Case
from tests.support.ddp_trunk_run import CLEAN, SAME_NECK, Counter, apart
from tests.support.mmdet_detectors import YOLOV3
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, differences, newest, run, staged_config
from tests.support.two_processes import run_two

STOPS = [('iter', 1), ('iter', 3), ('epoch', 2), ('val', 2)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def near(one, other):
    """Whether maps are the same up to rounding."""
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def cached(data, folder, stages=(CLEAN, ), **options):
    return staged_config(folder, data, stages, **{**SAME_NECK, 'trunk_cache': {}, **options})


def counted(cfg, work_dir, **kwargs):
    counter = Counter()
    run(cfg, work_dir, hooks=[counter], **kwargs)
    return counter, newest(work_dir)['state_dict']


@pytest.fixture(scope='module')
def without(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('without')
    return counted(cached(data, folder, trunk_cache=None), folder / 'run')


@pytest.mark.parametrize('options', [{}, dict(where='file')])
def test_the_same_weights_and_each_image_once(data, tmp_path, without, options):
    """Eight images to train on, two to validate on, scaled in another way; a random start has its own network."""
    counter, state = counted(cached(data, tmp_path, trunk_cache=options), tmp_path / 'run')
    assert apart(state, without[1]) < 1e-5
    first = counter.at_moment['epoch', 1]
    assert {seen for moment, seen in counter.at_moment.items() if moment != ('iter', 1)} == {first}
    assert without[0].seen - without[0].at_moment['epoch', 1] == 2 * 8 + 3 * 2  # what is spared
    assert not list((tmp_path / 'run').rglob('.arrays-*'))


def test_half_precision_is_near(data, tmp_path, without):
    assert 0 < apart(counted(cached(data, tmp_path, trunk_cache=dict(dtype='float16')), tmp_path / 'run')[1],
                     without[1]) < 1e-5


def test_a_bound_changes_the_time_and_not_a_bit(data, tmp_path):
    """Room for six images of ten: the two validated on, which come first, and four of eight to train on."""
    whole, state = counted(cached(data, tmp_path), tmp_path / 'whole')
    size = max(filter(None, whole.kept))
    counter, bounded = counted(cached(data, tmp_path, trunk_cache=dict(at_most=f'{0.65 * size / 2 ** 20:.6f}MB')),
                               tmp_path / 'bounded')
    assert differences(bounded, state) == []
    assert max(filter(None, counter.kept)) <= 0.65 * size
    assert counter.seen - counter.at_moment['epoch', 1] == 2 * 4


@pytest.fixture(scope='module', params=['memory', 'file'])
def stopped(request, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp(request.param)
    cfg = cached(data, folder, [CLEAN, dict(NECK, epochs=1)], trunk_cache=dict(where=request.param),
                 custom_hooks=[EMA, BY_ITERATION])
    return Case(folder, cfg, STOPS)


@pytest.mark.parametrize('kill', STOPS)
def test_resumed_equals_uninterrupted(stopped, kill):
    assert stopped.resumed(*kill) == []


def test_it_ends_with_its_stage(data, tmp_path):
    """And what thaws afterwards is what the network itself gives."""
    stages = [CLEAN, dict(FULL, epochs=1)]
    options = {'plan.allow': ['skipped-level']}
    counter, state = counted(cached(data, tmp_path, stages, **options), tmp_path / 'run')
    assert counter.kept[-1] is None and counter.seen - counter.at_moment['val', 3] == 8 + 2
    assert apart(state, counted(cached(data, tmp_path, stages, trunk_cache=None, **options),
                                tmp_path / 'without')[1]) < 1e-4


@pytest.mark.parametrize(('stage', 'last'), [
    (dict(HEAD), 'bbox_head.bridges'), (dict(name='head', epochs=1, lr=1e-4, train=('bbox_head', )), 'neck'),
    (dict(NECK), 'backbone'), (dict(FULL), ''),
    (dict(name='half', epochs=1, lr=1e-4, freeze=('neck', 'bbox_head.bridges')), ''),
    (dict(name='bias', epochs=1, lr=1e-4, train=('neck.blocks.0.conv1.bn', 'bbox_head.predict_convs')), 'backbone')])
def test_the_last_frozen_part(data, tmp_path, stage, last):
    model, frozen = built(data, tmp_path, stage)
    assert trunk_of(model, frozen) == last


def built(data, folder, stage):
    cfg = cached(data, folder)
    model = MODELS.build(cfg.model)
    torch.manual_seed(0)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return model, frozen_of(Stage.build(stage), model)


@pytest.mark.parametrize('stage', [dict(HEAD), dict(name='head', epochs=1, lr=1e-4, train=('bbox_head', )), dict(NECK)])
def test_maps_are_those_of_the_network(data, tmp_path, stage):
    model, frozen = built(data, tmp_path, stage)
    images = torch.rand(3, 3, 64, 96)
    model.train()
    hold(frozen.norms.values())
    plain = copy.deepcopy(model)
    cache = model.trunk = TrunkCache(model, trunk_of(model, frozen), frozen, ArrayStore(), 'float32')
    for _ in range(2):
        for one, other in zip(model.bbox_head(model.extract_feat(images)), plain.bbox_head(plain.extract_feat(images))):
            assert near(one, other) and one.requires_grad
    assert (cache.computed, cache.found) == (3, 3)
    assert copy.deepcopy(model).trunk is None


def test_other_weights_sizes_and_modes_are_other_images(data, tmp_path):
    """The same picture is computed anew, or by the network itself, whenever it could look otherwise."""
    model, frozen = built(data, tmp_path, HEAD)
    model.eval()
    plain = copy.deepcopy(model)
    cache = model.trunk = TrunkCache(model, 'bbox_head.bridges', frozen, ArrayStore(), 'float32')
    image = torch.rand(1, 3, 64, 64)

    def same():
        return all(map(near, model.bbox_head(model.extract_feat(image)), plain.bbox_head(plain.extract_feat(image))))

    assert same() and same() and (cache.computed, cache.found) == (1, 1)
    for each in (model, plain):
        each.backbone.conv1.conv.weight.data.mul_(-1)
        cache.look_again()
    assert same() and (cache.computed, cache.found) == (1, 1)
    for each in (model, plain):
        with torch.no_grad():
            each.backbone.conv1.conv.weight.mul_(-1)
    assert same() and (cache.computed, cache.found) == (1, 2)
    image = image + 1e-7 * (image > 0.5)
    assert same() and (cache.computed, cache.found) == (2, 2)
    with torch.autocast('cpu', torch.bfloat16):
        assert model.extract_feat(image)[0].dtype == torch.bfloat16 and (cache.computed, cache.found) == (3, 2)
    model.bbox_head.bridges[0].bn.train()
    model.extract_feat(image)
    assert (cache.computed, cache.found) == (3, 2)


def test_numbers_beyond_half_precision_are_refused(data, tmp_path):
    model, frozen = built(data, tmp_path, HEAD)
    model.eval()
    model.bbox_head.bridges[1].bn.weight.data.fill_(1e8)
    cache = model.trunk = TrunkCache(model, 'bbox_head.bridges', frozen, ArrayStore(), 'float16')
    with pytest.raises(UserError, match=r"trunk_cache.dtype='float16' cannot hold .* take 'float32'"):
        model.extract_feat(torch.rand(1, 3, 64, 64))
    assert len(cache.store) == 0


@pytest.mark.parametrize(('change', 'line'), [
    (dict(stages=[HEAD]), r"stage 'head' has the random step PhotoMetricDistortion in its pipeline \(clean=True, or"),
    (dict(stages=[dict(CLEAN, probs=dict(RandomFlip=0.5))]), 'random step RandomFlip'),
    (dict(stages=[dict(CLEAN, probs=dict(RandomFlip=1.0))]), 'random step RandomFlip'),
    (dict(stages=[dict(NECK, clean=True), dict(FULL, clean=True)]),
     "stage 'neck' has the random step mosaic .*; stage 'full' trains the backbone"),
    ({'model.neck.type': 'DroppingNeck'}, 'and this one does not, as where there is dropout; take trunk_cache out'),
    ({'model.data_preprocessor.batch_augments': [
        dict(type='BatchSyncRandomResize', random_size_range=(64, 128), interval=1)]}, 'batch_augments'),
    (dict(model=YOLOV3), 'trunk_cache is for MultiGridDet, and the model is a YOLOV3'),
    (dict(trunk_cache=dict(at_most='much')),
     "trunk_cache.at_most must be a size in MB, GB, TB, such as '4GB', got 'much'"),
    (dict(trunk_cache=dict(at_most=0)), 'trunk_cache.at_most must be a size'),
    (dict(trunk_cache=dict(dtype='bfloat16')), 'trunk_cache.dtype must be one of'),
    (dict(trunk_cache=dict(where='disk')), 'trunk_cache.where must be one of'),
    (dict(trunk_cache=dict(size='4GB')), r"trunk_cache has no option \['size'\]"),
    (dict(trunk_cache=True), 'trunk_cache must be a dict such as'),
])
def test_what_cannot_be_is_one_line(data, tmp_path, change, line):
    cfg = cached(data, tmp_path, change.pop('stages', [CLEAN]))
    if 'model' in change:
        cfg.model = Config(dict(model=copy.deepcopy(change.pop('model')))).model
    for key in [each for each in change if each == 'trunk_cache']:
        cfg.trunk_cache = change.pop(key)
    cfg.merge_from_dict(change)
    with pytest.raises(UserError, match=line) as caught:
        run(cfg, tmp_path / 'run')
    assert '\n' not in str(caught.value)


def test_the_plan_says_how_far_it_goes(data, tmp_path):
    cfg = cached(data, tmp_path, [CLEAN, dict(FULL, epochs=1)], **{'plan.allow': ['skipped-level']})
    report, _ = plan_report(cfg)
    assert [stage['trunk'] for stage in report['stages']] == ['bbox_head.bridges', '']
    assert plan_text(report).count('trunk cache: each image once as far as bbox_head.bridges') == 1
    cfg.trunk_cache = None
    assert 'trunk' not in plan_text(plan_report(cfg)[0])


def test_at_most_in_bytes():
    sizes = [Plan.from_cfg(Config(dict(stages=[HEAD], trunk_cache=dict(at_most=each)))).trunk_cache.most_bytes
             for each in ('500MB', '1.5 GB', '2TB')]
    assert sizes == [500 * 2 ** 20, 3 * 2 ** 29, 2 ** 41]


def test_old_images_and_their_teacher_are_looked_at_once_too(data, tmp_path):
    """Five old images, one of them held out. The teacher finds what the model computed: at first the two agree to the
    last bit, as they do without a cache, and its own network is never asked beyond that."""
    old = make_dataset(tmp_path / 'old', count=5, seed=1) / 'images'
    cfg = cached(data, tmp_path, keep=dict(images=str(old)))
    counter, losses, plain = Counter(), Witness(), Witness()
    teacher = Counter(lambda runner: hook_of(runner)._holder.teacher.model)
    run(cfg, tmp_path / 'run', hooks=[counter, losses, teacher])
    run(cfg, tmp_path / 'without', hooks=[plain], change=lambda cfg: cfg.update(trunk_cache=None))
    assert counter.at_moment['val', 3] == counter.at_moment['epoch', 1] and teacher.seen == 0
    assert plain.losses[0] == pytest.approx(losses.losses[0], rel=1e-5)
    assert losses.losses[0]['loss_keep_box'] == plain.losses[0]['loss_keep_box'] == 0


def test_two_processes_find_what_the_other_computed(data, tmp_path):
    """In a file; each image goes through the network of one of the two, in the first epoch."""
    run_two('tests.support.ddp_trunk_run', tmp_path, data, timeout=240)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in (0, 1)]
    for rank in ranks:
        assert apart(rank['cached']['state'], rank['plain']['state']) < 1e-5
        assert rank['cached']['later'] == 0 < rank['plain']['later']
    assert not list(tmp_path.rglob('.arrays-*'))
