"""Take a picture of a page with Chromium.

    python tests/support/shoot_page.py PAGE.html OUT.png [--dark] [--size 1280,3200]

Chromium comes with ``apt-get install --no-install-recommends chromium``; nothing else of the project needs it.
Its window is some 90 pixels lower than the picture, whose lowest edge stays empty: ask for more than the page needs.
"""
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
OPTIONS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars',
           '--force-color-profile=srgb', '--virtual-time-budget=5000')
DARK = '--blink-settings=preferredColorScheme=0'


def main() -> int:
    """Shoot the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('page', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--dark', action='store_true', help='as a reader sees it who prefers dark pages')
    parser.add_argument('--size', default='1280,3200', help='width and height in pixels')
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f'error: none of {", ".join(BROWSERS)} is installed; see --help', file=sys.stderr)
        return 2
    with TemporaryDirectory() as profile:
        done = subprocess.run(
            [browser, *OPTIONS, *([DARK] if args.dark else []), f'--user-data-dir={profile}',
             f'--window-size={args.size}', f'--screenshot={args.out.resolve()}', args.page.resolve().as_uri()],
            capture_output=True, text=True, check=False, timeout=120)
    if done.returncode or not args.out.is_file():
        print(f'error: no picture was taken: {done.stderr.strip()[-500:]}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
