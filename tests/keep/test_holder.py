"""The loss of a model that is held, put together from the parts it is made of."""
import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.holder import Holder, scales_of
from mgdet_plugin.keep.holding import Scales, cell_terms, feature_term
from mgdet_plugin.keep.teacher import Teacher
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.plan.keeping import Keeping
from tests.conftest import ROOT
from tests.support.mmdet_detectors import RETINANET

BOX = [[8.0, 8.0, 40.0, 40.0]]
LOOKS = dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64), ori_shape=(64, 64),
             scale_factor=(1.0, 1.0))
FOLDER = dict(images='old/')


def objects(boxes, labels, **fields):
    return InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels).long(), **fields)


def sample(boxes=BOX, labels=(1, ), **meta):
    return DetDataSample(gt_instances=objects(boxes, labels), metainfo=dict(LOOKS, **meta))


@pytest.fixture(scope='module')
def nano():
    """The small model, asleep, so that an image's maps do not depend on what else is in the batch."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py').model
    cfg.bbox_head.loss.class_weights = None
    model = MODELS.build(cfg)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # statistics of these images, or a model that was not trained gives the same for all
    with torch.no_grad():
        model.bbox_head(model.extract_feat(torch.rand(4, 3, 64, 64)))
    return model.eval()


@pytest.fixture(scope='module')
def teacher(nano):
    """Other weights than the model's."""
    state = {key: value * 1.1 if value.is_floating_point() else value for key, value in nano.state_dict().items()}
    return Teacher(nano, state)


@pytest.fixture(scope='module')
def inputs():
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def batch(*old):
    """Two new images and old ones."""
    return [sample(), sample([[20.0, 10.0, 60.0, 50.0]], (2, )), *old]


OLD = [dict(kept=True, kept_index=5), dict(kept=True, kept_index=3)]


def same(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)


def own_loss(model, inputs, samples, ignored=None):
    """The detector's own loss of some images alone."""
    return model.bbox_head.loss_by_feat(model.bbox_head(model.extract_feat(inputs)),
                                        [each.gt_instances for each in samples], [each.metainfo for each in samples],
                                        ignored)


def test_old_images_are_held_cell_by_cell(nano, teacher, inputs):
    holder = Holder(nano, teacher, Keeping(**FOLDER, weight=2.0, temperature=1.5), 'maps')
    assert holder.weight == 2.0 and holder.known == {}
    holder.weight = 3.0
    samples = batch(*(sample(**meta) for meta in OLD))
    ours = flatten_maps(nano.bbox_head(nano.extract_feat(inputs[2:])))
    goal = flatten_maps(teacher.maps(inputs[2:]))
    terms = cell_terms(ours, goal, 3, scales_of(nano.bbox_head, 1.5))
    wanted = own_loss(nano, inputs[:2], samples[:2]) | {name: 3 * term for name, term in terms.items()}
    same(holder.loss(inputs, samples), wanted)
    holder.remember({3: goal[0].numpy(), 5: goal[1]})  # of the other image each
    terms = cell_terms(ours, goal[[1, 0]], 3, scales_of(nano.bbox_head, 1.5))
    same(holder.loss(inputs, samples), own_loss(nano, inputs[:2], samples[:2]) | {
        name: 3 * term for name, term in terms.items()})


def test_without_old_images_only_labels_teach(nano, teacher, inputs):
    samples = batch()
    for form in ('maps', 'boxes', 'features'):
        holder = Holder(nano, teacher, Keeping(**FOLDER), form)
        same(holder.loss(inputs[:2], samples), own_loss(nano, inputs[:2], samples))


def test_new_images_are_held_away_from_labels(nano, teacher, inputs):
    """Cells count whose box overlaps no label by a tenth or more."""
    holder = Holder(nano, teacher, Keeping(on_new='distil', weight=1.0), 'maps')
    goal = teacher.maps(inputs[:2])
    coder = teacher.model.bbox_head.bbox_coder
    boxes = coder.decode_cells(flatten_maps(goal), coder.grid(goal))
    samples = [sample(boxes[0, 40:41].tolist()), sample(boxes[1, 60:61].tolist(), (2, ))]
    apart = torch.stack([bbox_overlaps(one, each.gt_instances.bboxes).amax(1) < 0.1
                         for one, each in zip(boxes, samples)]).float()
    assert 0 < apart.sum() < apart.numel()
    ours = flatten_maps(nano.bbox_head(nano.extract_feat(inputs[:2])))
    new = cell_terms(ours, flatten_maps(goal), 3, scales_of(nano.bbox_head, 1.0), apart)
    same(holder.loss(inputs[:2], samples), own_loss(nano, inputs[:2], samples) | new)
    both = Holder(nano, teacher, Keeping(**FOLDER, on_new='distil'), 'maps')
    ours = flatten_maps(nano.bbox_head(nano.extract_feat(inputs[2:])))
    old = cell_terms(ours, flatten_maps(teacher.maps(inputs[2:])), 3, scales_of(nano.bbox_head, 1.0))
    same(both.loss(inputs, [*samples, *(sample(**meta) for meta in OLD)]),
         own_loss(nano, inputs[:2], samples) | {name: new[name] + old[name] for name in new})


