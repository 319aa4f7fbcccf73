"""A detector's graph written as ONNX and as OpenVINO's model; raw maps asked of a file again.

TorchScript's exporter follows sizes that change and loops, and takes seconds; that of ``torch.export`` took 83 s for
the small model (November 2026, two AMD EPYC cores).
"""
from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mgdet_plugin.deploy.description import KEY, Description
from mgdet_plugin.deploy.export.graph import INPUT, MAPS, DetectorGraph
from mgdet_plugin.deploy.extra import needed

OPSET = 17
_AXES = {'boxes': {0: 'batch', 1: 'found'}, 'scores': {0: 'batch', 1: 'found'}, 'labels': {0: 'batch', 1: 'found'},
         'class_probs': {0: 'batch', 1: 'found'}, INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
for _name in MAPS:
    _AXES[_name] = {0: 'batch', 2: f'rows_{_name[4:]}', 3: f'cols_{_name[4:]}'}


def onnx_model(graph: DetectorGraph, size: Sequence[int], description: Description | None = None) -> Any:
    """The graph as ONNX; batch, height and width are free.

    Args:
        graph: With its maps; they keep their names in the file, and are no outputs of it.
        size: (height, width) of an input to follow, multiples of 32.
        description: Put into ``metadata_props``.

    Returns:
        ``onnx.ModelProto``.
    """
    onnx = needed('onnx', 'export to ONNX and OpenVINO')
    stream = io.BytesIO()
    pictures = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = graph.outputs
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # tracing warns of every assertion on a shape
        torch.onnx.export(graph.eval(), (pictures,), stream,  # type: ignore[arg-type]  # takes a stream, too
                          dynamo=False, opset_version=OPSET, input_names=[INPUT],
                          output_names=list(names), dynamic_axes={name: _AXES[name] for name in (INPUT, *names)})
    model = onnx.load_from_string(stream.getvalue())
    for each in [each for each in model.graph.output if each.name in MAPS]:
        model.graph.output.remove(each)
    if description is not None:
        onnx.helper.set_model_props(model, {KEY: description.to_text()})
    return model


def openvino_model(onnx_proto: Any) -> Any:
    """OpenVINO's model of an ONNX one; names of tensors stay."""
    library = needed('openvino', 'export to OpenVINO')
    return library.convert_model(io.BytesIO(onnx_proto.SerializeToString()))


def save_openvino(model: Any, description: Description, path: Path) -> None:
    """Write ``path`` and the ``.bin`` beside it, weights in half precision for fp16."""
    library = needed('openvino', 'export to OpenVINO')
    model.set_rt_info(description.to_text(), [KEY])
    library.save_model(model, str(path), compress_to_fp16=description.precision == 'fp16')


def maps_runner(path: Path, precision: str) -> Any:
    """What gives the raw maps, coarse to fine, of an exported file for pictures (B, 3, H, W) uint8 in RGB."""
    if path.suffix == '.onnx':
        onnx, runtime = needed('onnx', 'parity'), needed('onnxruntime', 'parity')
        model = onnx.load(str(path))
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in MAPS)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
        return lambda images: session.run(list(MAPS), {INPUT: images})
    from mgdet_plugin.deploy.backends.graph_backend import openvino_run
    core = needed('openvino', 'parity').Core()
    model = core.read_model(str(path))
    model.add_outputs(list(MAPS))
    run = openvino_run(core, model, precision)
    return lambda images: run(images)[-len(MAPS):]
