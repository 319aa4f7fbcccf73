"""Weights written as a file that runs without their config, and held against them before it stands."""
from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mgdet_plugin.common.errors import is_number, require
from mgdet_plugin.common.files import check_destination, folder_beside, full_disk_told, write_together

if TYPE_CHECKING:  # what is wrong with arguments is told without importing torch and mmdet
    import numpy as np

    from mgdet_plugin.datasets.sources.annotated import Picture
    from mgdet_plugin.deploy.backends.torch_backend import TorchBackend, Weights
    from mgdet_plugin.deploy.description import Description
    from mgdet_plugin.deploy.export.parity import Parity
    from mgdet_plugin.deploy.predictor import Predictor

SUFFIXES = dict(onnx='.onnx', openvino='.xml', torch='.pth')
PRECISIONS = dict(onnx=('fp32', ), openvino=('fp32', 'fp16', 'bf16', 'int8'), torch=('fp32', 'bf16'))


def export_model(weights: str | Path, out: str | Path, config: str | Path | None = None, form: str | None = None,
                 precision: str = 'fp32', nms: bool = False, max_drop: float = 0.01,
                 pictures: str | Path | None = None, count: int = 200, images: str | Path | None = None,
                 say: Callable[[str], object] = partial(print, file=sys.stderr)) -> Parity:
    """Write weights as ONNX, OpenVINO or torch, batch normalisation folded, and measure what was written.

    Args:
        weights: A checkpoint or a Keras file of a MultiGridDet.
        out: File to write: ``.onnx``; ``.xml``, with ``.bin`` beside it; or ``.pth``.
        config: As in :func:`~mgdet_plugin.deploy.predictor.detect`.
        form: 'onnx', 'openvino' or 'torch'. Default: by the file's suffix.
        precision: 'fp32'; of OpenVINO also 'fp16' (weights stored in half), 'bf16' (computed so where the processor
            can) and 'int8' (layers that cost too much AP left in floating point); of torch also 'bf16'.
        nms: Suppression of duplicates in the graph, of ONNX and OpenVINO.
        max_drop: The most mean AP it may cost.
        pictures: Annotated pictures to measure on, in any format ``init`` reads. Default: the config's validation set.
        count: The most pictures.
        images: Folder of the pictures, where it is not that of ``pictures``.
        say: Takes lines about what is being done.

    Returns:
        What was measured.

    Raises:
        UserError: Anything is missing or does not fit, or the file is further from the weights than its bound; nothing
            is written.
    """
    weights, out = str(weights), Path(out)
    form = form or next((each for each, suffix in SUFFIXES.items() if suffix == out.suffix), 'onnx')
    check_options(weights, out, form, precision, nms, max_drop)
    from mgdet_plugin.deploy.backends.torch_backend import TorchBackend, read_model
    from mgdet_plugin.deploy.export.labelled import labelled_pictures
    from mgdet_plugin.deploy.export.parity import compare
    from mgdet_plugin.deploy.predictor import Predictor, detect
    found = read_model(weights, config)
    require(found.precision is None, f'{weights} is an export already; give the weights it was made of',
            found.precision)
    backend = TorchBackend(found, weights, 'cpu')
    description = describe(found, backend, nms, precision)
    reference = Predictor(backend)
    labelled = labelled_pictures(found.cfg, reference.classes, pictures, count, images)
    with folder_beside(out) as folder:
        made = folder / out.name
        with full_disk_told(out):
            write(found, backend, description, form, made, labelled, reference, max_drop, say)
        files = sorted(folder.iterdir())  # .bin before .xml
        size = sum(each.stat().st_size for each in files)
        say(f'measuring on {len(labelled)} pictures')
        parity = compare(reference, detect(made, device=None if form != 'torch' else 'cpu'), labelled,
                         (torch_maps(backend), file_maps(made, precision)), (Path(weights).stat().st_size, size))
        say(parity.table(max_drop))
        parity.check(precision, max_drop)
        write_together({out.with_name(each.name): partial(_copy, each) for each in files})
    return parity


def check_options(weights: str, out: Path, form: str, precision: str, nms: bool, max_drop: float) -> None:
    """Refuse what cannot be exported, before any work.

    Raises:
        UserError: With what can.
    """
    from mgdet_plugin.deploy.extra import needed
    require(form in SUFFIXES, f'--format must be one of {", ".join(SUFFIXES)}', form)
    require(precision in PRECISIONS[form],
            f'--precision of {form} must be one of {", ".join(PRECISIONS[form])}', precision)
    require(out.suffix == SUFFIXES[form], f'the file to write in the format {form} must end in {SUFFIXES[form]}',
            str(out))
    require(is_number(max_drop) and 0 <= max_drop <= 1, '--max-drop must be a number from 0 to 1', max_drop)
    require(not (nms and form == 'torch'), '--nms is for onnx and openvino; torch suppresses anyway', nms)
    check_destination(out, Path(weights))
    for library in dict(onnx=('onnx', 'onnxruntime'), openvino=('onnx', 'openvino'), torch=())[form]:
        needed(library, f'--format {form}')
    if precision == 'int8':
        needed('nncf', '--precision int8')


