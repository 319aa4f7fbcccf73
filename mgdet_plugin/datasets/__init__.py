"""Data for MultiGridDet: letterbox, checks of annotation files, the embedded digits. Importing it registers all."""
from mgdet_plugin.datasets.annotation_check import DatasetReport, check_datasets, iter_dataset_cfgs
from mgdet_plugin.datasets.digits import DIGIT_CLASSES, DIGITS_ROOT, ensure_digits, ensure_embedded_data, make_digits
from mgdet_plugin.datasets.drop_degenerate_boxes import DropDegenerateBoxes
from mgdet_plugin.datasets.letterbox import Letterbox, letterbox_boxes, unletterbox_boxes

__all__ = [
    'DIGITS_ROOT', 'DIGIT_CLASSES', 'DatasetReport', 'DropDegenerateBoxes', 'Letterbox', 'check_datasets',
    'ensure_digits', 'ensure_embedded_data', 'iter_dataset_cfgs', 'letterbox_boxes', 'make_digits', 'unletterbox_boxes',
]
