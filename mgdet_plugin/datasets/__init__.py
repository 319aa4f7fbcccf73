"""Data for MultiGridDet: letterbox, staged augmentation, annotation checks, the digits. Importing it registers all."""
from mgdet_plugin.datasets.annotation_check import DatasetReport, check_datasets, iter_dataset_cfgs
from mgdet_plugin.datasets.clip_boxes import ClipBoxes
from mgdet_plugin.datasets.digits import DIGIT_CLASSES, DIGITS_ROOT, ensure_digits, ensure_embedded_data, make_digits
from mgdet_plugin.datasets.drop_degenerate_boxes import DropDegenerateBoxes
from mgdet_plugin.datasets.letterbox import Letterbox, letterbox_boxes, unletterbox_boxes
from mgdet_plugin.datasets.sample_index import SampleIndex, sample_randomness, sample_seed
from mgdet_plugin.datasets.staged_batch_sampler import StagedBatchSampler
from mgdet_plugin.datasets.staged_dataset import StagedDataset
from mgdet_plugin.datasets.staged_mix import StagedMix

__all__ = [
    'DIGITS_ROOT', 'DIGIT_CLASSES', 'ClipBoxes', 'DatasetReport', 'DropDegenerateBoxes', 'Letterbox', 'SampleIndex',
    'StagedBatchSampler', 'StagedDataset', 'StagedMix', 'check_datasets', 'ensure_digits', 'ensure_embedded_data',
    'iter_dataset_cfgs', 'letterbox_boxes', 'make_digits', 'sample_randomness', 'sample_seed', 'unletterbox_boxes',
]
