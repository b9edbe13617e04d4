"""Owns `/openapi.json`: the REST surface as an OpenAPI 3.1 document, generated from the contracts.

- contracts.py: types and comments, read from the descriptors
- schemas.py: messages as JSON Schema, in the form that requests take and in the form that answers have
- answers.py: which statuses a call has, and the body of each refusal
- document.py: paths, parameters, the whole
- openapi.json: what came of it, committed; `python -m gateway.openapi --check` fails where it is not current
"""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent / "openapi.json"
PATH = "/openapi.json"
