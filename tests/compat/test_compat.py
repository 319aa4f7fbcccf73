"""The stand-in for mmcv's compiled extension: when it is used, what it refuses, and mmdet's own detectors on it."""
from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mgdet_plugin
from mgdet_plugin import compat

ROOT = Path(mgdet_plugin.__file__).parents[1]
needs_stand_in = pytest.mark.skipif(
    compat.has_compiled_ops(), reason='mmcv has its compiled ops here, so the stand-in stays out')


def run_python(code: str, *search_path: Path) -> str:
    """Run code in a fresh interpreter that finds the package, and return what it prints."""
    path = os.pathsep.join(str(folder) for folder in (*search_path, ROOT))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ('torch', 'numpy', 'cv2', 'mmcv', 'mmengine', 'mmdet')
    code = f'import sys, mgdet_plugin; print([name for name in {heavy} if name in sys.modules])'
    assert run_python(code) == '[]'


def test_mmdet_is_importable():
    for name in ('models', 'datasets', 'apis', 'evaluation', 'visualization'):
        assert importlib.import_module(f'mmdet.{name}').__name__ == f'mmdet.{name}'


def test_a_compiled_extension_wins(tmp_path):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / '_ext.py').write_text("nms = 'compiled'\n")
    code = ('import mgdet_plugin, mmcv._ext; from mgdet_plugin import compat; '
            'print(mmcv._ext.nms, compat.has_compiled_ops())')
    assert run_python(code, tmp_path) == 'compiled True'


def test_without_a_compiled_extension_the_stand_in_is_found(tmp_path):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    code = ('import mgdet_plugin, mmcv._ext; from mgdet_plugin import compat; '
            'print(mmcv._ext.nms.__module__, compat.has_compiled_ops())')
    assert run_python(code, tmp_path) == 'mgdet_plugin.compat.mmcv_ops False'


def test_the_stand_in_answers_for_no_other_name():
    assert compat.StandInFinder().find_spec('mmcv._ext2', None) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('mmcv.no_such_module')


def test_install_twice_registers_once():
    before = list(sys.meta_path)
    compat.install()
    assert sys.meta_path == before
    assert sum(isinstance(finder, compat.PatchFinder) for finder in before) == 1


@needs_stand_in
@pytest.mark.parametrize('name', ['roi_align_forward', 'ms_deform_attn_forward', 'softnms', 'nms_rotated'])
def test_an_operation_that_is_not_here_raises_when_called(name):
    operation = getattr(importlib.import_module('mmcv._ext'), name)
    with pytest.raises(NotImplementedError, match=rf"'{name}'.*`make setup OPS=1`") as caught:
        operation(torch.zeros(1), scale=2)
    assert '\n' not in str(caught.value)


@needs_stand_in
def test_the_stand_in_invents_no_dunder_names():
    extension = importlib.import_module('mmcv._ext')
    assert not hasattr(extension, '__wrapped__')
    assert not hasattr(extension, '__path__')


@needs_stand_in
def test_a_module_that_needs_a_missing_operation_builds_and_raises_in_forward():
    from mmcv.ops import DeformConv2d
    layer = DeformConv2d(2, 3, kernel_size=3, padding=1)
    with pytest.raises(NotImplementedError, match="'deform_conv_forward'"):
        layer(torch.zeros(1, 2, 4, 4), torch.zeros(1, 18, 4, 4))


@needs_stand_in
def test_the_compiler_is_reported_as_absent():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    assert get_compiler_version().startswith('not available')
    assert get_compiling_cuda_version() == 'not available'


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two boxes (4,)."""
    width = max(min(box[2], other[2]) - max(box[0], other[0]), 0)
    height = max(min(box[3], other[3]) - max(box[1], other[1]), 0)
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return width * height / (sum(areas) - width * height)


@pytest.fixture(scope='module',
                params=['retinanet/retinanet_r18_fpn_1x_coco.py', 'yolo/yolov3_d53_8xb8-320-273e_coco.py'])
def inferencer(request):
    """Return mmdet's own inferencer of one of its models, with random weights."""
    import mmdet
    from mmdet.apis import DetInferencer
    from mmengine.config import Config
    config = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / request.param)
    config.model.backbone.init_cfg = None
    config.model.test_cfg.score_thr = 0.001
    config.model.test_cfg.max_per_img = 50
    for step in config.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (96, 96)
    torch.manual_seed(0)
    inferencer = DetInferencer(config, device='cpu', show_progress=False)
    inferencer.model.init_weights()
    for layer in getattr(inferencer.model.bbox_head, 'convs_pred', []):
        layer.weight.data /= 1e4  # an untrained Darknet's features are so large that YOLO's boxes would be infinite
    return inferencer


def test_mmdet_detector_infers(inferencer):
    from mmdet.apis import inference_detector
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = inferencer(image, return_datasamples=True)['predictions'][0].pred_instances
    assert len(found) == 50
    boxes, labels = found.bboxes.numpy(), found.labels.numpy()
    threshold = inferencer.cfg.model.test_cfg.nms.iou_threshold
    pairs = [(i, j) for i in range(50) for j in range(i) if labels[i] == labels[j]]
    assert pairs
    assert all(overlap(boxes[i], boxes[j]) <= threshold + 1e-5 for i, j in pairs)
    again = inference_detector(inferencer.model, image).pred_instances
    torch.testing.assert_close(again.bboxes, found.bboxes)


def test_mmdet_detector_trains_and_tests(inferencer):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    model = inferencer.model
    sample = DetDataSample(metainfo={'img_shape': (96, 96), 'ori_shape': (96, 96), 'scale_factor': (1.0, 1.0)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8., 8., 72., 64.]]), labels=torch.tensor([3]))
    data = {'inputs': [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)], 'data_samples': [sample]}
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode='loss'))
    model.zero_grad()
    loss.backward()
    gradients = [weight.grad for weight in model.bbox_head.parameters()]
    assert loss.isfinite()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert len(model.test_step(data)[0].pred_instances) > 0


def test_a_configs_list_of_thresholds_reaches_pycocotools_as_an_array():
    """pycocotools looks a threshold up by ``==``, and no number equals a list."""
    from mmdet.evaluation import CocoMetric
    assert CocoMetric(iou_thrs=[0.5, 0.75]).iou_thrs.tolist() == [0.5, 0.75]
    assert CocoMetric(iou_thrs=0.5).iou_thrs.tolist() == [0.5]
    np.testing.assert_array_equal(CocoMetric().iou_thrs, np.linspace(0.5, 0.95, 10))
