"""The part of JobSet v1alpha2 that launch/gke.sh uses, as a JSON schema that knows nothing else.

Written by hand from the reference of the API; a manifest with a field that is not named here fails.
The template of a job is Kubernetes' own, and is checked against its schema.
"""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_RULE_NAME = {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}
_JOB_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}


def _record(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def _map(of: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": of}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


_ACTIONS = (
    "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts",
    "RestartJob", "RestartJobAndIgnoreMaxRestarts",
)  # fmt: skip
_REASONS = (
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
)  # fmt: skip

SCHEMA = _record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_record(
        ("name",),
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        labels=_map({"type": "string", "maxLength": 63}),
        annotations=_map(_TEXT),
    ),
    spec=_record(
        ("replicatedJobs",),
        ttlSecondsAfterFinished=_COUNT,
        failurePolicy=_record(
            (),
            maxRestarts=_COUNT,
            rules=_list(
                _record(
                    ("name", "action"),
                    name=_RULE_NAME,
                    action={"enum": list(_ACTIONS)},
                    onJobFailureReasons=_list({"enum": list(_REASONS)}),
                )
            ),
        ),
        replicatedJobs=_list(
            _record(
                ("name", "template"),
                name=_JOB_NAME,
                replicas=_COUNT,
                template=_record(("spec",), spec={"type": "object"}),
            )
        ),
    ),
)
"""Schema of a manifest."""
