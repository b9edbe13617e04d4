"""Owns the shape of the operators' resources as far as our manifests use them; strict: what is not named is refused.

From the operators' own documentation (CloudNativePG, its Barman Cloud plugin, cert-manager, Prometheus' operator). The
operators check the rest when they are given it.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string", "minLength": 1}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
DURATION: Schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
COUNT: Schema = {"type": "integer", "minimum": 1}
FLAG: Schema = {"type": "boolean"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def _map(of: Schema) -> Schema:
    return {"type": "object", "additionalProperties": of}


_METADATA = _object({"name": STRING, "namespace": STRING}, {"labels": _map(STRING)})
_SELECTOR = _object(
    {},
    {
        "matchLabels": _map(STRING),
        "matchExpressions": _list(
            _object(
                {"key": STRING, "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}},
                {"values": _list(STRING)},
            )
        ),
    },
)
_SIZES = _object({"cpu": QUANTITY, "memory": QUANTITY})
_KEY = _object({"name": STRING, "key": STRING})


def _resource(api_version: str, kind: str, spec: Schema) -> Schema:
    return _object({"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": _METADATA, "spec": spec})


_CLUSTER = _object(
    {
        "imageName": {"type": "string", "pattern": "@sha256:[0-9a-f]{64}$"},
        "instances": COUNT,
        "primaryUpdateStrategy": {"enum": ["unsupervised", "supervised"]},
        "primaryUpdateMethod": {"enum": ["switchover", "restart"]},
        "enableSuperuserAccess": {"const": False},
        "bootstrap": _object(
            {},
            {
                "initdb": _object(
                    {"database": STRING, "owner": STRING, "encoding": {"const": "UTF8"}, "dataChecksums": FLAG},
                    {"postInitApplicationSQL": _list(STRING)},
                ),
                "recovery": _object(
                    {"source": STRING, "database": STRING, "owner": STRING},
                    {"recoveryTarget": _object({"targetTime": STRING})},
                ),
            },
        ),
        "postgresql": _object(
            {"parameters": _map(STRING)},
            {
                "synchronous": _object(
                    {
                        "method": {"enum": ["any", "first"]},
                        "number": COUNT,
                        "dataDurability": {"enum": ["required", "preferred"]},
                    }
                )
            },
        ),
        "storage": _object({"size": QUANTITY}),
        "walStorage": _object({"size": QUANTITY}),
        "resources": _object({"requests": _SIZES, "limits": _SIZES}),
        "affinity": _object(
            {
                "enablePodAntiAffinity": FLAG,
                "topologyKey": STRING,
                "podAntiAffinityType": {"enum": ["preferred", "required"]},
            }
        ),
    },
    {
        "enablePDB": FLAG,
        "plugins": _list(_object({"name": STRING, "isWALArchiver": FLAG, "parameters": _map(STRING)})),
        "externalClusters": _list(
            _object({"name": STRING, "plugin": _object({"name": STRING, "parameters": _map(STRING)})})
        ),
    },
)
_SCHEDULED_BACKUP = _object(
    {
        "schedule": {"type": "string", "pattern": r"^\S+( \S+){5}$"},  # six fields: seconds first
        "immediate": FLAG,
        "backupOwnerReference": {"enum": ["none", "self", "cluster"]},
        "cluster": _object({"name": STRING}),
        "method": {"const": "plugin"},
        "pluginConfiguration": _object({"name": STRING}),
    }
)
_OBJECT_STORE = _object(
    {
        "retentionPolicy": {"type": "string", "pattern": "^[1-9][0-9]*[dwm]$"},
        "configuration": _object(
            {
                "destinationPath": {"type": "string", "pattern": "^s3://.+/$"},
                "s3Credentials": _object({"accessKeyId": _KEY, "secretAccessKey": _KEY}),
                "wal": _object({"compression": STRING, "maxParallel": COUNT}),
                "data": _object({"compression": STRING, "jobs": COUNT}),
            }
        ),
    }
)
_POD_MONITOR = _object(
    {
        "selector": _SELECTOR,
        "podTargetLabels": _list(STRING),
        "podMetricsEndpoints": _list(
            _object({"port": STRING, "path": STRING, "interval": DURATION, "scrapeTimeout": DURATION})
        ),
    }
)
_RULES = _object(
    {
        "groups": _list(
            _object(
                {
                    "name": STRING,
                    "rules": _list(
                        _object(
                            {"expr": STRING},
                            {
                                "alert": STRING,
                                "record": STRING,
                                "for": DURATION,
                                "keep_firing_for": DURATION,
                                "labels": _map(STRING),
                                "annotations": _map(STRING),
                            },
                        )
                    ),
                },
                {"interval": DURATION, "labels": _map(STRING)},
            )
        )
    }
)

_ISSUER_REFERENCE = _object({"kind": {"const": "Issuer"}, "name": STRING})
_PRIVATE_KEY = _object(
    {"algorithm": {"const": "ECDSA"}, "size": {"const": 256}}, {"rotationPolicy": {"enum": ["Always", "Never"]}}
)
_CERTIFICATE = _object(
    {"secretName": STRING, "duration": DURATION, "privateKey": _PRIVATE_KEY, "issuerRef": _ISSUER_REFERENCE},
    {
        "renewBefore": DURATION,
        "isCA": FLAG,
        "commonName": STRING,
        "usages": _list({"enum": ["server auth", "client auth"]}),
        "dnsNames": _list(STRING),
    },
)
_ISSUER = _object({}, {"selfSigned": _object({}), "ca": _object({"secretName": STRING})})

SCHEMAS: dict[str, Schema] = {
    kind: _resource(api_version, kind, spec)
    for api_version, kind, spec in (
        ("postgresql.cnpg.io/v1", "Cluster", _CLUSTER),
        ("postgresql.cnpg.io/v1", "ScheduledBackup", _SCHEDULED_BACKUP),
        ("barmancloud.cnpg.io/v1", "ObjectStore", _OBJECT_STORE),
        ("cert-manager.io/v1", "Certificate", _CERTIFICATE),
        ("cert-manager.io/v1", "Issuer", _ISSUER),
        ("monitoring.coreos.com/v1", "PodMonitor", _POD_MONITOR),
        ("monitoring.coreos.com/v1", "PrometheusRule", _RULES),
    )
}
