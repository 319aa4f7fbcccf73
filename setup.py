"""Packaging of mgdet. Tested versions are pinned in constraints.txt; ``make setup`` installs with them."""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
MIM = Path('mgdet_plugin/.mim')  # where mmengine and mim look for what comes with a package
SHIPPED = ('configs/**/*.py', 'configs/metafile.yml', 'model-index.yml', 'tools/*.*', 'weights/digits_source.h5')


class BuildWithResources(build_py):
    """Copy what lies beside the package into it, in the wheel alone: an editable installation has the checkout."""

    def run(self) -> None:
        """Build the package, then add the files."""
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(Path(self.build_lib) / 'mgdet_plugin', ignore_errors=True)  # of an earlier build
        super().run()
        for path in sorted(path for pattern in SHIPPED for path in HERE.glob(pattern)):
            target = Path(self.build_lib) / MIM / path.relative_to(HERE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


setup(
    name='mgdet',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'mgdet_plugin/__init__.py').read_text()).group(1),
    description='MultiGridDet for MMDetection 3.x: fine-tune a detector without untraining it',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['mgdet_plugin', 'mgdet_plugin.*']),
    cmdclass=dict(build_py=BuildWithResources),
    entry_points=dict(console_scripts=['mgdet = mgdet_plugin.cli:main']),
    python_requires='>=3.11',
    # A base is an extra: required here, mmdet would be written over an installed onedl-mmdetection, whose folder it
    # shares. mmcv and mmcv-lite share one, too, and are the user's choice. mmengine 0.10.7 imports pkg_resources, which
    # setuptools 82 no longer has.
    install_requires=['torch', 'setuptools<82', 'numpy', 'h5py', 'pillow', 'tqdm', 'matplotlib', 'pyyaml'],
    extras_require={
        'mmdet': ['mmengine==0.10.7', 'mmdet==3.3.0'],
        'onedl': ['onedl-mmengine>=0.10.12,<0.11', 'onedl-mmdetection>=3.5.1,<3.6', 'onedl-mmcv>=2.3.6,<2.4'],
        'mmdet-tools': ['psutil', 'seaborn', 'imagecorruptions-imaug'],  # what some of mmdet's own tools import
        'demo': ['scikit-learn'],
        'deploy': ['onnx', 'onnxruntime', 'openvino', 'nncf', 'supervision', 'av', 'trackers'],
        'keras': ['keras'],  # export to .keras; torch serves as its backend
        'fast-eval': ['faster-coco-eval'],  # COCO's figures, several times as fast
        'tensorboard': ['tensorboard'],  # for mmengine's TensorboardVisBackend
        'dev': ['tensorboard', 'faster-coco-eval', 'pytest', 'pytest-xdist', 'hypothesis', 'filelock', 'psutil', 'ruff',
                'mypy', 'import-linter', 'pre-commit'],
    },
)
