"""Owns Envoy's configuration as a whole: JSON documents, derived from the contracts and what an operator may set.

Run as `python -m gateway.render --help`; `deploy/local` calls `configuration()`. What each filter is for stands in
`gateway/README.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from gateway import clusters, http_filters, listeners, overload, tls, tracing
from gateway.bindings import read_bindings
from gateway.options import Address, Options

__all__ = ["DESCRIPTOR_SET", "Address", "Options", "configuration", "files"]

Json = dict[str, Any]

DESCRIPTOR_SET = Path(__file__).resolve().parent.parent / "protos" / "gen" / "tollkeeper.binpb"
# In RE2's instructions. Envoy's 100 are meant for others' expressions; that of answer_headers.py has some 360.
_RUNTIME: Json = {"re2.max_program_size.error_level": 1_000}


def files(
    *, listen: Address, admin: Address | None, services: Mapping[str, Sequence[Address]], options: Options
) -> dict[str, Json]:
    """Every file that Envoy needs, by name: `envoy.json`, and a document for each certificate.

    Raises:
        ValueError: as `configuration`.
    """
    return {
        "envoy.json": configuration(listen=listen, admin=admin, services=services, options=options),
        **tls.documents(options),
    }


def configuration(
    *,
    listen: Address,
    admin: Address | None,
    services: Mapping[str, Sequence[Address]],
    descriptor_set: bytes | None = None,
    options: Options | None = None,
) -> Json:
    """Envoy's bootstrap configuration.

    Args:
        listen: where clients connect.
        admin: Envoy's own interface; it can stop Envoy, so a loopback address. None: there is none.
        services: each service's gRPC addresses, one for each replica or one name for all; every service that the
            contracts give a route must be there.
        descriptor_set: the contracts, serialised; the committed ones where it is not given.
        options: what else may be set.

    Raises:
        ValueError: a service is missing, the contracts contradict themselves, the admin address can be reached from
            outside, or metrics are to be served without it.
    """
    options = options or Options()
    contracts = DESCRIPTOR_SET.read_bytes() if descriptor_set is None else descriptor_set
    bindings = read_bindings(contracts)
    contracts = _with_error_details(contracts)
    missing = sorted(({binding.service for binding in bindings} | {http_filters.AUTHORIZER}) - set(services))
    if missing:
        raise ValueError(f"no address for {', '.join(missing)}")
    if admin is not None and not admin.is_loopback:
        raise ValueError(f"admin: {admin.host} is not a loopback address, and who reaches it can stop Envoy")
    if options.metrics is not None and admin is None:
        raise ValueError("metrics: they are read from the admin interface, and there is none")
    return {
        "node": {"id": "gateway", "cluster": "tollkeeper"},
        **({"admin": {"address": admin.as_envoy()}} if admin else {}),
        "static_resources": {
            "listeners": [
                listeners.edge(listen, bindings, contracts, options),
                *([listeners.metrics(options.metrics)] if options.metrics else []),
            ],
            "clusters": [
                *(clusters.service(name, addresses, options) for name, addresses in services.items()),
                *([clusters.admin(admin)] if admin and options.metrics else []),
                *tracing.clusters(options),
            ],
        },
        "overload_manager": overload.overload_manager(options),
        "layered_runtime": {"layers": [{"name": "gateway", "static_layer": _RUNTIME}]},
    }


def _with_error_details(contracts: bytes) -> bytes:
    """The contracts with `google.rpc.ErrorInfo` and its kin, without which a refusal's details can not become JSON."""
    files = descriptor_pb2.FileDescriptorSet.FromString(contracts)
    known = {file.name for file in files.file}

    def add(file: FileDescriptor) -> None:
        if file.name not in known:
            known.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            file.CopyToProto(files.file.add())

    add(error_details_pb2.DESCRIPTOR)
    add(status_pb2.DESCRIPTOR)
    return files.SerializeToString(deterministic=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write Envoy's configuration for Tollkeeper's gateway.")
    add = parser.add_argument
    add("--output", type=Path, metavar="FOLDER", help="where the files go; without it envoy.json is printed")
    add("--listen", type=Address.parse, required=True, metavar="HOST:PORT")
    add("--admin", type=Address.parse, default=Address("127.0.0.1", 9901), metavar="HOST:PORT", help="on loopback")
    add("--no-admin", action="store_const", const=None, dest="admin", help="do without Envoy's own interface")
    add(
        "--service",
        action="append",
        required=True,
        metavar="NAME=HOST:PORT[,HOST:PORT…]",
        help="where a service serves gRPC; once for each",
    )
    add("--metrics", type=Address.parse, metavar="HOST:PORT", help="where /metrics and /ready are served")
    add("--certificate-folder", metavar="FOLDER", help="holds tls.crt and tls.key for clients, as Envoy sees it")
    add("--identity-folder", metavar="FOLDER", help="holds tls.crt, tls.key and ca.crt for mutual TLS with services")
    add("--configuration-folder", metavar="FOLDER", help="where Envoy will find the files; default: --output")
    add("--cors-origin", action="append", default=[], dest="cors_origins", metavar="https://HOST", help="may be many")
    add("--trusted-hops", type=int, metavar="N", help="proxies before this one whose x-forwarded-for is believed")
    add("--traces", type=Address.parse, metavar="HOST:PORT", help="a collector that takes traces by OTLP over HTTP")
    add("--trace-percent", type=int, metavar="N", help="of traces that begin here, how many are kept; default: all")
    add(
        "--model-call-seconds",
        type=int,
        metavar="N",
        help="silence after which a model call is ended; half a minute above the proxy's UPSTREAM_TOTAL_SECONDS",
    )
    add("--max-heap-bytes", type=int, metavar="N", help="of Envoy; set it to about 0.8 of the container's limit")
    add("--max-connections", type=int, metavar="N")
    add("--max-requests-per-service", type=int, metavar="N")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options)}
    if given["configuration_folder"] is None and arguments.output is not None:
        given["configuration_folder"] = str(arguments.output.resolve())
    given["cors_origins"] = tuple(arguments.cors_origins)
    options = Options(**{name: value for name, value in given.items() if value is not None})
    if tls.documents(options) and arguments.output is None:
        raise ValueError("--output: certificates need files of their own beside envoy.json")
    return options


def main() -> None:
    """Write or print the configuration that the command line asks for."""
    parser = _parser()
    arguments = parser.parse_args()
    services = {}
    try:
        for entry in arguments.service:
            name, _, addresses = entry.partition("=")
            services[name] = [Address.parse(address) for address in addresses.split(",")]
        written = files(listen=arguments.listen, admin=arguments.admin, services=services, options=_options(arguments))
    except ValueError as mistake:
        parser.error(str(mistake))
    if arguments.output is None:
        json.dump(written["envoy.json"], sys.stdout, indent=2)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, document in written.items():
        (arguments.output / name).write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
