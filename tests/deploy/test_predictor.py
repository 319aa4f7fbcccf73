"""One predictor: boxes of mmdet's inferencer, from paths, arrays and Pillow's pictures, by anybody's threshold."""
import sys

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from PIL import Image

from mgdet_plugin import UserError, detect
from mgdet_plugin.common.checkpoints import stored_config
from mgdet_plugin.compat.launch import has_bfloat16
from mgdet_plugin.deploy.backends.graph_backend import GraphBackend
from mgdet_plugin.deploy.description import Description
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.results import to_supervision
from mgdet_plugin.deploy.thresholds import class_thresholds
from mgdet_plugin.weights.exporter import export_keras
from tests.support.predicted import needs, tiny_model
from tests.support.small_run import CLASSES

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp('predictor'))


@pytest.fixture(scope='module')
def predictor(tiny):
    return detect(tiny.weights, tiny.config)


def same(first, second):
    one, other = first.pred_instances, second.pred_instances
    return len(one) and all(one[key].equal(other[key]) for key in ('bboxes', 'scores', 'labels'))


def test_boxes_are_those_of_the_inferencer_bit_for_bit(tiny, predictor):
    inferencer = DetInferencer(str(tiny.config), str(tiny.weights), device='cpu', show_progress=False)
    theirs = inferencer(list(map(str, tiny.pictures)), return_datasamples=True)['predictions']
    ours = predictor(tiny.pictures, batch=1)
    assert len(ours) == 4 and all(map(same, ours, theirs))
    assert ours[0].img_path == str(tiny.pictures[0]) and ours[0].ori_shape == (60, 80)
    assert (predictor.classes, predictor.input_size) == (CLASSES, (64, 64)) and len(set(predictor.palette)) == 3


def test_every_kind_of_picture_and_batch_gives_the_same(tiny, predictor):
    opened = Image.open(tiny.pictures[1])
    bgr = np.ascontiguousarray(np.asarray(opened)[..., ::-1])
    by_path, = predictor(str(tiny.pictures[1]))
    assert same(predictor(opened)[0], by_path) and same(predictor([bgr])[0], by_path)
    assert not same(predictor(np.asarray(opened))[0], by_path)  # RGB is another picture
    batched = predictor((path for path in tiny.pictures), batch=3)
    assert len(batched) == 4 and predictor([]) == []
    torch.testing.assert_close(batched[1].pred_instances.scores, by_path.pred_instances.scores)


def test_a_threshold_for_all_or_for_a_class(tiny, predictor):
    found = predictor(tiny.pictures[0])[0].pred_instances
    middle = float(found.scores.median())
    above = detect(tiny.weights, tiny.config, score_thr=middle)(tiny.pictures[0])[0].pred_instances
    assert above.scores.equal(found.scores[found.scores > middle]) and 0 < len(above) < len(found)
    mixed = detect(tiny.weights, tiny.config, score_thr={'green': 1.0, 'red': 0.0})(tiny.pictures[0])[0].pred_instances
    assert set(mixed.labels.tolist()) <= {0, 2} and mixed.scores[mixed.labels == 0].numel() >= (found.labels == 0).sum()
    assert class_thresholds({'a': 0.5}, 'ab', 0.1) == [0.5, 0.1] and class_thresholds(None, 'ab', 0.2) == [0.2, 0.2]
    with pytest.raises(UserError, match=r"no class 'gren'; the nearest name is green; its classes are red, green"):
        detect(tiny.weights, tiny.config, score_thr={'gren': 0.5})
    with pytest.raises(UserError, match=r'number from 0 to 1, got 1\.5'):
        detect(tiny.weights, tiny.config, score_thr=1.5)


def test_a_lower_threshold_than_the_models_own_gives_more(tiny, tmp_path):
    cfg = Config.fromfile(tiny.config)
    cfg.model.test_cfg.score_thr = 0.05
    cfg.dump(tmp_path / 'strict.py')
    few, more = (detect(tiny.weights, tmp_path / 'strict.py', score_thr=score)(tiny.pictures[0])[0].pred_instances
                 for score in (None, 0.001))
    assert len(few) < len(more) and few.scores.min() > 0.05 and more.scores.min() < 0.05


def test_a_checkpoint_of_a_run_needs_no_config(tiny, predictor, tmp_path):
    content = torch.load(tiny.weights)
    content['meta']['cfg'] = Config.fromfile(tiny.config).pretty_text
    torch.save(content, tmp_path / 'run.pth')
    assert same(detect(tmp_path / 'run.pth')(tiny.pictures[0])[0], predictor(tiny.pictures[0])[0])
    assert stored_config({'meta': {'cfg': 'model = __import__("os")'}}) == {}  # nothing of it is run
    with pytest.raises(UserError, match=r'w\.pth holds no config of its model.*--config'):
        detect(tiny.weights)


def test_a_keras_file_gives_the_same_boxes(tiny, predictor, tmp_path):
    export_keras(tiny.weights, tmp_path / 'w.h5')
    assert same(detect(tmp_path / 'w.h5', tiny.config)(tiny.pictures[2])[0], predictor(tiny.pictures[2])[0])


