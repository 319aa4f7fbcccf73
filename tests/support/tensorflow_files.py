"""The TensorFlow project's folder in small: its YAML files with all their keys, annotation lines, names and anchors."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mgdet_plugin.datasets.sources.annotated import Box, Picture
from tests.support.annotated_sets import CLASSES, picture, write_lines, write_names

MODEL = {
    'name': 'multigriddet_darknet', 'type': 'preset', 'preset.architecture': 'multigriddet_darknet',
    'preset.num_classes': 3, 'preset.input_shape': [416, 416, 3], 'preset.anchors_path': 'configs/anchors.txt',
    'preset.classes_path': 'configs/names.txt', 'custom.backbone.type': 'darknet53', 'custom.neck.channels': [128, 256]}
TRAINING = {
    'model_config': 'configs/models/darknet.yaml', 'data.train_annotation': 'data/a.txt',
    'data.val_annotation': 'data/b.txt', 'data.classes_path': 'configs/names.txt',
    'data_loader.use_tf_dataset': True, 'data_loader.use_gpu_preprocessing': True, 'data_loader.prefetch_buffer': 6,
    'data_loader.num_parallel_calls': 24, 'data_loader.shuffle_buffer_size': 8192,
    'data_loader.interleave_cycle_length': None, 'data_loader.num_workers': 8, 'data_loader.cache_images': False,
    'training.batch_size': 4, 'training.epochs': 100, 'training.initial_epoch': 0, 'training.learning_rate': 1e-4,
    'training.transfer_epochs': 0, 'training.freeze_level': 1, 'training.loss_option': 2,
    'training.label_smoothing': 0.01, 'training.elim_grid_sense': False, 'training.loss.coord_scale': 5.0,
    'training.loss.object_scale': 1.0, 'training.loss.no_object_scale': 0.5, 'training.loss.class_scale': 1.0,
    'training.loss.anchor_scale': 1.0, 'training.loss.use_iou_aware_objectness': False,
    'training.loss.iou_objectness_power': 1.5, 'training.loss.iou_objectness_ratio': 1.0,
    'training.loss.trainable_nms_weight': 0.0, 'training.loss.trainable_nms_power': 2.0,
    'training.loss.use_consensus_loss': True, 'training.loss.consensus_kernel_size': 3,
    'training.loss.consensus_iou_power': 1.5, 'training.loss.consensus_min_iou': 0.001,
    'training.loss.consensus_coord_scale': 0.5, 'training.loss.consensus_obj_scale': 0.5,
    'training.loss.consensus_class_scale': 0.3, 'training.loss.consensus_stop_gradient': True,
    'training.loss.consensus_center_tolerance': 1e-4, 'training.loss_normalization': ['batch'],
    'training.class_weights': None, 'training.class_weights_method': 'balanced', 'training.augmentation.enabled': True,
    'training.augmentation.enhance_type': 'mosaic', 'training.augmentation.mosaic_prob': 0.3,
    'training.augmentation.mixup_prob': 0.1, 'training.augmentation.rescale_interval': -1,
    'training.augmentation.max_boxes_per_image': 100, 'training.multi_anchor_assign': False, 'optimizer.type': 'adam',
    'optimizer.learning_rate': 1e-4, 'optimizer.beta_1': 0.9, 'optimizer.beta_2': 0.999, 'optimizer.epsilon': 1e-7,
    'optimizer.weight_decay': 0.0005, 'lr_schedule.type': 'cosine_annealing', 'lr_schedule.warmup_epochs': 3,
    'lr_schedule.warmup_lr_factor': 0.01, 'lr_schedule.min_lr': 1e-7, 'callbacks.checkpoint.save_best_only': True,
    'callbacks.checkpoint.monitor': 'val_loss', 'callbacks.checkpoint.save_dir': 'logs/checkpoints',
    'callbacks.tensorboard.log_dir': 'logs/tensorboard', 'callbacks.early_stopping.monitor': 'val_loss',
    'callbacks.early_stopping.patience': 10, 'resume.enabled': False, 'resume.weights_path': None,
    'resume.backbone_weights_path': None, 'output.log_dir': 'logs/training', 'output.model_dir': 'trained_models',
    'output.save_frequency': 1}
RECOMMENDED = {key: value for key, value in TRAINING.items() if 'consensus' not in key} | {
    'training.batch_size': 48, 'training.transfer_epochs': 5, 'training.freeze_level': 2,
    'training.loss.use_iou_aware_objectness': True, 'training.loss.trainable_nms_weight': 0.5,
    'training.class_weights': 'auto', 'training.augmentation.enhance_type': None,
    'training.augmentation.mosaic_prob': 0.0, 'training.augmentation.mixup_prob': 0.0, 'resume.enabled': True,
    'resume.weights_path': 'weights/digits.h5'}
EVALUATION = {
    'model_config': 'configs/models/darknet.yaml', 'weights_path': 'weights/digits.h5', 'data.annotation': 'data/b.txt',
    'data.classes_path': 'configs/names.txt', 'evaluation.batch_size': 4, 'evaluation.input_shape': [608, 608, 3],
    'evaluation.confidence_threshold': 0.1, 'evaluation.nms_threshold': 0.45, 'evaluation.nms_method': 'diou',
    'evaluation.use_wbf': False, 'evaluation.use_iol': True,
    'evaluation.iou_thresholds': [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
    'evaluation.interpolation_method': 'coco', 'evaluation.metrics': ['mAP', 'mAP50', 'mAP75'],
    'evaluation.optimize_classes': True, 'evaluation.cache_ious': True, 'evaluation.use_parallel': True,
    'evaluation.use_tfdata': True, 'evaluation.mixed_precision': False, 'evaluation.use_gpu_nms': True,
    'evaluation.save_results': True, 'evaluation.results_dir': 'results', 'visualizations.enabled': False,
    'visualizations.save_annotated_images.enabled': True, 'visualizations.save_annotated_images.max_images': 10,
    'visualizations.plots.precision_recall_curves': True, 'visualizations.plots.confusion_matrix': True,
    'visualizations.plots.per_class_map_bar': True, 'visualizations.plots.iou_distribution': True,
    'visualizations.pr_curves.style': 'paper', 'visualizations.confusion_matrix.cmap': 'Blues',
    'visualizations.output.dpi': 300}
INFERENCE = {
    'model_config': 'configs/models/darknet.yaml', 'weights_path': 'weights/digits.h5', 'input.type': 'image',
    'input.source': 'dog.jpg', 'input.input_shape': [608, 608, 3], 'detection.confidence_threshold': 0.5,
    'detection.nms_threshold': 0.45, 'detection.nms_method': 'diou', 'detection.use_wbf': False,
    'detection.max_boxes': 100, 'detection.use_iol': True, 'output.save_result': True, 'output.output_dir': 'output',
    'output.show_result': True, 'output.draw_boxes': True, 'output.show_scores': True, 'video.fps': None,
    'video.fourcc': 'mp4v', 'camera.device_id': 0, 'camera.resolution': [1280, 720]}
ANCHORS = '112,74 149,190 370,328\n28,17 56,112 57,35\n9,10 13,28 28,55\n'
PICTURES = 6


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    content: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split('.')
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return content


def write_yaml(path: Path, values: Mapping[str, Any], **changes: Any) -> Path:
    """A YAML file of flat keys; ``changes`` are told by the last part of a key, or add one."""
    merged = dict(values)
    for name, value in changes.items():
        merged[next((key for key in merged if key.rpartition('.')[2] == name), name)] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(nested(merged)))
    return path


def write_project(root: Path, weights: Path | None = None) -> Path:
    """Everything but the files of settings; lines name their pictures as seen from the root."""
    write_yaml(root / 'configs/models/darknet.yaml', {f'model.{key}': value for key, value in MODEL.items()})
    write_names(root / 'configs/names.txt')
    (root / 'configs/anchors.txt').write_text(ANCHORS)
    for name, shades in (('a', range(PICTURES)), ('b', range(100, 100 + PICTURES))):
        pictures = [Picture(picture(root / f'data/images/{name}{shade}.png', (320, 240), shade),
                            (Box(CLASSES[shade % 3], (10, 20, 60, 50)), Box(CLASSES[0], (100, 90, 40, 80))))
                    for shade in shades]
        path = write_lines(root / f'data/{name}.txt', pictures)
        path.write_text(path.read_text().replace(f'{root}/', ''))
    if weights is not None:
        (root / 'weights').mkdir()
        (root / 'weights/digits.h5').symlink_to(weights)
    return root
