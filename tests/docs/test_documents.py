"""What the documents point to is there: links, their anchors, tests named as proof, settings, metrics, targets of make.

And what is there is in them: each service's README says where each of its modules belongs.
"""

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


# Those of the reference follow from the code.
WRITTEN = [page for page in PAGES if page.parent != ROOT / "docs/reference"]
CODE = [
    path
    for folder in ("services", "gateway", "deploy", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml", ".lua"}
]
SETTINGS = re.compile(r"\bTOLLKEEPER_[A-Z_]+[A-Z]\b")
METRICS = re.compile(r"`(tollkeeper_[a-z_]+[a-z])\b")
TARGETS = re.compile(r"`make ([a-z]+(?:-[a-z]+)?)(?=[ `])")


def reference(name):
    return (ROOT / "docs/reference" / name).read_text()


def test_every_setting_that_is_named_can_be_set():
    """By a service, or by the local suite, the tests or the gateway, whose code then says so."""
    known = set(re.findall(r"`TOLLKEEPER_(?:<SERVICE>|[A-Z]+)_(\w+)`", reference("settings.md")))
    elsewhere = {name for path in CODE for name in SETTINGS.findall(path.read_text())}
    named = {(page.name, name) for page in WRITTEN for name in SETTINGS.findall(page.read_text())}
    services = "LEDGER|PRICING|SUBSCRIPTIONS|PROXY|ECHO"

    def settable(name):
        own = re.sub(rf"^TOLLKEEPER_(?:(?:{services})_)?", "", name)
        # Kit's README makes a service of its own, `echo`, which may `repeat`.
        return own in known | {"REPEAT", "X"} or name in elsewhere

    assert {(page, name) for page, name in named if not settable(name)} == set()


def test_every_metric_that_is_named_is_served():
    served = set(re.findall(r"`(tollkeeper_\w+)", reference("metrics.md")))
    named = {(page.name, name) for page in WRITTEN for name in METRICS.findall(page.read_text())}
    assert {(page, name) for page, name in named if name not in served and f"{name}_total" not in served} == set()


def test_every_target_of_make_that_is_named_is_there():
    targets = re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    there = re.compile("|".join(target.replace("%", "[a-z]+") for target in targets))
    named = {(page.name, name) for page in PAGES for name in TARGETS.findall(page.read_text())}
    assert {(page, name) for page, name in named if not there.fullmatch(name)} == set()


@pytest.mark.parametrize("service", ["kit", "ledger", "pricing", "proxy", "rating", "subscriptions"])
def test_every_module_of_a_service_has_its_place_in_the_readme(service):
    """By its name, or by that of its folder."""
    folder = ROOT / "services" / service
    readme = (folder / "README.md").read_text()
    modules = [path.relative_to(folder) for path in folder.rglob("*.py") if "migrations" not in path.parts]
    nowhere = {
        str(path)
        for path in modules
        if not path.stem.startswith("__")
        and not re.search(rf"`[^`]*\b{path.stem}\b[^`]*`", readme)
        and not any(f"`{parent}/`" in readme for parent in path.parents)
    }
    assert nowhere == set()
