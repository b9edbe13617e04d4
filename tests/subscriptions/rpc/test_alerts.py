"""Endpoints for alerts, the list of what was raised, and sending it again: who may do what, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.kit.identity import Role
from services.subscriptions.alerts import store
from services.subscriptions.alerts.model import Alert

URL = "https://hooks.example.com/alerts"


@pytest.fixture
def accounts(operator):
    for account_id in ("acme", "beta"):
        operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id=account_id))


@pytest.fixture
def acme(accounts, operator, connect):
    return connect(operator.address, Role.ACCOUNT, "acme")


@pytest.fixture
def beta(accounts, operator, connect):
    return connect(operator.address, Role.ACCOUNT, "beta")


def add(caller, url=URL, *, account_id="", types=()):
    request = pb.CreateAlertEndpointRequest(account_id=account_id, url=url, types=types)
    return caller(caller.alerts.CreateAlertEndpoint, request)


def endpoints(caller, account_id=""):
    request = pb.ListAlertEndpointsRequest(account_id=account_id)
    return list(caller(caller.alerts.ListAlertEndpoints, request).endpoints)


def delete(caller, endpoint_id, account_id=""):
    request = pb.DeleteAlertEndpointRequest(account_id=account_id, endpoint_id=endpoint_id)
    caller(caller.alerts.DeleteAlertEndpoint, request)


def raise_alert(database, account_id="acme", key="k", type_="limit_80", **fields):
    with database.engine.begin() as connection:
        return store.raise_alert(connection, Alert(account_id, type_, key, f"words of {key}", **fields))


def alerts(caller, account_id="", **paging):
    return caller(caller.alerts.ListAlerts, pb.ListAlertsRequest(account_id=account_id, **paging))


def waiting(database):
    """(account, endpoint) of what is to be sent."""
    return database.rows(
        "SELECT alerts.account_id, endpoint_id FROM alert_deliveries JOIN alerts USING (alert_id)"
        " WHERE status = 'pending' ORDER BY 1, 2"
    )


def test_endpoint_is_made_with_a_secret_that_is_shown_this_once(acme):
    made = add(acme, types=["limit_100", "limit_80", "limit_100"])
    assert made.signing_secret.startswith("whsec_")
    assert (made.account_id, made.url, list(made.types)) == ("acme", URL, ["limit_100", "limit_80"])
    (listed,) = endpoints(acme)
    assert listed.signing_secret == ""
    made.signing_secret = ""
    assert listed == made


def test_endpoints_are_listed_by_creation_and_a_deleted_one_is_not(acme):
    made = [add(acme, f"{URL}/{number}").endpoint_id for number in range(3)]
    assert [endpoint.endpoint_id for endpoint in endpoints(acme)] == made
    delete(acme, made[1])
    assert [endpoint.endpoint_id for endpoint in endpoints(acme)] == [made[0], made[2]]
    request = pb.DeleteAlertEndpointRequest(endpoint_id=made[1])
    assert acme.refused(acme.alerts.DeleteAlertEndpoint, request).reason == "ENDPOINT_NOT_FOUND"


def test_another_accounts_endpoint_is_neither_listed_nor_deleted(acme, beta):
    made = add(acme).endpoint_id
    assert endpoints(beta) == []
    request = pb.ListAlertEndpointsRequest(account_id="acme")
    assert beta.refused(beta.alerts.ListAlertEndpoints, request).reason == "ACCOUNT_MISMATCH"
    request = pb.DeleteAlertEndpointRequest(endpoint_id=made)
    assert beta.refused(beta.alerts.DeleteAlertEndpoint, request).reason == "ENDPOINT_NOT_FOUND"
    request = pb.DeleteAlertEndpointRequest(account_id="acme", endpoint_id=made)
    assert beta.refused(beta.alerts.DeleteAlertEndpoint, request).reason == "ACCOUNT_MISMATCH"
    assert [endpoint.endpoint_id for endpoint in endpoints(acme)] == [made]


def test_customer_can_neither_make_nor_see_nor_delete_an_endpoint_for_all_accounts(acme, operator):
    made = add(operator, account_id="*").endpoint_id
    refusals = [
        acme.refused(acme.alerts.CreateAlertEndpoint, pb.CreateAlertEndpointRequest(account_id="*", url=URL)),
        acme.refused(acme.alerts.ListAlertEndpoints, pb.ListAlertEndpointsRequest(account_id="*")),
        acme.refused(acme.alerts.DeleteAlertEndpoint, pb.DeleteAlertEndpointRequest(account_id="*", endpoint_id=made)),
    ]
    assert [refusal.reason for refusal in refusals] == ["ACCOUNT_MISMATCH"] * 3
    own = pb.DeleteAlertEndpointRequest(endpoint_id=made)
    assert acme.refused(acme.alerts.DeleteAlertEndpoint, own).reason == "ENDPOINT_NOT_FOUND"
    assert endpoints(acme) == []
    assert [endpoint.endpoint_id for endpoint in endpoints(operator, "*")] == [made]


def test_operator_names_whose_endpoint_it_is(operator, accounts):
    request = pb.CreateAlertEndpointRequest(url=URL)
    refusal = operator.refused(operator.alerts.CreateAlertEndpoint, request)
    assert [violation.field for violation in refusal.violations] == ["account_id"]
    request = pb.CreateAlertEndpointRequest(account_id="nobody", url=URL)
    assert operator.refused(operator.alerts.CreateAlertEndpoint, request).reason == "ACCOUNT_NOT_FOUND"
    assert add(operator, account_id="acme").account_id == "acme"


def test_operators_endpoint_gets_every_accounts_alerts_and_a_customers_only_its_own(acme, beta, operator, database):
    for_all = add(operator, account_id="*")
    assert for_all.account_id == ""
    of_acme, of_beta = add(acme), add(beta)
    raise_alert(database, "acme")
    raise_alert(database, "beta")
    expected = [("acme", of_acme), ("acme", for_all), ("beta", of_beta), ("beta", for_all)]
    assert waiting(database) == sorted((account_id, endpoint.endpoint_id) for account_id, endpoint in expected)


def test_endpoint_gets_the_types_it_names(acme, database):
    named = add(acme, types=["limit_100"]).endpoint_id
    raise_alert(database, type_="limit_80", key="eighty")
    assert waiting(database) == []
    raise_alert(database, type_="limit_100", key="hundred")
    assert waiting(database) == [("acme", named)]


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example.com", "http://hooks.example.com/", "ftp://hooks.example.com/", "https://",
        "https:///path", "https://user:password@hooks.example.com/", "https://user@hooks.example.com/",
        "https://hooks.example.com:0/", "https://hooks.example.com:99999/", "https://hooks.example.com:x/",
        "https://hooks.example.com/a b", "https://hooks.example.com/\n", "https://hooks.exämple.com/",
        "https://[::1", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://10.0.0.1:8443/x",
        "https://169.254.169.254/latest/meta-data", "https://localhost/", "https://a.localhost/", "https://localhost./",
        "https://hooks.example.com/" + "x" * 2000,
    ],
    ids=lambda url: url[:40] or "empty",
)  # fmt: skip
def test_bad_url_is_refused_by_field_and_nothing_is_written(acme, database, url):
    refusal = acme.refused(acme.alerts.CreateAlertEndpoint, pb.CreateAlertEndpointRequest(url=url))
    assert {violation.field for violation in refusal.violations} == {"url"}
    assert database.rows("SELECT count(*) FROM alert_endpoints") == [(0,)]


def test_bad_types_and_names_are_refused_by_field(acme, operator):
    request = pb.CreateAlertEndpointRequest(url=URL, types=["limit_80", "weather"])
    refusal = acme.refused(acme.alerts.CreateAlertEndpoint, request)
    assert [violation.field for violation in refusal.violations] == ["types[1]"]
    request = pb.CreateAlertEndpointRequest(url=URL, types=["limit_80"] * 6)
    assert acme.refused(acme.alerts.CreateAlertEndpoint, request).violations[0].field == "types"
    request = pb.DeleteAlertEndpointRequest(account_id="a\0b", endpoint_id="")
    refusal = operator.refused(operator.alerts.DeleteAlertEndpoint, request)
    assert {violation.field for violation in refusal.violations} == {"account_id", "endpoint_id"}
    request = pb.ListAlertEndpointsRequest(account_id="**")
    assert operator.refused(operator.alerts.ListAlertEndpoints, request).violations[0].field == "account_id"


def test_private_address_is_taken_where_the_machine_is_ones_own(served, connect):
    with served(alert_private_addresses=True) as address:
        caller = connect(address, Role.ADMIN)
        assert add(caller, "http://127.0.0.1:9/x", account_id="*").url == "http://127.0.0.1:9/x"


def test_account_has_at_most_ten_endpoints_even_where_many_are_made_at_once(acme, operator):
    with ThreadPoolExecutor(8) as pool:

        def one_more(number):
            try:
                return add(acme, f"{URL}/{number}").endpoint_id
            except Exception:  # noqa: BLE001 (refused: the count below says how many were)
                return None

        made = [found for found in pool.map(one_more, range(20)) if found]
    assert len(made) == len(endpoints(acme)) == 10
    refusal = acme.refused(acme.alerts.CreateAlertEndpoint, pb.CreateAlertEndpointRequest(url=URL))
    assert refusal.reason == "TOO_MANY_ENDPOINTS"
    assert add(operator, account_id="*"), "the operator's are counted by themselves"
    delete(acme, made[0])
    add(acme)


def test_alerts_are_listed_newest_first_page_by_page(acme, database):
    for number in range(7):
        raise_alert(database, key=f"k{number}")
    raise_alert(database, "beta", key="of another")
    found, token, pages = [], "", 0
    while True:
        page = alerts(acme, page_size=3, page_token=token)
        found += [alert.message for alert in page.alerts]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert found == [f"words of k{number}" for number in reversed(range(7))]
    assert pages == 3


def test_alerts_of_one_moment_are_on_one_page_each(acme, database):
    for number in range(5):
        raise_alert(database, key=f"k{number}")
    database.rows("UPDATE alerts SET created_at = '2026-11-21T12:00:00Z'")
    first = alerts(acme, page_size=2)
    second = alerts(acme, page_size=9, page_token=first.next_page_token)
    assert len({alert.alert_id for alert in [*first.alerts, *second.alerts]}) == 5


def test_alert_is_raised_once_and_never_below_one_that_was_raised(acme, database):
    assert raise_alert(database, key="w:80", outdone_by=("w:100",))
    assert not raise_alert(database, key="w:80", outdone_by=("w:100",))
    assert raise_alert(database, key="w:100")
    assert not raise_alert(database, key="w:50", outdone_by=("w:80", "w:100"))
    assert raise_alert(database, "beta", key="w:50", outdone_by=("w:80", "w:100"))


def test_customer_sees_its_own_alerts_alone(acme, beta, database):
    raise_alert(database, "acme")
    assert [alert.account_id for alert in alerts(acme).alerts] == ["acme"]
    assert list(alerts(beta).alerts) == []
    refusal = beta.refused(beta.alerts.ListAlerts, pb.ListAlertsRequest(account_id="acme"))
    assert refusal.reason == "ACCOUNT_MISMATCH"


def test_page_tokens_and_sizes_are_checked(acme, operator):
    assert acme.refused(acme.alerts.ListAlerts, pb.ListAlertsRequest(page_size=-1)).violations[0].field == "page_size"
    request = pb.ListAlertsRequest(page_token="of nobody")
    assert acme.refused(acme.alerts.ListAlerts, request).violations[0].field == "page_token"
    request = pb.ListAlertsRequest(account_id="*")
    assert operator.refused(operator.alerts.ListAlerts, request).violations[0].field == "account_id"


def test_alert_shows_how_far_its_delivery_has_come(acme, database):
    raise_alert(database, key="goes nowhere")
    assert [(alert.delivery_status, alert.attempts) for alert in alerts(acme).alerts] == [("delivered", 0)]
    add(acme, f"{URL}/1")
    add(acme, f"{URL}/2")
    raise_alert(database)
    (alert, _) = alerts(acme).alerts
    assert alert.delivery_status == "pending"
    assert abs(alert.next_attempt_at.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    of_first = "WHERE endpoint_id = (SELECT min(endpoint_id) FROM alert_deliveries)"
    database.rows(f"UPDATE alert_deliveries SET status = 'failed', attempts = 10 {of_first}")
    assert (alerts(acme).alerts[0].delivery_status, alerts(acme).alerts[0].attempts) == ("pending", 10)
    database.rows("UPDATE alert_deliveries SET status = 'delivered' WHERE status = 'pending'")
    assert alerts(acme).alerts[0].delivery_status == "failed"
    assert not alerts(acme).alerts[0].HasField("next_attempt_at")


def test_replay_sends_to_where_alerts_go_now(acme, operator, database):
    gone = add(acme, f"{URL}/gone").endpoint_id
    raise_alert(database)
    database.rows("UPDATE alert_deliveries SET status = 'delivered', attempts = 1")
    delete(acme, gone)
    stays = add(acme, f"{URL}/stays").endpoint_id
    alert_id = alerts(acme).alerts[0].alert_id
    replayed = operator(operator.alerts.ReplayAlert, pb.ReplayAlertRequest(alert_id=alert_id))
    assert (replayed.alert_id, replayed.delivery_status, replayed.attempts) == (alert_id, "pending", 0)
    assert waiting(database) == [("acme", stays)]


def test_deleted_endpoint_is_sent_nothing_more(acme, database):
    endpoint_id = add(acme).endpoint_id
    raise_alert(database)
    delete(acme, endpoint_id)
    assert waiting(database) == []
    assert alerts(acme).alerts[0].delivery_status == "failed"


def test_only_operators_replay(acme, operator):
    request = pb.ReplayAlertRequest(alert_id="alert-1")
    assert acme.refused(acme.alerts.ReplayAlert, request).reason == "ROLE_TOO_LOW"
    assert operator.refused(operator.alerts.ReplayAlert, request).reason == "ALERT_NOT_FOUND"
    refusal = operator.refused(operator.alerts.ReplayAlert, pb.ReplayAlertRequest())
    assert refusal.violations[0].field == "alert_id"


def test_alerts_need_a_credential(accounts, operator, connect):
    nobody = connect(operator.address, Role.PUBLIC)
    for method, request in (
        (nobody.alerts.ListAlerts, pb.ListAlertsRequest(account_id="acme")),
        (nobody.alerts.CreateAlertEndpoint, pb.CreateAlertEndpointRequest(account_id="acme", url=URL)),
        (nobody.alerts.ListAlertEndpoints, pb.ListAlertEndpointsRequest(account_id="acme")),
    ):
        assert nobody.refused(method, request).reason == "CREDENTIAL_MISSING"


def test_alerts_of_long_ago_are_deleted_once_their_deliveries_have_ended(acme, database):
    endpoint_id = add(acme).endpoint_id
    raise_alert(database, key="old, delivered")
    database.rows("UPDATE alert_deliveries SET status = 'delivered'")
    raise_alert(database, key="old, waiting")
    database.rows("UPDATE alerts SET created_at = now() - interval '91 days'")
    raise_alert(database, key="new")
    with database.engine.begin() as connection:
        assert store.delete_old(connection, older_than=timedelta(days=90), limit=100) == 1
    assert [alert.message for alert in alerts(acme).alerts] == ["words of new", "words of old, waiting"]
    assert waiting(database) == [("acme", endpoint_id)] * 2
