"""Write docs/plans.md: what ``tools/plan.py`` prints for every config.

    python tests/support/write_plans.py
"""
from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.plan.report import plan_report, plan_text

ROOT = Path(__file__).resolve().parents[2]
INTRO = """# The plans of all configs

What `python tools/plan.py CFG` prints, without training. A rate is given as first -> highest -> last.
"""


def plans() -> str:
    """The whole page."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        names = sorted(str(path) for path in Path('configs').glob('*.py'))
        blocks = [f'## {Path(name).stem}\n\n```\n{plan_text(plan_report(Config.fromfile(name))[0])}\n```\n'
                  for name in names]
    finally:
        os.chdir(before)
    return '\n'.join([INTRO, *blocks])


if __name__ == '__main__':
    (ROOT / 'docs' / 'plans.md').write_text(plans())