def test_fast_is_near(tiny, predictor):
    fast = detect(tiny.weights, tiny.config, fast=True, threads=1)
    weight = fast._backend.model.backbone.conv1.conv.weight
    assert weight.dtype == (torch.bfloat16 if has_bfloat16('cpu') else torch.float32)
    assert not any('bn' in name for name in fast._backend.model.state_dict())
    ours, theirs = (each(tiny.pictures[0])[0].pred_instances for each in (fast, predictor))
    assert abs(float(ours.scores[0] - theirs.scores[0])) < 0.05


@pytest.mark.parametrize(('image', 'line'), [
    ('none.png', r'the picture none\.png is not there'),
    (np.zeros((4, 4), np.uint8), r'must be \(H, W, 3\) of uint8 in BGR, got \(4, 4\) of uint8'),
    (np.zeros((4, 4, 3)), r'got \(4, 4, 3\) of float64'),
    ([3], r'or a Pillow picture, got a int'),
])
def test_what_is_no_picture(predictor, image, line):
    with pytest.raises(UserError, match=line):
        predictor(image)


def test_what_cannot_be_loaded(tiny, predictor, tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no picture')
    (tmp_path / 'a.onnx').write_bytes(b'no model')
    (tmp_path / 'a.xml').write_text('<net/>')
    for call, line in ((lambda: predictor(tmp_path / 'a.png'), 'cannot be read'),
                       (lambda: predictor(tiny.pictures, batch=0), 'the batch must be a whole number from 1, got 0'),
                       (lambda: detect(tmp_path / 'b.onnx'), 'must be a file that is there'),
                       (lambda: detect(tmp_path / 'b.pth'), r'b\.pth are not there'),
                       (lambda: detect(tmp_path / 'a.onnx', fast=True), 'fast is for torch'),
                       (lambda: detect(tmp_path / 'a.onnx', tiny.config), 'leave the config out'),
                       (lambda: detect(tiny.weights, tiny.config, threads=0), 'threads must be a whole number'),
                       (lambda: detect(tiny.weights, tiny.config, device='tpu9'), "the device 'tpu9' cannot be used")):
        with pytest.raises(UserError, match=line):
            call()
    needs('onnxruntime', 'openvino')
    with pytest.raises(UserError, match=r'a\.onnx cannot be run by onnxruntime'):
        detect(tmp_path / 'a.onnx')
    with pytest.raises(UserError, match=r'has no a\.bin beside it'):
        detect(tmp_path / 'a.xml')
    (tmp_path / 'a.bin').write_bytes(b'')
    with pytest.raises(UserError, match=r'a\.xml cannot be run by OpenVINO \(it does not begin as XML\)'):
        detect(tmp_path / 'a.xml')
    (tmp_path / 'a.xml').write_text('<?xml version="1.0"?><net name="a" version="11"></net>')
    with pytest.raises(UserError, match=r'a\.xml says nothing of its classes and input'):
        detect(tmp_path / 'a.xml')


def description(**fields):
    return Description(**{**dict(classes=CLASSES, palette=COLOURS, input_size=(64, 96), pad_val=128,
                                 test_cfg=dict(score_thr=0.1)), **fields})


def test_a_description_comes_back_and_is_not_trusted():
    own = description(nms=True)
    assert Description.from_text(own.to_text(), 'f') == own
    for text, line in ((None, 'mgdet did not export it'), ('{', 'cannot be read'), ('[]', 'is of format None'),
                       (description(input_size=(64, 50)).to_text(), r'multiples of 32 .*got \(64, 50\)'),
                       (description(palette=[]).to_text(), 'damaged'), (description(classes=()).to_text(), '0 names')):
        with pytest.raises(UserError, match=line):
            Description.from_text(text, 'f')


@pytest.mark.parametrize('settings', [dict(nms=3), dict(nms=dict(iou_threshold='a')), dict(score_thr='a'),
                                      dict(nms=dict(type='none'))])
def test_thresholds_of_a_damaged_file(settings):
    with pytest.raises(UserError):
        GraphBackend(description(test_cfg=settings), lambda images: [], 'f.onnx')


def test_a_graph_that_suppresses_cannot_give_lower_scores():
    backend = GraphBackend(description(nms=True), lambda images: [], 'f.onnx')
    with pytest.raises(UserError, match=r'leaves out scores below 0\.1 itself, and detections from 0\.05 are'):
        backend.lower(0.05)
    free = GraphBackend(description(), lambda images: [], 'f.onnx')
    free.lower(0.05)
    assert free.settings['score_thr'] == 0.05


def test_a_library_that_is_not_installed_is_one_line(monkeypatch):
    with pytest.raises(UserError, match=r"boxes needs no_such_library \(.*\); install it .*'mgdet\[deploy\]'"):
        needed('no_such_library.part', 'boxes')
    needs('openvino')
    monkeypatch.delitem(sys.modules, 'openvino_telemetry', raising=False)
    needed('openvino', 'boxes')
    assert not hasattr(sys.modules['openvino_telemetry'], 'Telemetry')  # so nothing is reported


def test_results_for_supervision(tiny, predictor):
    needs('supervision')
    sample, = predictor(tiny.pictures[0])
    found = to_supervision(sample)
    assert np.array_equal(found.xyxy, sample.pred_instances.bboxes.numpy())
    assert found.data['class_name'][0] == CLASSES[int(sample.pred_instances.labels[0])]
    sample.pred_instances = sample.pred_instances[:0]
    assert len(to_supervision(sample)) == 0