def test_features_of_old_images_are_held(nano, teacher, inputs):
    holder = Holder(nano, teacher, Keeping(**FOLDER, weight=0.5), 'features')
    samples = batch(*(sample(**meta) for meta in OLD))
    wanted = 0.5 * feature_term(nano.backbone(inputs[2:]), teacher.features(inputs[2:]))
    same(holder.loss(inputs, samples), own_loss(nano, inputs[:2], samples[:2]) | dict(loss_keep_features=wanted))
    assert not nano.backbone._forward_hooks


FOUND = objects([*BOX, [0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 60.0, 60.0], [1.0, 1.0, 9.0, 9.0]], [0, 1, 2, 3],
                scores=torch.tensor([0.4, 0.39, 0.1, 0.09]))  # at and just below what is sure and what is not


def test_detections_of_old_images_are_labels(nano, teacher, inputs):
    holder = Holder(nano, teacher, Keeping(**FOLDER, weight=2.0), 'boxes')
    nothing = objects([], [], scores=torch.zeros(0))
    holder.remember({3: FOUND, 5: nothing})
    samples = batch(*(sample(**meta) for meta in OLD))
    before = copy.deepcopy(samples[3].gt_instances.bboxes)
    taught = [sample([], ()), sample(BOX, (0, ))]
    ignored = [None, objects(FOUND.bboxes[1:3].tolist(), [1, 2])]
    theirs = own_loss(nano, inputs[2:], taught, ignored)
    same(holder.loss(inputs, samples), own_loss(nano, inputs[:2], samples[:2]) | {
        name.replace('loss', 'loss_keep'): 2 * value for name, value in theirs.items()})
    assert torch.equal(samples[3].gt_instances.bboxes, before)
    [first, second] = holder._taught(inputs[2:], samples[2:])
    assert second.gt_instances.labels.tolist() == [0] and second.ignored_instances.labels.tolist() == [1, 2]
    assert len(first.gt_instances) == len(first.ignored_instances) == 0 and first.kept_index == 5


def test_detections_are_asked_for_where_none_are_kept(nano, teacher, inputs, monkeypatch):
    holder, asked = Holder(nano, teacher, Keeping(**FOLDER), 'boxes'), []
    monkeypatch.setattr(teacher, 'detect', lambda given, old: asked.append((given, old)) or [FOUND, FOUND])
    samples = batch(*(sample(**meta) for meta in OLD))
    holder.loss(inputs, samples)
    [(given, old)] = asked
    assert torch.equal(given, inputs[2:]) and old == samples[2:]


