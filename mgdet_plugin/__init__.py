"""mgdet: MultiGridDet as a plugin for MMDetection 3.x.

Importing this package is light: it only arranges that ``mmdet`` can be imported where mmcv has no compiled
operations (see :mod:`mgdet_plugin.compat`). The registered classes live in ``mgdet_plugin.models``,
``mgdet_plugin.datasets`` and ``mgdet_plugin.engine``; configs name them in ``custom_imports``.
"""
from mgdet_plugin import compat

__version__ = '0.1.0'

compat.install()
