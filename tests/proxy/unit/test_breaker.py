"""The circuit of a credential: when a call is let through."""

from hypothesis import given
from hypothesis import strategies as st

from services.proxy.upstream.breaker import Breaker, State

THRESHOLD, COOL_DOWN = 3, 10.0


def breaker():
    return Breaker(threshold=THRESHOLD, cool_down_seconds=COOL_DOWN)


def opened(now=0.0):
    circuit = breaker()
    for _ in range(THRESHOLD):
        assert circuit.admit(now)
        circuit.failed(now)
    return circuit


def test_failures_in_a_row_open_it_and_an_answer_between_them_starts_the_count_anew():
    circuit = breaker()
    for _ in range(THRESHOLD - 1):
        circuit.failed(1)
    circuit.answered(1)
    for _ in range(THRESHOLD - 1):
        circuit.failed(2)
    assert circuit.state(2) is State.CLOSED
    circuit.failed(2)
    assert circuit.state(2) is State.OPEN
    assert not circuit.admit(2)
    assert circuit.ready_in(2) == COOL_DOWN


def test_open_circuit_lets_nothing_through_until_its_cool_down_is_over():
    circuit = opened(5)
    assert not circuit.admit(5 + COOL_DOWN - 0.001)
    assert circuit.state(5 + COOL_DOWN) is State.HALF_OPEN
    assert circuit.admit(5 + COOL_DOWN)


def test_half_open_circuit_lets_one_probe_through():
    circuit = opened()
    assert circuit.admit(COOL_DOWN)
    assert not circuit.admit(COOL_DOWN)
    assert circuit.ready_in(COOL_DOWN + 1) == COOL_DOWN - 1
    circuit.answered(COOL_DOWN + 2)
    assert circuit.state(COOL_DOWN + 2) is State.CLOSED
    assert circuit.admit(COOL_DOWN + 2)
    assert circuit.admit(COOL_DOWN + 2)


def test_failed_probe_opens_it_for_another_cool_down():
    circuit = opened()
    assert circuit.admit(COOL_DOWN)
    circuit.failed(COOL_DOWN + 1)
    assert circuit.state(COOL_DOWN + 1) is State.OPEN
    assert circuit.ready_in(COOL_DOWN + 1) == COOL_DOWN


def test_probe_that_is_given_up_frees_its_place():
    circuit = opened()
    assert circuit.admit(COOL_DOWN)
    circuit.abandoned()
    assert circuit.admit(COOL_DOWN)


def test_probe_that_takes_long_does_not_keep_the_circuit_open_for_ever():
    circuit = opened()
    assert circuit.admit(COOL_DOWN)
    assert not circuit.admit(2 * COOL_DOWN - 0.001)
    assert circuit.admit(2 * COOL_DOWN)


def test_rest_that_was_asked_for_opens_it_at_once_and_ends_by_itself():
    circuit = breaker()
    circuit.rest(0, 4, probe_first=False)
    assert circuit.state(3.9) is State.OPEN
    assert circuit.ready_in(1) == 3
    circuit.answered(2)  # to a call sent before; the rest still holds
    assert circuit.state(3.9) is State.OPEN
    assert circuit.state(4) is State.CLOSED
    assert circuit.admit(4)
    assert circuit.admit(4)


def test_rest_of_a_refused_credential_ends_with_a_probe():
    circuit = breaker()
    circuit.rest(0, 60, probe_first=True)
    assert circuit.state(60) is State.HALF_OPEN
    assert circuit.admit(60)
    assert not circuit.admit(60)


def test_later_failure_never_shortens_a_rest():
    circuit = breaker()
    circuit.rest(0, 60, probe_first=False)
    for _ in range(THRESHOLD):
        circuit.failed(1)
    assert circuit.ready_in(1) == 59


STEPS = st.tuples(
    st.sampled_from(["admit", "answered", "failed", "rest", "probe", "abandoned"]),
    st.floats(min_value=0, max_value=15),
)


@given(st.lists(STEPS, max_size=60))
def test_it_admits_exactly_when_it_says_it_is_ready_and_always_becomes_ready(steps):
    circuit, now = breaker(), 0.0
    for step, seconds in steps:
        now += seconds
        ready_in = circuit.ready_in(now)
        assert ready_in >= 0
        assert circuit.state(now) is not State.CLOSED or ready_in == 0
        match step:
            case "admit":
                assert circuit.admit(now) == (ready_in == 0)
            case "answered":
                circuit.answered(now)
            case "failed":
                circuit.failed(now)
            case "abandoned":
                circuit.abandoned()
            case _:
                circuit.rest(now, seconds, probe_first=step == "probe")
    later = now + circuit.ready_in(now) + 1e-6
    assert circuit.admit(later)
