"""Owns the tests of what signals do, on real processes."""

import ctypes
import re
import signal
import sys
import time
from pathlib import Path

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest


@pytest.mark.parametrize(("kind", "number"), [("aio", signal.SIGTERM), ("async-factory", signal.SIGINT)])
def test_a_signal_lets_the_running_call_end_and_takes_no_new_one(start, bearer, kind, number):
    process = start("serve", KIT_KIND=kind)
    address = process.event("serving")["address"]
    with grpc.insecure_channel(address) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        running = stub.Account.future(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=20)
        process.event("waiting")
        process.signal(number)
        process.event("draining")
        with grpc.insecure_channel(address) as other, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            kit_echo_pb2_grpc.EchoServiceStub(other).Public(pb.PlainRequest(), timeout=5)
        assert running.result().text == "wait"
    assert process.status() == 0
    assert process.event("stop hook")["running"] == 0
    assert process.event("draining")["running"] == 1


def takes(task, number):
    """Whether a thread, given its folder in /proc, has not shut this signal out."""
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.MULTILINE)
    return not int(blocked, 16) >> number - 1 & 1


@pytest.mark.skipif(sys.platform != "linux", reason="a signal is given to one thread by Linux's tgkill")
def test_a_signal_is_seen_whichever_thread_it_reaches(start):
    process = start("serve", KIT_KIND="sync")
    process.event("serving")
    pid = process.popen.pid
    others = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
    other = next(int(task.name) for task in others if takes(task, signal.SIGTERM))
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert process.status() == 0


def test_a_second_signal_ends_the_process_at_once(start, bearer):
    process = start("serve", KIT_KIND="sync")
    with grpc.insecure_channel(process.event("serving")["address"]) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        running = stub.Account.future(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=20)
        process.event("waiting")
        process.signal()
        process.event("draining")
        process.signal()
        assert process.status(5) == -signal.SIGTERM
        assert running.exception(5) is not None


def test_a_thread_that_does_not_end_does_not_keep_the_process(start, bearer):
    process = start("serve", KIT_KIND="sync", TOLLKEEPER_GRACE_SECONDS="0.5")
    with grpc.insecure_channel(process.event("serving")["address"]) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        running = stub.Account.future(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=20)
        process.event("waiting")
        began = time.monotonic()
        process.signal()
        assert process.status(10) == 0
        assert time.monotonic() - began < 5
        assert running.exception(5) is not None
    assert process.event("calls outlasted the grace period and are cut off")["running"] == 1
    assert process.event("stop hook")


@pytest.mark.parametrize("kind", ["aio", "sync"])
def test_workers_are_asked_to_stop(start, kind):
    process = start("work", KIT_KIND=kind)
    process.event("working")
    process.signal()
    assert process.status() == 0
    assert process.event("worked")
