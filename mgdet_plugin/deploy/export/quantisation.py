"""Eight-bit integers after training, by NNCF: as many layers as a bound on the mean AP allows."""
from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Picture
from mgdet_plugin.deploy.backends.graph_backend import GraphBackend, openvino_run
from mgdet_plugin.deploy.description import Description
from mgdet_plugin.deploy.export.graph import MAPS
from mgdet_plugin.deploy.export.labelled import mean_ap
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.predictor import Predictor

CALIBRATION = 128  # pictures that ranges are taken from
LADDER = (('no layer', r'$.'), ('the prediction convolutions', r'/head/predict_convs'),
          ('the head', r'/head/'), ('the head and the first layers', r'/head/|/backbone/(conv1|conv_res_block1)/'),
          ('the head, the first layers and the neck', r'/head/|/backbone/(conv1|conv_res_block[12])/|/neck/'))
"""What stays in floating point -> names of its operations; the first that holds the bound is taken."""


def quantised_model(model: Any, description: Description, pictures: Sequence[Picture], reference: Predictor,
                    max_drop: float, say: Callable[[str], object]) -> Any:
    """A model of OpenVINO in integers that loses at most ``max_drop`` of the mean AP that the reference reaches.

    Raises:
        UserError: There is none.
    """
    core = needed('openvino', 'int8').Core()

    def measure(attempt: Any) -> float:
        backend = GraphBackend(description, openvino_run(core, attempt, 'int8'), 'int8')
        return mean_ap(pictures, reference.classes, Predictor(backend)(each.path for each in pictures))

    least = mean_ap(pictures, reference.classes, reference(each.path for each in pictures)) - max_drop
    inputs = [reference.prepared(each.path) for each in pictures[:CALIBRATION]]
    return quantise(model, inputs, measure, least, say)


def quantise(model: Any, pictures: Sequence[np.ndarray], measure: Callable[[Any], float], least: float,
             say: Callable[[str], object]) -> Any:
    """Quantise a model, layers that cost too much left in floating point.

    Ranges are those of the pictures; decoding is never quantised.

    Args:
        model: OpenVINO's, out of :func:`.formats.openvino_model`; it is left as it is.
        pictures: (1, 3, H, W) uint8 in RGB each.
        measure: The mean AP of a model.
        least: What it must reach.
        say: Takes a line about each attempt.

    Raises:
        UserError: None reaches it.
    """
    nncf = needed('nncf', 'int8')
    nncf.set_log_level(logging.ERROR)
    names = [node.get_friendly_name() for node in model.get_ordered_ops()]
    decoding = decoding_operations(model)
    for in_float, pattern in LADDER:
        left = sorted({*decoding, *(name for name in names if re.search(pattern, name))})
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # its progress bars
            attempt = nncf.quantize(
                model.clone(), nncf.Dataset(list(pictures)), preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(pictures), ignored_scope=nncf.IgnoredScope(names=left, validate=False))
        ap = measure(attempt)
        say(f'int8 with {in_float} in floating point: AP {ap:.4f}')
        if ap >= least:
            return attempt
    raise UserError(f'int8 reaches an AP of {ap:.4f} even with {in_float} in floating point, --max-drop allows no less '
                    f'than {least:.4f}; nothing was written; take --precision bf16 or fp16, or a larger bound')


def decoding_operations(model: Any) -> set[str]:
    """Names of the operations after the raw maps, which turn them into boxes."""
    after: set[str] = set()
    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        if any(set(MAPS) & set(source.get_names()) or source.get_node().get_friendly_name() in after
               for source in sources):
            after.add(node.get_friendly_name())
    return after
