"""What holds for the images, as far as can be seen without building them: what goes in, and what does not."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import deploy_manifests as manifests
import pytest
from deploy_manifests import REPOSITORY, SERVICES, containers, of_kind, pod, rendered

from deploy.images import requirements

IMAGES = (*SERVICES, "gateway")
each = pytest.mark.parametrize("image", IMAGES)
each_service = pytest.mark.parametrize("service", SERVICES)


def dockerfile(image: str) -> Path:
    return REPOSITORY / ("gateway" if image == "gateway" else f"services/{image}") / "Dockerfile"


def instructions(image: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", dockerfile(image).read_text()))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def final_stage(image: str) -> list[tuple[str, str]]:
    found = instructions(image)
    last = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[last:]


def copied(image: str) -> list[str]:
    """What comes out of the repository."""
    return [rest.split()[0] for word, rest in instructions(image) if word == "COPY" and not rest.startswith("--from")]


def packages(image: str) -> set[str]:
    text = (requirements.FOLDER / f"{image}.txt").read_text()
    return set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))


@each
def test_dockerfiles_have_nothing_a_linter_complains_of(image):
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, dockerfile(image)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@each
def test_base_images_are_pinned_and_the_last_stage_builds_nothing(image):
    bases = {rest.split()[0] for word, rest in instructions(image) if word == "FROM"}
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    commands = " ".join(rest for word, rest in final_stage(image) if word == "RUN")
    assert not re.search(r"pip install|apt|gcc|curl|wget", commands)
    assert "pip uninstall" in commands
    assert all(rest.startswith("--from=build") for word, rest in final_stage(image) if word == "COPY")


@each
def test_requirements_are_installed_by_hash(image):
    commands = " ".join(rest for word, rest in instructions(image) if word == "RUN")
    assert "--require-hashes" in commands
    assert f"deploy/images/{image}.txt" in copied(image)
    text = (requirements.FOLDER / f"{image}.txt").read_text()
    pins = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)


@each
def test_requirements_are_those_of_the_lock(image):
    assert (requirements.FOLDER / f"{image}.txt").read_text() == requirements.render(image), "run `make images`"


def test_what_a_lock_does_not_hold_is_named(monkeypatch):
    monkeypatch.setattr(requirements, "_roots", lambda _: {"grpcio", "no-such-package"})
    with pytest.raises(requirements.LockError, match="no-such-package"):
        requirements.render("ledger")


@each
def test_images_run_as_a_user_of_no_rights(image):
    users = [rest for word, rest in final_stage(image) if word == "USER"]
    assert users == ["10001:10001"]


@each
def test_no_image_has_the_local_suite_or_tests_in_it(image):
    for path in copied(image):
        assert not path.startswith(("tests", "deploy/local", "docs")), path
        assert path not in {".", "deploy", "services"}
        assert (REPOSITORY / path).exists(), path
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    # All is left out, then the few are let in; what lies beside them in the same folder stays out.
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == {"deploy", "deploy/images", "gateway", "protos", "protos/gen", "services"}
    assert rules.index("deploy/*") == rules.index("!deploy") + 1
    assert rules.index("!deploy/images") == rules.index("deploy/*") + 1


@each_service
def test_a_service_s_image_holds_what_it_imports(service):
    distributions = importlib.metadata.packages_distributions()
    held = packages(service)
    folders = [path for path in copied(service) if path.startswith("services/") and not path.endswith(".py")]
    for folder in folders:
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            for module in imported(file):
                top = module.partition(".")[0]
                if top == "services":
                    package = "/".join(module.split(".")[:2])
                    assert package in {*folders, "services"}, f"{file.name}: {module}"
                elif top not in sys.stdlib_module_names and top != "tollkeeper":
                    names = {re.sub(r"[-_.]+", "-", name).lower() for name in distributions[top]}
                    assert names & held, f"{file.name}: {module}"


def imported(file: Path) -> set[str]:
    """The modules that a file imports, at once or later, but for those it can do without."""
    found = set()
    nodes = list(ast.walk(ast.parse(file.read_text())))
    optional = {
        below
        for node in nodes
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in node.handlers if h.type)
        for statement in node.body
        for below in ast.walk(statement)
    }
    for node in nodes:
        if node in optional:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@each_service
def test_a_service_s_image_holds_nothing_of_other_services(service):
    assert {path for path in copied(service) if path.startswith("services/")} <= {
        "services/__init__.py",
        "services/kit",
        "services/rating",
        f"services/{service}",
    }


@each_service
def test_a_service_s_image_serves_where_the_manifests_say(service):
    stage = dict(reversed([(word, rest) for word, rest in final_stage(service)]))
    assert stage["ENTRYPOINT"] == f'["python", "-m", "services.{service}"]'
    assert stage["CMD"] == '["serve"]'
    deployment = of_kind(rendered(f"{service}/overlays/production"), "Deployment")[0]
    ports = {port["name"]: port["containerPort"] for port in containers(deployment)[0]["ports"]}
    assert stage["EXPOSE"] == str(ports["grpc"])
    assert f"TOLLKEEPER_{service.upper()}_LISTEN=0.0.0.0:{ports['grpc']}" in stage["ENV"]
    assert f"127.0.0.1:{ports['grpc']}" in stage["HEALTHCHECK"]


@pytest.mark.parametrize("overlay", manifests.OVERLAYS)
def test_every_image_that_is_deployed_has_a_dockerfile(overlay):
    for workload in of_kind(rendered(f"overlays/{overlay}"), *manifests.PODS):
        for container in [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]:
            repository = container["image"].rpartition(":")[0].rpartition("/")[2]
            if repository.startswith("tollkeeper-"):
                assert dockerfile(repository.removeprefix("tollkeeper-")).is_file()
            else:
                assert repository == "redis"