def describe(found: Weights, backend: TorchBackend, nms: bool, precision: str) -> Description:
    """What the file will say of itself.

    Raises:
        UserError: Pictures are not prepared by a letterbox alone.
    """
    from mgdet_plugin import __version__
    from mgdet_plugin.datasets.formats.annotation_check import config_name
    from mgdet_plugin.deploy.backends.torch_backend import pipeline_of
    from mgdet_plugin.deploy.description import Description
    steps = pipeline_of(found.cfg)
    kinds = [step['type'] for step in steps if step['type'] not in ('LoadAnnotations', 'DropDegenerateBoxes')]
    require(kinds == ['LoadImageFromFile', 'Letterbox', 'PackDetInputs'],
            f'{config_name(found.cfg)}: a model is exported whose test pipeline loads, letterboxes and packs pictures '
            'and does nothing else to them', kinds)
    loader, letterbox = (next(step for step in steps if step['type'] == kind) for kind in kinds[:2])
    decoder = {key: value for key, value in loader.items() if key in ('imdecode_backend', 'color_type')}
    require(not decoder, 'pictures must be decoded by default as in our configs', decoder)
    settings = _plain(dict(backend.model.bbox_head.test_cfg))  # type: ignore[union-attr]
    return Description(found.metainfo['classes'], [tuple(each) for each in backend.palette],  # type: ignore[misc]
                       backend.input_size, letterbox.get('pad_val', 128), settings, nms, precision, __version__)


def write(found: Weights, backend: TorchBackend, description: Description, form: str, path: Path,
          labelled: Sequence[Picture], reference: Predictor, max_drop: float, say: Callable[[str], object]) -> None:
    """Write the file, or the two of OpenVINO."""
    if form == 'torch':
        write_torch(found, description, path)
        return
    from mgdet_plugin.deploy.export.formats import onnx_model, openvino_model, save_openvino
    from mgdet_plugin.deploy.export.graph import DetectorGraph
    graph = DetectorGraph(backend.model, description.nms, with_maps=True)
    proto = onnx_model(graph, description.input_size, description)
    if form == 'onnx':
        path.write_bytes(proto.SerializeToString())
        return
    model = openvino_model(proto)
    if description.precision == 'int8':
        from mgdet_plugin.deploy.export.quantisation import quantised_model
        model = quantised_model(model, description, labelled, reference, max_drop, say)
    save_openvino(model, description, path)


def write_torch(found: Weights, description: Description, path: Path) -> None:
    """Write a checkpoint of the folded network, its config and description in it."""
    import torch
    from mmengine.config import Config

    from mgdet_plugin.deploy.backends.fast import folded
    from mgdet_plugin.deploy.backends.torch_backend import build_model, pipeline_of
    from mgdet_plugin.deploy.description import KEY
    model = build_model(found, str(path))
    folded(model)
    dtype = torch.bfloat16 if description.precision == 'bf16' else torch.float32
    named = dict(classes=description.classes, palette=description.palette)
    dataset = dict(metainfo=named, pipeline=pipeline_of(found.cfg))
    cfg = Config(dict(model=found.cfg.model, test_dataloader=dict(dataset=dataset)))
    meta = dict(cfg=cfg.pretty_text, dataset_meta=named)
    torch.save(dict(state_dict={key: value.to(dtype) for key, value in model.state_dict().items()},
                    meta={**meta, KEY: description.to_text()}), path)


def torch_maps(backend: Any) -> Callable[[np.ndarray], list[np.ndarray]]:
    """What gives the raw maps of a detector in torch for pictures (B, 3, H, W) uint8 in RGB."""
    import torch

    def maps(images: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            given = backend.model.data_preprocessor(dict(inputs=list(torch.from_numpy(images).flip(1))))['inputs']
            found = backend.model.bbox_head(backend.model.extract_feat(given))
        return [each.float().numpy() for each in found]

    return maps


def file_maps(path: Path, precision: str) -> Callable[[np.ndarray], Sequence[np.ndarray]]:
    """What gives the raw maps of an exported file."""
    if path.suffix == SUFFIXES['torch']:
        from mgdet_plugin.deploy.backends.torch_backend import load_torch
        return torch_maps(load_torch(str(path), device='cpu'))
    from mgdet_plugin.deploy.export.formats import maps_runner
    runner: Callable[[np.ndarray], Sequence[np.ndarray]] = maps_runner(path, precision)
    return runner


def _plain(value: Any) -> Any:
    """Nested plain containers of mmengine's."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _copy(source: Path, stream: BinaryIO) -> None:
    with source.open('rb') as opened:
        shutil.copyfileobj(opened, stream)