def test_losses_that_are_lists_are_weighed_one_by_one(inputs):
    """mmdet's heads give a loss a level."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(RETINANET)).eval()
    holder = Holder(model, Teacher(model, model.state_dict()), Keeping(**FOLDER, weight=2.0), 'boxes')
    holder.remember({3: objects(BOX, [1], scores=torch.ones(1))})
    samples = [sample(), sample(kept=True, kept_index=3)]
    found = holder.loss(inputs[:2], samples)
    taught = sample(BOX, (1, ))
    theirs = model.loss(inputs[1:2], [taught])
    assert list(found) == ['loss_cls', 'loss_bbox', 'loss_keep_cls', 'loss_keep_bbox']
    for name, values in theirs.items():
        torch.testing.assert_close(found[name.replace('loss', 'loss_keep')], [2 * value for value in values])
    same(found | {}, {**model.loss(inputs[:1], samples[:1]), **{key: found[key] for key in list(found)[2:]}})


def test_sure_boxes_away_from_labels_are_spared(nano, teacher, inputs, monkeypatch):
    """Of the sure ones that which touches the label is not; regions that are given stay."""
    holder = Holder(nano, teacher, Keeping(**FOLDER, on_new='spare'), 'maps')
    seen = objects([[10.0, 10.0, 42.0, 42.0], [44.0, 44.0, 60.0, 60.0], [0.0, 48.0, 8.0, 60.0]], [0, 1, 2],
                   scores=torch.tensor([0.9, 0.4, 0.39]))
    looked = []
    monkeypatch.setattr(teacher, 'detect', lambda given, samples: looked.append(given) or [seen] * len(samples))
    given = batch()
    given[1].ignored_instances = objects([[1.0, 1.0, 5.0, 5.0]], [0])
    given[1].gt_instances = objects([], [])
    first, second = holder._spared(inputs[:2], given)
    assert first.ignored_instances.bboxes.tolist() == [[44.0, 44.0, 60.0, 60.0]]
    assert second.ignored_instances.bboxes.tolist() == [[1.0, 1.0, 5.0, 5.0], *seen.bboxes[:2].tolist()]
    assert 'ignored_instances' not in given[0] and len(given[1].ignored_instances) == 1
    wanted = own_loss(nano, inputs[:2], given, [first.ignored_instances, second.ignored_instances])
    same(holder.loss(inputs[:2], given), wanted)
    assert len(looked) == 2 and all(torch.equal(each, inputs[:2]) for each in looked)


def test_labels_are_completed_where_the_model_does_so(nano, teacher, inputs):
    holder = Holder(copy.copy(nano), teacher, Keeping(**FOLDER), 'maps')
    other = [sample([[4.0, 4.0, 30.0, 50.0]], (0, )), sample([], ())]
    holder.model.labelled = lambda new: other
    same(holder.loss(inputs[:2], batch()), own_loss(nano, inputs[:2], other))


class Whole(nn.Module):
    """A detector whose loss tells no image apart."""

    def loss(self, inputs, samples):
        return dict(loss=inputs.sum(), count=len(samples), labels=[each.gt_instances.labels.tolist()
                                                                   for each in samples])


def test_a_detector_that_tells_no_image_apart(inputs):
    model = Whole()
    holder = Holder(model, SimpleNamespace(), Keeping(**FOLDER), 'boxes')
    assert holder.scales == Scales()
    holder.remember({3: FOUND, 5: FOUND})
    found = holder.loss(inputs, batch(*(sample(**meta) for meta in OLD)))
    assert found == dict(loss=inputs.sum(), count=4, labels=[[1], [2], [0], [0]])
    holder.weight = 0.5
    with pytest.raises(UserError) as caught:
        holder.loss(inputs, batch())
    assert str(caught.value) == ('Whole gives one loss for all images of a batch, so keep.weight must be 1, got 0.5; '
                                 'change keep.share in its place')


@pytest.mark.parametrize(('model', 'options', 'form', 'line'), [
    ('whole', FOLDER, 'maps', "keep.form='maps' holds the cells of a MultiGridHead, and Whole has a NoneType; take "
     "form='boxes'"),
    ('whole', FOLDER, 'features', 'Whole can only be held by its boxes on old images: leave out keep.form and '
     'keep.on_new'),
    ('whole', dict(FOLDER, on_new='spare'), 'boxes', 'Whole can only be held by its boxes on old images: leave out '
     'keep.form and keep.on_new'),
    ('whole', dict(FOLDER, on_new='distil'), 'boxes', 'Whole can only be held by its boxes on old images: leave out '
     'keep.form and keep.on_new'),
    ('nano', dict(FOLDER, on_new='distil'), 'boxes', "keep.on_new='distil' holds the cells of a MultiGridHead, and "
     "MultiGridDet is held by its boxes; take 'spare'"),
    ('nano', dict(FOLDER, cache='file'), 'features', "keep.cache keeps maps and boxes, and here the backbone's "
     'features are held; leave it out')])
def test_what_cannot_be_held(nano, model, options, form, line):
    with pytest.raises(UserError) as caught:
        Holder(nano if model == 'nano' else Whole(), SimpleNamespace(), Keeping(**options), form)
    assert str(caught.value) == line


def test_the_models_own_loss_is_back_after_a_step():
    model = Whole()
    holder = Holder(model, SimpleNamespace(), Keeping(**FOLDER), 'boxes')
    with pytest.raises(KeyError), holder.held():
        assert model.loss == holder.loss
        raise KeyError
    assert 'loss' not in vars(model)


def test_scales_are_those_of_the_loss(make_head):
    head = make_head(loss=dict(coord_scale=2.0, object_scale=3.0, no_object_scale=4.0, class_scale=5.0, anchor_scale=6,
                               use_softmax=False), xy_scale=0.2)
    assert scales_of(head, 7.0) == Scales(2.0, 3.0, 4.0, 5.0, 6.0, 0.2, False, 7.0)
