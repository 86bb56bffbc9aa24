"""The site builds without a warning, and a browser shows it: title, search, images."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tool_process import REPOSITORY

pytestmark = pytest.mark.nightly
CHROMIUM = next((path for name in ('chromium', 'google-chrome', 'chrome') if (path := shutil.which(name))), None)


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built pages; a warning, such as a link that leads nowhere, ends the build."""
    out = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', str(REPOSITORY / 'docs'), str(out)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return out


def test_every_page_is_in_the_site(site):
    for page in (REPOSITORY / 'docs').glob('*.md'):
        assert (site / f'{page.stem}.html').is_file()


def test_no_page_takes_the_place_of_the_search(site):
    assert 'searchtools.js' in (site / 'search.html').read_text()
    assert 'NSGA-II' in (site / 'ratios.html').read_text()


def test_every_local_link_and_image_leads_somewhere(site):
    broken = []
    for page in site.rglob('*.html'):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            target = html.unescape(target)
            if '://' not in target and not target.startswith(('data:', 'mailto:')):
                found = (page.parent / target).resolve()
                broken += [] if found.exists() else [f'{page.name}: {target}']
    assert broken == []


def test_the_reference_lists_public_names_only(site):
    names = set(re.findall(r'id="(mixaq_mmdet\.[\w.]+)"', (site / 'api.html').read_text()))
    assert {'mixaq_mmdet.api.quantize', 'mixaq_mmdet.api.convert', 'mixaq_mmdet.models.TwoBranchSwin'} <= names
    assert [name for name in names if re.search(r'\._', name)] == []


def test_the_tutorial_shows_what_it_printed_and_drew(site):
    page = (site / 'tutorial.html').read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert 'all high' in page


@pytest.mark.skipif(CHROMIUM is None, reason='needs chromium or chrome on PATH')
def test_a_browser_shows_the_first_page(site, tmp_path):
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking']
    command = [CHROMIUM, *flags, f'--user-data-dir={tmp_path}', '--virtual-time-budget=5000', '--dump-dom']
    page = subprocess.run([*command, (site / 'index.html').as_uri()], capture_output=True, text=True, timeout=120)
    assert re.search(r'<title>\s*mixaq_mmdet', page.stdout)
    assert 'class="sidebar-search"' in page.stdout
