"""What the documents point to is there: links, their anchors, and the tests that are named as proof."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "services", ROOT / "gateway", ROOT / "deploy", ROOT / "protos")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
WITHOUT_CODE = re.compile(r"```.*?```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TESTS = re.compile(r"\b(?:async )?def (test_\w+)")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", WITHOUT_CODE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(WITHOUT_CODE.sub("", page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs/operating").glob("*.md")), ids=lambda page: page.name)
def test_runbooks_act_on_production(page):
    """Without OVERLAY they would act on dev, at which nobody looks in an outage; kubectl is told the namespace too."""
    text = page.read_text()
    told = re.findall(r"make (?:deploy|scale|rollback)-[^`\n]+", text)
    assert [command for command in told if "OVERLAY=production" not in command] == []
    assert not re.findall(r"kubectl(?! (?:kustomize|-n tollkeeper\b))[^`\n]*", re.sub(r"`kubectl( \w+)?`", "", text))


def test_every_test_that_is_named_as_proof_exists():
    written = {name for path in (ROOT / "tests").rglob("test_*.py") for name in TESTS.findall(path.read_text())}
    named = {(page.name, name) for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert {(page, name) for page, name in named if name not in written} == set()
