"""What a suite consists of, as the environment says; nothing is started."""

import json

import pytest

from deploy.local import suite
from deploy.local.home import Home


@pytest.fixture
def made(tmp_path):
    """Makes the suite of an environment."""

    def make(**environ):
        return suite.Suite(Home(tmp_path / "a home"), environ, print)

    return make


def parts_of(local):
    return {part.name: part for part in local.parts()}


def test_each_worker_runs_beside_its_server_which_leaves_the_jobs_to_it(made):
    local = made()
    parts = parts_of(local)
    assert {"ledger-worker", "subscriptions-worker"} <= set(parts)
    assert local.settings("subscriptions")["TOLLKEEPER_SUBSCRIPTIONS_DELIVER_IN_SERVE"] == "false"
    assert set(parts) <= {name for each in suite.ORDER for name in ([each] if isinstance(each, str) else each)}


def test_proxy_runs_as_often_as_it_has_replicas_each_at_a_port_of_its_own(made):
    local = made(TOLLKEEPER_PROXY_REPLICAS="3")
    parts = parts_of(local)
    replicas = [parts[name] for name in ("proxy", "proxy-2", "proxy-3")]
    assert "proxy-4" not in parts
    listens = [replica.program.env["TOLLKEEPER_PROXY_LISTEN"] for replica in replicas]
    assert listens == [f"127.0.0.1:{replica.port}" for replica in replicas]
    metrics = {replica.program.env["TOLLKEEPER_PROXY_METRICS_LISTEN"] for replica in replicas}
    assert len({*listens, *metrics}) == 6
    # Each knows how many they are, and Envoy knows all of them.
    assert {replica.program.env["TOLLKEEPER_PROXY_REPLICAS"] for replica in replicas} == {"3"}
    assert [f"127.0.0.1:{port}" for port in ports_of_cluster(parts["envoy"].configuration, "proxy")] == listens
    assert len(ports_of_cluster(parts["envoy"].configuration, "ledger")) == 1


def ports_of_cluster(configuration, name):
    clusters = json.loads(configuration)["static_resources"]["clusters"]
    (found,) = [cluster for cluster in clusters if cluster["name"] == name]
    endpoints = [each for locality in found["load_assignment"]["endpoints"] for each in locality["lb_endpoints"]]
    return [each["endpoint"]["address"]["socket_address"]["port_value"] for each in endpoints]


@pytest.mark.parametrize("replicas", ["0", "9", "two", "-1"])
def test_wrong_number_of_replicas_is_refused_by_name(made, replicas):
    with pytest.raises(suite.SettingError, match="TOLLKEEPER_PROXY_REPLICAS"):
        made(TOLLKEEPER_PROXY_REPLICAS=replicas).parts()


def test_a_services_own_command_has_the_suites_settings(made):
    local = made(TOLLKEEPER_LEDGER_ADDR="elsewhere:1")
    program = local.service_program("subscriptions", "reconcile", "--days", "3")
    assert program.argv[1:] == ("-m", "services.subscriptions", "reconcile", "--days", "3")
    assert program.env["TOLLKEEPER_LEDGER_ADDR"] == f"127.0.0.1:{local.port('ledger')}"
    assert program.env["TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_BASE"] == local.stripe.url


@pytest.mark.parametrize("port", ["0", "65536", "abc", "-1", "80 80"])
def test_wrong_gateway_port_is_refused_by_name(made, port):
    with pytest.raises(suite.SettingError, match="TOLLKEEPER_GATEWAY_PORT"):
        made(TOLLKEEPER_GATEWAY_PORT=port)


def test_real_stripe_takes_the_sandboxs_place_and_is_not_set_up_unasked(made):
    local = made(STRIPE_SECRET_KEY="sk_test_real", STRIPE_WEBHOOK_SECRET="whsec_real")
    assert local.stripe.url == ""
    assert "sandbox-stripe" not in parts_of(local)
    told = local.settings("subscriptions")
    assert told["TOLLKEEPER_SUBSCRIPTIONS_STRIPE_API_KEY"] == "sk_test_real"
    assert told["TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS"] == "whsec_real"
    assert local.stripe_jobs() == []


def test_sandbox_stripe_is_set_up_and_tells_the_gateway(made):
    local = made()
    stripe = parts_of(local)["sandbox-stripe"].program.argv
    assert stripe[stripe.index("--webhook-url") + 1] == f"{local.url}/webhook/stripe"
    secret = local.settings("subscriptions")["TOLLKEEPER_SUBSCRIPTIONS_STRIPE_WEBHOOK_SECRETS"]
    assert stripe[stripe.index("--webhook-secret") + 1] == secret == local.stripe.webhook_secret
    assert [job.program.argv[-1] for job in local.stripe_jobs()] == ["setup-stripe"]
