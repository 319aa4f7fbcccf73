"""An exported graph, of ONNX or OpenVINO, as a predictor's backend."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.description import KEY, Description
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.preparation import Preparation
from mgdet_plugin.models.multigrid_head import TEST_CFG, MultiGridHead, in_picture

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Pictures (B, 3, H, W) uint8 in RGB -> what the graph gives."""
_CONFIGURED = 'CPU'  # of OpenVINO


class GraphBackend:
    """A graph that decodes, and may suppress; attributes as in :class:`.predictor.Backend`.

    Args:
        description: What its file says of it.
        run: Runs it.
        name: The file's path, for messages.
    """

    def __init__(self, description: Description, run: Run, name: str) -> None:
        init_default_scope('mmdet')
        self.classes, self.palette = description.classes, description.palette
        self.input_size = description.input_size
        self.settings = {**TEST_CFG, **description.test_cfg}
        try:
            MultiGridHead.nms_options(self.settings)
        except TypeError as error:
            raise UserError(f'{name}: its thresholds are damaged ({error}); export it again') from None
        self.score_thr = float(self.settings['score_thr'])
        height, width = description.input_size
        self.prepare = Preparation([
            dict(type='LoadImageFromFile'),
            dict(type='Letterbox', scale=(width, height), pad_val=description.pad_val),
            dict(type='PackDetInputs', meta_keys=('img_path', 'img_id', 'ori_shape', 'img_shape', 'scale_factor'))],
            name)
        self._run, self._name, self._nms = run, name, description.nms

    def lower(self, score_thr: float) -> None:
        """Give detections above this score, too.

        Raises:
            UserError: The graph itself leaves them out.
        """
        if self._nms:
            raise UserError(f'{self._name} leaves out scores below {self.score_thr} itself, and detections from '
                            f'{score_thr:g} are asked for, with --track half of what is given; give a higher score, or '
                            'export without --nms')
        self.settings['score_thr'] = score_thr

    def __call__(self, packed: list[dict[str, Any]]) -> list[DetDataSample]:
        """The samples with ``pred_instances``, boxes in pixels of the original picture."""
        images = torch.stack([each['inputs'] for each in packed]).flip(1).numpy()  # RGB
        given = [torch.from_numpy(each) for each in self._run(images)]
        samples = [each['data_samples'] for each in packed]
        metas = [sample.metainfo for sample in samples]
        if self._nms:
            found = [self._of_image(*fields) for fields in zip(*given, metas)]
        else:
            found = MultiGridHead.predict_decoded(tuple(given), metas, self.settings, rescale=True)  # type: ignore[arg-type]
        for sample, instances in zip(samples, found):
            sample.pred_instances = instances
        return samples

    def _of_image(self, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor,
                  meta: dict[str, Any]) -> InstanceData:
        there = scores > self.score_thr
        return InstanceData(bboxes=in_picture(boxes[there], meta, True), scores=scores[there],
                            labels=labels[there].long())


def load_onnx(path: str, device: str | None = None, threads: int | None = None) -> GraphBackend:
    """The backend of an ONNX file.

    Args:
        path: The file.
        device: 'cpu' or 'cuda'. Default: the GPU where onnxruntime can use one.
        threads: To compute with. Default: as many as there are cores.

    Raises:
        UserError: onnxruntime is missing, or it cannot run the file or use the device.
    """
    library = needed('onnxruntime', f'running {path}')
    there = library.get_available_providers()
    wanted = [f'{kind}ExecutionProvider' for kind in ([device.partition(':')[0].upper()] if device else
                                                      ['CUDA', 'CPU'])]
    providers = [each for each in wanted if each in there]
    if not providers:
        raise UserError(f"the device '{device}' cannot be used by onnxruntime, which has {', '.join(there)}; give cpu")
    options = library.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = library.InferenceSession(path, options, providers=providers)
    except Exception as error:  # of onnxruntime's own kinds, which have no common base
        raise UserError(f'{path} cannot be run by onnxruntime ({_first_line(error)}); export it again') from None
    description = Description.from_text(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    entry = session.get_inputs()[0].name
    return GraphBackend(description, lambda images: session.run(None, {entry: images}), path)


def load_openvino(path: str, device: str | None = None, threads: int | None = None) -> GraphBackend:
    """The backend of an OpenVINO file: ``.xml`` with its ``.bin`` beside it.

    Args:
        path: The ``.xml``.
        device: OpenVINO's name of it. Default: CPU.
        threads: To compute with. Default: OpenVINO's choice.

    Raises:
        UserError: OpenVINO is missing, or it cannot run the file or use the device.
    """
    library = needed('openvino', f'running {path}')
    if not Path(path).with_suffix('.bin').is_file():
        raise UserError(f'{path} has no {Path(path).with_suffix(".bin").name} beside it, which holds its weights; an '
                        'OpenVINO model is both files')
    if not Path(path).read_bytes()[:64].lstrip().startswith(b'<?xml'):  # or OpenVINO tries every format, loudly
        raise UserError(f'{path} cannot be run by OpenVINO (it does not begin as XML); export it again')
    core = library.Core()
    device = (device or _CONFIGURED).upper()
    if device.partition('.')[0] not in core.available_devices:
        raise UserError(f"the device '{device}' cannot be used by OpenVINO, which has "
                        f"{', '.join(core.available_devices)}")
    try:
        model = core.read_model(path)
        text = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None
        description = Description.from_text(text, path)
        run = openvino_run(core, model, description.precision, device, threads)
    except RuntimeError as error:
        raise UserError(f'{path} cannot be run by OpenVINO ({_first_line(error)}); export it again') from None
    return GraphBackend(description, run, path)


def openvino_run(core: Any, model: Any, precision: str, device: str = _CONFIGURED, threads: int | None = None) -> Run:
    """What runs a model of OpenVINO.

    Args:
        core: OpenVINO's core.
        model: The model.
        precision: That of its export: bf16 and int8 compute in bfloat16 what is no integer, where the processor can.
        device: OpenVINO's name of it.
        threads: To compute with. Default: OpenVINO's choice.
    """
    # Without a hint OpenVINO itself takes bfloat16 where there is some.
    has_bf16 = 'BF16' in core.get_property(device, 'OPTIMIZATION_CAPABILITIES')
    hints: dict[str, Any] = dict(INFERENCE_PRECISION_HINT='bf16' if precision in ('bf16', 'int8') and has_bf16 else
                                 'f32')
    if threads is not None and device == _CONFIGURED:
        hints['INFERENCE_NUM_THREADS'] = threads
    request = core.compile_model(model, device, hints).create_infer_request()

    def run(images: np.ndarray) -> list[np.ndarray]:
        request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return [np.array(tensor.data) for tensor in request.output_tensors]

    return run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
