"""A teacher only looks, sees no class it does not know, and is told apart by name or index."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.teacher import SILENT, Teacher, class_indices, silence
from tests.support.mmdet_detectors import RETINANET


@pytest.fixture(scope='module')
def retina():
    init_default_scope('mmdet')
    torch.manual_seed(0)
    test_cfg = dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.6),
                    max_per_img=20)
    return MODELS.build(Config(dict(model=dict(RETINANET, test_cfg=test_cfg))).model)


def test_it_has_the_weights_it_is_given_and_sleeps(retina):
    state = {key: value + 1 if value.is_floating_point() else value for key, value in retina.state_dict().items()}
    teacher = Teacher(retina, state)
    assert all(torch.equal(value, state[key]) for key, value in teacher.model.state_dict().items())
    assert not any(module.training for module in teacher.model.modules()) and retina.training
    assert not any(each.requires_grad for each in teacher.model.parameters()) and teacher.new_classes == frozenset()
    assert next(retina.neck.parameters()).requires_grad
    retina.train()
    assert not teacher.model.training


def test_it_sees_as_the_model_does_without_gradients(retina):
    teacher, images = Teacher(retina, retina.state_dict()), torch.rand(2, 3, 64, 64)
    images.requires_grad_(True)
    maps, features = teacher.maps(images), teacher.features(images)
    assert not any(each.requires_grad for each in (*features, *maps[0]))
    model = copy.deepcopy(retina).eval()
    for found, wanted in ((features, model.backbone(images)),
                          (maps[0], model.bbox_head(model.extract_feat(images))[0])):
        assert len(found) == len(wanted) and all(torch.equal(one, other) for one, other in zip(found, wanted))


@pytest.mark.parametrize('rescale', [False, True])
def test_new_classes_are_not_among_the_detections(retina, rescale):
    """In input pixels, or in those of the picture, which is half as large."""
    meta = dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64), ori_shape=(32, 32),
                scale_factor=(2.0, 2.0))
    given, images = DetDataSample(metainfo=meta), torch.rand(1, 3, 64, 64)
    [everything] = Teacher(retina, retina.state_dict()).detect(images, [given], rescale)
    one, *others = set(everything.labels.tolist())
    [known] = Teacher(retina, retina.state_dict(), others).detect(images, [given], rescale)
    assert others and set(known.labels.tolist()) == {one}
    assert torch.equal(known.bboxes, everything[everything.labels == one].bboxes)
    assert 'pred_instances' not in given
    [other] = Teacher(retina, retina.state_dict()).detect(images, [given])
    assert torch.allclose(everything.bboxes * (2 if rescale else 1), other.bboxes)


def test_no_detections_stay_none(retina):
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0))
    assert Teacher(retina, retina.state_dict(), [1])._known(nothing) is nothing


def test_a_head_never_sees_a_silenced_class(make_head):
    head = make_head(num_classes=4)
    before = copy.deepcopy(head.state_dict())
    silence(head, [1, 3])
    for level, conv in enumerate(head.predict_convs):
        for channel in range(head.num_channels):
            silent = channel in (5 + 3 + 1, 5 + 3 + 3)
            weight, bias = before[f'predict_convs.{level}.weight'], before[f'predict_convs.{level}.bias']
            assert torch.equal(conv.weight[channel], torch.zeros_like(weight[channel]) if silent else weight[channel])
            assert float(conv.bias[channel].detach()) == (SILENT if silent else float(bias[channel]))


def test_a_teacher_with_cells_never_sees_a_new_class(make_head):
    model = torch.nn.Module()
    model.bbox_head = make_head(num_classes=4)
    for new, silent in (((), []), ([2], [5 + 3 + 2])):
        head = Teacher(model, model.state_dict(), new).model.bbox_head
        assert [index for index, bias in enumerate(head.predict_convs[0].bias) if float(bias) == SILENT] == silent
    assert not (model.bbox_head.predict_convs[0].bias == SILENT).any()


def test_classes_by_name_and_index():
    assert class_indices(['cat', 2, 0], ['dog', 'cat', 'cow']) == (1, 2, 0)
    for wrong in ('Cat', 3, -1, True):
        with pytest.raises(UserError) as caught:
            class_indices([wrong], ['dog', 'cat', 'cow'])
        assert str(caught.value) == (f'keep.new_classes has {wrong!r}, which is no class of the model; it has dog, '
                                     'cat, cow')
