"""Packaging of mgdet. Tested versions are pinned in constraints.txt; ``make setup`` installs with them."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name='mgdet',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'mgdet_plugin/__init__.py').read_text()).group(1),
    description='MultiGridDet for MMDetection 3.x: fine-tune a detector without untraining it',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['mgdet_plugin', 'mgdet_plugin.*']),
    python_requires='>=3.11',
    # mmcv or mmcv-lite is the user's choice (they share a folder), so neither is required here.
    install_requires=['torch', 'mmengine==0.10.7', 'mmdet==3.3.0', 'numpy', 'h5py', 'pillow', 'tqdm',
                      'matplotlib', 'filelock'],
    extras_require={
        'demo': ['scikit-learn'],
        'keras': ['keras'],  # verify with Keras and export to .keras; torch serves as its backend
        'tensorboard': ['tensorboard'],  # for mmengine's TensorboardVisBackend
        'dev': ['tensorboard', 'pytest', 'pytest-xdist', 'hypothesis', 'ruff', 'mypy', 'pre-commit'],
    },
)
