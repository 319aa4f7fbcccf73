"""What an evaluation or inference file says of suppression, metrics and pictures."""
from __future__ import annotations

from typing import Any

from mgdet_plugin.prepare.tensorflow.account import DIFFERS, NONE, Account

_TYPES = dict(diou='diou', standard='standard', nms='standard', iou='standard', soft='soft', soft_nms='soft',
              cluster='cluster', cluster_nms='cluster', wbf='wbf')
_COCO_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
_METRICS = {'mAP', 'mAP50', 'mAP75'}  # CocoMetric has them all, and those by size
_SPEED = 'how fast it is measured there'
_ELSEWHERE = {
    'evaluation.save_results': 'test --out found.pkl keeps what was found; metrics are in the log',
    'evaluation.results_dir': 'work_dirs/NAME, or test --work-dir',
    'visualizations.enabled': 'each picture and figure is a command of its own, see below',
    'visualizations.save_annotated_images.': 'draw CFG CKPT SHEET.png [--truth], or test --show-dir',
    'visualizations.plots.confusion_matrix': 'mmdet_tool analysis_tools/confusion_matrix',
    'visualizations.plots.per_class_map_bar': 'test_evaluator.classwise=True: AP of each class in the log',
    'visualizations.plots.': 'mmdet_tool analysis_tools/coco_error_analysis: precision over recall, by kind of error',
    'output.save_result': 'DetInferencer(...)(..., out_dir=D), or draw',
    'output.output_dir': 'DetInferencer(...)(..., out_dir=D), or draw',
    'output.draw_boxes': 'draw; DetInferencer draws boxes and scores',
    'output.show_scores': 'draw; DetInferencer draws boxes and scores',
    'input.source': 'DetInferencer(...)(PATH)',
}
_ABSENT = {
    **{f'evaluation.{name}': _SPEED for name in ('optimize_classes', 'cache_ious', 'use_parallel', 'use_tfdata',
                                                 'use_gpu_nms')},
    'visualizations.pr_curves.': 'no figure is drawn so',
    'visualizations.confusion_matrix.': "the look of a figure; mmdet's has its own",
    'visualizations.output.': "the look of a figure; mmdet's has its own",
    'input.type': 'pictures and folders of them alone', 'output.show_result': 'nothing is shown on a screen',
    'video.': 'no video; pictures and folders of them alone',
    'camera.': 'no camera; pictures and folders of them alone',
}
MEASURING_KEYS = (
    *(f'{section}.{name}' for section in ('evaluation', 'detection') for name in (
        'confidence_threshold', 'nms_threshold', 'nms_method', 'use_wbf', 'use_iol', 'max_boxes')),
    *(f'evaluation.{name}' for name in ('batch_size', 'input_shape', 'iou_thresholds', 'interpolation_method',
                                        'metrics', 'mixed_precision', 'max_images', 'save_results', 'results_dir')),
    'input.input_shape', *(key for key in (*_ELSEWHERE, *_ABSENT) if not key.endswith('.')))


def note_measuring(account: Account) -> None:
    """Account for what is another thing here, or none, whatever its value."""
    account.note_all(NONE, _ABSENT)
    account.note_all(DIFFERS, _ELSEWHERE)


def test_cfg(account: Account, section: str) -> dict[str, Any]:
    """The config's ``model.test_cfg`` of a section ``evaluation`` or ``detection``.

    Raises:
        UserError: A value is out of its range.
    """
    most = 500 if section == 'evaluation' else 100  # boxes, as there
    score = account.number(f'{section}.confidence_threshold', 0.1 if section == 'evaluation' else 0.5, 0, 1)
    threshold = account.number(f'{section}.nms_threshold', 0.45, 0, 1)
    method = account.text(f'{section}.nms_method', 'diou', _TYPES) or 'diou'
    fused = account.flag(f'{section}.use_wbf', False)
    kind = 'wbf' if fused else _TYPES[method]
    most = account.whole(f'{section}.max_boxes', most, 1)
    account.carried(f'{section}.confidence_threshold', f'test_cfg.score_thr={score:g}')
    account.carried(f'{section}.nms_threshold', f'test_cfg.nms.iou_threshold={threshold:g}')
    by_paper = {'soft': ', by its paper: there boxes are not sorted again', 'wbf': ', by its paper: boxes join the '
                'mean box of those before them', 'cluster': ', by its paper: there it is greedy'}
    account.note(not fused and kind not in by_paper, f'{section}.nms_method', f"test_cfg.nms.type='{kind}'",
                 f"test_cfg.nms.type='{kind}'{by_paper.get(kind, '')}")
    account.note(not fused, f'{section}.use_wbf', 'off', f"test_cfg.nms.type='wbf'{by_paper['wbf']}")
    account.note(not account.flag(f'{section}.use_iol', False), f'{section}.use_iol', "test_cfg.nms.overlap='iou'",
                 "test_cfg.nms.overlap='iou', what is measured there, where the key is read and not used; 'iol' is "
                 'obeyed here')
    account.carried(f'{section}.max_boxes', f'test_cfg.max_per_img={most}')
    return dict(score_thr=score, max_per_img=most,
                nms=dict(type=kind, iou_threshold=threshold, overlap='iou', class_agnostic=kind != 'wbf'))


def metric(account: Account) -> dict[str, Any]:
    """What ``CocoMetric`` states beside its file.

    Raises:
        UserError: A threshold is none.
    """
    key = 'evaluation.iou_thresholds'
    given = account.values.get(key) or _COCO_THRESHOLDS
    values = given if isinstance(given, list) else [given]
    checked = [Account(account.where, {key: each}).number(key, 0.5, 0, 1) for each in values]
    account.carried(key, 'those of CocoMetric' if checked == _COCO_THRESHOLDS else f'test_evaluator.iou_thrs={checked}')
    way = account.text('evaluation.interpolation_method', 'coco')
    account.note(way == 'coco', 'evaluation.interpolation_method', "CocoMetric's 101 points",
                 "CocoMetric's 101 points; "
                 "VOCMetric(eval_mode='11points' or 'area') measures in other ways")
    names = account.values.get('evaluation.metrics') or []
    account.note(set(map(str, names)) <= _METRICS, 'evaluation.metrics', 'CocoMetric has them all',
                 'CocoMetric: mean AP, at 0.5, at 0.75 and by size; precision and recall are in the figures of '
                 'mmdet_tool analysis_tools/coco_error_analysis')
    account.note(not account.flag('evaluation.mixed_precision', False), 'evaluation.mixed_precision', 'float32',
                 'float32')
    return {} if checked == _COCO_THRESHOLDS else dict(iou_thrs=checked)
