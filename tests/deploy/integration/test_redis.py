"""Redis' container, run as the manifest says, on this machine's Redis."""

import os

import redis
from deploy_manifests import of_kind, pod, rendered

from deploy.local import ports
from deploy.local.process import Program, running
from deploy.local.redis import binary


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def test_redis_takes_its_arguments_asks_for_the_password_and_keeps_nothing_on_disk(tmp_path):
    (deployment,) = of_kind(rendered("redis/overlays/production"), "Deployment")
    (container,) = pod(deployment)["containers"]
    assert container["command"] == ["redis-server"]
    port = ports.free_port()
    here = {"6379": str(port), "/tmp": str(tmp_path), "$(REDIS_PASSWORD)": "stand-in"}
    program = Program(
        name="redis",
        argv=(str(binary()), *(here.get(argument, argument) for argument in container["args"])),
        env={"PATH": os.defpath, "LC_ALL": "C"},
        cwd=tmp_path,
    )
    with (
        redis.Redis(port=port, password="stand-in", decode_responses=True) as client,
        running(program, tmp_path / "log", lambda: answers(client)),
    ):
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        limit = container["resources"]["limits"]["memory"]
        # Half of the container's: its clients' buffers and fragmentation take their part.
        assert int(client.config_get("maxmemory")["maxmemory"]) * 2 <= int(limit.removesuffix("Mi")) * 2**20
        with redis.Redis(port=port) as stranger:
            assert not answers(stranger)
