"""Every link between the pages leads somewhere."""
import re

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, text_of


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading_that_are_there(page):
    for target in re.findall(r'\]\((?!https?:)([^)\s]+)\)', text_of(page)):
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f'{page.name}: {target}'
        assert not anchor or anchor in anchors(file), f'{page.name}: {target}; there are {sorted(anchors(file))}'
