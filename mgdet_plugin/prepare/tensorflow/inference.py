"""What a person does with settings that are measured or looked at, in place of a plan."""
from __future__ import annotations

from pathlib import Path

from mgdet_plugin.common.literals import assigned
from mgdet_plugin.common.resources import command
from mgdet_plugin.prepare.recipe import Recipe


def inference_lines(recipe: Recipe) -> list[str]:
    """The lines of a config that detect so."""
    size = '' if recipe.size is None else f', and {recipe.size.value} for the scale of Letterbox in its test_pipeline'
    return [f'an inference file needs no config of its own; in that of your weights{size}:',
            *assigned('model', dict(recipe.model)),
            'from Python: DetInferencer(model=CFG, weights=CKPT)(PATH, out_dir=D)',
            f'a sheet of pictures: {command("draw", "CFG", "CKPT", "SHEET.png")}']


def measuring_lines(config: Path) -> list[str]:
    """The command that measures."""
    folder = config.with_name(f'{config.stem}_data')
    weights = next(iter(sorted(folder.glob('*.pth'))), 'CKPT')
    return [f'config: {config}', f'next: {command("test", config, weights)}']
