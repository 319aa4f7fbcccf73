"""Data for MultiGridDet: letterbox, staged augmentation, annotation checks, the digits. Importing it registers all."""
from mgdet_plugin.datasets.digits import DIGIT_CLASSES, DIGITS_ROOT, ensure_digits, ensure_embedded_data, make_digits
from mgdet_plugin.datasets.formats.annotation_check import DatasetReport, check_datasets, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.pictures import Inspector
from mgdet_plugin.datasets.lines_dataset import LinesDataset
from mgdet_plugin.datasets.old_images import OldImages
from mgdet_plugin.datasets.staged.sample_index import SampleIndex, sample_randomness, sample_seed
from mgdet_plugin.datasets.staged.staged_batch_sampler import StagedBatchSampler
from mgdet_plugin.datasets.staged.staged_dataset import StagedDataset
from mgdet_plugin.datasets.staged.staged_mix import StagedMix
from mgdet_plugin.datasets.transforms.byte_mixup import ByteMixUp
from mgdet_plugin.datasets.transforms.clip_boxes import ClipBoxes
from mgdet_plugin.datasets.transforms.cut_mosaic import CutMosaic
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import DropDegenerateBoxes
from mgdet_plugin.datasets.transforms.grid_mask import GridMask
from mgdet_plugin.datasets.transforms.letterbox import Letterbox
from mgdet_plugin.datasets.transforms.load_readable_image import LoadReadableImage
from mgdet_plugin.datasets.transforms.recolour import Recolour

__all__ = [
    'DIGITS_ROOT', 'DIGIT_CLASSES', 'ByteMixUp', 'ClipBoxes', 'CutMosaic', 'DatasetReport', 'DropDegenerateBoxes',
    'GridMask', 'Inspector', 'Letterbox', 'LinesDataset', 'LoadReadableImage', 'OldImages', 'Recolour', 'SampleIndex',
    'StagedBatchSampler', 'StagedDataset', 'StagedMix', 'check_datasets', 'ensure_digits', 'ensure_embedded_data',
    'iter_dataset_cfgs', 'make_digits', 'sample_randomness', 'sample_seed',
]
